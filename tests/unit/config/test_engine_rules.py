import json

import pytest

from megatron_spell.config.engine_rules import engine_faults
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.layout.engine_mesh import EngineMesh
from tests.unit.config.test_check import QWEN3, QWEN3_MOE


def faults(shape: dict | None = None, *, on_cpu: bool = False, **sections) -> list[str]:
    needed = {"name": "t", "run_folder": "run", "model": {"path": "model"}, "data": {"store": "store.h5"}}
    config = RunConfig.model_validate(needed | sections)
    model = ModelShape.from_json(json.loads(json.dumps(QWEN3 | (shape or {}))))
    return list(engine_faults(model, config, on_cpu=on_cpu))


def rollout(**settings) -> dict:
    return {"rollout": settings}


@pytest.mark.parametrize(
    ("shape", "sections"),
    [
        ({}, {}),
        ({}, rollout(tensor_parallel=4, pipeline_parallel=3, data_parallel=2)),  # 2 key-value heads: replicated
        (QWEN3_MOE, rollout(tensor_parallel=4, expert_parallel=True)),
        (QWEN3_MOE, rollout(tensor_parallel=2, data_parallel=2)),
        ({}, rollout(engines=2, placement="colocated") | {"policy": {"mesh": {"dp": 2}}}),
        ({}, {"bridge": {"transport": "nccl", "landing": "in_place"}}),
    ],
)
def test_what_vllm_can_do_on_gpus_is_no_fault(shape, sections):
    assert faults(shape, **sections) == []


@pytest.mark.parametrize(
    ("shape", "sections", "expected"),
    [
        (
            {},
            rollout(tensor_parallel=3),
            "rollout.tensor_parallel = 3: the model's 4 attention heads and 1024 rows of the vocabulary, padded to a"
            " multiple of 64, do not divide by it; use a divisor of 4",
        ),
        ({"intermediate_size": 385}, rollout(tensor_parallel=2), "rollout.tensor_parallel = 2: the model's 385 feed-"),
        (
            {"num_attention_heads": 12, "num_key_value_heads": 6, "intermediate_size": 384},
            rollout(tensor_parallel=4),
            "rollout.tensor_parallel = 4: the model's 6 key-value heads neither divide by it nor divide it; use a",
        ),
        ({}, rollout(pipeline_parallel=5), "rollout.pipeline_parallel = 5: the model has 4 layers to fill the"),
        ({}, rollout(tensor_parallel=2, expert_parallel=True), "rollout.expert_parallel = True: the model has no ex"),
        (QWEN3_MOE, rollout(expert_parallel=True), "rollout.expert_parallel = True: tensor_parallel x data_parallel"),
        (
            QWEN3_MOE,
            rollout(tensor_parallel=2, data_parallel=4, expert_parallel=True),
            "rollout.expert_parallel = True: tensor_parallel x data_parallel = 8 worker(s) cannot share 4 experts",
        ),
        (
            QWEN3_MOE | {"moe_intermediate_size": 65},
            rollout(tensor_parallel=2),
            "rollout.tensor_parallel = 2: an expert's 65 feed-forward columns do not divide over 2 workers; set",
        ),
        (
            {"num_attention_heads": 8} | QWEN3_MOE,
            rollout(tensor_parallel=8),
            "rollout.tensor_parallel = 8: vLLM wants no more workers than the model's 4 experts",
        ),
        (
            {},
            rollout(engines=2, tensor_parallel=2, placement="colocated") | {"policy": {"mesh": {"dp": 3}}},
            "rollout.engines = 2: their 4 workers would share the GPUs of 3 trainer ranks",
        ),
        (
            {},
            rollout(placement="colocated") | {"bridge": {"transport": "nccl"}},
            "bridge.transport = nccl: NCCL refuses two ranks on one GPU, and rollout.placement is colocated",
        ),
        (
            {},
            rollout(placement="colocated") | {"cluster": {"ray_address": "auto"}},
            "rollout.placement = colocated: the Ray cluster that is joined does not know which GPUs",
        ),
        (
            {},
            {"bridge": {"transport": "vllm_nccl", "landing": "in_place"}},
            "bridge.landing = in_place: transport vllm_nccl delivers whole tensors",
        ),
        (
            {},
            {"bridge": {"transport": "vllm_nccl"}},
            "bridge.check = True: transport vllm_nccl compares nothing after landing; set it to false",
        ),
    ],
)
def test_each_rule_names_field_value_and_way_out(shape, sections, expected):
    lines = faults(shape, **sections)
    assert any(line.startswith(expected) for line in lines), lines
    assert all("; " in line and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("shape", "sections", "expected"),
    [
        ({}, rollout(placement="colocated"), "rollout.placement = colocated: vLLM on a CPU does not sleep; use split"),
        ({}, {"bridge": {"transport": "nccl"}}, "bridge.transport = nccl: there is no GPU here; use auto, shm or"),
        (QWEN3_MOE, rollout(data_parallel=2), "rollout.data_parallel = 2: vLLM on a CPU has no exchange of tokens"),
    ],
)
def test_a_cpu_can_do_less(shape, sections, expected):
    (line,) = faults(shape, on_cpu=True, **sections)
    assert line.startswith(expected)


def test_several_workers_run_on_a_cpu_too():
    assert faults(QWEN3_MOE, on_cpu=True, **rollout(tensor_parallel=2, expert_parallel=True)) == []
    assert faults(on_cpu=True, **rollout(tensor_parallel=2, pipeline_parallel=2, data_parallel=2)) == []


def test_the_settings_name_the_mesh_of_an_engine():
    config = RunConfig.model_validate(
        {"name": "t", "run_folder": "r", "model": {"path": "m"}, "data": {"store": "s"}}
        | rollout(tensor_parallel=2, pipeline_parallel=3, expert_parallel=True)
    )
    assert config.rollout.mesh() == EngineMesh(tp=2, pp=3, expert_parallel=True)

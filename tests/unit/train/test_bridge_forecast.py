from dataclasses import replace
from pathlib import Path

import pytest

from megatron_spell.config.hardware import Hardware
from megatron_spell.config.load import load_config
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.bridge_forecast import Layout, forecast
from megatron_spell.train.bridge_timing import Path as Link
from tests.unit.bridge.made_weights import made_shape

ROOT = Path(__file__).parents[3]
ON_64, ON_256 = Mesh(tp=2, pp=4, dp=8, ep=8, etp=1), Mesh(tp=4, pp=4, dp=16, ep=8, etp=1)
ONE = {"one": Hardware(nvlink_gb_per_s=1, infiniband_gb_per_s=0.5, hbm_copy_gb_per_s=2, message_latency_us=0)}
SHAPE = made_shape(family="llama", tied=False, layers=2, vocab=64)
REPLICATED = 5 * 12  # elements of the norms, two a layer and the last
TOTAL = SHAPE.num_parameters


def layout(**changes) -> Layout:
    kept = {"shape": SHAPE, "mesh": Mesh(), "engine_mesh": EngineMesh(), "num_engines": 1, "dtype": "bfloat16"}
    return Layout(**{**kept, "bucket_bytes": 2**20, "gpus_per_node": 2} | changes)


def test_one_trainer_into_one_worker_moves_the_model_once():
    found = forecast(layout(), ONE)
    assert found.num_bytes == found.sent_bytes.max == found.received_bytes.min == 2 * TOTAL
    assert found.num_bytes_by_path == {Link.SAME_GPU: 0, Link.NVLINK: 2 * TOTAL, Link.INFINIBAND: 0}
    assert (found.num_messages, found.messages_of_trainers.max, found.messages_of_workers.max) == (1, 1, 1)
    assert found.trainer_peak_extra_bytes == found.worker_peak_extra_bytes == 2 * 2 * TOTAL
    (prediction,) = found.predictions
    assert prediction.bound.seconds == pytest.approx(2 * TOTAL / 1e9)
    assert prediction.seconds == pytest.approx(2 * TOTAL * (0.5 + 1 + 0.5) / 1e9)  # packed, sent, landed; one bucket


def test_two_engines_of_two_workers_by_hand():
    # GPUs 0 and 1 train; engine 0 has GPUs 2 and 3, engine 1 GPUs 4 and 5: all bytes cross nodes.
    found = forecast(layout(mesh=Mesh(tp=2), engine_mesh=EngineMesh(tp=2), num_engines=2, dtype="float32"), ONE)
    of_a_worker = 4 * ((TOTAL - REPLICATED) // 2 + REPLICATED)
    assert found.received_bytes.min == found.received_bytes.max == of_a_worker
    assert found.num_bytes == found.num_bytes_by_path[Link.INFINIBAND] == 4 * of_a_worker
    assert found.sent_bytes.mean == 2 * of_a_worker
    assert found.predictions[0].bound.seconds == pytest.approx(found.sent_bytes.max / 0.5e9)
    assert found.predictions[0].bound.sends


def test_colocated_engines_take_what_is_on_their_gpu_and_node():
    apart = layout(mesh=Mesh(dp=4), num_engines=4, colocated=True)
    found = forecast(apart, ONE)
    assert apart.sites().gpus == {0: 0, 1: 1, 2: 2, 3: 3, 4: 0, 5: 1, 6: 2, 7: 3}
    assert found.num_bytes == 4 * 2 * TOTAL
    assert found.num_bytes_by_path[Link.INFINIBAND] == 0  # replicas on the node come first


def test_each_engine_gets_its_part_of_the_bucket():
    found = forecast(layout(num_engines=2, bucket_bytes=4096), ONE)
    messages_of_one_engine = -(-2 * TOTAL // 2048)
    assert found.num_messages >= 2 * messages_of_one_engine
    assert found.worker_peak_extra_bytes <= 2 * 2048
    assert 2048 < found.trainer_peak_extra_bytes <= 2 * 4096


@pytest.mark.parametrize(
    ("model", "num_tensors", "billions", "changes"),
    [
        pytest.param("qwen3_30b_a3b", 18867, 30.53, {}, marks=pytest.mark.slow),
        pytest.param(
            "qwen3_30b_a3b",
            18867,
            30.53,
            {"mesh": ON_64, "engine_mesh": EngineMesh(tp=2), "num_engines": 8},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "qwen3_30b_a3b",
            18867,
            30.53,
            {"mesh": ON_256, "engine_mesh": EngineMesh(tp=8, expert_parallel=True)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "qwen3_32b", 707, 32.76, {"engine_mesh": EngineMesh(tp=2), "num_engines": 8}, marks=pytest.mark.slow
        ),
        ("llama_3_1_8b", 291, 8.03, {}),
    ],
)
def test_real_models_are_covered_within_their_limits(model, num_tensors, billions, changes, monkeypatch):
    monkeypatch.chdir(ROOT)
    planned = replace(Layout.of(load_config(ROOT / "examples/bridge_dry_run" / model / "run.yaml")), **changes)
    found = forecast(planned, ONE)
    assert found.faults == ()
    assert found.num_tensors == found.num_model_tensors == num_tensors
    assert planned.shape.num_parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert found.num_bytes >= planned.num_engines * planned.shape.num_parameters * 2
    assert found.trainer_peak_extra_bytes <= 2 * planned.bucket_bytes
    assert found.worker_peak_extra_bytes <= 2 * planned.engine_bucket_bytes
    assert found.plan_json_bytes < 5e6
    assert found.sent_bytes.imbalance < 1.05
    assert all(each.seconds >= each.bound.seconds for each in found.predictions)

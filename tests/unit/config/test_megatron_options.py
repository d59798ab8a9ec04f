"""Native Megatron options are held against the sources of the megatron-core that is installed."""

import ast
import dataclasses
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from megatron_spell.config.megatron_options import HOMES, installed_folder, known_fields, option_faults, takes
from megatron_spell.config.megatron_refusals import REFUSALS
from megatron_spell.config.policy_sections import PolicySection


def faults(on_cpu: bool = True, policy: dict | None = None, **megatron) -> list[str]:
    return list(option_faults(PolicySection(megatron=megatron, **(policy or {})), on_cpu=on_cpu))


def test_what_megatron_knows_passes():
    recompute = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    optimizer = {"optimizer_cpu_offload": False, "log_num_zeros_in_grad": True}
    assert faults(transformer=recompute, ddp={"bucket_size": 1000}, optimizer=optimizer) == []


@pytest.mark.parametrize(
    ("section", "options", "expected"),
    [
        ("transformer", {"recompute_granularty": "full"}, "no such option; did you mean recompute_granularity?"),
        ("transformer", {"zzz": 1}, "no such option; see the fields of TransformerConfig"),
        ("transformer", {"bucket_size": 1}, "put it under policy.megatron.ddp"),
        (
            "transformer",
            {"recompute_num_layers": "two"},
            "recompute_num_layers = two: megatron-core takes Optional[int]",
        ),
        ("transformer", {"recompute_num_layers": True}, "takes Optional[int]"),
        ("transformer", {"recompute_granularity": "some"}, "takes Optional[Literal['full', 'selective']]"),
        ("transformer", {"recompute_modules": ["mlp", 3]}, "takes Optional[List[str]]"),
        ("transformer", {"init_method": "normal"}, "takes Optional[Callable]"),
        ("transformer", {"tensor_model_parallel_size": 2}, "policy.mesh.tp says this; set policy.mesh.tp"),
        ("transformer", {"num_layers_in_first_pipeline_stage": 2}, "set policy.mesh.stage_layers"),
        ("transformer", {"pipeline_model_parallel_layout": "Et|ttL"}, "set policy.mesh.stage_layers"),
        ("transformer", {"account_for_loss_in_pipeline_split": True}, "set policy.mesh.stage_layers"),
        ("transformer", {"num_layers": 2}, "the model's config.json decides this"),
        ("transformer", {"attention_dropout": 0.1}, "drops nothing"),
        ("transformer", {"cross_entropy_loss_fusion": True}, "gradients off by 8e-3"),
        ("transformer", {"deallocate_pipeline_outputs": True}, "in the one way that is exact"),
        ("transformer", {"fp8": "hybrid"}, "8-bit and 4-bit training is not offered"),
        ("transformer", {"gradient_accumulation_fusion": True}, "needs a GPU"),
        ("ddp", {"use_distributed_optimizer": True}, "policy.distributed_optimizer says this"),
        ("ddp", {"grad_reduce_in_fp32": 1}, "megatron-core takes bool"),
        ("optimizer", {"adam_beta1": 0.8}, "set policy.optimizer.beta1"),
        ("optimizer", {"optimizer": "sgd"}, "the optimizer is AdamW"),
        ("optimizer", {"optimizer_cpu_offload": True}, "needs a GPU"),
    ],
)
def test_what_cannot_be_is_one_line(section, options, expected):
    [fault] = faults(**{section: options})
    assert fault.startswith(f"policy.megatron.{section}.{next(iter(options))} = ")
    assert expected in fault
    assert "\n" not in fault


def test_optimizer_offload_says_what_it_needs():
    offload = {"optimizer_cpu_offload": True, "optimizer_offload_fraction": 1.0}
    lacking = faults(on_cpu=False, policy={"dtype": "float32"}, optimizer=offload)
    wanted = ["distributed_optimizer to true", "dtype to bfloat16"]
    if find_spec("transformer_engine") is None:
        wanted = ["with Transformer Engine only", *wanted]
    assert len(lacking) == len(wanted) and all(want in fault for want, fault in zip(wanted, lacking))
    right = faults(on_cpu=False, policy={"distributed_optimizer": True}, optimizer=offload)
    assert right == lacking[: len(wanted) - 2]


def test_parsed_fields_are_those_of_the_classes():
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import TransformerConfig

    kinds = {"transformer": TransformerConfig, "ddp": DistributedDataParallelConfig, "optimizer": OptimizerConfig}
    for section, kind in kinds.items():
        wanted = {field.name for field in dataclasses.fields(kind) if not field.name.startswith("_")}
        assert known_fields(section, installed_folder()).keys() == wanted


def test_every_size_that_the_project_sets_is_refused():
    """What `transformer_config` passes must not be given twice."""
    from megatron_spell.policy import megatron_config

    written = ast.parse(Path(megatron_config.__file__).read_text())
    ours = {n.arg for node in ast.walk(written) if isinstance(node, ast.Call) for n in node.keywords if n.arg}
    for name in ours & known_fields("transformer", installed_folder()).keys():
        value = 1 if not name.endswith("_method") else "text"
        assert faults(transformer={name: value}), name


def test_nothing_is_imported_to_look():
    code = (
        "import sys; from megatron_spell.config.megatron_options import *;"
        "from megatron_spell.config.policy_sections import PolicySection as P;"
        "print(list(option_faults(P(megatron={'ddp': {'bucket_size': 1}}), on_cpu=True)),"
        "*[m for m in ('torch', 'megatron.core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("annotation", "fitting", "unfitting"),
    [
        ("float", [1, 0.5], [True, "1", None]),
        ("Optional[Union[str, list]]", ["a", [1], None], [1]),
        ("Tuple[str, ...]", [["a"], []], [[1], "a"]),
        ("int | None", [1, None], [1.5]),
        ("Literal[2, 3]", [2], [4, "2"]),
        ("Callable[[int], int]", [], [1, "f", None]),
        ("torch.dtype", [], ["float32"]),
    ],
)
def test_annotations(annotation, fitting, unfitting):
    parsed = ast.parse(annotation, mode="eval").body
    assert all(takes(parsed, value) for value in fitting)
    assert not any(takes(parsed, value) for value in unfitting)


def test_sections_agree():
    assert HOMES.keys() == REFUSALS.keys() == PolicySection().megatron.model_dump().keys()

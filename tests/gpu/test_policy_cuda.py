"""The policy on one GPU against Hugging Face in float32 on the CPU: `pytest -m gpu tests/gpu`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_spell.config.policy_sections import MegatronSection
from megatron_spell.config.schema import AlgoSection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup, step
from megatron_spell.policy.backends import Found
from tests.distributed.policy_lab import Reference, difference, make_batch, make_policy, make_rows, write_tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

KINDS = ("qwen3", "qwen2", "moe")
OFFLOAD = MegatronSection(optimizer={"optimizer_cpu_offload": True, "optimizer_offload_fraction": 0.5})


@pytest.fixture(scope="module", autouse=True)
def alone():
    setup.initialise(Mesh(), timeout_s=120)
    yield
    setup.shut_down()


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {kind: write_tiny(base / kind, kind) for kind in KINDS}


@pytest.fixture(params=["local", "transformer_engine"])
def backend(request) -> str:
    if request.param == "transformer_engine" and not Found.here().transformer_engine:
        pytest.skip("needs Transformer Engine")
    return request.param


def loaded(folder: Path, **settings):
    policy = make_policy(folder, **settings)
    policy.load_hf(folder)
    return policy


def log_prob_differences(policy, folder: Path) -> np.ndarray:
    rows, reference = make_rows(0), Reference(folder)
    with torch.no_grad():
        wanted = [reference.log_probs(row).numpy() for row in rows]
    return np.abs(np.concatenate(policy.log_probs(make_batch(rows))) - np.concatenate(wanted))


def gradients(policy) -> dict[str, torch.Tensor]:
    step.accumulate_gradients(policy.ddp, make_batch(make_rows(0)), AlgoSection())
    return {name: parameter.main_grad.float().cpu() for name, parameter in policy.parameters.items()}


def relative(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest, over parameters, norm of the difference by the norm of what is wanted."""
    assert found.keys() == wanted.keys()
    return max(((found[n] - wanted[n]).norm() / wanted[n].norm()).item() for n in wanted if wanted[n].any())


def test_everything_lives_on_the_gpu(folders):
    policy = loaded(folders["qwen3"])
    assert {tensor.device.type for tensor in policy.local_tensors().values()} == {"cuda"}


@pytest.mark.parametrize("kind", KINDS)
def test_float32_equals_hugging_face(folders, kind, tmp_path):
    """Log-probs, gradient norms and the weights after four updates."""
    policy, reference = loaded(folders[kind], backend="local"), Reference(folders[kind])
    assert log_prob_differences(policy, folders[kind]).max() < 1e-4
    reports = [policy.update(make_batch(make_rows(seed))) for seed in range(4)]
    norms = [reference.update(make_rows(seed)) for seed in range(4)]
    np.testing.assert_allclose([report.grad_norm for report in reports], norms, rtol=1e-4)
    policy.export_hf(tmp_path / "weights")
    assert difference(tmp_path / "weights", reference.tensors()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near_hugging_face(folders, kind, backend):
    policy = loaded(folders[kind], dtype="bfloat16", backend=backend)
    assert log_prob_differences(policy, folders[kind]).mean() < 0.05
    if kind != "moe":  # rounding sends tokens to other experts
        exact = gradients(loaded(folders[kind], backend="local"))
        assert relative(gradients(policy), exact) < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(folders, kind, backend):
    full = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    kept = gradients(loaded(folders[kind], dtype="bfloat16", backend=backend))
    again = loaded(folders[kind], dtype="bfloat16", backend=backend, megatron=MegatronSection(transformer=full))
    assert relative(gradients(again), kept) < 1e-2


def test_a_fused_rotation_takes_our_positions(folders, backend):
    if backend == "local":
        pytest.skip("the kernel is Transformer Engine's")
    fused = MegatronSection(transformer={"apply_rope_fusion": True})
    policy = loaded(folders["qwen3"], dtype="bfloat16", backend=backend, megatron=fused)
    assert log_prob_differences(policy, folders["qwen3"]).mean() < 0.05


@pytest.mark.parametrize("offload", [False, True])
def test_a_checkpoint_is_gone_on_from(folders, backend, offload, tmp_path):
    """The next update equals the uninterrupted run's, whoever counts AdamW's steps and wherever the moments are."""
    settings = {"dtype": "bfloat16", "backend": backend, "distributed_optimizer": offload}
    if offload and not Found.here().transformer_engine:
        pytest.skip("Megatron offloads with Transformer Engine only")
    if offload:
        settings["megatron"] = OFFLOAD
    policy = loaded(folders["qwen3"], **settings)
    for seed in (0, 1):
        policy.update(make_batch(make_rows(seed)))
    policy.save(tmp_path / "checkpoint")
    resumed = make_policy(folders["qwen3"], **settings)
    resumed.load(tmp_path / "checkpoint")
    for one in (policy, resumed):
        one.update(make_batch(make_rows(2)))
    apart = relative(
        {name: tensor.float().cpu() for name, tensor in resumed.local_tensors().items()},
        {name: tensor.float().cpu() for name, tensor in policy.local_tensors().items()},
    )
    assert apart < 1e-3

"""What decays, at which rate the weights move, and how far at most: against formulas and torch's own AdamW."""

import math
from dataclasses import replace

import pytest
import torch

from megatron_spell.bridge.stacks import unstacked
from megatron_spell.config.policy_sections import OptimizerSection
from megatron_spell.policy.optimizer import learning_rate
from tests.distributed.policy_lab import OPTIMIZER, difference, make_batch, make_policy, make_rows, write_tiny

NORMS = {"input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm"}


def section(**settings) -> OptimizerSection:
    return OptimizerSection(**(OPTIMIZER.model_dump() | settings))


def loaded(folder, **settings):
    policy = make_policy(folder, **settings)
    policy.load_hf(folder)
    return policy


def decays_by_name(name: str) -> bool:
    """By the Hugging Face name of a tensor, without a look at its shape."""
    *_, module, kind = name.split(".")
    return kind == "weight" and module not in NORMS


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama", "moe"])
def test_matrices_decay_and_norms_and_biases_do_not(alone, tmp_path, kind, distributed):
    """Without an advantage there is no gradient, so that an update is the decay and nothing else."""
    folder = write_tiny(tmp_path / kind, kind)
    policy = loaded(folder, optimizer=section(lr=0.5, weight_decay=0.1), distributed_optimizer=distributed)
    before = {name: tensor.clone() for name, tensor in policy.local_tensors().items()}
    report = policy.update(make_batch([replace(row, advantage=0.0) for row in make_rows(0)]))
    assert report.grad_norm == 0
    names = {segment.hf_name for segment in unstacked(policy.inventory())}
    assert any("bias" in name for name in names) == (kind == "qwen2")
    assert any("q_norm" in name for name in names) == (kind in ("qwen3", "moe"))
    for segment in unstacked(policy.inventory()):
        found = policy.local_tensors()[segment.local_name][segment.local_box.index]
        factor = 1 - 0.5 * 0.1 if decays_by_name(segment.hf_name) else 1.0
        torch.testing.assert_close(found, before[segment.local_name][segment.local_box.index] * factor)
    assert {decays_by_name(name) for name in names} == {True, False}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= {name for name in names if decays_by_name(name)}


def formula(settings: OptimizerSection, update: int) -> float:
    if update <= settings.warmup_steps:
        return settings.lr * update / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = min(1.0, (update - settings.warmup_steps) / (settings.decay_steps - settings.warmup_steps))
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.min_lr + (settings.lr - settings.min_lr) * left


@pytest.mark.parametrize("warmup_steps", [0, 3])
@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"schedule": "linear", "decay_steps": 10},
        {"schedule": "cosine", "decay_steps": 10},
        {"schedule": "linear", "decay_steps": 5, "min_lr": 2e-4},
        {"schedule": "cosine", "decay_steps": 8, "min_lr": 1e-3},
    ],
)
def test_rates_follow_the_formula_to_the_end_and_past_it(alone, model, schedule, warmup_steps):
    settings = section(warmup_steps=warmup_steps, **schedule)
    policy = make_policy(model, optimizer=settings)
    rates = []
    for _ in range(13):
        policy.schedule.step(1)
        rates.append(learning_rate(policy.optimizer))
        assert all(group["lr"] == rates[-1] for group in policy.optimizer.param_groups)
    assert rates == pytest.approx([formula(settings, update) for update in range(1, 14)], rel=1e-12)


def test_a_resumed_run_goes_on_along_its_schedule(alone, model, tmp_path):
    settings = section(warmup_steps=1, schedule="cosine", decay_steps=5, min_lr=1e-4)
    unbroken = loaded(model, optimizer=settings)
    for seed in range(2):
        unbroken.update(make_batch(make_rows(seed)))
    unbroken.save(tmp_path / "checkpoint")
    resumed = make_policy(model, optimizer=settings)
    resumed.load(tmp_path / "checkpoint")
    for update in (3, 4):
        reports = [policy.update(make_batch(make_rows(update))) for policy in (unbroken, resumed)]
        assert reports[0] == reports[1]
        assert reports[0].lr == pytest.approx(formula(settings, update), rel=1e-12)


def plain_update(reference, rows, clip_grad: float) -> None:
    reference.backward(rows)
    if clip_grad:
        torch.nn.utils.clip_grad_norm_(reference.model.parameters(), clip_grad)
    reference.optimizer.step()


@pytest.mark.parametrize("clip_grad", [0.0, 0.01, 1e6])
def test_a_clipped_update_is_torchs(alone, model, reference, clip_grad, tmp_path):
    policy = loaded(model, optimizer=section(clip_grad=clip_grad))
    assert policy.update(make_batch(make_rows(0))).grad_norm > 0.1  # of which clip_grad = 0.01 leaves a tenth at most
    plain_update(reference, make_rows(0), clip_grad)
    policy.export_hf(tmp_path / "weights")
    assert difference(tmp_path / "weights", reference.tensors()) < 1e-6
    planted = 0.0 if clip_grad == 0.01 else 0.01
    reference.model.load_state_dict(type(reference)(model).model.state_dict())
    reference.optimizer.state.clear()
    plain_update(reference, make_rows(0), planted)
    assert difference(tmp_path / "weights", reference.tensors()) > 1e-5

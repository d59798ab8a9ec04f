"""Gradients and optimizer steps against plain torch; what stops a step leaves the weights alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_spell.config.schema import AlgoSection, TrustSection
from megatron_spell.policy import step
from megatron_spell.policy.worker import TrustError
from megatron_spell.types.play import Role
from tests.distributed.policy_lab import (
    Reference,
    difference,
    make_batch,
    make_policy,
    make_rows,
    with_engine_log_probs,
)


def loaded(folder, **settings):
    policy = make_policy(folder, **settings)
    policy.load_hf(folder)
    return policy


def snapshot(policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.local_tensors().items()}


def unchanged(policy, before) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in policy.local_tensors().items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_bin_tokens", [40, 1000])
def test_gradients_of_shared_bins_equal_those_of_separate_rows(alone, models, tied, max_bin_tokens):
    policy, reference, rows = loaded(models[tied]), Reference(models[tied]), make_rows(0)
    step.accumulate_gradients(policy.ddp, make_batch(rows, max_bin_tokens=max_bin_tokens), AlgoSection())
    reference.backward(rows)
    gradients = {name: parameter.main_grad for name, parameter in policy.parameters.items()}
    wanted = {name: parameter.grad for name, parameter in reference.model.named_parameters()}
    for segment in policy.inventory():
        found = gradients[segment.local_name][segment.local_box.index]
        torch.testing.assert_close(found, wanted[segment.hf_name][segment.hf_box.index], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_four_updates_equal_plain_adamw(alone, models, tied, tmp_path):
    """Weight decay included: it must reach matrices only."""
    policy, reference = loaded(models[tied]), Reference(models[tied])
    reports = [policy.update(make_batch(make_rows(seed))) for seed in range(4)]
    norms = [reference.update(make_rows(seed)) for seed in range(4)]
    np.testing.assert_allclose([report.grad_norm for report in reports], norms, rtol=1e-5)
    policy.export_hf(tmp_path / "weights")
    assert difference(tmp_path / "weights", reference.tensors()) < 1e-6


def test_the_report_adds_up(alone, model):
    rows = make_rows(0)
    batch = make_batch(rows, dp=1)
    policy = loaded(model)
    log_probs = np.concatenate(policy.log_probs(batch))
    report = policy.update(batch)
    assert report.num_tokens == log_probs.size == sum(row.response_ids_A.size for row in rows)
    assert report.bin_tokens == batch.num_bin_tokens < report.row_tokens
    assert set(report.loss_of_role) == set(Role)
    assert sum(report.loss_of_role.values()) == pytest.approx(report.loss, abs=1e-6)
    assert report.log_prob_mean == pytest.approx(log_probs.mean(), abs=1e-4)
    # the rows' engine log-probs are zero
    assert report.log_prob_diff_mean == pytest.approx(np.abs(log_probs).mean(), abs=1e-4)
    assert report.log_prob_diff_max == pytest.approx(np.abs(log_probs).max(), abs=1e-4)
    assert 0 < report.entropy_mean < np.log(259)


def test_filler_bins_count_for_nothing(alone, model):
    rows = make_rows(0)
    batch = make_batch(rows)
    fillers = make_batch(rows[:1], dp=2).bins_D_B[1]
    assert (fillers[0].row_A == -1).all()
    with_fillers = replace(batch, bins_D_B=(batch.bins_D_B[0] + fillers,))
    plain, filled = (loaded(model).update(b) for b in (batch, with_fillers))
    assert filled.num_tokens == plain.num_tokens
    assert filled.grad_norm == pytest.approx(plain.grad_norm, rel=1e-6)
    assert filled.log_prob_diff_max == pytest.approx(plain.log_prob_diff_max)


@pytest.mark.parametrize(
    "off_by, field", [(1.0, "trust.max_log_prob_diff = 0.5"), (np.nan, "trust.max_log_prob_diff = 0.5")]
)
def test_a_wrong_engine_stops_the_step(alone, model, off_by, field):
    policy, rows = loaded(model, trust=TrustSection()), make_rows(0)
    found = policy.log_probs(make_batch(rows))
    found[3][0] += off_by
    before = snapshot(policy)
    with pytest.raises(TrustError) as caught:
        policy.update(make_batch(with_engine_log_probs(rows, found)))
    message = str(caught.value)
    assert field in message
    assert "\n" not in message
    assert unchanged(policy, before)
    assert policy.num_updates == 0


def test_a_small_difference_everywhere_stops_the_step_by_its_mean(alone, model):
    policy, rows = loaded(model, trust=TrustSection()), make_rows(0)
    found = [row + 0.1 for row in policy.log_probs(make_batch(rows))]
    with pytest.raises(
        TrustError, match=r"0\.1 at most and 0\.1 on average, beyond trust\.max_log_prob_diff_mean = 0\.05"
    ):
        policy.update(make_batch(with_engine_log_probs(rows, found)))


def test_an_honest_engine_is_trusted_after_a_refusal(alone, model):
    """What a refused batch left in the gradient buffers must not leak into the next step."""
    rows = make_rows(0)
    policy, fresh = (loaded(model, trust=TrustSection()) for _ in range(2))
    with pytest.raises(TrustError):
        policy.update(make_batch(rows))
    honest = make_batch(with_engine_log_probs(rows, policy.log_probs(make_batch(rows))))
    assert policy.update(honest).grad_norm == fresh.update(honest).grad_norm
    assert unchanged(policy, snapshot(fresh))


def test_bfloat16_follows_float32(alone, model):
    """Loose by nature; it must be the same direction, and the weights must move through their float32 copies."""
    full, half = (loaded(model, dtype=dtype) for dtype in ("float32", "bfloat16"))
    reports = [(full.update(make_batch(make_rows(s))), half.update(make_batch(make_rows(s)))) for s in range(2)]
    for exact, rough in reports:
        assert rough.grad_norm == pytest.approx(exact.grad_norm, rel=0.05)
        assert rough.log_prob_mean == pytest.approx(exact.log_prob_mean, abs=0.05)
    assert all(tensor.dtype == torch.bfloat16 for tensor in half.local_tensors().values())
    assert not unchanged(half, snapshot(loaded(model, dtype="bfloat16")))

"""Updates on rows that an older policy wrote: loss, gradients and figures against Hugging Face, rows run one by one."""

import numpy as np
import pytest
import torch

from megatron_spell.config.schema import AlgoSection, ImportanceSection, TrustSection
from megatron_spell.policy import step
from megatron_spell.policy.worker import TrustError
from tests.distributed.policy_lab import difference, make_batch, make_policy, make_rows, with_engine_log_probs
from tests.distributed.stale_rows import (
    FORMS,
    make_stale_rows,
    plain_backward,
    plain_figures,
    plain_rows,
    plain_update,
    stale_algo,
)

TRUST = TrustSection()


def loaded(folder, **settings):
    policy = make_policy(folder, **({"trust": TRUST} | settings))
    policy.load_hf(folder)
    return policy


def gradient_distance(policy, reference) -> float:
    wanted = reference.gradients()
    found = {name: parameter.main_grad for name, parameter in policy.parameters.items()}
    return max(
        (found[s.local_name][s.local_box.index] - wanted[s.hf_name][s.hf_box.index]).abs().max().item()
        for s in policy.inventory()
    )


@pytest.mark.parametrize("max_bin_tokens", [40, 1000])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_equal_those_of_separate_rows(alone, model, reference, form, max_bin_tokens):
    policy, algo, rows = loaded(model), stale_algo(form), make_stale_rows(reference, 0)
    batch = make_batch(rows, max_bin_tokens=max_bin_tokens)
    measured = step.accumulate_gradients(policy.ddp, batch, algo)
    assert measured.loss == pytest.approx(plain_backward(reference, rows, algo), rel=1e-4)
    assert gradient_distance(policy, reference) < 3e-5
    assert max(grad.abs().max().item() for grad in reference.gradients().values()) > 0.05
    planted = FORMS[FORMS.index(form) - 1]
    plain_backward(reference, rows, stale_algo(planted))
    assert gradient_distance(policy, reference) > 1e-3


def test_updates_equal_plain_adamw(alone, model, reference, tmp_path):
    algo = stale_algo("sequence_mean")
    policy = loaded(model, algo=algo)
    for seed in range(3):
        rows = make_stale_rows(reference, seed)
        report = policy.update(make_batch(rows))
        loss, norm = plain_update(reference, rows, algo)
        assert report.loss == pytest.approx(loss, rel=1e-4)
        assert report.grad_norm == pytest.approx(norm, rel=1e-4)
        assert sum(report.loss_of_role.values()) == pytest.approx(report.loss, abs=1e-6)
    policy.export_hf(tmp_path / "weights")
    assert difference(tmp_path / "weights", reference.tensors()) < 1e-6


@pytest.mark.parametrize("form", FORMS)
def test_the_figures_are_those_of_their_definitions(alone, model, reference, form):
    rows, algo = make_stale_rows(reference, 0), stale_algo(form)
    metrics = loaded(model, algo=algo).update(make_batch(rows)).metrics()
    wanted = plain_figures(plain_rows(reference, rows), algo)
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    acting = ("truncated", "clipped_low", "clipped_high") if form == "token" else ()
    for share in ("masked_tokens", "masked_rows", *acting):
        assert 0 < metrics[f"importance/{share}/share"] < 0.5, share
    assert metrics["responder/importance/masked_tokens/share"] > 0


def test_on_policy_the_same_distances_are_measured_and_nothing_is_corrected(alone, model, reference):
    rows = make_stale_rows(reference, 0)
    tolerant = TrustSection(max_log_prob_diff=99, max_log_prob_diff_mean=99)
    metrics = loaded(model, trust=tolerant).update(make_batch(rows)).metrics()
    wanted = plain_figures(plain_rows(reference, rows), stale_algo("token"))
    for name in ("mismatch/ratio/mean", "mismatch/ratio/max", "mismatch/k1", "mismatch/k3"):
        assert metrics[name] == pytest.approx(wanted[name], rel=1e-4)
    assert not [name for name in metrics if name.startswith("importance/")]


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_with_these_weights_makes_the_step_on_policy(alone, model, form):
    """At a sampling temperature other than 1, too."""
    rows = make_rows(0)
    plain, corrected = (
        loaded(model, algo=algo)
        for algo in (AlgoSection(), AlgoSection(importance=ImportanceSection(always=True, form=form)))
    )
    batch = make_batch(with_engine_log_probs(rows, plain.log_probs(make_batch(rows))))
    reports = [policy.update(batch) for policy in (plain, corrected)]
    assert reports[1].loss == pytest.approx(reports[0].loss, abs=1e-5)
    assert reports[1].grad_norm == pytest.approx(reports[0].grad_norm, rel=1e-4)
    correction = reports[1].mismatch.correction
    assert correction.weight_mean == pytest.approx(1, abs=1e-4)
    assert correction.effective_share == pytest.approx(1, abs=1e-6)
    assert correction.masked_tokens_share == 0


def test_a_difference_that_stops_an_on_policy_step_is_no_fault_of_stale_rows(alone, model, reference):
    batch = make_batch(make_stale_rows(reference, 0))
    for algo in (AlgoSection(), AlgoSection(importance=ImportanceSection(always=True))):
        with pytest.raises(TrustError, match=r"trust\.max_log_prob_diff = 0\.5"):
            loaded(model, algo=algo).update(batch)
    assert loaded(model, algo=stale_algo("token")).update(batch).log_prob_diff_max > 0.5


@pytest.mark.parametrize("off_by", [9.0, np.nan])
def test_an_engine_that_is_altogether_wrong_stops_a_step_on_stale_rows_too(alone, model, reference, off_by):
    rows = make_stale_rows(reference, 0)
    wrong = with_engine_log_probs(rows, [row.engine_log_probs_A + np.float32(off_by) for row in rows])
    policy = loaded(model, algo=stale_algo("sequence_mean"))
    before = {name: tensor.clone() for name, tensor in policy.local_tensors().items()}
    with pytest.raises(TrustError, match=r"trust\.max_masked_share = 0\.5 \(100\.0% of the tokens masked\)") as caught:
        policy.update(make_batch(wrong))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.local_tensors().items())
    assert policy.num_updates == 0

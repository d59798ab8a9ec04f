"""Importance weights, masks and the loss they make, against the definition written row by row, in float64."""

import numpy as np
import pytest
import torch

from megatron_spell.algo.importance import RowSums, importance_of
from megatron_spell.algo.losses import token_losses
from megatron_spell.config.schema import AlgoSection, ImportanceSection
from tests.unit.algo.plain_importance import PlainRow, plain_loss, plain_weights

FORMS = ("token", "sequence_mean", "sequence_product")
UNMASKED = {"mask_token_low": 0.0, "mask_token_high": None, "mask_row_low": 0.0, "mask_row_high": None}
LENGTHS = (5, 1, 9, 3, 7, 2)


def algo_of(form: str = "token", clip: float | None = 0.2, **importance) -> AlgoSection:
    section = ImportanceSection(form=form, **(UNMASKED | importance))
    return AlgoSection(max_staleness=1, clip_low=clip, clip_high=clip, importance=section)


def made_rows(seed: int, drift: float = 0.5) -> list[PlainRow]:
    """Rows of both signs of advantage, on either side of the engine; two of the tokens absurdly so."""
    rng = np.random.default_rng(seed)
    rows = []
    for length in LENGTHS:
        raw = -rng.exponential(2.0, length)
        engine = raw + rng.normal(rng.normal(scale=drift), drift, length)
        tempered = torch.tensor(raw * 1.3 + rng.normal(size=length), requires_grad=True)
        rows.append(PlainRow(tempered, raw, engine, rng.normal(), rng.random()))
    rows[0].engine[2] += 8.0
    rows[4].engine[5] -= 8.0
    return rows


def spread(rows: list[PlainRow], name: str) -> torch.Tensor:
    return torch.cat([torch.full((row.raw.size,), getattr(row, name), dtype=torch.float64) for row in rows])


def joined(rows: list[PlainRow], name: str) -> torch.Tensor:
    return torch.cat([torch.as_tensor(getattr(row, name)) for row in rows])


def row_sums_of(rows: list[PlainRow]) -> RowSums:
    row_A = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([row.raw.size for row in rows]))
    return RowSums(row_A, len(rows), lambda sums: sums)


def found_importance(rows: list[PlainRow], algo: AlgoSection):
    return importance_of(joined(rows, "raw"), joined(rows, "engine"), row_sums_of(rows), algo.importance)


def found_loss(rows: list[PlainRow], algo: AlgoSection) -> torch.Tensor:
    importance = found_importance(rows, algo)
    advantages_A, weights_A = spread(rows, "advantage"), spread(rows, "weight")
    log_probs_A = joined(rows, "log_probs")
    return token_losses(log_probs_A, advantages_A, weights_A, importance, algo.clip_low, algo.clip_high).sum()


def gradient(loss: torch.Tensor, rows: list[PlainRow]) -> np.ndarray:
    found = torch.autograd.grad(loss, [row.log_probs for row in rows], allow_unused=True)
    zeros = (torch.zeros_like(row.log_probs) for row in rows)
    return torch.cat([zero if grad is None else grad for grad, zero in zip(found, zeros)]).numpy()


CASES = [
    *(algo_of(form) for form in FORMS),
    *(algo_of(form, clip=None, cap=1.5) for form in FORMS),
    *(algo_of(form, mask_token_low=1e-2, mask_token_high=1e2) for form in FORMS),
    *(algo_of(form, mask_row_low=0.6, mask_row_high=1.6, cap=5.0) for form in FORMS),
    *(AlgoSection(importance=ImportanceSection(always=True, form=form)) for form in FORMS),
]


@pytest.mark.parametrize("algo", CASES, ids=lambda algo: f"{algo.importance}")
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradient_are_those_of_the_definition(algo, seed):
    rows = made_rows(seed)
    found, wanted = found_loss(rows, algo), plain_loss(rows, algo)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    np.testing.assert_allclose(gradient(found, rows), gradient(wanted, rows), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("algo", CASES, ids=lambda algo: f"{algo.importance}")
def test_weights_and_masks_are_those_of_the_definition(algo):
    rows = made_rows(5)
    importance = found_importance(rows, algo)
    wanted = [pair for row in rows for pair in plain_weights(row.raw, row.engine, algo)]
    assert importance.kept_A.tolist() == [kept for _, kept in wanted]
    weights = [weight * kept for weight, kept in wanted]
    np.testing.assert_allclose(importance.weights_A.numpy(), weights, rtol=1e-12)


def test_the_rows_meet_every_case():
    """Both masks, the cap and the clip on either side act in the rows above, for both signs of the advantage."""
    masked = found_importance(made_rows(0), CASES[6])
    assert 0 < (~masked.kept_A).sum() <= 2
    assert masked.row_kept_A.all()
    rows_masked = found_importance(made_rows(0), CASES[9])
    assert 0 < (~rows_masked.row_kept_A).sum() < masked.kept_A.numel()
    weights_A, advantages_A = found_importance(made_rows(0), CASES[0]).weights_A, spread(made_rows(0), "advantage")
    for sign in (-1, 1):
        of_sign = weights_A[advantages_A.sign() == sign]
        assert (of_sign == 2.0).any()
        assert (of_sign < 0.8).any()
        assert ((of_sign > 1.2) & (of_sign < 2)).any()


@pytest.mark.parametrize("form", FORMS)
def test_no_gradient_goes_through_the_weights(form):
    """Detached: each token's slope is weight * ratio * advantage, whatever the other tokens of its row do."""
    rows = made_rows(1, drift=0.02)
    algo = algo_of(form, clip=None, cap=100.0)
    weights = [weight for row in rows for weight, _ in plain_weights(row.raw, row.engine, algo)]
    slopes = -(spread(rows, "weight") * spread(rows, "advantage")).numpy() * weights
    np.testing.assert_allclose(gradient(found_loss(rows, algo), rows), slopes, rtol=1e-12)
    raw_A = joined(rows, "raw").requires_grad_()
    assert not importance_of(raw_A, joined(rows, "engine"), row_sums_of(rows), algo.importance).weights_A.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_an_engine_that_agrees_leaves_the_on_policy_loss(form):
    """To the bit, at any sampling temperature: the ratio is of raw log-probs, the gradient of tempered ones."""
    rows = made_rows(2)
    for row in rows:
        row.engine = row.raw
    advantages_A, weights_A = spread(rows, "advantage"), spread(rows, "weight")
    on_policy = token_losses(joined(rows, "log_probs"), advantages_A, weights_A, None, 0.2, 0.2).sum()
    found = found_loss(rows, AlgoSection(max_staleness=1, importance=ImportanceSection(form=form)))
    assert found.item() == on_policy.item()
    np.testing.assert_array_equal(gradient(found, rows), gradient(on_policy, rows))


@pytest.mark.parametrize("form", FORMS)
def test_a_ratio_that_is_inverted_would_be_seen(form):
    """Planted: engine / policy."""
    rows, algo = made_rows(0), algo_of(form)
    inverted = importance_of(joined(rows, "engine"), joined(rows, "raw"), row_sums_of(rows), algo.importance)
    wanted = [weight for row in rows for weight, _ in plain_weights(row.raw, row.engine, algo)]
    assert np.abs(inverted.weights_A.numpy() - wanted).max() > 0.1


def test_rows_that_are_spread_over_ranks_need_the_sum_over_ranks():
    """Every second token is another rank's; planted: each rank keeps to its own sums."""
    rows, algo = made_rows(3), algo_of("sequence_mean")
    whole = found_importance(rows, algo)
    row_A, num_tokens = row_sums_of(rows).row_A, whole.kept_A.numel()
    shares = [torch.arange(rank, num_tokens, 2) for rank in range(2)]
    raw_A, engine_A = joined(rows, "raw"), joined(rows, "engine")
    values_2_A = torch.stack([raw_A - engine_A, torch.ones_like(raw_A)])
    totals = values_2_A.new_zeros(2, len(rows) + 1).index_add_(1, row_A + 1, values_2_A)
    for own in shares:
        over_ranks, alone = (
            importance_of(
                raw_A[own], engine_A[own], RowSums(row_A[own], len(rows), sum_over), algo.importance
            ).weights_A
            for sum_over in (lambda _: totals, lambda sums: sums)
        )
        torch.testing.assert_close(over_ranks, whole.weights_A[own], rtol=1e-12, atol=0)
        assert (alone - whole.weights_A[own]).abs().max() > 1e-2


def test_a_masked_token_takes_no_part_and_changes_no_other():
    rows, algo = made_rows(0), algo_of("token", mask_token_high=100.0, mask_token_low=0.01)
    masked = ~found_importance(rows, algo).kept_A.numpy()
    assert masked.any()
    unmasked_algo = algo_of("token")
    with_mask, without = (gradient(found_loss(rows, each), rows) for each in (algo, unmasked_algo))
    assert not with_mask[masked].any()
    np.testing.assert_array_equal(with_mask[~masked], without[~masked])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", FORMS)
def test_an_engine_log_prob_that_is_no_number_never_reaches_the_loss(bad, form):
    rows = made_rows(1, drift=0.01)
    rows[2].engine[4] = bad
    algo = algo_of(form, mask_token_low=1e-4, mask_token_high=1e4)
    importance = found_importance(rows, algo)
    position = LENGTHS[0] + LENGTHS[1] + 4
    assert not importance.kept_A[position]
    assert importance.row_kept_A[:6].all()
    assert not np.isnan(bad) or not importance.row_kept_A[6:15].any()
    assert found_loss(rows, algo).isfinite()
    assert np.isfinite(gradient(found_loss(rows, algo), rows)).all()


def test_the_weights_of_fillers_and_of_no_tokens_are_finite():
    fillers = RowSums(torch.tensor([-1, 0, -1]), 1, lambda sums: sums)
    found = importance_of(torch.zeros(3), torch.zeros(3), fillers, ImportanceSection())
    assert found.weights_A.tolist() == [1, 1, 1]
    nothing = RowSums(torch.zeros(0, dtype=torch.long), 4, lambda sums: sums)
    assert importance_of(torch.zeros(0), torch.zeros(0), nothing, ImportanceSection()).kept_A.shape == (0,)

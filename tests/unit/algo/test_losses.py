import subprocess
import sys

import numpy as np
import pytest
import torch

from megatron_spell.algo.errors import AlgoError
from megatron_spell.algo.importance import RowSums, importance_of
from megatron_spell.algo.losses import row_weights, token_losses
from megatron_spell.config.schema import ImportanceSection
from megatron_spell.types.play import Role
from tests.unit.algo.made_rows import make_group, make_row

CLIP = {"clip_low": 0.2, "clip_high": 0.3}
BY_TOKEN = ImportanceSection(cap=2.0, mask_token_low=0, mask_token_high=None, mask_row_low=0, mask_row_high=None)


def test_per_role_weighs_every_group_of_a_role_alike():
    rows = make_group(Role.RESPONDER, 0, [3, 1]) + make_group(Role.RESPONDER, 1, [2, 4])
    rows += make_group(Role.VERIFIER, 2, [5]) + make_group(Role.QUESTIONER, 3, [2])
    expected = [1 / (2 * 4)] * 2 + [1 / (2 * 6)] * 2 + [1 / 5, 1 / 2]
    np.testing.assert_allclose(row_weights(rows, "per_role"), expected)


def test_per_role_adds_up_to_the_number_of_roles_present():
    rows = (
        make_group(Role.RESPONDER, 0, [3, 1])
        + make_group(Role.VERIFIER, 2, [5, 7])
        + make_group(Role.QUESTIONER, 4, [9])
    )
    lengths = np.array([row.response_ids_A.size for row in rows])
    assert (row_weights(rows, "per_role") * lengths).sum() == pytest.approx(3)


def test_token_mean_weighs_every_token_alike():
    rows = make_group(Role.RESPONDER, 0, [3, 1]) + make_group(Role.VERIFIER, 2, [6])
    np.testing.assert_allclose(row_weights(rows, "token_mean"), [0.1] * 3)


def test_a_roles_weight_multiplies_its_rows():
    rows = make_group(Role.RESPONDER, 0, [3, 1]) + make_group(Role.VERIFIER, 2, [6])
    for mode in ("per_role", "token_mean"):
        weighed = row_weights(rows, mode, {Role.VERIFIER: 0.25})
        np.testing.assert_allclose(weighed, row_weights(rows, mode) * [1, 1, 0.25])


def test_no_rows_have_no_weights():
    assert row_weights([], "per_role").shape == (0,)
    assert row_weights([], "token_mean").shape == (0,)


def test_a_group_of_two_roles_is_refused():
    rows = make_group(Role.RESPONDER, 0, [1]) + make_group(Role.VERIFIER, 0, [1])
    with pytest.raises(AlgoError, match="group 0 holds a responder and a verifier"):
        row_weights(rows, "per_role")


def test_an_empty_response_weighs_nothing_and_a_group_of_them_is_none():
    rows = make_group(Role.RESPONDER, 0, [3, 0, 1]) + make_group(Role.RESPONDER, 1, [0, 0])
    rows += make_group(Role.RESPONDER, 2, [2]) + make_group(Role.VERIFIER, 3, [0])
    np.testing.assert_allclose(row_weights(rows, "per_role"), [1 / 8, 0, 1 / 8, 0, 0, 1 / 4, 0])
    written = [row for row in rows if row.response_ids_A.size]
    for mode in ("per_role", "token_mean"):
        weights = row_weights(rows, mode)[[row.response_ids_A.size > 0 for row in rows]]
        np.testing.assert_array_equal(weights, row_weights(written, mode))
    assert row_weights([make_row([1], [])], "per_role").tolist() == [0.0]


def test_an_unknown_loss_is_refused():
    with pytest.raises(AlgoError, match=r"algo\.loss = 'ppo'"):
        row_weights(make_group(Role.VERIFIER, 0, [1]), "ppo")


def _importance(log_probs_A, old_A):
    each_its_row = RowSums(torch.arange(old_A.numel()), old_A.numel(), lambda sums: sums)
    return importance_of(log_probs_A, old_A, each_its_row, BY_TOKEN)


def _loss_and_gradient(log_probs, old, advantages, weights):
    log_probs_A = torch.tensor(log_probs, dtype=torch.float64, requires_grad=True)
    importance = None if old is None else _importance(log_probs_A, torch.tensor(old, dtype=torch.float64))
    loss = token_losses(log_probs_A, torch.tensor(advantages), torch.tensor(weights), importance, **CLIP).sum()
    loss.backward()
    return loss.item(), log_probs_A.grad.numpy()


def test_on_policy_the_loss_is_minus_the_weighted_advantages():
    loss, gradient = _loss_and_gradient([-1.0, -30.0], None, [2.0, -3.0], [0.5, 0.25])
    assert loss == pytest.approx(-(0.5 * 2 - 0.25 * 3))
    np.testing.assert_allclose(gradient, [-0.5 * 2, 0.25 * 3])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_off_policy_with_the_same_log_probs_is_the_on_policy_loss(advantage):
    log_probs = [-0.3, -2.0]
    on = _loss_and_gradient(log_probs, None, [advantage] * 2, [0.5, 0.1])
    off = _loss_and_gradient(log_probs, log_probs, [advantage] * 2, [0.5, 0.1])
    assert on[0] == pytest.approx(off[0])
    np.testing.assert_allclose(on[1], off[1])


# ratio, advantage -> surrogate, gradient of the surrogate with respect to the log-prob
CLIPPED = [
    (1.1, 1.0, 1.1, 1.1),
    (1.5, 1.0, 1.3, 0.0),  # risen far enough: clipped at 1 + clip_high
    (0.5, 1.0, 0.5, 0.5),  # fallen although good: still pulled back up
    (0.5, -1.0, -0.8, 0.0),  # fallen far enough: clipped at 1 - clip_low
    (1.5, -1.0, -1.5, -1.5),  # risen although bad: pushed down
    (9.0, -1.0, -2.0, -2.0),  # by no more than the importance cap
    (1e30, -1.0, -2.0, -2.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "surrogate", "slope"), CLIPPED)
def test_off_policy_clips_and_caps(ratio, advantage, surrogate, slope):
    loss, gradient = _loss_and_gradient([np.log(ratio) - 1.0], [-1.0], [advantage], [0.5])
    assert loss == pytest.approx(-0.5 * surrogate)
    np.testing.assert_allclose(gradient, [-0.5 * slope], atol=1e-12)


def test_an_importance_beyond_every_number_is_capped_too():
    loss, gradient = _loss_and_gradient([-1.0], [-1e4], [-1.0], [1.0])
    assert loss == pytest.approx(2.0)
    np.testing.assert_allclose(gradient, [2.0])


def test_micro_batches_only_add_up():
    rng = np.random.default_rng(0)
    log_probs, old = -rng.random(12), -rng.random(12)
    advantages, weights = rng.normal(size=12), rng.random(12)
    whole, gradient = _loss_and_gradient(log_probs, old, advantages, weights)
    parts = [_loss_and_gradient(log_probs[s], old[s], advantages[s], weights[s]) for s in (slice(5), slice(5, 12))]
    assert whole == pytest.approx(sum(loss for loss, _ in parts))
    np.testing.assert_allclose(gradient, np.concatenate([g for _, g in parts]))


def test_no_trained_token_is_a_loss_of_zero_with_a_gradient():
    loss, gradient = _loss_and_gradient([], None, [], [])
    assert loss == 0
    assert gradient.shape == (0,)


def test_the_loss_has_the_dtype_of_the_log_probs():
    log_probs_A = torch.zeros(2, dtype=torch.float32)
    double = torch.ones(2, dtype=torch.float64)
    importance = _importance(log_probs_A, double)
    assert token_losses(log_probs_A, double, double, importance, **CLIP).dtype == torch.float32


def test_the_room_is_imported_without_torch():
    code = "import sys, megatron_spell.algo.losses, megatron_spell.algo.packing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

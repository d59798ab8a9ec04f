"""Whatever bins rows are packed into: log-probs, loss and gradients are those of rows run by themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.schema import AlgoSection
from megatron_spell.policy import step
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role, TaskName
from tests.distributed.policy_lab import VOCAB, make_policy

# (prompt length, response lengths, role) of each group, and the longest bin
UNEQUAL = [(13, (5, 19, 1, 7), Role.RESPONDER), (41, (3, 3, 30), Role.RESPONDER), (4, (6, 2), Role.VERIFIER)]
SINGLE = [
    (1, (1,), Role.QUESTIONER),
    (22, (1,), Role.QUESTIONER),
    (9, (12,), Role.QUESTIONER),
    (1, (4,), Role.VERIFIER),
]
EMPTY = [
    (13, (0, 5, 0, 7), Role.RESPONDER),
    (8, (0, 0), Role.RESPONDER),
    (5, (3, 0), Role.VERIFIER),
    (6, (0,), Role.QUESTIONER),
]
CASES = {
    "groups of unequal length, several a bin": (UNEQUAL, 1000),
    "groups split over bins": (UNEQUAL, 24),
    "singletons": (SINGLE, 40),
    "empty answers": (EMPTY, 40),
    "all of them": (UNEQUAL + SINGLE + EMPTY, 64),
}


def make_rows(groups, seed: int = 0) -> list[TrainRow]:
    rng = np.random.default_rng(seed)
    rows = []
    for group, (prompt, responses, role) in enumerate(groups):
        prompt_ids = rng.integers(0, VOCAB, prompt)
        for length in responses:
            response_ids, zeros = rng.integers(0, VOCAB, length), np.zeros(length, np.float32)
            advantage = float(rng.normal())
            rows.append(TrainRow(role, TaskName.GENERAL_QA, group, prompt_ids, response_ids, zeros, 0.0, advantage, 0))
    return rows


def packed(rows: list[TrainRow], max_bin_tokens: int, **how) -> PackedBatch:
    return pack(rows, row_weights(rows, "per_role"), num_dp=1, max_bin_tokens=max_bin_tokens, **how)


def loss_and_gradients(policy, batch: PackedBatch) -> tuple[float, dict[str, torch.Tensor]]:
    measured = step.accumulate_gradients(policy.ddp, batch, AlgoSection())
    return measured.loss, {name: p.main_grad.clone() for name, p in policy.parameters.items()}


def in_hugging_face_coordinates(policy, gradients):
    """(name, gradient, box) of what each local parameter holds."""
    for segment in policy.inventory():
        yield segment.hf_name, gradients[segment.local_name][segment.local_box.index], segment.hf_box.index


@pytest.fixture(scope="module")
def policy(alone, models):
    policy = make_policy(models[False])
    policy.load_hf(models[False])
    return policy


@pytest.mark.parametrize("groups, max_bin_tokens", CASES.values(), ids=CASES)
def test_bins_equal_separate_rows(policy, reference, groups, max_bin_tokens):
    rows = make_rows(groups)
    batch = packed(rows, max_bin_tokens)
    loss, gradients = loss_and_gradients(policy, batch)
    weights = row_weights(rows, "per_role")
    assert loss == pytest.approx(-sum(w * r.advantage * r.response_ids_A.size for w, r in zip(weights, rows)), abs=1e-6)
    reference.backward(rows)
    wanted = {name: parameter.grad for name, parameter in reference.model.named_parameters()}
    for name, found, box in in_hugging_face_coordinates(policy, gradients):
        torch.testing.assert_close(found, wanted[name][box], atol=3e-5, rtol=1e-4)
    for found, row in zip(policy.log_probs(batch), rows, strict=True):
        assert found.shape == row.response_ids_A.shape
        np.testing.assert_allclose(found, reference.log_probs(row).detach(), atol=2e-5)


def test_a_group_is_split_where_its_bins_are_full(policy):
    """The case above is what it says."""
    rows = make_rows(UNEQUAL)
    bins = packed(rows, 24).bins_D_B[0]
    assert sum(any(rows[i].group == 0 for i in set(one.row_A.tolist())) for one in bins) > 1


@pytest.fixture(scope="module")
def mixed():
    return make_rows([(13, (5, 9, 0, 7), Role.RESPONDER), (22, (3,), Role.QUESTIONER), (4, (6, 2), Role.VERIFIER)], 1)


@pytest.fixture(scope="module")
def row_by_row(policy, mixed):
    """Loss and gradients with each row in a bin of its own."""
    batch = packed(mixed, max_bin_tokens=1, share_prompts=False)
    assert all(len(set(one.row_A.tolist())) == 1 for one in batch.bins_D_B[0])
    return loss_and_gradients(policy, batch)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(7)),
    max_bin_tokens=st.integers(8, 90),
    pad_multiple=st.sampled_from([1, 2, 8]),
    share_prompts=st.booleans(),
)
def test_loss_and_gradients_do_not_depend_on_the_bins(
    policy, mixed, row_by_row, order, max_bin_tokens, pad_multiple, share_prompts
):
    """Nor on the number of micro-batches, nor on the order of rows: groups may be torn apart, empty rows between."""
    rows = [mixed[i] for i in order]
    batch = packed(rows, max_bin_tokens, pad_multiple=pad_multiple, share_prompts=share_prompts)
    loss, gradients = loss_and_gradients(policy, batch)
    assert loss == pytest.approx(row_by_row[0], abs=1e-6)
    for name, wanted in row_by_row[1].items():
        torch.testing.assert_close(gradients[name], wanted, atol=3e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("fault", ["position", "predictor", "prompt"])
def test_a_bin_laid_out_wrongly_would_be_seen(policy, mixed, row_by_row, fault):
    """Planted: responses whose positions start again, tokens predicted one too late, a prompt that is not seen."""
    (whole,) = packed(mixed, 1000).bins_D_B[0]
    segments, start = whole.segments_S_4, whole.segments_S_4[1, 2]
    wrong = {
        "position": {"position_ids_T": np.where(np.arange(whole.num_tokens) < start, whole.position_ids_T, 0)},
        "predictor": {"predictors_A": np.minimum(whole.predictors_A + 1, whole.num_tokens - 1)},
        "prompt": {"segments_S_4": segments[:, [2, 3, 2, 3]]},
    }
    batch = replace(packed(mixed, 1000), bins_D_B=((replace(whole, **wrong[fault]),),))
    _, gradients = loss_and_gradients(policy, batch)
    assert max((gradients[name] - wanted).abs().max() for name, wanted in row_by_row[1].items()) > 1e-2

"""An update whose gradient is not finite is skipped, counted, and leaves nothing behind."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from megatron_spell.policy.optimizer_state import FIRST_MOMENT, SECOND_MOMENT, WEIGHT, whole_state
from megatron_spell.policy.setup import PolicyError
from tests.distributed.policy_lab import OPTIMIZER, make_batch, make_policy, make_rows

NO_LIMIT = OPTIMIZER.model_copy(update={"max_skipped_in_a_row": 99, "warmup_steps": 9})


def loaded(folder, **settings):
    policy = make_policy(folder, **({"optimizer": NO_LIMIT} | settings))
    policy.load_hf(folder)
    return policy


def broken_batch(advantage: float = np.inf):
    rows = make_rows(7)
    rows[2] = replace(rows[2], advantage=advantage)
    return make_batch(rows)


def good_batch(seed: int):
    return make_batch(make_rows(seed))


def everything(policy) -> list[torch.Tensor]:
    states = [whole_state(policy.optimizer, policy.parameters, key) for key in (WEIGHT, FIRST_MOMENT, SECOND_MOMENT)]
    return [tensor.clone() for state in [policy.local_tensors(), *states] for tensor in state.values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("advantage", [np.inf, -np.inf, np.nan, 1e38])
def test_nothing_moves(alone, model, advantage):
    """1e38 is finite, the gradient's norm is not."""
    policy = loaded(model)
    policy.update(good_batch(0))
    before, rate = everything(policy), policy.optimizer.param_groups[0]["lr"]
    report = policy.update(broken_batch(advantage))
    assert not np.isfinite(report.grad_norm)
    assert same(everything(policy), before)
    assert (policy.num_updates, report.lr) == (1, rate)
    assert report.metrics()["policy/skipped_updates"] == 1
    assert report.metrics()["policy/skipped_in_a_row"] == 1


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"distributed_optimizer": True}], ids=str)
def test_the_updates_around_it_are_those_of_a_run_without_it(alone, model, settings):
    disturbed, calm = loaded(model, **settings), loaded(model, **settings)
    for batch in (good_batch(0), broken_batch(), good_batch(1), broken_batch(np.nan), broken_batch(), good_batch(2)):
        disturbed.update(batch)
    reports = [calm.update(good_batch(seed)) for seed in range(3)]
    assert same(everything(disturbed), everything(calm))
    assert disturbed.num_updates == calm.num_updates == 3
    assert (disturbed.skipped, disturbed.skipped_in_a_row) == (3, 0)
    assert (reports[-1].skipped, reports[-1].skipped_in_a_row) == (0, 0)


def test_so_many_in_a_row_stop_the_run(alone, model):
    policy = loaded(model, optimizer=OPTIMIZER.model_copy(update={"max_skipped_in_a_row": 2}))
    policy.update(broken_batch())
    policy.update(good_batch(0))
    policy.update(broken_batch())
    before = everything(policy)
    with pytest.raises(PolicyError) as caught:
        policy.update(broken_batch())
    message = str(caught.value)
    assert "gradient norm of update 2 is " in message
    assert "policy.optimizer.max_skipped_in_a_row = 2" in message
    assert "\n" not in message
    assert same(everything(policy), before)


def test_a_resumed_run_goes_on_as_the_one_that_skipped(alone, model, tmp_path):
    """AdamW's bias correction, the schedule and the counts agree after a skip; the limit holds over a resume."""
    limited = NO_LIMIT.model_copy(update={"max_skipped_in_a_row": 2})
    unbroken = loaded(model, optimizer=limited)
    for batch in (good_batch(0), broken_batch(), good_batch(1), broken_batch()):
        unbroken.update(batch)
    unbroken.save(tmp_path / "checkpoint")
    resumed, stopped = (make_policy(model, optimizer=limited) for _ in range(2))
    for policy in (resumed, stopped):
        policy.load(tmp_path / "checkpoint")
        assert (policy.num_updates, policy.skipped, policy.skipped_in_a_row) == (2, 2, 1)
    assert resumed.update(good_batch(2)) == unbroken.update(good_batch(2))
    assert same(everything(resumed), everything(unbroken))
    with pytest.raises(PolicyError, match="max_skipped_in_a_row = 2"):
        stopped.update(broken_batch())


def test_a_policy_that_computes_nan_is_not_taken_for_a_wrong_engine(alone, model):
    """Its log-probs then differ from every engine's, too; what is told is the gradient."""
    policy = loaded(model, optimizer=OPTIMIZER.model_copy(update={"max_skipped_in_a_row": 1}))
    policy.local_tensors()["decoder.final_layernorm.weight"][3] = np.inf
    with pytest.raises(PolicyError, match="gradient norm of update 1 is nan"):
        policy.update(good_batch(0))

"""One rank of test_off_policy.py: runs the cases in argv[1] one after the other, each with own process groups."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from megatron_spell.config.policy_sections import MeshSection
from megatron_spell.policy import setup, step
from tests.distributed.policy_lab import OPTIMIZER, batch_for, make_policy, make_rows, with_engine_log_probs
from tests.distributed.rank_cases import run_cases
from tests.distributed.stale_rows import stale_algo

FAULTS = {"no sum over ranks": lambda: patch.object(step, "sum_over_context_parallel_ranks", lambda sums: sums)}


def on_stale_rows(case: dict) -> dict:
    """An update on rows whose engine log-probs the case brings."""
    policy = policy_of(case, algo=stale_algo(case["form"]))
    engine = [np.array(row, np.float32) for row in case["engine_log_probs"]]
    report = policy.update(batch_for(policy, with_engine_log_probs(make_rows(0), engine)))
    policy.export_hf(Path(case["out"], "weights"))
    return {"loss": report.loss, "metrics": report.metrics()}


def on_broken_rows(case: dict) -> dict:
    """An update, two on a batch with an infinite advantage, a good one; then broken ones until the policy gives up."""
    policy = policy_of(case, optimizer=OPTIMIZER.model_copy(update={"max_skipped_in_a_row": 3}))
    broken = make_rows(1, draw_lengths=False)
    broken[2] = replace(broken[2], advantage=np.inf)
    whole, torn = batch_for(policy, make_rows(0)), batch_for(policy, broken)
    ranks_with_it = [any(np.isinf(b.advantages_A).any() for b in bins) for bins in torn.bins_D_B]
    kept, reports = [], []
    for batch in (whole, torn, torn, whole):
        before = {name: tensor.clone() for name, tensor in policy.local_tensors().items()}
        reports.append(policy.update(batch))
        kept.append(all(torch.equal(tensor, before[name]) for name, tensor in policy.local_tensors().items()))
    policy.export_hf(Path(case["out"], "weights"))
    return {
        "ranks_with_it": ranks_with_it,
        "everyone_kept": of_everyone(kept),
        "counts": of_everyone([(report.skipped, report.skipped_in_a_row) for report in reports]),
        "num_updates": of_everyone(policy.num_updates),
        "messages": of_everyone(complaint(policy, torn)),
        "finite_norms": [bool(np.isfinite(report.grad_norm)) for report in reports],
    }


def complaint(policy, torn) -> tuple[int, str]:
    """How many broken batches it took, and what was said."""
    for number in range(1, 10):
        try:
            policy.update(torn)
        except setup.PolicyError as error:
            return number, str(error)
    return 0, "never"


def of_everyone(mine: object) -> list:
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def policy_of(case: dict, **settings):
    layout = {"distributed_optimizer": True} if case.get("distributed_optimizer") else {}
    policy = make_policy(Path(case["model"]), MeshSection(**case["mesh"]), **layout, **settings)
    policy.load_hf(Path(case["model"]))
    return policy


def run_case(case: dict) -> dict:
    return {"stale": on_stale_rows, "broken": on_broken_rows}[case["do"]](case)


if __name__ == "__main__":
    run_cases(run_case, FAULTS)

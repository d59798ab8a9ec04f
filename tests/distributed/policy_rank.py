"""One rank of the policy tests: runs the cases in argv[1] one after the other, each with process groups of its own.

One launch for many cases, because starting the processes costs more than all that they do.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_spell.config.schema import MeshSection, TrustSection
from megatron_spell.policy import setup, step, worker
from megatron_spell.policy.model import PolicyModel
from tests.distributed.policy_lab import VOCAB, make_batch, make_policy, make_rows, with_engine_log_probs


def logits_of_first_row(policy, rows: list, out: Path) -> None:
    """Write the full-vocabulary logits at every response token of the first row to OUT/logits.npy."""
    seen = []

    def noting(model, hidden_A_D):
        seen.append(head(model, hidden_A_D))
        return seen[-1]

    head = PolicyModel._logits
    with patch.object(PolicyModel, "_logits", noting):
        policy.log_probs(make_batch(rows[:1], policy.mesh.dp))
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_data_parallel_rank() == 0:
        group = parallel_state.get_tensor_model_parallel_group()
        blocks = [torch.empty_like(seen[0]) for _ in range(group.size())]
        dist.all_gather(blocks, seen[0].detach().contiguous(), group=group)
        if group.rank() == 0:
            np.save(out / "logits.npy", torch.cat(blocks, -1)[:, :VOCAB].numpy())


def train(policy, case: dict) -> dict:
    """An export, logits and log-probs of the first batch, an update on the rows of each seed, another export."""
    dp = policy.mesh.dp
    policy.export_hf(Path(case["out"], "imported"))
    logits_of_first_row(policy, make_rows(case["seeds"][0]), Path(case["out"]))
    log_probs = policy.log_probs(make_batch(make_rows(case["seeds"][0]), dp))
    reports = []
    for seed in case["seeds"]:
        reports.append(policy.update(make_batch(make_rows(seed), dp)))
        if policy.num_updates == case.get("save_after"):
            policy.save(Path(case["out"], "checkpoint"))
    policy.export_hf(Path(case["out"], "weights"))
    return {
        "log_probs": [found.tolist() for found in log_probs],
        "grad_norms": [report.grad_norm for report in reports],
        "losses": [report.loss for report in reports],
        "entropies": [report.entropy_mean for report in reports],
        "reports_agree": agree(reports),
    }


def agree(reports: list) -> bool:
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [repr(report) for report in reports])
    return all(mine == everyone[0] for mine in everyone)


def distrust(policy, case: dict) -> dict:
    """An update with honest engine log-probs, then one where those of a single token are off by one nat."""
    dp, out = policy.mesh.dp, Path(case["out"])
    rows = make_rows(case["seeds"][0])
    rows = with_engine_log_probs(rows, policy.log_probs(make_batch(rows, dp)))
    honest = policy.update(make_batch(rows, dp))
    found = policy.log_probs(make_batch(rows, dp))
    found[-1][-1] += 1.0
    policy.export_hf(out / "before")
    try:
        policy.update(make_batch(with_engine_log_probs(rows, found), dp))
        message = ""
    except worker.TrustError as error:
        message = str(error)
    policy.export_hf(out / "after")
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, message)
    return {"messages": everyone, "honest_diff": honest.log_prob_diff_max, "num_updates": policy.num_updates}


def run_case(case: dict) -> None:
    mesh = MeshSection(**case["mesh"])
    setup.initialise(mesh.mesh(), timeout_s=60)
    trust = {"trust": TrustSection()} if case["do"] == "distrust" else {}
    policy = make_policy(Path(case["model"]), mesh, case.get("dtype", "float32"), **trust)
    if "load" in case:
        policy.load(Path(case["load"]))
    else:
        policy.load_hf(Path(case["model"]))
    seen = {"train": train, "distrust": distrust}[case["do"]](policy, case)
    if dist.get_rank() == 0:
        Path(case["out"], "seen.json").write_text(json.dumps(seen))
    parallel_state.destroy_model_parallel()


def main(cases: list[dict]) -> None:
    for case in cases:
        print(case, flush=True)
        if case.get("drop_all_reduce"):
            with patch.object(step, "finalize_model_grads", lambda *_, **__: None):
                run_case(case)
        else:
            run_case(case)
    setup.shut_down()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

"""One rank of a policy test: does what the JSON record in argv[1] says and leaves what it saw on rank 0 as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import torch.distributed as dist
from policy_lab import make_batch, make_policy, make_rows, with_engine_log_probs

from megatron_spell.config.schema import MeshSection, TrustSection
from megatron_spell.policy import setup, step, worker


def train(policy, case: dict, out: Path) -> dict:
    """Log-probs of the first batch, then updates on rows of the given seeds, then an export."""
    dp = policy.mesh.dp
    first = case["seeds"][0]
    log_probs = policy.log_probs(make_batch(make_rows(first), dp))
    reports = [policy.update(make_batch(make_rows(seed), dp)) for seed in case["seeds"]]
    policy.export_hf(out / "weights")
    return {
        "log_probs": [found.tolist() for found in log_probs],
        "grad_norms": [report.grad_norm for report in reports],
        "losses": [report.loss for report in reports],
        "losses_of_role": [report.loss_of_role for report in reports],
        "entropies": [report.entropy_mean for report in reports],
        "reports_agree": agree(reports),
    }


def agree(reports: list) -> bool:
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [repr(report) for report in reports])
    return all(mine == everyone[0] for mine in everyone)


def distrust(policy, case: dict, out: Path) -> dict:
    """An update on honest engine log-probs, then one where a single token's are perturbed on one rank's rows."""
    rows = make_rows(case["seeds"][0])
    rows = with_engine_log_probs(rows, policy.log_probs(make_batch(rows, policy.mesh.dp)))
    honest = policy.update(make_batch(rows, policy.mesh.dp))
    rows = with_engine_log_probs(rows, policy.log_probs(make_batch(rows, policy.mesh.dp)))
    policy.export_hf(out / "before")
    perturbed = [row.engine_log_probs_A.copy() for row in rows]
    perturbed[-1][-1] += 1.0
    try:
        policy.update(make_batch(with_engine_log_probs(rows, perturbed), policy.mesh.dp))
        message = ""
    except worker.TrustError as error:
        message = str(error)
    policy.export_hf(out / "after")
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, message)
    return {"messages": everyone, "honest_diff": honest.log_prob_diff_max, "num_updates": policy.num_updates}


def plant(fault: str | None) -> None:
    if fault == "no gradient all-reduce":
        step.finalize_model_grads = lambda *_, **__: None
    elif fault is not None:
        raise ValueError(fault)


def main(case: dict) -> None:
    mesh, out = MeshSection(**case["mesh"]), Path(case["out"])
    setup.initialise(mesh.mesh(), timeout_s=60)
    plant(case.get("fault"))
    trust = {"trust": TrustSection()} if case["do"] == "distrust" else {}
    policy = make_policy(Path(case["model"]), mesh, case.get("dtype", "float32"), **trust)
    if "load" in case:
        policy.load(Path(case["load"]))
    else:
        policy.load_hf(Path(case["model"]))
    seen = {"train": train, "distrust": distrust}[case["do"]](policy, case, out)
    if "save" in case:
        policy.save(Path(case["save"]))
    if dist.get_rank() == 0:
        (out / "seen.json").write_text(json.dumps(seen, default=np.ndarray.tolist))
    setup.shut_down()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

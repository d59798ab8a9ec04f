"""One rank of the policy tests: runs the cases in argv[1] one after the other, each with process groups of its own.

One launch for many cases, because starting the processes costs more than all that they do.
"""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_spell.config.policy_sections import MeshSection
from megatron_spell.config.schema import TrustSection
from megatron_spell.policy import attention, optimizer, optimizer_state, step, worker
from megatron_spell.policy.context import Share
from megatron_spell.policy.microbatches import BinTensors
from megatron_spell.policy.model import PolicyModel
from megatron_spell.policy.saving import Part
from tests.distributed.policy_lab import (
    LAYOUT_SWITCHES,
    VOCAB,
    batch_for,
    make_policy,
    make_rows,
    with_engine_log_probs,
)
from tests.distributed.rank_cases import run_cases


def wrap_experts_as_dense(chunks, section):
    """Megatron's mark of experts that are spread over ranks, taken off."""
    for parameter in (parameter for chunk in chunks for parameter in chunk.parameters()):
        parameter.allreduce = True
    return optimizer.wrap_model(chunks, section)


# What is planted to see that the comparisons would catch it.
FAULTS = {
    "no all-reduce": lambda: patch.object(step, "finalize_model_grads", lambda *_, **__: None),
    "rank order": lambda: patch.object(attention, "in_bin_order", lambda gathered, _: gathered),
    "experts as dense": lambda: patch.object(worker, "wrap_model", wrap_experts_as_dense),
    "no gather": lambda: patch.object(optimizer_state, "_sum", lambda *_: None),
}


def logits_of_first_row(policy, rows: list, out: Path) -> None:
    """Write the full-vocabulary logits at every response token of the first row to OUT/logits.npy."""
    seen = []

    def noting(model, hidden_A_D):
        seen.append(head(model, hidden_A_D))
        return seen[-1]

    head = PolicyModel._logits
    batch = batch_for(policy, rows[:1])
    with patch.object(PolicyModel, "_logits", noting):
        policy.log_probs(batch)
    mine, everyone = None, [None] * dist.get_world_size()
    if parallel_state.is_pipeline_last_stage() and parallel_state.get_data_parallel_rank() == 0:
        share = Share(parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size())
        numbers_A = BinTensors.of(batch.bins_D_B[0][0], share).number_A.numpy()
        first_column = parallel_state.get_tensor_model_parallel_rank() * seen[0].shape[1]
        mine = numbers_A[:, None], first_column + np.arange(seen[0].shape[1]), seen[0].detach().numpy()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        logits = np.full((rows[0].response_ids_A.size, VOCAB + 1), np.nan)  # room for the vocabulary's padding
        for numbers_A, columns, block in filter(None, everyone):
            logits[numbers_A, columns] = block
        np.save(out / "logits.npy", logits[:, :VOCAB])


def write_gradients(policy, rows: list, out: Path) -> None:
    """Write the gradients of the loss on the rows to OUT/gradients, under the names of the weights."""
    step.accumulate_gradients(policy.ddp, batch_for(policy, rows), policy.algo)
    gradients = {}
    for piece in optimizer_state._pieces(policy.optimizer, policy.parameters):
        whole = torch.zeros(piece.parameter.numel())
        whole[piece.start : piece.stop] = piece.parameter.main_grad.flatten()[piece.start : piece.stop]
        if policy.policy.distributed_optimizer:  # each rank's buffer is reduced in its own stretch only
            optimizer_state._sum(whole, optimizer_state._replicas_of(piece.parameter))
        gradients[piece.name] = whole.view_as(piece.parameter)
    policy._writer.write_folder(out / "gradients", Part("gradients", gradients, torch.float32), companions=None)
    policy.optimizer.zero_grad()


def train(policy, case: dict) -> dict:
    """An export, logits, log-probs and gradients of the first batch, an update on each seed's rows, another export."""
    policy.export_hf(Path(case["out"], "imported"))
    logits_of_first_row(policy, make_rows(case["seeds"][0]), Path(case["out"]))
    log_probs = policy.log_probs(batch_for(policy, make_rows(case["seeds"][0])))
    write_gradients(policy, make_rows(case["seeds"][0]), Path(case["out"]))
    reports = []
    for seed in case["seeds"]:
        reports.append(policy.update(batch_for(policy, make_rows(seed))))
        if policy.num_updates == case.get("save_after"):
            policy.save(Path(case["out"], "checkpoint"))
    policy.export_hf(Path(case["out"], "weights"))
    return {
        "log_probs": [found.tolist() for found in log_probs],
        "grad_norms": [report.grad_norm for report in reports],
        "losses": [report.loss for report in reports],
        "log_prob_means": [report.log_prob_mean for report in reports],
        "entropies": [report.entropy_mean for report in reports],
        "reports_agree": agree(reports),
    }


def agree(reports: list) -> bool:
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, [repr(report) for report in reports])
    return all(mine == everyone[0] for mine in everyone)


def distrust(policy, case: dict) -> dict:
    """An update with honest engine log-probs, then one where those of a single token are off by one nat."""
    out = Path(case["out"])
    rows = make_rows(case["seeds"][0])
    rows = with_engine_log_probs(rows, policy.log_probs(batch_for(policy, rows)))
    honest = policy.update(batch_for(policy, rows))
    found = policy.log_probs(batch_for(policy, rows))
    found[-1][-1] += 1.0
    policy.export_hf(out / "before")
    try:
        policy.update(batch_for(policy, with_engine_log_probs(rows, found)))
        message = ""
    except worker.TrustError as error:
        message = str(error)
    policy.export_hf(out / "after")
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, message)
    return {"messages": everyone, "honest_diff": honest.log_prob_diff_max, "num_updates": policy.num_updates}


def run_case(case: dict) -> dict:
    trust = {"trust": TrustSection()} if case["do"] == "distrust" else {}
    switches = {name: case[name] for name in (*LAYOUT_SWITCHES, "dispatcher") if name in case}
    policy = make_policy(
        Path(case["model"]), MeshSection(**case["mesh"]), case.get("dtype", "float32"), **switches, **trust
    )
    if "load" in case:
        policy.load(Path(case["load"]))
    else:
        policy.load_hf(Path(case["model"]))
    return {"train": train, "distrust": distrust}[case["do"]](policy, case)


if __name__ == "__main__":
    run_cases(run_case, FAULTS)

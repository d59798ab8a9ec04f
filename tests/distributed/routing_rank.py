"""One rank of the routing tests: the cases in argv[1] replay choices in their layouts and write what they saw."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout

from megatron_spell.config.policy_sections import MeshSection
from megatron_spell.policy import routing, step
from tests.distributed.policy_lab import LAYOUT_SWITCHES, batch_for, make_policy, make_rows
from tests.distributed.policy_rank import write_gradients
from tests.distributed.rank_cases import cases_given, run_cases
from tests.distributed.routing_lab import RoutedReference, with_other_choices, with_own_choices

MOE = {"balance_loss_coef": 0.3, "z_loss_coef": 0.02}


def own_tokens_of_the_bin(bin_tensors, **_):
    """The fault: the bin's first tokens, whichever of them this rank routes."""
    size = bin_tensors.reads_T.numel() // parallel_state.get_tensor_model_parallel_world_size()
    return routing.Routes(bin_tensors.reads_T[:size], bin_tensors.experts_T_L_K[:size])


def offset_from_the_end(*_, **__) -> int:
    """The fault: of stages of 1 and 3 layers, the first numbers its layer 4 and the second 1 to 3."""
    return 0 if parallel_state.get_pipeline_model_parallel_rank() else 3


# What is planted to see that the comparisons would catch it.
FAULTS = {
    "first tokens": lambda: patch.object(routing, "routes_of", own_tokens_of_the_bin),
    "last stage first": lambda: patch.object(PipelineParallelLayerLayout, "get_layer_offset", offset_from_the_end),
}


def log_probs_and_gradients(policy, rows: list, out: Path) -> np.ndarray:
    batch = batch_for(policy, rows)
    found = np.concatenate(policy.log_probs(batch))
    policy.routing.begin(batch)
    policy.routing.settle_losses(look=lambda: step.token_log_probs(policy.ddp, batch))
    write_gradients(policy, rows, out)
    return found


def run_case(case: dict, own: list) -> dict:
    mesh, out = MeshSection(**case["mesh"]), Path(case["out"])
    switches = {name: case[name] for name in (*LAYOUT_SWITCHES, "dispatcher") if name in case}
    seen = {}
    for mode, rows in (("never", own), ("always", own), ("always", with_other_choices(own))):
        name = "other" if rows is not own else mode
        policy = make_policy(Path(case["model"]), mesh, moe={"routing_replay": mode, **MOE}, **switches)
        policy.load_hf(Path(case["model"]))
        seen[name] = log_probs_and_gradients(policy, rows, out / name).tolist()
        seen[f"{name} metrics"] = policy.update(batch_for(policy, rows)).metrics()
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, repr(seen))
    return seen | {"ranks agree": len(set(everyone)) == 1}


if __name__ == "__main__":
    torch.set_num_threads(1)
    own_choices = with_own_choices(make_rows(0), RoutedReference(Path(cases_given()[0]["model"])))
    run_cases(partial(run_case, own=own_choices), FAULTS)

"""One rank of the checkpoint tests: runs the cases in argv[1] one after the other, each with process groups of its own.

A case that saves goes on with two more updates while the checkpoint is written behind its back; one that loads takes
the same two. Both note all that could tell them apart.
"""

import json
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_spell.algo.losses import row_weights
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import CheckpointSection, MeshSection, PolicySection, RunConfig
from megatron_spell.policy import setup
from megatron_spell.policy.saving import CheckpointWriter
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.train.checkpoints import Checkpoints
from megatron_spell.train.member import Member, rank_of_this_process
from tests.distributed.policy_lab import ANY_DIFF, LAYOUT_SWITCHES, OPTIMIZER, TEMPERATURE, batch_for, make_rows

SAVED_AT, LAST = 2, 4  # updates
# The rate differs from update to update, so that a schedule that began anew would be seen.
WARMING_UP = OPTIMIZER.model_copy(update={"warmup_steps": 8})


def config_of(case: dict) -> RunConfig:
    switches = {name: case[name] for name in LAYOUT_SWITCHES if name in case}
    policy = PolicySection(
        mesh=MeshSection(**case["mesh"]), dtype=case.get("dtype", "float32"), optimizer=WARMING_UP, **switches
    )
    return RunConfig.model_validate(
        {
            "name": "checkpoints",
            "run_folder": case["out"],
            "model": {"path": case["model"]},
            "data": {"store": "none"},
            "sampling": {"temperature": TEMPERATURE},
            "policy": policy,
            "trust": ANY_DIFF,
            "checkpoint": CheckpointSection(asynchronous=case.get("asynchronous", True), timeout_s=60),
        }
    )


def checkpoints_of(out: str) -> Checkpoints:
    return Checkpoints(Path(out, "checkpoints"), keep=2)


def begin_save(member: Member, out: str, step: int) -> None:
    """What the run does on rank 0 (train/run.py), then what all ranks do."""
    if rank_of_this_process() == 0:
        (checkpoints_of(out).begin(step) / "run.json").write_text(json.dumps({"step": step}))
    member.save(step, checkpoints_of(out))


def update(policy: MegatronPolicy, seed: int) -> dict:
    """One optimizer step, and what was seen of the policy before it.

    At ratio one the reported loss is the same for every policy; `surrogate` is the sum whose gradient the step takes.
    """
    rows = make_rows(seed)
    batch = batch_for(policy, rows)
    log_probs = policy.log_probs(batch)
    weights = row_weights(rows, "per_role")
    surrogate = -sum(w * row.advantage * float(found.sum()) for w, row, found in zip(weights, rows, log_probs))
    report = policy.update(batch)
    return {
        "log_probs": [float(value) for found in log_probs for value in found],
        "surrogate": surrogate,
        "loss": report.loss,
        "grad_norm": report.grad_norm,
        "log_prob_mean": report.log_prob_mean,
        "entropy": report.entropy_mean,
        "lr": report.lr,
    }


def draws() -> list[list[float]]:
    """What the generators would give next on every rank; their states stay as they are."""
    everyone: list = [None] * dist.get_world_size()
    state, states = torch.get_rng_state(), dict(get_cuda_rng_tracker().get_states())
    with get_cuda_rng_tracker().fork():
        mine = torch.rand(3).tolist()
    mine += torch.rand(3).tolist()
    torch.set_rng_state(state)
    get_cuda_rng_tracker().set_states(states)
    dist.all_gather_object(everyone, mine)
    return everyone


def save_and_go_on(member: Member, case: dict) -> dict:
    member.load_hf(Path(case["model"]))
    for seed in range(SAVED_AT):
        update(member.policy, seed)
    torch.rand(5)  # the generator has moved on from its seed
    gone_on, write = threading.Event(), member.policy.write

    def write_later(state, folder):
        assert gone_on.wait(60)
        write(state, folder)

    if case.get("hold"):
        member.policy.write = write_later
    begin_save(member, case["out"], SAVED_AT)
    seen = {"draws": draws(), "updates": [update(member.policy, seed) for seed in range(SAVED_AT, LAST)]}
    gone_on.set()
    member.settle()
    return seen


def resume(member: Member, case: dict) -> dict:
    seeded = draws()
    latest, torn = checkpoints_of(case["load"]).latest()
    assert latest is not None, torn
    member.load(latest / "policy")
    seen = {"seeded": seeded, "draws": draws()}
    return seen | {"updates": [update(member.policy, seed) for seed in range(SAVED_AT, LAST)]}


def run_case(case: dict) -> None:
    config = config_of(case)
    setup.initialise(config.policy.mesh.mesh(), timeout_s=60)
    member = Member(config, ModelShape.load(config.model.path))
    seen = (resume if "load" in case else save_and_go_on)(member, case)
    member.policy.export_hf(Path(case["out"], "weights"))
    if dist.get_rank() == 0:
        Path(case["out"], "seen.json").write_text(json.dumps(seen))
    parallel_state.destroy_model_parallel()


FAULTS = {"uncopied": lambda: patch.object(CheckpointWriter, "copies", lambda _, tensors: dict(tensors))}


def main(cases: list[dict]) -> None:
    for case in cases:
        print(case, flush=True)
        with FAULTS[case["fault"]]() if "fault" in case else nullcontext():
            run_case(case)
    setup.shut_down()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

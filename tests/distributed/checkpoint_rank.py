"""One rank of the checkpoint tests: runs the cases in argv[1] one after the other, each with process groups of its own.

A case that saves goes on with two more updates while the checkpoint is written behind its back; one that loads takes
the same two. Both note all that could tell them apart. Others die, or fail, in the middle of a save.
"""

import errno
import json
import os
import signal
import threading
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_spell.algo.losses import row_weights
from megatron_spell.bridge.hf_files import FolderError
from megatron_spell.bridge.safetensors_writer import SafetensorsWriter
from megatron_spell.bridge.transports.base import TransportError
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import MeshSection, PolicySection
from megatron_spell.config.schema import CheckpointSection, RunConfig
from megatron_spell.policy.saving import CheckpointWriter
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.train import checkpoints as checkpoints_module
from megatron_spell.train.checkpoints import CheckpointError, Checkpoints
from megatron_spell.train.member import Member, rank_of_this_process
from tests.distributed.policy_lab import ANY_DIFF, LAYOUT_SWITCHES, OPTIMIZER, TEMPERATURE, batch_for, make_rows
from tests.distributed.rank_cases import run_cases

SAVED_AT, LAST = 2, 4  # updates
# The rate differs from update to update, so that a schedule that began anew would be seen.
WARMING_UP = OPTIMIZER.model_copy(update={"warmup_steps": 8})


def config_of(case: dict) -> RunConfig:
    switches = {name: case[name] for name in LAYOUT_SWITCHES if name in case}
    policy = PolicySection(
        mesh=MeshSection(**case["mesh"]),
        dtype=case.get("dtype", "float32"),
        optimizer=WARMING_UP,
        timeout_s=case.get("timeout_s", 60),
        **switches,
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
    member.settle()  # beginning removes what is not whole, also what is still being written
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
    surrogate = -sum(w * row.advantage * found.sum(dtype=float) for w, row, found in zip(weights, rows, log_probs))
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


def save_every_update(member: Member, case: dict) -> dict:
    """Killed in the third save, at the place the case names; what the updates were is noted as they come."""
    member.load_hf(Path(case["model"]))
    updates = []
    for seed in range(LAST):
        updates.append(update(member.policy, seed))
        if rank_of_this_process() == 0:
            Path(case["out"], "updates.json").write_text(json.dumps(updates))
        if seed == SAVED_AT:
            member.settle()
            arm(*KILLED_IN[case["kill"]])
        begin_save(member, case["out"], seed + 1)
    member.settle()
    raise AssertionError("outlived its end")


def arm(owner: object, name: str) -> None:
    """From now on whoever calls `owner.name` is killed as by `kill -9`."""
    setattr(owner, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))


KILLED_IN = {"tensors": (SafetensorsWriter, "put_box"), "the commit": (checkpoints_module, "_sync")}


def told(member: Member) -> list[str]:
    """What waiting for the save says on every rank."""
    try:
        member.settle()
        said = ""
    except (CheckpointError, FolderError, TransportError) as error:
        said = str(error)
    everyone = [""] * dist.get_world_size()
    dist.all_gather_object(everyone, said)
    return everyone


def fill_the_disk(member: Member, case: dict) -> dict:
    """The first save succeeds, the second finds no space, the third succeeds again."""
    member.load_hf(Path(case["model"]))
    begin_save(member, case["out"], 1)
    first = told(member)
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch.object(checkpoints_module, "_sync", side_effect=full):
        begin_save(member, case["out"], 2)
        second = told(member)
    kept = str(checkpoints_of(case["out"]).latest()[0])
    begin_save(member, case["out"], 3)
    return {"told": [first, second, told(member)], "kept": kept}


def leave_alone(member: Member, case: dict) -> dict:
    """Rank 1 never takes part in the save."""
    member.load_hf(Path(case["model"]))
    if rank_of_this_process() == 1:
        member.policy.write = lambda state, folder: None
    begin_save(member, case["out"], 1)
    return {"told": told(member), "steps": checkpoints_of(case["out"]).steps()}


DEEDS = {"save": save_and_go_on, "die": save_every_update, "full disk": fill_the_disk, "alone": leave_alone}


def run_case(case: dict) -> dict:
    config = config_of(case)
    member = Member(config, ModelShape.load(config.model.path))
    seen = (resume if "load" in case else DEEDS[case.get("do", "save")])(member, case)
    if "updates" in seen:
        member.policy.export_hf(Path(case["out"], "weights"))
    return seen


FAULTS = {"uncopied": lambda: patch.object(CheckpointWriter, "copies", lambda _, tensors: dict(tensors))}


if __name__ == "__main__":
    run_cases(run_case, FAULTS)

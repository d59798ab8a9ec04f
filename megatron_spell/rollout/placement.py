"""What an engine's process is given: cores for Ray's count, and GPUs."""

import os
from collections.abc import Sequence
from typing import Any

from megatron_spell.config.schema import RolloutSection


def resources(
    rollout: RolloutSection, number: int, *, num_trainers: int, on_cpu: bool, gpus: Sequence[str] | None
) -> dict[str, Any]:
    """num_cpus, num_gpus and env of engine `number`, as `RemoteEngine.spawn` takes them.

    `gpus` are the machine's GPUs, of which the trainers have the first `num_trainers`; engines get theirs by name, the
    next ones in turn (split) or the trainers' own (colocated). None on a Ray cluster that is joined: Ray hands GPUs
    out. Raises ValueError where there are too few.
    """
    num_workers = rollout.mesh().num_workers
    if on_cpu:
        return {"num_cpus": num_workers, "num_gpus": 0, "env": {}}
    if gpus is None:
        return {"num_cpus": num_workers, "num_gpus": num_workers, "env": {}}
    first = number * num_workers + (num_trainers if rollout.placement == "split" else 0)
    own = gpus[first : first + num_workers]
    if len(own) < num_workers:
        raise ValueError(
            f"engine {number} needs GPUs {first} to {first + num_workers - 1} of this machine, which has {len(gpus)};"
            " lower rollout.engines or join a Ray cluster"
        )
    return {"num_cpus": num_workers, "num_gpus": 0, "env": {"CUDA_VISIBLE_DEVICES": ",".join(own)}}


def has_gpu() -> bool:
    """Whether this process may use any."""
    import torch

    return torch.cuda.is_available()


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]

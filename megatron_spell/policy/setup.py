"""Process groups of the mesh: torch.distributed and Megatron's parallel state, with a limit on every wait."""

from datetime import timedelta

from megatron_spell.policy import platform  # isort: skip  (quiets Megatron's import)

import torch.distributed as dist
from megatron.core import parallel_state

from megatron_spell.config.layout_rules import layout_faults
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.layout.mesh import Mesh


class PolicyError(ValueError):
    """The policy cannot be set up or go on; the message is one line that names the field and the way out."""


def initialise(mesh: Mesh, timeout_s: float) -> None:
    """Join the other ranks and make the mesh's process groups. Call once per process, on every rank.

    Reads the rendezvous (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE) that torchrun sets; a mesh of one rank needs none.
    `timeout_s` bounds every later wait of one rank for another. Raises PolicyError.
    """
    platform.install()
    timeout = timedelta(seconds=timeout_s)
    if not dist.is_initialized():
        _join(mesh, timeout)
    if dist.get_world_size() != mesh.world_size:
        raise PolicyError(
            f"policy.mesh ({mesh}) has {mesh.world_size} ranks but {dist.get_world_size()} processes were started; "
            "start as many trainers as the mesh has ranks"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=mesh.tp,
        pipeline_model_parallel_size=mesh.pp,
        virtual_pipeline_model_parallel_size=mesh.vpp if mesh.vpp > 1 else None,
        context_parallel_size=mesh.cp,
        expert_model_parallel_size=mesh.ep,
        expert_tensor_parallel_size=mesh.expert_tp,
        distributed_timeout_minutes=timeout / timedelta(minutes=1),
        create_gloo_process_groups=False,
    )


def shut_down() -> None:
    """Leave the process groups; safe to call when there are none."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def refuse_layout(shape: ModelShape, policy: PolicySection) -> None:
    """Raise PolicyError for the first reason why the model cannot be trained in this layout."""
    for fault in layout_faults(shape, policy):
        raise PolicyError(str(fault))


def _join(mesh: Mesh, timeout: timedelta) -> None:
    try:
        device = platform.take_device()
    except ValueError as error:
        raise PolicyError(f"{error}; start at most as many trainers on a machine as it has GPUs") from None
    # Given the GPU, nccl connects at once and knows it for barriers.
    settings = {"timeout": timeout, "device_id": device if device.type == "cuda" else None}
    if mesh.world_size == 1 and not dist.is_torchelastic_launched():
        dist.init_process_group(platform.backend(), store=dist.HashStore(), rank=0, world_size=1, **settings)
        return
    try:
        dist.init_process_group(platform.backend(), **settings)
    except ValueError as error:
        raise PolicyError(f"this process knows no other trainers ({_last(error)}); start them with torchrun") from None
    except dist.DistError as error:
        limit = f"policy.timeout_s = {timeout.total_seconds():g}"
        raise PolicyError(f"not all {mesh.world_size} trainers came within {limit}: {_first(error)}") from None


def _first(error: Exception) -> str:
    return str(error).splitlines()[0]


def _last(error: Exception) -> str:
    return str(error).splitlines()[-1].removeprefix("Error initializing torch.distributed using env:// rendezvous: ")

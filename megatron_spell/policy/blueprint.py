"""A rank of any layout, built without other ranks and without memory: to see what it would hold."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from torch.overrides import TorchFunctionMode

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup
from megatron_spell.policy.model import PolicyModel, build_model

FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor)


def build_on_meta(shape: ModelShape, policy: PolicySection, rank: int) -> list[PolicyModel]:
    """What `build_model` makes on `rank` of the layout, all parameters on the meta device.

    Raises PolicyError when the model cannot be trained in the layout, or when this process is part of a group already.
    """
    setup.refuse_layout(shape, policy)
    with _alone_as(rank, policy.mesh.mesh()), _OnMeta():
        model_parallel_cuda_manual_seed(0)
        return build_model(shape, policy, temperature=1.0)


@contextmanager
def _alone_as(rank: int, mesh: Mesh) -> Iterator[None]:
    """Process groups of the whole mesh in which nobody else is, and nothing arrives (torch's own "fake" backend)."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise setup.PolicyError("this process has joined other trainers; build on the meta device in another one")
    dist.init_process_group("fake", rank=rank, world_size=mesh.world_size, store=FakeStore())
    try:
        setup.initialise(mesh, timeout_s=60)
        yield
    finally:
        setup.shut_down()


class _OnMeta(TorchFunctionMode):
    """`torch.device("meta")` moves what names no device; Megatron names the current one."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in FACTORIES:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)

"""vLLM's own weight transfer as a fallback (bridge.transport vllm_nccl): its trainer side, fed by the bridge.

Its "nccl" engine (vLLM 0.32) takes whole tensors in checkpoint form from one trainer rank, one after the other. The
bridge gathers them there from the ranks that own their parts; every worker of an engine then gets the whole model and
keeps its part, so this moves more bytes than the bridge's own way and is slower. Nothing is compared after landing, and
waits have vLLM's limits instead of the bridge's. The "ipc" engine is not offered: it wants every trainer rank to have
every tensor, in one order for all.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from megatron_spell.bridge.executor import Receiver, Sender, tensors_to_come
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.transports.base import Transport
from megatron_spell.rollout.native_delivery import SENDER


class BridgeSource(WeightSource):
    """One trainer rank's end: a stream of whole tensors on rank 0, vLLM's sender, and nothing to see on the others.

    `plan` ends on that rank in checkpoint form. Every trainer rank makes one alike and iterates it at the same time; a
    pass reads the weights as they are then. `transport` connects the trainer ranks. On rank 0 the tensors begun and two
    buckets are in memory.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        transport: Transport,
        *,
        dtype: torch.dtype,
        bucket_bytes: int,
    ):
        rank, self._transport = transport.rank, transport
        settings = {"dtype": dtype, "bucket_bytes": bucket_bytes}
        self._receiver = Receiver(plan, rank, sources=tensors, **settings) if rank == SENDER else None
        self._sender = None if rank == SENDER else Sender(plan, rank, tensors, **settings)
        coming = tensors_to_come(plan, SENDER, bucket_bytes, dtype.itemsize)
        self._metadata = [ParamMeta(name, dtype, shape) for name, shape in coming.items()]

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self._sender is not None:
            self._sender.run(self._transport)
        if self._receiver is not None:
            yield from self._receiver.tensors(self._transport)


class _Client:
    """vLLM's control plane (its `VLLMWeightSyncClient`) with nothing to do: the refresh drives the engines itself."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class NativeSender:
    """One trainer rank of a link over vLLM's own transfer; `channel` is what the engine's workers are told.

    Made while the workers connect, with whom rank 0 forms an NCCL group.
    """

    def __init__(
        self,
        plan: Plan,
        tensors: Mapping[str, torch.Tensor],
        transport: Transport,
        channel: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        bucket_bytes: int,
    ):
        source = BridgeSource(plan, tensors, transport, dtype=dtype, bucket_bytes=bucket_bytes)
        alike = ("master_address", "master_port", "world_size", "packed", "packed_buffer_size_bytes")
        info = NCCLTrainerInitInfo(rank=transport.rank, **{name: channel[name] for name in alike})
        self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=_Client(), source=source)

    def run(self, transport: Transport, *, check: int | None = None) -> None:
        """Broadcast all tensors to the workers, who must be receiving; `check` is not done here."""
        self._trainer.send_weights()

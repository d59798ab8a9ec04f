"""vLLM's own weight transfer as a fallback: what its trainer-side engines ask of a trainer, on top of the bridge.

Its "nccl" engine (vLLM 0.32) takes whole tensors in checkpoint form from one trainer rank, one after the other. The
bridge gathers them there from the ranks that own their parts; every worker of an engine then gets the whole model and
keeps its part, so this moves more bytes than the bridge's own way and is slower. The "ipc" engine is not offered: it
wants every trainer rank to have every tensor, in one order for all.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.executor import DEFAULT_BUCKET_BYTES, Receiver, Sender, completion_order
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.transports.base import Transport
from megatron_spell.config.model_shape import ModelShape

SENDER = 0  # the trainer rank that vLLM's trainer-side engines send from


class BridgeSource(WeightSource):
    """One trainer rank's end: a stream of whole tensors on rank 0, vLLM's sender, and nothing to see on the others.

    Every trainer rank makes one alike and iterates it at the same time; a pass reads the weights as they are then.
    `transport` connects the trainer ranks. On rank 0 the tensors begun and two buckets are in memory.
    """

    def __init__(
        self,
        shape: ModelShape,
        inventories: Mapping[int, Inventory],
        tensors: Mapping[str, torch.Tensor],
        transport: Transport,
        *,
        dtype: torch.dtype,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ):
        moves = plan(inventories, {SENDER: checkpoint_inventory(shape)})
        rank, self._transport = transport.rank, transport
        settings = {"dtype": dtype, "bucket_bytes": bucket_bytes}
        self._receiver = Receiver(moves, rank, sources=tensors, **settings) if rank == SENDER else None
        self._sender = None if rank == SENDER else Sender(moves, rank, tensors, **settings)
        shapes = checkpoint_shapes(shape)
        order = completion_order(moves, SENDER, bucket_bytes, dtype.itemsize)
        self._metadata = [ParamMeta(name, dtype, shapes[name]) for name in order]

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self._sender is not None:
            self._sender.run(self._transport)
            return
        yield from self._receiver.tensors(self._transport)


class EngineClient:
    """vLLM's control plane (its `VLLMWeightSyncClient`) over calls that block until an engine has answered.

    Beginning and finishing an update are the refresh's business, which pauses engines and flushes their caches.
    """

    def __init__(self, connect: Callable[[dict], None], receive: Callable[[dict], None]):
        self._connect, self._receive = connect, receive

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._connect(init_info)

    def start_weight_update(self) -> None:
        """Done by the refresh."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._receive(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Done by the refresh."""

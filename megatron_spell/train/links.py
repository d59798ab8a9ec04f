"""A trainer rank's ways to the engines: one link for each, so that a lost engine costs nobody but itself.

A link is a transport of its own between all trainers and the workers of one engine, with a sender that runs in a thread
of its own. Whatever goes wrong on a link is told to all trainer ranks before any of them goes on.
"""

import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed import Store

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.direct import DirectSender
from megatron_spell.bridge.executor import Sender, Tensors
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.receipts import WrongWeights
from megatron_spell.bridge.transports import routed
from megatron_spell.bridge.transports.base import Transport, TransportError
from megatron_spell.bridge.transports.gloo import loopback
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.rollout.landing import link_names

if TYPE_CHECKING:
    from megatron_spell.rollout.vllm_native import NativeSender

# An engine waits so much longer for the trainers than they for it: theirs are the words that name the culprit.
ENGINE_MARGIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where and as what the trainers and the workers of one engine form a link: trainers are its first ranks.

    Also what both ends must agree on: `dtype` on the wire and `bucket_bytes` of a message. Rank 0 serves at `port`;
    no two meetings have the same `session`. `plan` is the part that ends in this engine, in the link's ranks. With
    `is_direct` workers copy straight out of the trainers' tensors. With `native` vLLM's own transfer is used.
    """

    engine: int
    name: str
    plan: str
    num_workers: int
    num_trainers: int
    host: str
    port: int
    dtype: str
    bucket_bytes: int
    timeout_s: float
    session: str
    transport: str
    is_direct: bool = False
    native: "NativeMeeting | None" = None

    @property
    def size(self) -> int:
        return self.num_trainers + self.num_workers

    @property
    def names(self) -> dict[int, str]:
        """For error messages, by rank of the link."""
        return link_names(self.num_trainers, self.name, self.num_workers)

    def channel(self) -> dict[str, Any]:
        """What the engine is told (`vllm_worker.Channel` as plain values); `rank` is that of its first worker."""
        if self.native is not None:
            return self.native.channel(self)
        alike = ("plan", "size", "num_trainers", "host", "port", "dtype", "bucket_bytes", "session", "transport")
        own = {"rank": self.num_trainers, "timeout_s": self.timeout_s + ENGINE_MARGIN_S, "engine": self.name}
        return {field: getattr(self, field) for field in alike} | own | {"direct": self.is_direct}


@dataclass(frozen=True, slots=True)
class NativeMeeting:
    """Where vLLM's own "nccl" transfer meets: trainer rank 0 and the workers. `plan` gathers whole tensors there."""

    port: int
    plan: str

    def channel(self, meeting: Meeting) -> dict[str, Any]:
        """What vLLM's engine is told (its `NCCLWeightTransferInitInfo`)."""
        where = {"master_address": meeting.host, "master_port": self.port}
        size = {"rank_offset": 1, "world_size": 1 + meeting.num_workers}
        return where | size | {"packed": True, "packed_buffer_size_bytes": meeting.bucket_bytes}


@dataclass(frozen=True, slots=True)
class Sent:
    """How sending went, the same on every trainer rank: engine -> why it was lost, and what arrived wrong if any."""

    lost: dict[int, str]
    wrong: str | None = None


def meet(meeting: Meeting, store: Store, rank: int, device: torch.device | None) -> Transport:
    """The transport of trainer rank `rank` on this link; `device` is the GPU that its weights are on, None without.

    With vLLM's own transfer the trainers alone meet here. Raises TransportTimeout naming who did not come,
    TransportError where they cannot be connected as asked.
    """
    who = {"timeout_s": meeting.timeout_s, "names": meeting.names, "session": meeting.session}
    where = {"device": device, "address": loopback(meeting.host)}
    if meeting.native is not None:
        return routed.meet("auto", store, rank, meeting.num_trainers, **who, **where)
    return routed.meet(meeting.transport, store, rank, meeting.size, **who, **where)


@dataclass(frozen=True, slots=True)
class _Link:
    """`store` is kept because rank 0's serves the others, who may still be on their way in."""

    sender: "Sender | DirectSender | NativeSender"
    transport: Transport
    store: Store


@dataclass(frozen=True, slots=True)
class _Fault:
    """What went wrong on one rank; `kind` is "lost", "wrong" or "broken" (an error of our own)."""

    engine: int
    kind: str
    text: str


class Links:
    """The links of one trainer rank. Every method runs on all trainer ranks together.

    `tensors` gives what the rank sends, `agree` each rank's copy of a plain record, in rank order.
    """

    def __init__(self, rank: int, tensors: Callable[[], Tensors], agree: Callable[[list], list[list]]):
        self._rank, self._tensors, self._agree = rank, tensors, agree
        self._links: dict[int, _Link] = {}

    def connect(self, meetings: Sequence[Meeting]) -> dict[int, str]:
        """Meet engines, who must be coming at the same time; engine -> why there is no link to it.

        A link that there was to such an engine is closed first. Each wait is within the meeting's limit.
        """
        self.drop([meeting.engine for meeting in meetings])
        tensors = self._tensors()
        failed = _side_by_side({m.engine: partial(self._open, m, tensors) for m in meetings})
        return self._settle(failed).lost

    def send(self, engines: Collection[int], check: int | None) -> Sent:
        """Send this rank's share of the weights as they are now; the engines must be receiving.

        `check` as for `Sender.run`. A link on which any rank failed is closed on all. No wait for an engine is longer
        than the limit of its link.
        """
        links = {engine: self._links[engine] for engine in engines}
        return self._settle(
            _side_by_side({e: partial(link.sender.run, link.transport, check=check) for e, link in links.items()})
        )

    def drop(self, engines: Collection[int]) -> None:
        """Close the links to these engines, as far as there are any."""
        leaving = {engine: self._links.pop(engine) for engine in list(engines) if engine in self._links}
        _side_by_side({engine: link.transport.close for engine, link in leaving.items()})

    def close(self) -> None:
        self.drop(list(self._links))

    def _open(self, meeting: Meeting, tensors: Tensors) -> None:
        store = open_store(meeting.host, meeting.port, serve=self._rank == 0, timeout_s=meeting.timeout_s)
        if meeting.native is None:
            sender = self._sender(meeting, tensors)
            transport = meet(meeting, store, self._rank, _gpu(tensors))
        else:
            transport = meet(meeting, store, self._rank, _gpu(tensors))
            sender = self._native_sender(meeting, tensors, transport)
        self._links[meeting.engine] = _Link(sender, transport, store)

    def _sender(self, meeting: Meeting, tensors: Tensors) -> Sender | DirectSender:
        kind = DirectSender if meeting.is_direct else Sender
        settings = {"dtype": getattr(torch, meeting.dtype), "bucket_bytes": meeting.bucket_bytes}
        return kind(Plan.from_json(meeting.plan), self._rank, tensors, **settings)

    def _native_sender(self, meeting: Meeting, tensors: Tensors, transport: Transport) -> "NativeSender":
        from megatron_spell.rollout.vllm_native import NativeSender  # vLLM, which trainers do without otherwise

        return NativeSender(
            Plan.from_json(meeting.native.plan),
            tensors,
            transport,
            meeting.native.channel(meeting),
            dtype=getattr(torch, meeting.dtype),
            bucket_bytes=meeting.bucket_bytes,
        )

    def _settle(self, failed: Mapping[int, Exception]) -> Sent:
        """What all ranks met with; raises what is not an engine's fault, here and on rank 0."""
        told = self._agree([(engine, _kind(error), _words(error)) for engine, error in failed.items()])
        faults = [(rank, _Fault(*fault)) for rank, own in enumerate(told) for fault in own]
        self.drop({fault.engine for _, fault in faults})
        for error in failed.values():
            if _kind(error) == "broken":
                raise error
        for rank, fault in faults:
            if fault.kind == "broken" and self._rank == 0:
                raise BridgeError(f"trainer rank {rank} failed on its link to engine {fault.engine}: {fault.text}")
        wrong = [f"engine {fault.engine}: {fault.text}" for _, fault in faults if fault.kind == "wrong"]
        lost: dict[int, str] = {}
        for _, fault in faults:
            lost.setdefault(fault.engine, fault.text)
        return Sent(lost, "; ".join(wrong[:4]) or None)


def site_of(tensors: Tensors) -> tuple[str, str]:
    """The host and the device of the tensors, as `rollout.landing.WorkerReport` names them."""
    gpu = _gpu(tensors)
    device = "cpu" if gpu is None else f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"
    return socket.gethostname(), device


def _gpu(tensors: Tensors) -> torch.device | None:
    """The GPU that the tensors are on."""
    return next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)


def _kind(error: Exception) -> str:
    if isinstance(error, WrongWeights):
        return "wrong"
    return "lost" if isinstance(error, TransportError) else "broken"


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, BridgeError) else f"{type(error).__name__}: {error}"


def _side_by_side(work: Mapping[int, Callable[[], object]]) -> dict[int, Exception]:
    """Do all, each in a thread of its own; what failed, by key."""
    use_gpu = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
    settings = {"thread_name_prefix": "link", "initializer": use_gpu}  # a new thread would use the first GPU
    with ThreadPoolExecutor(max_workers=max(1, len(work)), **settings) as threads:
        under_way = {key: threads.submit(do) for key, do in work.items()}
    found = {key: future.exception() for key, future in under_way.items()}
    return {key: error for key, error in found.items() if isinstance(error, Exception)}

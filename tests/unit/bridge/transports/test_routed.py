"""Which transport goes to which peer."""

import itertools
import socket
import threading
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

from megatron_spell.bridge.transports import routed
from megatron_spell.bridge.transports.base import Party, TransportError, TransportTimeout
from megatron_spell.bridge.transports.routed import (
    KINDS,
    Place,
    RoutedTransport,
    can_lend,
    choose,
    meet,
    plan_routes,
    rendezvous,
)
from megatron_spell.bridge.transports.windows import WindowTransport
from tests.unit.bridge.transports.parties import NAMES, filled, run

HERE, THERE = Place("here"), Place("there")
GPU0, GPU1, GPU0_THERE = Place("here", "gpu-0"), Place("here", "gpu-1"), Place("there", "gpu-0")


@pytest.mark.parametrize(
    ("one", "other", "kind"),
    [
        (HERE, HERE, "shm"),
        (HERE, THERE, "gloo"),
        (GPU0, GPU0, "cuda_ipc"),
        (GPU0, GPU1, "nccl"),
        (GPU0, GPU0_THERE, "nccl"),
    ],
)
def test_auto(one, other, kind):
    assert choose("auto", one, other) == choose("auto", other, one) == kind


@pytest.mark.parametrize(
    ("kind", "one", "other", "why"),
    [
        ("auto", HERE, GPU0, "one rank's weights are on a GPU"),
        ("shm", HERE, THERE, "ranks of one host"),
        ("nccl", HERE, GPU0, "nccl needs both ranks on CUDA"),
        ("cuda_ipc", HERE, HERE, "cuda_ipc needs both ranks on CUDA"),
        ("cuda_ipc", GPU0, GPU1, "ranks that share a GPU"),
        ("nccl", GPU0, GPU0, "two ranks on one GPU"),
    ],
)
def test_what_cannot_be_is_refused(kind, one, other, why):
    for pair in ((one, other), (other, one)):
        with pytest.raises(TransportError, match=why) as caught:
            choose(kind, *pair)
        assert "; " in str(caught.value), "no way out is named"


def test_every_choice_is_a_kind_or_an_error():
    for kind, one, other in itertools.product(KINDS, *[[HERE, THERE, GPU0, GPU1, GPU0_THERE]] * 2):
        with suppress(TransportError):
            assert choose(kind, one, other) in KINDS[1:]


def test_a_refused_pair_is_named():
    records = [{"kind": "shm", "place": {"host": host}} for host in ("a", "a", "b")]
    with pytest.raises(TransportError, match=r"^between trainer rank 0 and engine 1: shm is for ranks of one host"):
        plan_routes(Party(0, 3, 1.0, NAMES), records)
    records[1]["kind"] = "gloo"
    with pytest.raises(
        TransportError, match=r"^between trainer rank 0 and engine 0: transport shm on one side, gloo on"
    ):
        plan_routes(Party(0, 3, 1.0, NAMES), records)


def meet_all(kind: str, hosts: list[str], monkeypatch) -> list:
    """Ranks as threads that believe to be on these hosts."""
    place = threading.local()
    monkeypatch.setattr(routed.Place, "here", classmethod(lambda cls, device="": cls(place.host, device)))
    store, size = dist.HashStore(), len(hosts)

    def one(rank: int):
        place.host = hosts[rank]
        return meet(kind, store, rank, size, timeout_s=10.0, names=NAMES, address="127.0.0.1")

    return run([lambda rank=rank: one(rank) for rank in range(size)])


def test_engines_on_two_hosts_get_the_same_bytes(monkeypatch):
    """A trainer with one engine on its host and one elsewhere sends both from the same buffers."""
    ends = meet_all("auto", ["a", "a", "b"], monkeypatch)
    assert isinstance(ends[0], RoutedTransport)
    assert isinstance(ends[0].to(1), WindowTransport)
    assert [end.brings_memory for end in ends] == [False, False, False]  # 1 and 2 may exchange over gloo too
    assert can_lend(ends[0], [1])
    assert not can_lend(ends[0], [1, 2])
    with pytest.raises(TransportError, match="engine 1 cannot see the memory of trainer rank 0"):
        ends[0].expose({}, [2])
    messages = [filled(500, seed) for seed in range(6)]

    def trainer() -> None:
        buffers, under_way = ends[0].send_buffers(500), []
        for number, content in enumerate(messages):
            for engine in (1, 2):
                if len(under_way) == 2:
                    under_way.pop(0).wait()
                buffers[engine % 2].copy_(content)
                under_way.append(ends[0].send(engine, number, buffers[engine % 2]))
        for pending in under_way:
            pending.wait()
        assert [ends[0].collect(engine, 0, 2) for engine in (1, 2)] == [b"ok", b"ok"]

    def engine(rank: int) -> list[torch.Tensor]:
        found = []
        for number in range(len(messages)):
            arrival = ends[rank].receive(0, number, torch.empty(500, dtype=torch.uint8), 500)
            found.append(arrival.wait().clone())
            arrival.release()
        ends[rank].post(0, 0, b"ok")
        return found

    _, *found = run([trainer, lambda: engine(1), lambda: engine(2)])
    for received in found:
        assert all(torch.equal(a, b) for a, b in zip(received, messages, strict=True))
    for end in ends:
        end.close()


def test_tensors_are_lent_by_the_transport_that_can(monkeypatch):
    trainer, engine, _ = ends = meet_all("auto", ["a", "a", "b"], monkeypatch)
    mine = trainer.to(1).memory.like({"a": torch.arange(4)})
    trainer.expose(mine, [1])
    pending, borrowed = trainer.offer(1, 0), engine.borrow(0, 0)
    assert torch.equal(borrowed.wait()["a"], mine["a"])
    assert engine.exposed(0).keys() == {"a"}
    borrowed.release()
    pending.wait()
    for end in ends:
        end.close()


@pytest.mark.parametrize(("kind", "of"), [("auto", "WindowTransport"), ("gloo", "GlooTransport")])
def test_one_kind_for_all_stands_alone(kind, of, monkeypatch):
    ends = meet_all(kind, ["a", "a"], monkeypatch)
    assert {type(end).__name__ for end in ends} == {of}
    for end in ends:
        end.close()


def test_ranks_find_each_other_by_address():
    """Rank 0 may drop the store that it serves: the transport keeps it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = run([lambda rank=rank: rendezvous("auto", "127.0.0.1", port, rank, 2, timeout_s=10.0) for rank in (0, 1)])
    ends[0].post(1, 0, b"hello")
    assert ends[1].collect(0, 0, 5) == b"hello"
    for end in ends:
        end.close()


def test_where_this_process_is():
    assert Place.here() == Place.here()
    assert Place.here().host.count("/") == 2


def test_unknown_kinds_and_absent_ranks():
    with pytest.raises(TransportError, match="transport 'rdma' is not known; one of auto, gloo, shm, nccl, cuda_ipc"):
        meet("rdma", dist.HashStore(), 0, 2)
    with pytest.raises(TransportTimeout, match=r"^trainer rank 0 waited 0.2 s for engine 0, engine 1 to join$"):
        meet("auto", dist.HashStore(), 0, 3, timeout_s=0.2, names=NAMES)


def test_a_peer_without_a_route_is_named():
    with pytest.raises(TransportError, match="rank 0 has no connection to rank 1"):
        RoutedTransport(Party(0, 1), {}).collect(1, 0, 1)

"""What NCCL needs beside the protocol's tests; its group is played by gloo, as no GPU is needed for the rest."""

import time

import pytest
import torch

from megatron_spell.bridge.transports import ipc, nccl
from megatron_spell.bridge.transports.base import Party, TransportError, TransportTimeout
from tests.unit.bridge.transports.parties import NAMES, filled, meet, run

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without CUDA")


def test_a_silent_peers_communicators_are_aborted():
    """Else its kernels would wait on the GPU for ever."""
    ends = meet("polled", 2, timeout_s=0.4)
    group = ends[1]._group
    with pytest.raises(
        TransportTimeout, match=r"^engine 0 waited 0.4 s for message 7 \(64 bytes\) from trainer rank 0$"
    ):
        ends[1].receive(0, 7, torch.empty(64, dtype=torch.uint8), 64).wait()
    assert group.is_aborted
    for end in ends:
        end.close()


def test_a_broken_connection_is_named():
    ends = meet("polled", 2, timeout_s=5.0)
    arrival = ends[1].receive(0, 7, torch.empty(64, dtype=torch.uint8), 64)
    arrival.pending.work._error = RuntimeError("NCCL error: remote process exited\nor there was a network error")
    arrival.pending.work._done.set()
    with pytest.raises(
        TransportError, match=r"engine 0 lost trainer rank 0 waiting for message 7 .*: NCCL error: remote"
    ):
        arrival.wait()
    for end in ends:
        end.close()


def test_what_has_no_limit_of_its_own_gets_one():
    party = Party(0, 2, 0.2, NAMES)
    with pytest.raises(TransportTimeout, match=r"^trainer rank 0 waited 0.2 s for engine 0 to connect over NCCL$"):
        nccl.within(party, "engine 0 to connect over NCCL", lambda: time.sleep(2))
    with pytest.raises(TransportError, match="spoilt"):
        nccl.within(party, "engine 0", lambda: (_ for _ in ()).throw(TransportError("spoilt")))
    done = []
    nccl.within(party, "engine 0", lambda: done.append(1))
    assert done == [1]


def test_order_alone_tells_messages_apart():
    """Tags do not count: what was sent first is received first."""
    ends, a, b = meet("polled", 2), filled(64, 1), filled(64, 2)

    def sender() -> None:
        for pending in [ends[0].send(1, 5, a), ends[0].send(1, 4, b)]:
            pending.wait()

    def receiver() -> list[torch.Tensor]:
        return [ends[1].receive(0, tag, torch.empty(64, dtype=torch.uint8), 64).wait() for tag in (5, 4)]

    _, found = run([sender, receiver])
    assert torch.equal(found[0], a)
    assert torch.equal(found[1], b)
    for end in ends:
        end.close()


def test_what_is_whole_is_ended_in_order_and_what_broke_is_aborted(monkeypatch):
    monkeypatch.setattr(nccl, "_END_S", 0.2)
    for broken, hangs in ((False, False), (True, False), (False, True)):
        end = meet("polled", 1)[0]
        group, end._is_broken = end._group, broken
        if hangs:
            group.shutdown = lambda: time.sleep(2)
        end.close()
        assert (group.is_shut_down, group.is_aborted) == (not broken and not hangs, broken or hangs)


@no_cuda
def test_without_cuda_it_is_refused_in_one_line():
    for join in (nccl.join, ipc.join):
        with pytest.raises(TransportError, match="this process sees no GPU; use shm or gloo"):
            join(None, 0, 2)


def test_the_environment_is_put_back(monkeypatch):
    for before in (None, "0"):
        if before is not None:
            monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", before)
        with nccl._environment("TORCH_NCCL_BLOCKING_WAIT", "1"):
            assert nccl.os.environ["TORCH_NCCL_BLOCKING_WAIT"] == "1"
        assert nccl.os.environ.get("TORCH_NCCL_BLOCKING_WAIT") == before

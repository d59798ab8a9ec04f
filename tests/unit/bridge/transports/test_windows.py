"""Windows, tokens and fences: what shared memory and CUDA IPC have in common."""

import gc
import queue
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_spell.bridge.transports.base import Party, TransportError
from megatron_spell.bridge.transports.meeting import Meeting
from megatron_spell.bridge.transports.shm import SharedMemory
from megatron_spell.bridge.transports.sockets import connect
from megatron_spell.bridge.transports.windows import WindowTransport
from tests.unit.bridge.transports.parties import NAMES, filled, meet, run

SIZE = 4096


@pytest.fixture
def ends():
    made = meet("shm", 2, timeout_s=5.0)
    yield made
    for end in made:
        end.close()


def arrive(end, src: int, tag: int, num_bytes: int = SIZE) -> torch.Tensor:
    arrival = end.receive(src, tag, None, num_bytes)
    found = arrival.wait().clone()
    arrival.release()
    return found


def test_the_receiver_sees_the_senders_own_memory(ends):
    buffer = ends[0].send_buffers(SIZE)[1]
    buffer.fill_(1)
    pending, arrival = ends[0].send(1, 0, buffer), ends[1].receive(0, 0, None, SIZE)
    seen = arrival.wait()
    buffer.fill_(2)
    assert torch.equal(seen, buffer)
    arrival.release()
    pending.wait()
    pending.wait()  # no harm


def test_a_send_buffer_reused_too_early_is_seen_by_the_sender(ends):
    """The planted fault: packing and sending again before the message was taken."""
    buffers = ends[0].send_buffers(SIZE)
    pending = ends[0].send(1, 0, buffers[0])
    with pytest.raises(TransportError, match=r"^trainer rank 0 reused send buffer 0 before engine 0 had taken"):
        ends[0].send(1, 1, buffers[0])
    with pytest.raises(TransportError, match="new send buffers while a message is under way"):
        ends[0].send_buffers(2 * SIZE)
    arrive(ends[1], 0, 0)
    pending.wait()
    ends[0].send(1, 1, buffers[0])


def test_a_send_buffer_reused_too_early_is_seen_by_the_receiver(ends):
    buffers = ends[0].send_buffers(SIZE)
    ends[0].send(1, 0, buffers[0])
    ends[0]._under_way.clear()  # a sender that does not look
    ends[0].send(1, 1, buffers[0])
    arrival = ends[1].receive(0, 0, None, SIZE)
    arrival.wait()
    with pytest.raises(
        TransportError, match=r"^trainer rank 0 reused its send buffer 0 before engine 0 had taken mess"
    ):
        arrival.release()


def test_only_send_buffers_can_be_sent(ends):
    buffers = ends[0].send_buffers(SIZE)
    for wrong in (torch.zeros(SIZE, dtype=torch.uint8), buffers[0][1:], buffers[0][::2]):
        with pytest.raises(TransportError, match="beginning of one of its send buffers"):
            ends[0].send(1, 0, wrong)


def test_a_message_of_another_length_is_refused(ends):
    ends[0].send(1, 3, ends[0].send_buffers(SIZE)[0])
    with pytest.raises(TransportError, match="engine 0: message 3 from trainer rank 0 has 4096 bytes, expected were 8"):
        ends[1].receive(0, 3, None, 8).wait()
    ends[0].post(1, 3, b"four")
    with pytest.raises(TransportError, match="control message 3 from trainer rank 0 has 4 bytes, expected were 5"):
        ends[1].collect(0, 3, 5)


def test_releasing_before_it_came_is_refused(ends):
    with pytest.raises(TransportError, match="released message 0 from trainer rank 0 before it came"):
        ends[1].receive(0, 0, None, SIZE).release()


def test_new_send_buffers_replace_the_old(ends):
    for num_bytes in (SIZE, 3 * SIZE, 5):
        buffer = ends[0].send_buffers(num_bytes)[0]
        content = filled(num_bytes, num_bytes)
        buffer.copy_(content)
        pending = ends[0].send(1, 0, buffer)
        assert torch.equal(arrive(ends[1], 0, 0, num_bytes), content)
        pending.wait()


def test_exposed_tensors_are_read_where_they_are(ends):
    """No copy is made on the way, views keep their shapes, and each refresh is an offer."""
    truth = {
        "a": torch.arange(12, dtype=torch.float32).reshape(3, 4),
        "b": torch.ones(5, dtype=torch.bfloat16),
        "c": torch.tensor(7),
    }
    mine = ends[0].memory.like(truth)
    mine["rows"] = mine["a"][1:, ::2]  # strides go along
    ends[0].expose(mine, [1])
    for version in range(3):
        mine["a"].fill_(version)
        pending, borrowed = ends[0].offer(1, version), ends[1].borrow(0, version)
        seen = borrowed.wait()
        assert seen.keys() == mine.keys()
        assert all(torch.equal(seen[n], t) and seen[n].dtype == t.dtype for n, t in mine.items())
        assert seen["rows"].stride() == (4, 2)
        borrowed.release()
        pending.wait()


def test_exposing_again_replaces_what_is_read(ends):
    with pytest.raises(TransportError, match="trainer rank 0 has exposed nothing to engine 0"):
        ends[0].offer(1, 0)
    for number in range(3):
        mine = ends[0].memory.like({f"tensor{number}": torch.full((4,), float(number))})
        ends[0].expose(mine, [1])
        pending, borrowed = ends[0].offer(1, 0), ends[1].borrow(0, 0)
        ((name, seen),) = borrowed.wait().items()
        assert name == f"tensor{number}"
        assert seen.eq(number).all()
        borrowed.release()
        pending.wait()


def test_what_is_not_in_shared_memory_cannot_be_exposed(ends):
    with pytest.raises(TransportError, match=r"a tensor of shape \(2, 3\) is not in shared memory"):
        ends[0].expose({"a": torch.zeros(2, 3)}, [1])


def test_a_peer_that_closed_is_named_and_what_it_sent_still_comes():
    ends = meet("shm", 2, timeout_s=5.0)
    ends[0].post(1, 0, b"last words")
    ends[1].post(0, 0, b"never read")
    ends[0].close()
    started = time.monotonic()
    assert ends[1].collect(0, 0, 10) == b"last words"
    with pytest.raises(TransportError, match=r"^engine 0 lost trainer rank 0 waiting for message 1 \(8 bytes\) from"):
        ends[1].receive(0, 1, None, 8).wait()
    with pytest.raises(TransportError, match=r"^engine 0 lost trainer rank 0 waiting for trainer rank 0 to take"):
        ends[1].post(0, 1, b"hello?")
    assert time.monotonic() - started < 1.0
    ends[1].close()


def test_no_descriptor_is_left():
    def open_files() -> list[str]:
        gc.collect()
        return sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())

    meet("shm", 2)[0].close()
    before = open_files()
    ends = meet("shm", 3)
    ends[0].expose(ends[0].memory.like({"a": torch.zeros(9)}), [1, 2])
    pending = ends[0].send(1, 0, ends[0].send_buffers(SIZE)[0])
    arrive(ends[1], 0, 0)
    pending.wait()
    ends[0].send(2, 0, ends[0].send_buffers(SIZE)[0])  # never looked at by rank 2
    for end in ends:
        end.close()
    del ends, end, pending
    assert open_files() == before


class Streams:
    """Work of each rank done late and in order by a thread, as a GPU does; fences are numbers in a common table."""

    def __init__(self):
        self.marks: dict[str, int] = defaultdict(int)  # fence -> marks whose turn has come
        self.asked: dict[str, int] = defaultdict(int)  # fence -> marks so far
        self.came = threading.Condition()
        self.queues = {}

    def begin(self, rank: int) -> None:
        self.queues[rank] = queue.Queue()
        threading.Thread(target=self._run, args=(self.queues[rank],), daemon=True).start()

    def _run(self, work: queue.Queue) -> None:
        while (action := work.get()) is not None:
            action()

    def reach(self, fence: str, mark: int) -> None:
        with self.came:
            self.marks[fence] = mark
            self.came.notify_all()

    def wait_for(self, fence: str, mark: int) -> None:
        with self.came:
            assert self.came.wait_for(lambda: self.marks[fence] >= mark, 10)


class LateFence:
    def __init__(self, streams: Streams, rank: int, handle: str):
        self.streams, self.rank, self.handle = streams, rank, handle

    def mark(self) -> None:
        self.streams.asked[self.handle] += 1
        number = self.streams.asked[self.handle]
        self.streams.queues[self.rank].put(lambda: self.streams.reach(self.handle, number))

    def follow(self) -> None:
        number = self.streams.asked[self.handle]
        self.streams.queues[self.rank].put(lambda: self.streams.wait_for(self.handle, number))


class LateMemory(SharedMemory):
    """Shared memory whose ranks work as GPUs do."""

    def __init__(self, streams: Streams, rank: int, faulty: str = ""):
        super().__init__()
        self.streams, self.rank, self.faulty, self.num_fences = streams, rank, faulty, 0
        streams.begin(rank)

    def make_fence(self):
        self.num_fences += 1
        return LateFence(self.streams, self.rank, f"{self.rank}.{self.num_fences}")

    def open_fence(self, handle: str):
        fence = LateFence(self.streams, self.rank, handle)
        if self.faulty:
            fence.follow = lambda: None
        return fence


def refresh_late(slow: str, faulty: str = "") -> bool:
    """Whether every byte arrives when packing and landing are queued, and one side's work is slow."""
    streams, store = Streams(), dist.HashStore()
    names = ("sender", "receiver")

    def join(rank: int) -> WindowTransport:
        meeting = Meeting(store, "late", Party(rank, 2, 10.0, NAMES))
        memory = LateMemory(streams, rank, faulty if faulty == names[rank] else "")
        return WindowTransport(connect(meeting, {1 - rank}), memory)

    ends = run([lambda rank=rank: join(rank) for rank in (0, 1)])
    messages = [filled(SIZE, seed) for seed in range(12)]
    found = [torch.zeros(SIZE, dtype=torch.uint8) for _ in messages]

    def later(rank: int, action) -> None:
        streams.queues[rank].put(lambda: (time.sleep(0.02 if slow == names[rank] else 0.001), action()))

    def sender() -> None:
        buffers, under_way = ends[0].send_buffers(SIZE), []
        for tag, content in enumerate(messages):
            if len(under_way) == 2:
                under_way.pop(0).wait()
            buffer = buffers[tag % 2]
            later(0, lambda buffer=buffer, content=content: buffer.copy_(content))
            under_way.append(ends[0].send(1, tag, buffer))
        for pending in under_way:
            pending.wait()

    def receiver() -> None:
        for tag, place in enumerate(found):
            arrival = ends[1].receive(0, tag, None, SIZE)
            seen = arrival.wait()
            later(1, lambda place=place, seen=seen: place.copy_(seen))
            arrival.release()

    run([sender, receiver])
    done = threading.Event()
    streams.queues[1].put(done.set)
    assert done.wait(10)
    for rank, end in enumerate(ends):
        streams.queues[rank].put(None)
        end.close()
    return all(torch.equal(a, b) for a, b in zip(found, messages))


@pytest.mark.parametrize("slow", ["sender", "receiver"])
def test_fences_order_work_that_is_done_late(slow):
    assert refresh_late(slow)


@pytest.mark.parametrize(("slow", "faulty"), [("sender", "receiver"), ("receiver", "sender")])
def test_a_side_that_follows_no_fence_spoils_the_bytes(slow, faulty):
    """The planted fault: the check above must fail for who does not wait for the slow side."""
    assert not refresh_late(slow, faulty)

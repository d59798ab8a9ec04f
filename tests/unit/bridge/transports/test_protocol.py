"""What every transport promises, on each kind that runs in one process."""

import pytest
import torch

from megatron_spell.bridge.transports.base import TransportError, TransportTimeout
from tests.unit.bridge.transports.parties import KINDS, filled, meet, room, run

SIZE = 700


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def ends(kind):
    made = meet(kind, 3)
    yield made
    for end in made:
        end.close()


def send_all(end, dst: int, messages: list[torch.Tensor]) -> None:
    """As the executor does: two buffers in turn, each packed again only when it was taken."""
    buffers, under_way = end.send_buffers(SIZE), []
    for tag, content in enumerate(messages):
        if len(under_way) == 2:
            under_way.pop(0).wait()
        view = buffers[tag % 2][: content.numel()]
        view.copy_(content)
        under_way.append(end.send(dst, tag, view))
    for pending in under_way:
        pending.wait()


def receive_all(end, src: int, sizes: list[int]) -> list[torch.Tensor]:
    """Two receives under way; the bytes are copied before they are released."""
    arrivals, found = [], []
    for tag, size in enumerate(sizes):
        arrivals.append(end.receive(src, tag, room(end, size), size))
        if len(arrivals) == 2:
            land(arrivals, found)
    while arrivals:
        land(arrivals, found)
    return found


def land(arrivals: list, found: list[torch.Tensor]) -> None:
    arrival = arrivals.pop(0)
    found.append(arrival.wait().clone())
    arrival.release()


def test_bytes_arrive_in_order_with_two_under_way(ends):
    sizes = [700, 1, 333, 700, 64, 700, 2]
    messages = [filled(size, seed) for seed, size in enumerate(sizes)]
    for _ in range(3):  # the same tags again, as every refresh has
        _, found = run([lambda: send_all(ends[0], 1, messages), lambda: receive_all(ends[1], 0, sizes)])
        assert all(torch.equal(a, b) for a, b in zip(found, messages, strict=True))


def test_both_directions_and_two_receivers(ends):
    """Rank 0 feeds 1 and 2 in turn while 1 feeds 2."""
    a, b, c = (filled(SIZE, seed) for seed in range(3))

    def zero() -> None:
        buffers = ends[0].send_buffers(SIZE)
        buffers[0].copy_(a)
        first = ends[0].send(1, 5, buffers[0])
        buffers[1].copy_(b)
        second = ends[0].send(2, 6, buffers[1])
        second.wait()
        first.wait()

    def one() -> torch.Tensor:
        (mine, _), arrival = ends[1].send_buffers(SIZE), ends[1].receive(0, 5, room(ends[1], SIZE), SIZE)
        mine.copy_(c)
        pending = ends[1].send(2, 5, mine)
        found = arrival.wait().clone()
        arrival.release()
        pending.wait()
        return found

    def two() -> list[torch.Tensor]:
        arrivals = [ends[2].receive(src, tag, room(ends[2], SIZE), SIZE) for src, tag in ((1, 5), (0, 6))]
        found = [arrival.wait().clone() for arrival in arrivals]
        for arrival in arrivals:
            arrival.release()
        return found

    _, found_one, found_two = run([zero, one, two])
    assert torch.equal(found_one, a)
    assert torch.equal(found_two[0], c)
    assert torch.equal(found_two[1], b)


def test_posts_have_tags_of_their_own(ends):
    """A verdict with the tag of a data message, posted before it is asked for, in both directions at once."""
    content = filled(SIZE, 1)

    def zero() -> bytes:
        buffer = ends[0].send_buffers(SIZE)[0]
        buffer.copy_(content)
        ends[0].post(1, 3, b"verdict")
        ends[0].post(1, 3, b"another")
        pending = ends[0].send(1, 3, buffer)
        answer = ends[0].collect(1, 3, 8)
        pending.wait()
        return answer

    def one() -> tuple:
        ends[1].post(0, 3, bytes(range(8)))
        arrival = ends[1].receive(0, 3, room(ends[1], SIZE), SIZE)
        found = arrival.wait().clone()
        arrival.release()
        return found, ends[1].collect(0, 3, 7), ends[1].collect(0, 3, 7)

    answer, (found, first, second) = run([zero, one])
    assert torch.equal(found, content)
    assert (answer, first, second) == (bytes(range(8)), b"verdict", b"another")


def test_many_posts_and_a_large_one(ends):
    large = filled(300_000, 9).numpy().tobytes()

    def zero() -> None:
        for tag in range(100):
            ends[0].post(1, tag, tag.to_bytes(2, "big"))
        ends[0].post(1, 100, large)
        assert ends[0].collect(1, 0, 4) == b"done"

    def one() -> None:
        assert [int.from_bytes(ends[1].collect(0, tag, 2), "big") for tag in range(100)] == list(range(100))
        assert ends[1].collect(0, 100, len(large)) == large
        ends[1].post(0, 0, b"done")

    run([zero, one])


@pytest.mark.parametrize("wait_for", ["data", "control"])
def test_a_silent_sender_is_named(kind, wait_for):
    ends = meet(kind, 2, timeout_s=0.3)
    with pytest.raises(TransportTimeout) as caught:
        if wait_for == "data":
            ends[1].receive(0, 4, room(ends[1], SIZE), SIZE).wait()
        else:
            ends[1].collect(0, 4, 8)
    expected = "message 4 (700 bytes)" if wait_for == "data" else "control message 4 (8 bytes)"
    assert str(caught.value) == f"engine 0 waited 0.3 s for {expected} from trainer rank 0"
    for end in ends:
        end.close()


def test_a_silent_receiver_is_named(kind):
    ends = meet(kind, 2, timeout_s=0.3)
    with pytest.raises(TransportTimeout) as caught:
        ends[0].send(1, 4, ends[0].send_buffers(SIZE)[0]).wait()
    assert str(caught.value) == "trainer rank 0 waited 0.3 s for engine 0 to take message 4 (700 bytes)"
    for end in ends:
        end.close()


def test_a_closed_end_is_of_no_more_use_and_closes_twice(kind):
    ends = meet(kind, 2, timeout_s=0.3)
    for end in (*ends, *ends):
        end.close()
    if "memory" not in kind:
        with pytest.raises(TransportError, match="trainer rank 0 has closed"):
            ends[0].collect(1, 0, 8)


def test_a_buffer_that_does_not_fit_is_refused(kind):
    ends = meet(kind, 2, timeout_s=1.0)
    if not ends[1].brings_memory:
        with pytest.raises(TransportError, match="a message of 700 bytes does not fit a buffer of 699"):
            ends[1].receive(0, 0, torch.empty(699, dtype=torch.uint8), SIZE)
        with pytest.raises(TransportError, match="this transport fills buffers"):
            ends[1].receive(0, 0, None, SIZE)
    for end in ends:
        end.close()

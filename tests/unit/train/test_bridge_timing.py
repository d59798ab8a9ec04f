"""Seconds to be worked out by hand: a byte takes 1 s within a GPU, 2 s over NVLink, 10 s over InfiniBand."""

import pytest

from megatron_spell.config.hardware import Hardware
from megatron_spell.train.bridge_timing import Bound, Message, Path, Sites, bound, predict

SLOW = Hardware(nvlink_gb_per_s=0.5e-9, infiniband_gb_per_s=0.1e-9, hbm_copy_gb_per_s=1e-9, message_latency_us=0)
LATE = Hardware(nvlink_gb_per_s=0.5e-9, infiniband_gb_per_s=0.1e-9, hbm_copy_gb_per_s=1e-9, message_latency_us=3e6)
# Ranks 0 to 3 on GPUs of two nodes of two; rank 4 shares rank 0's.
SITES = Sites({0: 0, 1: 1, 2: 2, 3: 3, 4: 0}, gpus_per_node=2)


def test_what_lies_between_two_ranks():
    assert SITES.path(0, 4) is Path.SAME_GPU
    assert SITES.path(4, 1) is Path.NVLINK
    assert SITES.path(1, 2) is Path.INFINIBAND


def test_the_bound_is_the_busiest_link_of_one_gpu_in_one_direction():
    # GPU 0 sends 30 bytes by NVLink: 60 s; GPU 3 receives 4 + 3 by InfiniBand: 70 s. Other sums are no one's load.
    between = {(0, 1): 20, (4, 1): 10, (0, 3): 4, (1, 3): 3, (0, 4): 40}
    assert bound(between, SITES, SLOW) == Bound(pytest.approx(70), 3, Path.INFINIBAND, False, 7)
    assert bound({(0, 2): 1, (0, 3): 1}, SITES, SLOW) == Bound(pytest.approx(20), 0, Path.INFINIBAND, True, 2)


@pytest.mark.parametrize(
    ("links", "seconds"),
    [
        ([[Message(0, 1, 5)]], 5 + 10 + 5),  # pack, travel, land
        ([[Message(0, 2, 5)]], 5 + 50 + 5),
        ([[Message(0, 4, 5)]], 5),  # landing is the one copy, out of the sender's own tensors
        ([[Message(0, 1, 1), Message(0, 1, 1)]], 1 + 2 + 2 + 1),  # the second is packed while the first travels
        ([[Message(0, 1, 1)] * 4], 1 + 4 * 2 + 1),  # the wire never rests
        ([[Message(0, 2, 1), Message(1, 2, 1)]], 1 + 10 + 10 + 1),  # two into one port
        ([[Message(0, 2, 1), Message(0, 3, 1)]], 1 + 10 + 10 + 1),  # two out of one port
        ([[Message(0, 2, 1), Message(1, 3, 1)]], 1 + 10 + 1),  # nothing in common
        ([[Message(0, 2, 1)], [Message(1, 3, 1)]], 1 + 10 + 1),
    ],
)
def test_messages_are_played_through(links, seconds):
    assert predict(links, SITES, SLOW) == pytest.approx(seconds)


def test_a_latency_holds_a_buffer_and_not_a_port():
    assert predict([[Message(0, 2, 1)]], SITES, LATE) == pytest.approx(1 + 10 + 3 + 1)
    assert predict([[Message(0, 2, 1)] * 2], SITES, LATE) == pytest.approx(1 + 10 + 10 + 3 + 1)


def test_two_in_flight_make_a_rank_wait_for_the_first_of_them():
    # Rank 0 packs its third message only once the slow first one has left at 11; by NVLink the others would be done.
    link = [Message(0, 2, 1), Message(0, 1, 1), Message(0, 1, 1)]
    assert predict([link], SITES, SLOW) == pytest.approx(11 + 1 + 2 + 1)
    assert predict([link[:1], link[1:]], SITES, SLOW) == pytest.approx(12)  # apart they do not wait for each other


def test_a_message_that_must_wait_for_a_port_lets_others_pass():
    # 0 -> 2 keeps the way into GPU 2 busy until 11. 1 -> 2, packed at 2, waits; 1 -> 3 of another link, packed at 5,
    # takes the way out of GPU 1 from 5 to 35. Then 1 -> 2 travels until 55 and lands until 57.
    links = [[Message(0, 2, 1), Message(1, 2, 2)], [Message(1, 3, 3)]]
    assert predict(links, SITES, SLOW) == pytest.approx(57)


def test_packing_and_landing_on_one_gpu_share_its_memory():
    # Rank 0 packs 8 bytes and rank 4, on the same GPU, lands 8: 16 s of copying, longer than any chain of them.
    links = [[Message(0, 1, 1)] * 8, [Message(1, 4, 1)] * 8]
    fast = Hardware(nvlink_gb_per_s=1, infiniband_gb_per_s=1, hbm_copy_gb_per_s=1e-9, message_latency_us=0)
    assert predict(links, SITES, fast) == pytest.approx(16)

"""The bridge over real gloo connections between processes."""

from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("bridge_rank.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("layout", "tied", "dtype", "num_ranks"),
    [
        ("tp2", "tied", "float32", 3),
        ("pp2", "tied", "bfloat16", 3),
        ("dp2", "untied", "float32", 4),
        ("tp2pp2", "untied", "bfloat16", 5),
    ],
)
def test_engines_get_every_bit(layout, tied, dtype, num_ranks):
    run_ranks(RANK, num_ranks, "weights", layout, tied, dtype, timeout_s=120)


@pytest.mark.parametrize(("before", "after"), [("tp2", "pp2"), ("pp2", "dp2"), ("dp2", "tp2"), ("pp2", "tp2")])
def test_trainers_reshard_and_write_a_folder(tmp_path, before, after):
    run_ranks(RANK, 2, "reshard", before, after, str(tmp_path), timeout_s=120)


@pytest.mark.parametrize("way", ["dies", "falls-silent"])
def test_a_lost_peer_is_named_within_the_limit(way):
    run_ranks(RANK, 3, "lost", way, timeout_s=120)


def test_absent_peers_are_named():
    run_ranks(RANK, 1, "absent", timeout_s=60)

"""Transports between real processes: every byte, the order, lost peers, and what is left behind."""

from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("transport_rank.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["auto", "gloo", "shm"])
def test_every_byte_arrives_and_nothing_stays_open(kind):
    run_ranks(RANK, 3, "stream", kind, timeout_s=120)


@pytest.mark.parametrize(
    ("kind", "way", "whose"),
    [
        ("gloo", "killed", "trainer"),
        ("gloo", "stopped", "engine"),
        ("shm", "killed", "trainer"),
        ("shm", "killed", "engine"),
        ("shm", "stopped", "trainer"),
        ("shm", "stopped", "engine"),
    ],
)
def test_a_lost_peer_is_named_within_the_limit(kind, way, whose):
    run_ranks(RANK, 3, "lost", kind, way, whose, timeout_s=120)


@pytest.mark.parametrize("kind", ["gloo", "shm"])
def test_a_killed_engine_costs_only_its_own_link(kind):
    run_ranks(RANK, 3, "links", kind, timeout_s=120)


def test_exposed_tensors_are_read_by_two_engines():
    run_ranks(RANK, 3, "exposed", timeout_s=120)


def test_a_send_buffer_reused_too_early_is_seen():
    run_ranks(RANK, 2, "careless", timeout_s=120)

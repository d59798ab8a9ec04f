"""One link per engine, over real connections between processes: a lost engine costs nobody but itself."""

from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("links_rank.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("transport", ["gloo", "shm"])
@pytest.mark.parametrize("way", ["dies", "falls-silent"])
def test_others_get_every_bit_within_the_limit_and_the_lost_engine_is_met_again(way, transport):
    run_ranks(RANK, 5, way, transport, timeout_s=120)


@pytest.mark.parametrize("transport", ["gloo", "shm"])
def test_weights_that_arrive_wrong_are_told_to_all_trainers(transport):
    run_ranks(RANK, 5, "corrupts", transport, timeout_s=120)

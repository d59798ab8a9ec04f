"""One link per engine, over real gloo connections between processes: a lost engine costs nobody but itself."""

from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("links_rank.py")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", ["dies", "falls-silent"])
def test_others_get_every_bit_within_the_limit_and_the_lost_engine_is_met_again(way):
    run_ranks(RANK, 5, way, timeout_s=120)


def test_weights_that_arrive_wrong_are_told_to_all_trainers():
    run_ranks(RANK, 5, "corrupts", timeout_s=120)

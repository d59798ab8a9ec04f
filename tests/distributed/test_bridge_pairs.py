"""Weights between pairs of layouts over real gloo processes, every bit compared with a full gather."""

import json
from pathlib import Path

import pytest

from tests.distributed.layout_pairs import NUM_RANKS, PAIRS
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> list[dict[str, str]]:
    """What each rank found wrong with each pair; all pairs are run by one launch."""
    out = tmp_path_factory.mktemp("pairs")
    run_ranks(Path(__file__).with_name("pairs_rank.py"), NUM_RANKS, str(out), timeout_s=240)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(NUM_RANKS)]


def test_there_are_enough_different_pairs():
    assert len({pair.name for pair in PAIRS}) == len(PAIRS) >= 40


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_every_bit_is_that_of_a_full_gather(faults, pair):
    assert [found[pair.name] for found in faults] == [""] * NUM_RANKS


def test_a_planted_difference_is_seen(faults):
    """An element of a norm that changed after the gather, in a pair that passes without it."""
    assert any("model.norm.weight" in found["planted"] for found in faults)

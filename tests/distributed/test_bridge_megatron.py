"""The bridge's table against the parameters of real Megatron models."""

import json
from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("bridge_megatron_rank.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "axes", [{}, {"tp": 2, "pp": 2}, {"tp": 2, "pp": 2, "vpp": 2, "ep": 2, "etp": 1}], ids=lambda axes: str(axes)
)
def test_the_table_names_every_parameter_with_its_shape(axes):
    run_ranks(RANK, axes.get("tp", 1) * axes.get("pp", 1), json.dumps(axes), timeout_s=120)


@pytest.mark.slow
def test_any_rank_of_qwen3_30b_is_built_without_memory():
    run_ranks(RANK.with_name("blueprint_rank.py"), 1, timeout_s=240)

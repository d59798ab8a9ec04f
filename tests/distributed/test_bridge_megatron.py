"""The bridge's table against the parameters of real Megatron models."""

from pathlib import Path

import pytest

from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("bridge_megatron_rank.py")


@pytest.mark.slow
@pytest.mark.parametrize(("tp", "pp", "dp"), [(1, 1, 1), (2, 2, 1)])
def test_the_table_names_every_parameter_with_its_shape(tp, pp, dp):
    run_ranks(RANK, tp * pp * dp, str(tp), str(pp), str(dp), timeout_s=120)

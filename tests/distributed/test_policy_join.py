"""A trainer that waits in vain says so in one line, within its limit."""

import os
import subprocess
import sys

import pytest

from tests.distributed.processes import free_port

pytestmark = pytest.mark.slow

JOIN = """
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup
try:
    setup.initialise(Mesh(tp=2), timeout_s=3)
except setup.PolicyError as error:
    print(error)
"""


def joining_alone(**rendezvous: object) -> str:
    env = {**os.environ, **{name: str(value) for name, value in rendezvous.items()}}
    done = subprocess.run([sys.executable, "-c", JOIN], env=env, capture_output=True, text=True, timeout=90, check=True)
    return done.stdout


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_told_within_the_limit(rank):
    said = joining_alone(RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    assert said.count("\n") == 1
    assert said.startswith("not all 2 trainers came within policy.timeout_s = 3: ")


def test_a_process_without_a_rendezvous_is_told_how_to_start():
    said = joining_alone()
    assert said.count("\n") == 1
    assert "start them with torchrun" in said

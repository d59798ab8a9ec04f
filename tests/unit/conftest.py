"""One process is the whole mesh."""

import pytest

from megatron_spell.layout.mesh import Mesh


@pytest.fixture(scope="session")
def alone():
    """The process groups of a mesh of one rank; a process joins once."""
    from megatron_spell.policy import setup

    setup.initialise(Mesh(), timeout_s=60)
    yield
    setup.shut_down()

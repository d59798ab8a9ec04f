"""What the policy does not take, it refuses in one line."""

import pytest

from megatron_spell.config.policy_sections import MeshSection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup
from tests.distributed.policy_lab import make_policy


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_mesh_of_another_size_than_the_processes_is_refused(alone):
    with pytest.raises(setup.PolicyError) as caught:
        setup.initialise(Mesh(tp=2), timeout_s=1)
    assert "policy.mesh (tp=2 pp=1 dp=1) has 2 ranks but 1 processes were started" in one_line(caught)


def test_a_layout_that_cannot_be_is_refused(alone, model):
    with pytest.raises(setup.PolicyError) as caught:
        make_policy(model, MeshSection(tp=4))
    assert "policy.mesh.tp = 4: the model's 2 key-value heads do not divide by it" in one_line(caught)

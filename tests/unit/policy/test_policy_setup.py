"""What the policy does not take, it refuses in one line."""

import pytest

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import AlgoSection, MeshSection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup
from megatron_spell.policy.model import check_divides
from tests.distributed.policy_lab import make_policy


def one_line(caught) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("axis", ["ep", "etp", "vpp"])
def test_axes_to_come_are_refused(axis):
    with pytest.raises(setup.PolicyError) as caught:
        setup.initialise(Mesh(**{axis: 2}), timeout_s=1)
    assert f"policy.mesh.{axis} = 2 is not supported yet; set it to 1" in one_line(caught)


def test_a_mesh_of_another_size_than_the_processes_is_refused(alone):
    with pytest.raises(setup.PolicyError) as caught:
        setup.initialise(Mesh(tp=2), timeout_s=1)
    assert "policy.mesh (tp=2 pp=1 dp=1) has 2 ranks but 1 processes were started" in one_line(caught)


@pytest.mark.parametrize("mesh, size", [(Mesh(tp=4), "2 key-value heads"), (Mesh(pp=3), "4 layers")])
def test_a_model_that_does_not_divide_is_refused(model, mesh, size):
    with pytest.raises(setup.PolicyError) as caught:
        check_divides(ModelShape.load(model), mesh)
    assert size in one_line(caught)


def test_staleness_is_refused(alone, model):
    with pytest.raises(setup.PolicyError, match=r"algo\.max_staleness = 1 is not supported yet"):
        make_policy(model, MeshSection(), algo=AlgoSection(max_staleness=1))

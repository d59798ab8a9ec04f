import pytest

from megatron_spell.layout.mesh import Coordinates, ExpertCoordinates, Mesh


def test_tensor_parallel_ranks_are_neighbours():
    mesh = Mesh(tp=2, dp=3, pp=2)
    assert mesh.world_size == 12
    assert mesh.coordinates(0) == Coordinates(tp=0, cp=0, dp=0, pp=0)
    assert mesh.coordinates(1) == Coordinates(tp=1, cp=0, dp=0, pp=0)
    assert mesh.coordinates(2) == Coordinates(tp=0, cp=0, dp=1, pp=0)
    assert mesh.coordinates(6) == Coordinates(tp=0, cp=0, dp=0, pp=1)


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=4), Mesh(tp=2, cp=2, dp=2, pp=2), Mesh(dp=5, pp=3)])
def test_rank_and_coordinates_are_inverse(mesh):
    assert [mesh.rank(at) for _, at in mesh.ranks()] == list(range(mesh.world_size))


def test_a_rank_outside_is_refused():
    with pytest.raises(ValueError, match="rank 2 is outside a mesh of 2 ranks"):
        Mesh(tp=2).coordinates(2)


def test_layers_are_split_evenly_over_stages():
    assert [list(Mesh(pp=2).chunk_layers(4, stage)) for stage in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="5 layers do not divide over 2"):
        Mesh(pp=2).chunk_layers(5, 0)


def test_chunks_of_interleaved_stages_alternate():
    mesh = Mesh(pp=2, vpp=2)
    assert [[list(mesh.chunk_layers(8, pp, v)) for v in range(2)] for pp in range(2)] == [
        [[0, 1], [4, 5]],
        [[2, 3], [6, 7]],
    ]


def test_layers_are_split_as_told():
    mesh = Mesh(pp=2, vpp=2, stage_layers=(1, 1, 3, 1))
    assert [[list(mesh.chunk_layers(6, pp, v)) for v in range(2)] for pp in range(2)] == [
        [[0], [2, 3, 4]],
        [[1], [5]],
    ]
    assert list(Mesh(stage_layers=(4,)).chunk_layers(4, 0)) == [0, 1, 2, 3]


@pytest.mark.parametrize("given", [(2, 2), (1, 3, 1), (5,), (5, 0), (7, -2), ()])
def test_a_split_of_another_model_or_mesh_is_refused(given):
    numbers = ",".join(map(str, given))
    with pytest.raises(ValueError, match=f"stage_layers={numbers} do not spread 5 layers over 2 pipeline stages of 1"):
        Mesh(pp=2, stage_layers=given).chunk_layers(5, 0)


def test_experts_fold_over_the_ranks_of_a_stage():
    """Tensor-parallel ranks of one expert are neighbours, then come the expert-parallel ones; stages are apart."""
    mesh = Mesh(tp=2, cp=2, dp=2, pp=2, ep=2, etp=2)
    assert mesh.expert_coordinates(1) == ExpertCoordinates(etp=1, ep=0, edp=0)
    assert mesh.expert_coordinates(2) == ExpertCoordinates(etp=0, ep=1, edp=0)
    assert mesh.expert_coordinates(6) == ExpertCoordinates(etp=0, ep=1, edp=1)
    assert mesh.expert_coordinates(8) == mesh.expert_coordinates(0)
    assert Mesh(tp=2, ep=2, etp=1).expert_coordinates(1) == ExpertCoordinates(etp=0, ep=1, edp=0)
    assert Mesh(tp=2).expert_coordinates(1) == ExpertCoordinates(etp=1, ep=0, edp=0)


def test_the_name_shows_the_axes_in_use():
    assert str(Mesh(tp=2, cp=4)) == "tp=2 pp=1 dp=1 cp=4"
    assert str(Mesh(tp=2, pp=2, ep=2, etp=1, vpp=2)) == "tp=2 pp=2 dp=1 ep=2 vpp=2 etp=1"
    assert str(Mesh(pp=2, stage_layers=(1, 3))) == "tp=1 pp=2 dp=1 stage_layers=1,3"

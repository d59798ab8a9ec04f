import pytest

from megatron_spell.layout.engine_mesh import EngineMesh, places, stage_layers

DENSE = {"num_layers": 4, "num_kv_heads": 4}
MIXTURE = {"num_layers": 4, "num_kv_heads": 4, "num_experts": 5}


def experts(mesh: EngineMesh) -> list[tuple[tuple[int, ...], int, int]]:
    return [(p.experts, p.expert_tp_rank, p.expert_tp) for p in places(mesh, **MIXTURE)]


def test_tensor_parallel_workers_are_neighbours_then_stages_then_replicas():
    mesh = EngineMesh(tp=2, pp=2, dp=2)
    found = [(p.tp_rank, p.layers.start, p.first_stage, p.last_stage) for p in places(mesh, **DENSE)]
    stage_0, stage_1 = [(0, 0, True, False), (1, 0, True, False)], [(0, 2, False, True), (1, 2, False, True)]
    assert found == [*stage_0, *stage_1, *stage_0, *stage_1]
    with pytest.raises(ValueError, match="worker 8 is outside an engine of 8 workers"):
        mesh.place(8, **DENSE)


def test_a_key_value_head_is_replicated_and_never_cut():
    def parts(tp: int, num_kv_heads: int) -> list[tuple[int, int]]:
        return [(p.kv_part, p.kv_parts) for p in places(EngineMesh(tp), num_layers=1, num_kv_heads=num_kv_heads)]

    assert parts(tp=2, num_kv_heads=4) == [(0, 2), (1, 2)]
    assert parts(tp=4, num_kv_heads=2) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    assert parts(tp=2, num_kv_heads=1) == [(0, 1), (0, 1)]
    for tp, num_kv_heads in ((4, 6), (3, 2)):
        with pytest.raises(ValueError, match=f"{num_kv_heads} key-value heads neither divide over tp = {tp} nor"):
            parts(tp, num_kv_heads)


def test_layers_that_do_not_divide_go_to_the_stages_before_the_last():
    def sizes(num_layers: int, num_stages: int) -> list[int]:
        return [len(stage_layers(num_layers, stage, num_stages)) for stage in range(num_stages)]

    assert sizes(8, 2) == [4, 4]
    assert sizes(7, 2) == [4, 3]
    assert sizes(10, 4) == [2, 3, 3, 2]
    assert sizes(11, 4) == [3, 3, 3, 2]
    assert [i for stage in range(4) for i in stage_layers(10, stage, 4)] == list(range(10))
    with pytest.raises(ValueError, match="3 layers do not fill 4 pipeline stages"):
        stage_layers(3, 0, 4)


def test_experts_are_cut_over_all_workers_of_a_stage_or_placed_whole():
    everything = tuple(range(5))
    assert experts(EngineMesh(tp=2)) == [(everything, 0, 2), (everything, 1, 2)]
    assert experts(EngineMesh(tp=2, dp=2)) == [(everything, i, 4) for i in range(4)]
    assert experts(EngineMesh(tp=2, expert_parallel=True)) == [((0, 1, 2), 0, 1), ((3, 4), 0, 1)]
    spread = EngineMesh(tp=2, dp=2, expert_parallel=True)
    assert [found for found, _, _ in experts(spread)] == [(0, 1), (2,), (3,), (4,)]
    assert experts(EngineMesh(expert_parallel=True)) == [(everything, 0, 1)]
    in_turn = EngineMesh(tp=2, expert_parallel=True, expert_placement="round_robin")
    assert [found for found, _, _ in experts(in_turn)] == [(0, 2, 4), (1, 3)]


def test_every_stage_has_its_own_group_of_experts():
    staged = EngineMesh(tp=2, pp=2, expert_parallel=True)
    assert [found for found, _, _ in experts(staged)] == [(0, 1, 2), (3, 4)] * 2


def test_a_dense_model_has_no_experts():
    place = EngineMesh(tp=2, dp=2, expert_parallel=True).place(3, **DENSE)
    assert (place.experts, place.expert_tp, place.expert_tp_rank) == ((), 1, 0)


@pytest.mark.parametrize(
    ("model", "embedding", "head"),
    [
        ({}, [True, False, False], [False, False, True]),
        ({"tied": True}, [True, False, True], [False, False, True]),
        ({"ends_on_every_stage": True}, [True] * 3, [True] * 3),
    ],
)
def test_where_the_embedding_and_the_head_stand(model, embedding, head):
    found = list(places(EngineMesh(pp=3), **DENSE, **model))
    assert [p.embedding for p in found] == embedding
    assert [p.head for p in found] == head


def test_the_name_shows_the_axes_in_use():
    assert str(EngineMesh()) == "tp=1"
    assert str(EngineMesh(tp=2, dp=2, expert_parallel=True)) == "tp=2 dp=2 ep"

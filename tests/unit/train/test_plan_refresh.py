from dataclasses import replace

import pytest

from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.routes import part_of, plan_refresh

SHAPE = ModelShape.from_json(
    {
        "model_type": "qwen3",
        "vocab_size": 65,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 48,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128,
        "rope_theta": 1e4,
    }
)


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2), Mesh(pp=2), Mesh(dp=2), Mesh(tp=2, pp=2, dp=2)])
@pytest.mark.parametrize(("num_engines", "num_workers"), [(1, 1), (3, 1), (2, 2)])
def test_every_worker_gets_every_element_once_and_replicas_share_the_sending(mesh, num_engines, num_workers):
    moves = plan_refresh(SHAPE, mesh, [checkpoint_inventory(SHAPE)] * num_workers, num_engines)
    sent = moves.bytes_between(itemsize=4)
    for worker in range(num_engines * num_workers):
        received = sum(count for (_, to), count in sent.items() if to == mesh.world_size + worker)
        assert received == 4 * SHAPE.num_parameters
    assert {source for source, _ in sent} == set(range(mesh.world_size))
    assert {move.hf_name for move in moves.moves} == set(checkpoint_shapes(SHAPE))


def test_the_parts_of_the_engines_are_the_plan_in_the_ranks_of_their_links():
    mesh, num_workers = Mesh(tp=2, dp=2), 2
    whole = plan_refresh(SHAPE, mesh, [checkpoint_inventory(SHAPE)] * num_workers, num_engines=3)
    parts = [part_of(whole, e, num_trainers=mesh.world_size, num_workers=num_workers) for e in range(3)]
    assert {move.dst_rank for part in parts for move in part.moves} == {4, 5}
    back = [
        replace(move, dst_rank=move.dst_rank + engine * num_workers)
        for engine, part in enumerate(parts)
        for move in part.moves
    ]
    assert tuple(back) == whole.moves
    sent = [sum(part.bytes_between(4).values()) for part in parts]
    assert len(set(sent)) == 1


def test_replicas_share_the_sending_over_all_engines():
    """A plan of its own for each engine would give the largest tensors to the same rank each time."""
    mesh = Mesh(dp=2)
    moves = plan_refresh(SHAPE, mesh, [checkpoint_inventory(SHAPE)], num_engines=2)
    by_source = [sum(c for (s, _), c in moves.bytes_between(4).items() if s == rank) for rank in range(2)]
    assert abs(by_source[0] - by_source[1]) <= 0.02 * sum(by_source)


def test_a_worker_takes_from_its_own_gpu_then_from_its_node_then_from_anyone():
    sites = {0: ("a", "gpu 0"), 1: ("a", "gpu 1"), 2: ("b", "gpu 2"), 3: ("b", "gpu 3")}
    workers = {4: ("a", "gpu 1"), 5: ("b", "gpu 9"), 6: ("c", "gpu 9"), 7: ()}
    moves = plan_refresh(SHAPE, Mesh(dp=4), [checkpoint_inventory(SHAPE)], 4, sites | workers)
    sources = {target: {move.src_rank for move in moves.moves if move.dst_rank == target} for target in workers}
    assert (sources[4], sources[5]) == ({1}, {2, 3})
    assert len(sources[6] | sources[7]) > 2

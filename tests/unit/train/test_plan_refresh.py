import pytest

from megatron_spell.bridge.inventory import checkpoint_shapes
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.refresh import plan_refresh

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
@pytest.mark.parametrize("num_engines", [1, 3])
def test_every_engine_gets_every_element_once_and_replicas_share_the_sending(mesh, num_engines):
    moves = plan_refresh(SHAPE, mesh, num_engines)
    sent = moves.bytes_between(itemsize=4)
    for engine in range(num_engines):
        received = sum(count for (_, to), count in sent.items() if to == mesh.world_size + engine)
        assert received == 4 * SHAPE.num_parameters
    assert {source for source, _ in sent} == set(range(mesh.world_size))
    assert {move.hf_name for move in moves.moves} == set(checkpoint_shapes(SHAPE))

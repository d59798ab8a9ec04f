"""A family added from outside of the package, as docs/bridge.md teaches: fused tensors in the folder, other names."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.bridge.executor import Receiver, Sender
from megatron_spell.bridge.families import entry as entries_module
from megatron_spell.bridge.families.entry import Place, entry, layer_entry
from megatron_spell.bridge.families.registry import TABLES, register_family
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.rules import qkv_groups, qkv_stacked, split_columns, split_rows, vocab_rows, whole
from megatron_spell.bridge.stacks import unstacked
from megatron_spell.bridge.transports.memory import MemoryHub
from megatron_spell.config.model_shape import FAMILIES, ModelShape, Traits
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_engines import engine_laid_out
from tests.unit.bridge.made_weights import inventories, laid_out, made_shape, made_weights
from tests.unit.bridge.test_executor import mesh_tensors, side_by_side, tensors_of

EMBEDDING = {"model.tok_embeddings.weight": "W D"}
TABLE = (
    entry(Place.FIRST, "embedding.word_embeddings.weight", vocab_rows, EMBEDDING),
    layer_entry("input_layernorm", whole, {"attention_norm": "D"}),
    layer_entry(
        "self_attention.linear_qkv",
        qkv_groups,
        {"attention.wqkv": "NH+KH+KH D"},
        engine=("attention.wqkv", qkv_stacked),
    ),
    layer_entry("self_attention.linear_proj", split_columns, {"attention.wo": "D NH"}),
    layer_entry("pre_mlp_layernorm", whole, {"ffn_norm": "D"}),
    layer_entry("mlp.linear_fc1", split_rows, {"mlp.gate_up_proj": "F+F D"}),
    layer_entry("mlp.linear_fc2", split_columns, {"mlp.down_proj": "D F"}),
    entry(Place.LAST, "decoder.final_layernorm.weight", whole, {"model.norm.weight": "D"}),
    entry(Place.UNTIED_LAST, "output_layer.weight", vocab_rows, {"output.weight": "W D"}),
    entry(Place.TIED_LAST, "output_layer.weight", vocab_rows, EMBEDDING),
)
LLAMA = made_shape(groups=2, heads=4, layers=4, tied=False, family="llama")
TOY = replace(LLAMA, family="toy")
OTHER_NAMES = {  # of the tensors that are not fused
    "model.embed_tokens.weight": "model.tok_embeddings.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "self_attn.qkv_proj": "attention.wqkv",
}
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr("megatron_spell.bridge.families.registry.TABLES", dict(TABLES))
    monkeypatch.setattr("megatron_spell.bridge.families.registry.FAMILIES", FAMILIES)
    register_family("toy", TABLE, Traits(qkv_bias=False, qk_norm=False))
    yield
    del FAMILIES["toy"]


def renamed(tensors: Arrays) -> Arrays:
    found = {}
    for name, value in tensors.items():
        for theirs, ours in OTHER_NAMES.items():
            name = name.replace(theirs, ours)
        found[name] = value
    return found


def fused(weights: Arrays) -> Arrays:
    """A Llama's folder as the toy family would write it."""
    parts = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": "gate", "up_proj": "up"}
    found = {name: value for name, value in weights.items() if not any(part in name for part in parts)}
    for layer in range(LLAMA.num_layers):
        prefix = f"model.layers.{layer}."
        qkv = [weights[f"{prefix}self_attn.{x}_proj.weight"] for x in "qkv"]
        gate_up = [weights[f"{prefix}mlp.{x}_proj.weight"] for x in ("gate", "up")]
        found[f"{prefix}attention.wqkv.weight"] = np.concatenate(qkv)
        found[f"{prefix}mlp.gate_up_proj.weight"] = np.concatenate(gate_up)
    return renamed(found)


def assert_filled(inventory, folder: Arrays, expected: Arrays) -> None:
    found = {name: np.full_like(value, np.nan) for name, value in expected.items()}
    for s in unstacked(inventory):
        assert np.isnan(found[s.local_name][s.local_box.index]).all(), "written twice"
        found[s.local_name][s.local_box.index] = folder[s.hf_name][s.hf_box.index]
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_its_folder_has_fused_tensors():
    shapes, folder = checkpoint_shapes(TOY), fused(made_weights(LLAMA))
    assert shapes == {name: value.shape for name, value in folder.items()}
    assert shapes["model.layers.0.attention.wqkv.weight"] == ((4 + 2 + 2) * 8, 12)
    assert sum(int(np.prod(s)) for s in shapes.values()) == TOY.num_parameters


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2, pp=2), Mesh(tp=2, pp=2, vpp=2, dp=2)], ids=str)
def test_trainers_hold_what_direct_slicing_of_a_llama_gives(mesh):
    weights = made_weights(LLAMA)
    for rank in range(mesh.world_size):
        assert_filled(trainer_inventory(TOY, mesh, rank), fused(weights), laid_out(LLAMA, weights, mesh, rank))


@pytest.mark.parametrize("mesh", [EngineMesh(), EngineMesh(tp=4), EngineMesh(tp=2, pp=3)], ids=str)
def test_engines_hold_what_direct_slicing_of_a_llama_gives(mesh):
    """tp 4 with 2 key-value heads among them."""
    weights = made_weights(LLAMA)
    for rank, place in enumerate(engine_places(TOY, mesh)):
        expected = renamed(engine_laid_out(LLAMA, weights, mesh, rank))
        assert_filled(engine_inventory(TOY, place), fused(weights), expected)
    wanted = {4 + rank: engine_inventory(TOY, place) for rank, place in enumerate(engine_places(TOY, mesh))}
    moves = plan(inventories(TOY, Mesh(tp=2, pp=2)), wanted)  # parts of fused tensors may lie where the folder has them
    needed = sum(s.hf_box.num_elements for own in wanted.values() for s in own)
    assert sum(move.num_elements for move in moves.moves) == needed


def test_its_weights_travel():
    weights, mesh = made_weights(LLAMA), Mesh(tp=2, pp=2)
    moves, hub = plan(inventories(TOY, mesh), {4: checkpoint_inventory(TOY)}), MemoryHub(timeout_s=20)
    settings = {"dtype": torch.float32, "bucket_bytes": 900}
    senders = [
        lambda r=r, own=own: Sender(moves, r, own, **settings).run(hub.transport(r), check=1)
        for r, own in mesh_tensors(LLAMA, weights, mesh).items()
    ]
    *_, found = side_by_side(*senders, lambda: dict(Receiver(moves, 4, **settings).tensors(hub.transport(4), check=1)))
    expected = tensors_of(fused(weights))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_its_config_is_read():
    raw = {
        "model_type": "toy",
        "vocab_size": 37,
        "hidden_size": 12,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 24,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "rope_theta": 1e6,
    }
    assert ModelShape.from_json(raw) == TOY


def test_a_known_family_is_not_replaced():
    with pytest.raises(BridgeError, match="family = 'llama' is known already"):
        register_family("llama", TABLE, Traits(qkv_bias=False, qk_norm=False))


def test_every_table_is_short():
    folder = Path(entries_module.__file__).parent
    tables = [path for path in folder.glob("*.py") if "TABLE = (" in path.read_text()]
    assert {path.stem for path in tables} == set(TABLES) - {"toy"}
    for path in tables:
        assert len(path.read_text().splitlines()) <= 40, path

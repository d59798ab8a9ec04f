"""Small models with known weights, laid out over meshes by direct slicing instead of by the bridge."""

import numpy as np

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.inventory import checkpoint_shapes, trainer_inventory
from megatron_spell.config.model_shape import Experts, ModelShape
from megatron_spell.layout.mesh import Mesh


def made_shape(
    heads=4, groups=2, layers=2, vocab=37, tied=True, hidden=12, ffn=24, head_dim=8, family="qwen3"
) -> ModelShape:
    return ModelShape(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=head_dim,
        ffn_size=ffn,
        tied_embeddings=tied,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=64,
        qkv_bias=family == "qwen2",
        qk_norm=family.startswith("qwen3"),
        rope_scaling=None,
        experts=Experts(4, 2, 8, True, 0.001) if family == "qwen3_moe" else None,
    )


def inventories(shape: ModelShape, mesh: Mesh) -> dict[int, Inventory]:
    """What every rank of a mesh holds according to the bridge."""
    return {r: trainer_inventory(shape, mesh, r) for r in range(mesh.world_size)}


def made_weights(shape: ModelShape, seed: int = 0) -> dict[str, np.ndarray]:
    """The Hugging Face tensors, float32, every element different in all likelihood."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=size).astype(np.float32) for name, size in checkpoint_shapes(shape).items()}


def laid_out(shape: ModelShape, weights: dict[str, np.ndarray], mesh: Mesh, rank: int) -> dict[str, np.ndarray]:
    """A trainer rank's parameters as megatron-core has them, padding rows NaN."""
    own = {}
    for chunk in range(mesh.vpp):
        prefix = f"chunk{chunk}." if mesh.vpp > 1 else ""
        own |= {prefix + name: value for name, value in _chunk(shape, weights, mesh, rank, chunk).items()}
    return own


def _chunk(
    shape: ModelShape, weights: dict[str, np.ndarray], mesh: Mesh, rank: int, chunk: int
) -> dict[str, np.ndarray]:
    at, own = mesh.coordinates(rank), {}
    even = [shape.num_layers // mesh.pp // mesh.vpp] * (mesh.pp * mesh.vpp)
    sizes, stretch = mesh.stage_layers or even, chunk * mesh.pp + at.pp
    for local in range(sizes[stretch]):
        layer = sum(sizes[:stretch]) + local
        hf = {k.removeprefix(f"model.layers.{layer}."): v for k, v in weights.items() if f"layers.{layer}." in k}
        named = _attention(shape, hf, at.tp, mesh.tp) | _feed_forward(shape, hf, mesh, rank)
        own |= {f"decoder.layers.{local}.{name}": value for name, value in named.items()}
    embedding = weights["model.embed_tokens.weight"]
    if at.pp == chunk == 0:
        own["embedding.word_embeddings.weight"] = _vocab(embedding, at.tp, mesh.tp)
    if (at.pp, chunk) == (mesh.pp - 1, mesh.vpp - 1):
        own["decoder.final_layernorm.weight"] = weights["model.norm.weight"]
        if not shape.tied_embeddings or mesh.pp > 1:
            own["output_layer.weight"] = _vocab(weights.get("lm_head.weight", embedding), at.tp, mesh.tp)
    return own


def _attention(shape: ModelShape, hf: dict[str, np.ndarray], r: int, tp: int) -> dict[str, np.ndarray]:
    own = {
        "input_layernorm.weight": hf["input_layernorm.weight"],
        "self_attention.linear_qkv.weight": np.split(_fused(shape, hf, "weight"), tp)[r],
        "self_attention.linear_proj.weight": np.split(hf["self_attn.o_proj.weight"], tp, axis=1)[r],
        "pre_mlp_layernorm.weight": hf["post_attention_layernorm.weight"],
    }
    if shape.qkv_bias:
        own["self_attention.linear_qkv.bias"] = np.split(_fused(shape, hf, "bias"), tp)[r]
    if shape.qk_norm:
        for x in "qk":
            own[f"self_attention.{x}_layernorm.weight"] = hf[f"self_attn.{x}_norm.weight"]
    return own


def _feed_forward(shape: ModelShape, hf: dict[str, np.ndarray], mesh: Mesh, rank: int) -> dict[str, np.ndarray]:
    if shape.experts is None:
        return _mlp(hf, "mlp.", "mlp.", mesh.coordinates(rank).tp, mesh.tp)
    etp = mesh.tp if mesh.etp is None else mesh.etp
    within_stage = rank % (mesh.tp * mesh.cp * mesh.dp)
    own, held = {"mlp.router.weight": hf["mlp.gate.weight"]}, shape.experts.count // mesh.ep
    for local in range(held):
        expert = within_stage // etp % mesh.ep * held + local
        names = f"mlp.experts.local_experts.{local}.", f"mlp.experts.{expert}."
        own |= _mlp(hf, *names, within_stage % etp, etp)
    return own


def _mlp(hf: dict[str, np.ndarray], local: str, name: str, r: int, parts: int) -> dict[str, np.ndarray]:
    gate, up = (np.split(hf[f"{name}{x}_proj.weight"], parts)[r] for x in ("gate", "up"))
    down = np.split(hf[f"{name}down_proj.weight"], parts, axis=1)[r]
    return {f"{local}linear_fc1.weight": np.concatenate([gate, up]), f"{local}linear_fc2.weight": down}


def _fused(shape: ModelShape, hf: dict[str, np.ndarray], kind: str) -> np.ndarray:
    parts = [hf[f"self_attn.{x}_proj.{kind}"] for x in "qkv"]
    by_group = [part.reshape(shape.num_kv_heads, -1, *part.shape[1:]) for part in parts]
    return np.concatenate(by_group, axis=1).reshape(-1, *parts[0].shape[1:])


def _vocab(table: np.ndarray, r: int, tp: int) -> np.ndarray:
    padding = np.full((-len(table) % tp, table.shape[1]), np.nan, np.float32)
    return np.split(np.concatenate([table, padding]), tp)[r]

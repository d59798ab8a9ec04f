"""Weights as vLLM's workers hold them, by direct slicing instead of by the bridge."""

from itertools import pairwise

import numpy as np

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh

Arrays = dict[str, np.ndarray]


def engine_laid_out(shape: ModelShape, weights: Arrays, mesh: EngineMesh, rank: int) -> Arrays:
    """A worker's plain parameters under vLLM's names, padding rows NaN.

    Source: vLLM 0.32, `QKVParallelLinear`, `MergedColumnParallelLinear`, `VocabParallelEmbedding`, `FusedMoE`.
    """
    tp_rank, stage, dp_rank = rank % mesh.tp, rank // mesh.tp % mesh.pp, rank // (mesh.tp * mesh.pp)
    everywhere = shape.family == "qwen3_moe"
    first, last = stage == 0, stage == mesh.pp - 1
    own = {}
    for layer in _layers(shape.num_layers, mesh.pp)[stage]:
        prefix = f"model.layers.{layer}."
        hf = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        named = _attention(shape, hf, tp_rank, mesh.tp)
        if shape.experts is None:
            named |= _mlp(hf, tp_rank, mesh.tp)
        else:
            named["mlp.gate.weight"] = hf["mlp.gate.weight"]
            named |= _experts(shape, hf, mesh, dp_rank * mesh.tp + tp_rank)
        own |= {prefix + name: value for name, value in named.items()}
    ends = {"model.embed_tokens.weight": first or everywhere or (last and shape.tied_embeddings)}
    ends["lm_head.weight"] = (last or everywhere) and not shape.tied_embeddings
    own |= {name: _vocab(weights[name], tp_rank, mesh.tp) for name, here in ends.items() if here}
    return own | ({"model.norm.weight": weights["model.norm.weight"]} if last or everywhere else {})


def _layers(num_layers: int, num_stages: int) -> list[range]:
    sizes = [num_layers // num_stages] * num_stages
    for i in range(2, num_layers % num_stages + 2):
        sizes[-i] += 1
    ends = np.cumsum([0, *sizes])
    return [range(a, b) for a, b in pairwise(ends)]


def _attention(shape: ModelShape, hf: Arrays, r: int, tp: int) -> Arrays:
    own = {name: hf[name] for name in ("input_layernorm.weight", "post_attention_layernorm.weight")}
    own["self_attn.o_proj.weight"] = np.split(hf["self_attn.o_proj.weight"], tp, axis=1)[r]
    kv_parts = min(tp, shape.num_kv_heads)
    for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
        query, key, value = (hf[f"self_attn.{x}_proj.{kind}"] for x in "qkv")
        shared = [np.split(x, kv_parts)[r * kv_parts // tp] for x in (key, value)]
        own[f"self_attn.qkv_proj.{kind}"] = np.concatenate([np.split(query, tp)[r], *shared])
    if shape.qk_norm:
        own |= {f"self_attn.{x}_norm.weight": hf[f"self_attn.{x}_norm.weight"] for x in "qk"}
    return own


def _mlp(hf: Arrays, r: int, parts: int) -> Arrays:
    gate_up = np.concatenate([np.split(hf[f"mlp.{x}_proj.weight"], parts)[r] for x in ("gate", "up")])
    down = np.split(hf["mlp.down_proj.weight"], parts, axis=1)[r]
    return {"mlp.gate_up_proj.weight": gate_up, "mlp.down_proj.weight": down}


def _experts(shape: ModelShape, hf: Arrays, mesh: EngineMesh, index: int) -> Arrays:
    parts, all_experts = mesh.dp * mesh.tp, np.arange(shape.experts.count)
    if mesh.expert_parallel and parts > 1:
        own, r, cut = np.array_split(all_experts, parts)[index], 0, 1
        if mesh.expert_placement == "round_robin":
            own = all_experts[index::parts]
    else:
        own, r, cut = all_experts, index, parts
    held = [_mlp({k.replace(f".experts.{e}.", "."): v for k, v in hf.items()}, r, cut) for e in own]
    return {
        "mlp.experts.routed_experts.w13_weight": np.stack([each["mlp.gate_up_proj.weight"] for each in held]),
        "mlp.experts.routed_experts.w2_weight": np.stack([each["mlp.down_proj.weight"] for each in held]),
    }


def _vocab(table: np.ndarray, r: int, tp: int) -> np.ndarray:
    padding = np.full((-len(table) % 64, table.shape[1]), np.nan, np.float32)
    return np.split(np.concatenate([table, padding]), tp)[r]

"""The plain way from trainers to whole Hugging Face tensors: gather every shard, put it together, knowing no boxes."""

import numpy as np

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Coordinates, Mesh

Arrays = dict[str, np.ndarray]


def gathered(shape: ModelShape, mesh: Mesh, shards: dict[int, Arrays]) -> Arrays:
    """The Hugging Face tensors out of all ranks' parameters, as megatron-core lays them out."""
    found: Arrays = {}
    for stage in range(mesh.pp):
        for chunk in range(mesh.vpp):
            prefix = f"chunk{chunk}." if mesh.vpp > 1 else ""
            tensor_parallel = [shards[mesh.rank(Coordinates(tp=tp, cp=0, dp=0, pp=stage))] for tp in range(mesh.tp)]
            for local, layer in enumerate(mesh.chunk_layers(shape.num_layers, stage, chunk)):
                here, there = f"{prefix}decoder.layers.{local}.", f"model.layers.{layer}."
                named = _attention(shape, tensor_parallel, here)
                if shape.experts is None:
                    named |= _mlp(tensor_parallel, f"{here}mlp.", "mlp.")
                else:
                    named["mlp.gate.weight"] = tensor_parallel[0][f"{here}mlp.router.weight"]
                    for expert in range(shape.experts.count):
                        named |= _expert(shape, mesh, shards, stage, f"{here}mlp.experts.", expert)
                found |= {there + name: value for name, value in named.items()}
            found |= _ends(shape, tensor_parallel, prefix)
    return found


def _ends(shape: ModelShape, shards: list[Arrays], prefix: str) -> Arrays:
    names = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "model.embed_tokens.weight" if shape.tied_embeddings else "lm_head.weight",
    }
    found = {
        theirs: np.concatenate([shard[prefix + ours] for shard in shards])[: shape.vocab_size]
        for ours, theirs in names.items()
        if prefix + ours in shards[0]
    }
    norm = f"{prefix}decoder.final_layernorm.weight"
    return found | ({"model.norm.weight": shards[0][norm]} if norm in shards[0] else {})


def _attention(shape: ModelShape, shards: list[Arrays], here: str) -> Arrays:
    found = {
        "input_layernorm.weight": shards[0][f"{here}input_layernorm.weight"],
        "post_attention_layernorm.weight": shards[0][f"{here}pre_mlp_layernorm.weight"],
        "self_attn.o_proj.weight": _joined(shards, f"{here}self_attention.linear_proj.weight", axis=1),
    }
    for x in "qk" if shape.qk_norm else "":
        found[f"self_attn.{x}_norm.weight"] = shards[0][f"{here}self_attention.{x}_layernorm.weight"]
    for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
        fused = _joined(shards, f"{here}self_attention.linear_qkv.{kind}", axis=0)
        by_group = fused.reshape(shape.num_kv_heads, -1, shape.head_dim, *fused.shape[1:])
        for x, heads in (("q", by_group[:, :-2]), ("k", by_group[:, -2]), ("v", by_group[:, -1])):
            found[f"self_attn.{x}_proj.{kind}"] = heads.reshape(-1, *fused.shape[1:])
    return found


def _expert(shape: ModelShape, mesh: Mesh, shards: dict[int, Arrays], stage: int, here: str, expert: int) -> Arrays:
    held = shape.experts.count // mesh.ep
    ranks = sorted(
        (at.etp, rank)
        for rank in range(mesh.world_size)
        if mesh.coordinates(rank).pp == stage
        and (at := mesh.expert_coordinates(rank)).ep == expert // held
        and at.edp == 0
    )
    own = [shards[rank] for _, rank in ranks]
    return _mlp(own, f"{here}local_experts.{expert % held}.", f"mlp.experts.{expert}.")


def _mlp(shards: list[Arrays], here: str, there: str) -> Arrays:
    halves = [np.split(shard[f"{here}linear_fc1.weight"], 2) for shard in shards]
    gate, up = (np.concatenate([half[i] for half in halves]) for i in (0, 1))
    down = _joined(shards, f"{here}linear_fc2.weight", axis=1)
    return {f"{there}gate_proj.weight": gate, f"{there}up_proj.weight": up, f"{there}down_proj.weight": down}


def _joined(shards: list[Arrays], name: str, axis: int) -> np.ndarray:
    return np.concatenate([shard[name] for shard in shards], axis=axis)

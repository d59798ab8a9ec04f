"""The plain refresh: every tensor to Hugging Face form one by one, whole, to everyone; the receiver slices.

What exporters of Megatron weights do: for each parameter a collective of the trainers that share it, a broadcast of the
whole Hugging Face tensor to the engines, and there a copy of a slice into the fused parameter. Experts are owned whole
(etp 1), so theirs is one broadcast, which is kinder than a gather.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist

from megatron_spell.bridge.inventory import checkpoint_shapes
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh

Tensors = dict[str, torch.Tensor]


class PlainRefresh:
    """One rank's part. Trainers are ranks 0..tp-1 with tp = ep and etp = 1, workers of an engine with EP follow."""

    def __init__(self, shape: ModelShape, mesh: Mesh, engine: EngineMesh, rank: int, tensors: Tensors):
        self._shape, self._mesh, self._engine, self._tensors = shape, mesh, engine, tensors
        self._sizes, self._rank = checkpoint_shapes(shape), rank
        self._trains, self._place = rank < mesh.world_size, rank - mesh.world_size
        self._group = dist.new_group(list(range(mesh.world_size)))
        self.num_tensors, self.num_collectives = len(self._sizes), 0  # of one refresh

    def run(self) -> int:
        """Refresh once; the bytes that this rank received, of a worker of the engine."""
        num_bytes = self.num_collectives = 0
        for name, whole in self._whole_tensors():
            source = self._owner(name) if ".experts." in name else 0
            dist.broadcast(whole, source)
            self.num_collectives += 1
            if not self._trains:
                self._load(name, whole)
            num_bytes += 0 if self._trains else whole.nbytes
        return num_bytes

    def _whole_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, size in self._sizes.items():
            if not self._trains or (".experts." in name and self._owner(name) != self._rank):
                yield name, torch.empty(size, dtype=torch.bfloat16)
            else:
                yield name, self._exported(name)

    def _exported(self, name: str) -> torch.Tensor:
        if ".experts." in name:
            return self._expert(name)
        if "layers." not in name:
            if name == "model.norm.weight":
                return self._tensors["decoder.final_layernorm.weight"]
            local = "output_layer.weight" if name == "lm_head.weight" else "embedding.word_embeddings.weight"
            return self._gathered(local, 0)[: self._shape.vocab_size]
        _, _, layer, *rest = name.split(".")
        prefix, module = f"decoder.layers.{layer}.", ".".join(rest)
        if any(f"{x}_proj" in module for x in "qkv"):
            fused = self._gathered(f"{prefix}self_attention.linear_qkv.weight", 0)
            by_group = fused.view(self._shape.num_kv_heads, -1, self._shape.head_dim, fused.shape[1])
            heads = {"q": by_group[:, :-2], "k": by_group[:, -2], "v": by_group[:, -1]}[module.split(".")[1][0]]
            return heads.reshape(-1, fused.shape[1])
        if "o_proj" in module:
            return self._gathered(f"{prefix}self_attention.linear_proj.weight", 1)
        local = {
            "mlp.gate.weight": "mlp.router.weight",
            "input_layernorm.weight": "input_layernorm.weight",
            "post_attention_layernorm.weight": "pre_mlp_layernorm.weight",
            "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
            "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
        }
        return self._tensors[prefix + local[module]]

    def _gathered(self, local: str, dim: int) -> torch.Tensor:
        parts = [torch.empty_like(self._tensors[local]) for _ in range(self._mesh.tp)]
        dist.all_gather(parts, self._tensors[local], group=self._group)
        self.num_collectives += 1
        return torch.cat(parts, dim)

    def _expert(self, name: str) -> torch.Tensor:
        _, _, layer, _, _, expert, projection, _ = name.split(".")
        local = f"decoder.layers.{layer}.mlp.experts.local_experts.{int(expert) % self._held}."
        if projection == "down_proj":
            return self._tensors[f"{local}linear_fc2.weight"]
        gate, up = self._tensors[f"{local}linear_fc1.weight"].chunk(2)
        return gate if projection == "gate_proj" else up

    def _load(self, name: str, whole: torch.Tensor) -> None:
        r, tp = self._place, self._engine.tp
        if ".experts." in name:
            self._load_expert(name, whole)
        elif any(f"{x}_proj" in name for x in "qkv"):
            prefix, x = name.split("self_attn.")[0], name.split("self_attn.")[1][0]
            fused, rows = self._tensors[f"{prefix}self_attn.qkv_proj.weight"], whole.shape[0] // tp
            start = {"q": 0, "k": len(fused) - 2 * rows, "v": len(fused) - rows}[x]
            fused[start : start + rows].copy_(whole.chunk(tp)[r])
        elif "o_proj" in name:
            self._tensors[name].copy_(whole.chunk(tp, 1)[r])
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            own = self._tensors[name]
            part = whole[r * len(own) : (r + 1) * len(own)]
            own[: len(part)].copy_(part)
        else:
            self._tensors[name].copy_(whole)

    def _load_expert(self, name: str, whole: torch.Tensor) -> None:
        prefix, expert, projection, _ = name.split(".experts.")[0], *name.split(".experts.")[1].split(".")
        held = self._shape.experts.count // self._engine.num_workers
        if int(expert) // held != self._place:
            return
        kind = "w2_weight" if projection == "down_proj" else "w13_weight"
        own = self._tensors[f"{prefix}.experts.routed_experts.{kind}"][int(expert) % held]
        half = {"gate_proj": own[: len(own) // 2], "up_proj": own[len(own) // 2 :], "down_proj": own}[projection]
        half.copy_(whole)

    @property
    def _held(self) -> int:
        return self._shape.experts.count // self._mesh.ep

    def _owner(self, name: str) -> int:
        return int(name.split(".experts.")[1].split(".")[0]) // self._held

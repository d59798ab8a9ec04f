"""The mesh of one engine's workers: rank <-> what the worker holds, as vLLM 0.32 lays a model out."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What one worker of an engine holds of a model.

    Column- and row-parallel weights and the (padded) vocabulary are cut into `tp` shards, of which this is `tp_rank`.
    Keys and values are cut into `kv_parts`, fewer than `tp` where the model has fewer key-value heads: then
    neighbouring ranks hold the same part. `layers` are global indices, also in vLLM's parameter names.
    `experts[i]` is the global index of the expert that stands at i in the fused expert weights; each is cut into
    `expert_tp` shards. `embedding` and `head` say whether the embedding and the last norm with the output layer stand
    here; a tied output layer is the embedding's own parameter.
    """

    tp: int
    tp_rank: int
    kv_parts: int
    kv_part: int
    layers: range
    first_stage: bool
    last_stage: bool
    embedding: bool
    head: bool
    experts: tuple[int, ...] = ()
    expert_tp: int = 1
    expert_tp_rank: int = 0


@dataclass(frozen=True, slots=True)
class EngineMesh:
    """Sizes of an engine's parallel axes; `dp` counts replicas inside one engine, not engines.

    Ranks go tp fastest, then pp, then dp (`initialize_model_parallel`: "ExternalDP x DP x PP x PCP x TP"). A mixture's
    experts fold over the dp x tp workers of a pipeline stage: with `expert_parallel` each holds whole experts, else
    each holds a shard of all of them (`FusedMoEParallelConfig.make`). vLLM places experts "round_robin" in models
    with expert groups only; the families known here have none.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    expert_parallel: bool = False
    expert_placement: Literal["linear", "round_robin"] = "linear"

    @property
    def num_workers(self) -> int:
        return self.tp * self.pp * self.dp

    def place(
        self,
        rank: int,
        *,
        num_layers: int,
        num_kv_heads: int,
        num_experts: int = 0,
        tied: bool = False,
        ends_on_every_stage: bool = False,
    ) -> WorkerPlace:
        """The place of worker `rank` in a model of this shape.

        `tied`: the output layer is the embedding, which then stands on the last stage too. `ends_on_every_stage`:
        the model's class makes embedding, last norm and output layer on all stages (vLLM's Qwen3-MoE). Raises
        ValueError for a rank outside the mesh, key-value heads that neither divide over tp nor are divided by it,
        and more stages than layers.
        """
        if not 0 <= rank < self.num_workers:
            raise ValueError(f"worker {rank} is outside an engine of {self.num_workers} workers")
        rest, tp_rank = divmod(rank, self.tp)
        dp_rank, stage = divmod(rest, self.pp)
        first, last = stage == 0, stage == self.pp - 1
        kv_parts = self._kv_parts(num_kv_heads)
        expert_shard = (dp_rank * self.tp + tp_rank, self.dp * self.tp)
        experts, expert_tp_rank, expert_tp = self._experts(num_experts, *expert_shard)
        return WorkerPlace(
            tp=self.tp,
            tp_rank=tp_rank,
            kv_parts=kv_parts,
            kv_part=tp_rank // (self.tp // kv_parts),
            layers=stage_layers(num_layers, stage, self.pp),
            first_stage=first,
            last_stage=last,
            embedding=first or ends_on_every_stage or (tied and last),
            head=last or ends_on_every_stage,
            experts=experts,
            expert_tp=expert_tp,
            expert_tp_rank=expert_tp_rank,
        )

    def _kv_parts(self, num_kv_heads: int) -> int:
        """As `QKVParallelLinear`: a head is never cut."""
        parts = min(self.tp, num_kv_heads)
        if num_kv_heads % parts or self.tp % parts:
            raise ValueError(f"{num_kv_heads} key-value heads neither divide over tp = {self.tp} nor divide it")
        return parts

    def _experts(self, num_experts: int, index: int, parts: int) -> tuple[tuple[int, ...], int, int]:
        """Experts of shard `index` of `parts`, and which shard of them out of how many (`determine_expert_map`)."""
        if not num_experts:
            return (), 0, 1
        if not self.expert_parallel or parts == 1:
            return tuple(range(num_experts)), index, parts
        if self.expert_placement == "round_robin":
            return tuple(range(index, num_experts, parts)), 0, 1
        size, rest = divmod(num_experts, parts)
        start = index * size + min(index, rest)
        return tuple(range(start, start + size + (index < rest))), 0, 1

    def __str__(self) -> str:
        sizes = {"tp": self.tp, "pp": self.pp, "dp": self.dp}
        named = [f"{axis}={size}" for axis, size in sizes.items() if size > 1 or axis == "tp"]
        return " ".join([*named, "ep"] if self.expert_parallel else named)


def stage_layers(num_layers: int, stage: int, num_stages: int) -> range:
    """Global indices of a pipeline stage's layers.

    What does not divide goes one layer each to the stages before the last, from the back (`get_pp_indices`, without
    VLLM_PP_LAYER_PARTITION). Raises ValueError where a stage would stay empty.
    """
    size, rest = divmod(num_layers, num_stages)
    if not size:
        raise ValueError(f"{num_layers} layers do not fill {num_stages} pipeline stages")
    sizes = [size + (num_stages - 1 - rest <= i < num_stages - 1) for i in range(num_stages)]
    start = sum(sizes[:stage])
    return range(start, start + sizes[stage])


def places(mesh: EngineMesh, **model: Any) -> Iterator[WorkerPlace]:
    """The places of all workers in rank order; `model` as of `EngineMesh.place`."""
    return (mesh.place(rank, **model) for rank in range(mesh.num_workers))

"""Which layouts a model can be trained in: what does not divide, and what is known to compute the wrong thing."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from megatron_spell.config.model_shape import Experts, ModelShape
from megatron_spell.config.policy_sections import PolicySection
from megatron_spell.layout.mesh import Mesh

_ANY_SPLIT = "say with policy.mesh.stage_layers how many each gets"


@dataclass(frozen=True, slots=True)
class LayoutFault:
    """`field` of the policy's section has a value that cannot be; why, and the way out."""

    field: str
    value: object
    why: str
    way_out: str

    def __str__(self) -> str:
        return f"policy.{self.field} = {self.value}: {self.why}; {self.way_out}"


def layout_faults(shape: ModelShape, policy: PolicySection) -> Iterator[LayoutFault]:
    """Every reason why `shape` cannot be trained in the layout of `policy`; none when it can."""
    mesh = policy.mesh.mesh()
    yield from _tensor_parallel(shape, mesh)
    if policy.sequence_parallel and mesh.tp == 1:
        why = "there is one tensor-parallel rank to split the tokens over"
        yield LayoutFault("sequence_parallel", True, why, "raise policy.mesh.tp or set it to false")
    pipeline_faults = list(_pipeline(shape, mesh))
    yield from pipeline_faults or _recomputed(shape, policy, mesh)
    if shape.experts is None:
        yield from _no_experts(mesh)
    else:
        yield from _expert_parallel(shape.experts, mesh)
        if mesh.tp > 1 and not policy.sequence_parallel:
            why = "with experts, tensor-parallel ranks must hold different tokens"
            yield LayoutFault("sequence_parallel", False, why, "set it to true or policy.mesh.tp to 1")
        if mesh.pp > 1 and policy.moe.dispatcher != "alltoall":
            why = "pipeline stages tell each other the lengths of their bins with alltoall only"
            yield LayoutFault("moe.dispatcher", policy.moe.dispatcher, why, "use alltoall or policy.mesh.pp = 1")


def _tensor_parallel(shape: ModelShape, mesh: Mesh) -> Iterator[LayoutFault]:
    cut = {"attention heads": shape.num_heads, "key-value heads": shape.num_kv_heads}
    if shape.experts is None:
        cut["feed-forward columns"] = shape.ffn_size
    odd = [f"{size} {what}" for what, size in cut.items() if size % mesh.tp]
    if odd:
        why = f"the model's {' and '.join(odd)} do not divide by it"
        yield LayoutFault("mesh.tp", mesh.tp, why, f"use a divisor of {gcd(*cut.values())}")


def _pipeline(shape: ModelShape, mesh: Mesh) -> Iterator[LayoutFault]:
    if mesh.vpp > 1 and mesh.pp == 1:
        why = "there is one pipeline stage, and only several can be interleaved"
        yield LayoutFault("mesh.vpp", mesh.vpp, why, "raise policy.mesh.pp or set it to 1")
    elif mesh.stage_layers is not None:
        yield from _stage_layers(shape, mesh, mesh.stage_layers)
    elif shape.num_layers % mesh.pp:
        why = f"the model's {shape.num_layers} layers do not divide by it"
        yield LayoutFault("mesh.pp", mesh.pp, why, f"use a divisor of {shape.num_layers} or {_ANY_SPLIT}")
    elif shape.num_layers // mesh.pp % mesh.vpp:
        per_stage = shape.num_layers // mesh.pp
        why = f"the {per_stage} layers of a pipeline stage do not divide by it"
        yield LayoutFault("mesh.vpp", mesh.vpp, why, f"use a divisor of {per_stage} or {_ANY_SPLIT}")


def _stage_layers(shape: ModelShape, mesh: Mesh, given: tuple[int, ...]) -> Iterator[LayoutFault]:
    wanted = mesh.pp * mesh.vpp
    if len(given) != wanted:
        why = f"it has {len(given)} numbers for {mesh.pp} pipeline stages of {mesh.vpp} chunks"
        way_out = f"give {wanted}, stage by stage of the first chunk, then of the next, or leave it out"
    elif min(given) < 1:
        why, way_out = "every stretch needs a layer", "give numbers above 0 or lower policy.mesh.pp or vpp"
    elif sum(given) != shape.num_layers:
        why = f"it adds up to {sum(given)}, and the model has {shape.num_layers} layers"
        way_out = f"give numbers that add up to {shape.num_layers} or leave it out"
    else:
        return
    yield LayoutFault("mesh.stage_layers", list(given), why, way_out)


def _recomputed(shape: ModelShape, policy: PolicySection, mesh: Mesh) -> Iterator[LayoutFault]:
    """Megatron-core 0.16 recomputes layers in groups of one size, and its last group would reach past the stretch."""
    options = policy.megatron.transformer
    group = options.get("recompute_num_layers")
    whole_groups = options.get("recompute_granularity") == "full" and options.get("recompute_method") == "uniform"
    if not whole_groups or not isinstance(group, int) or group < 1:
        return
    sizes = mesh.stretches(shape.num_layers)
    if any(size % group for size in sizes):
        why = f"a pipeline stage holds {' or '.join(map(str, sorted(set(sizes))))} layers at a stretch"
        way_out = f"use a divisor of {gcd(*sizes)} or recompute_method block"
        yield LayoutFault("megatron.transformer.recompute_num_layers", group, why, way_out)


def _no_experts(mesh: Mesh) -> Iterator[LayoutFault]:
    for axis in ("ep", "etp"):
        if getattr(mesh, axis) not in (1, None):
            yield LayoutFault(f"mesh.{axis}", getattr(mesh, axis), "the model has no experts", "leave it out")


def _expert_parallel(experts: Experts, mesh: Mesh) -> Iterator[LayoutFault]:
    if experts.count % mesh.ep:
        why = f"the model's {experts.count} experts do not divide by it"
        yield LayoutFault("mesh.ep", mesh.ep, why, f"use a divisor of {experts.count}")
    if experts.ffn_size % mesh.expert_tp:
        why = f"an expert's {experts.ffn_size} feed-forward columns do not divide by it"
        yield LayoutFault("mesh.etp", mesh.expert_tp, why, f"use a divisor of {experts.ffn_size}")
    ranks = mesh.tp * mesh.cp * mesh.dp
    if ranks % (mesh.ep * mesh.expert_tp):
        why = f"with etp = {mesh.expert_tp} it does not divide the {ranks} ranks (tp x cp x dp) of a pipeline stage"
        yield LayoutFault("mesh.ep", mesh.ep, why, "lower it or raise policy.mesh.dp")
    if mesh.ep == 1 and mesh.expert_tp != mesh.tp:
        # Megatron then reduces the experts' gradients over the data-parallel ranks of the other layers.
        why = f"without expert parallelism, experts split otherwise than tp = {mesh.tp} get wrong gradients"
        yield LayoutFault("mesh.etp", mesh.expert_tp, why, "leave it out or raise policy.mesh.ep")

"""Models, trainer meshes and engine meshes that fit each other, drawn by hypothesis."""

from dataclasses import dataclass, replace
from math import lcm

from hypothesis import assume
from hypothesis import strategies as st

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import made_shape

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe")


@dataclass(frozen=True)
class Case:
    shape: ModelShape
    trainer: Mesh
    other: Mesh  # another layout of trainers
    engine: EngineMesh
    num_engines: int


@st.composite
def shapes(draw) -> ModelShape:
    """Every size divides by 1, 2 and 4 where a layout may ask for it; key-value heads may be fewer than tp."""
    groups = draw(st.sampled_from([1, 2, 4]))
    shape = made_shape(
        heads=4 * draw(st.integers(1, 2)),
        groups=groups,
        layers=4,
        vocab=draw(st.sampled_from([5, 37, 64, 130])),
        tied=draw(st.booleans()),
        hidden=draw(st.sampled_from([3, 4])),
        ffn=8,
        head_dim=2,
        family=draw(st.sampled_from(FAMILIES)),
    )
    if shape.experts is None:
        return shape
    return replace(shape, experts=replace(shape.experts, count=draw(st.sampled_from([4, 8])), ffn_size=8))


@st.composite
def trainer_meshes(draw, shape: ModelShape) -> Mesh:
    tp = draw(st.sampled_from([n for n in (1, 2, 4) if shape.num_kv_heads % n == 0]))
    pp = draw(st.sampled_from([1, 2]))
    vpp = draw(st.sampled_from([1, 2])) if pp > 1 else 1
    cp = draw(st.sampled_from([1, 2]))
    if shape.experts is None:
        return Mesh(tp=tp, pp=pp, vpp=vpp, cp=cp, dp=draw(st.integers(1, 2)))
    ep, etp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([None, 1, 2]))
    folded = ep * (tp if etp is None else etp)
    dp = lcm(folded, tp * cp) // (tp * cp) * draw(st.integers(1, 2))
    return Mesh(tp=tp, pp=pp, vpp=vpp, cp=cp, dp=dp, ep=ep, etp=etp)


@st.composite
def engine_meshes(draw, shape: ModelShape) -> EngineMesh:
    dp = draw(st.sampled_from([1, 2])) if shape.experts else 1
    mesh = EngineMesh(
        tp=draw(st.sampled_from([1, 2, 4])),
        pp=draw(st.sampled_from([1, 2, 3])),
        dp=dp,
        expert_parallel=shape.experts is not None and draw(st.booleans()),
        expert_placement=draw(st.sampled_from(["linear", "round_robin"])),
    )
    assume(mesh.num_workers <= 12)
    assume(not mesh.expert_parallel or mesh.tp * mesh.dp <= shape.experts.count)
    return mesh


@st.composite
def cases(draw) -> Case:
    shape = draw(shapes())
    return Case(
        shape,
        draw(trainer_meshes(shape)),
        draw(trainer_meshes(shape)),
        draw(engine_meshes(shape)),
        draw(st.integers(1, 3)),
    )


def engine_inventories(shape: ModelShape, mesh: EngineMesh, first_rank: int = 0, num_engines: int = 1):
    """Of all workers of all engines, whose ranks go on from `first_rank`."""
    own: list[Inventory] = [engine_inventory(shape, place) for place in engine_places(shape, mesh)]
    return {first_rank + i: own[i % len(own)] for i in range(num_engines * len(own))}

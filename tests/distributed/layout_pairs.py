"""The pairs of layouts that weights are carried between: what trainers have, what targets want. At most six ranks."""

from dataclasses import dataclass, field
from typing import Any

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.made_weights import made_shape

NUM_RANKS = 6
Axes = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """`model` is a family and arguments of `made_shape`; the target is engines, trainers or a folder."""

    family: str
    trainer: Axes
    dtypes: str  # of the trainer's tensors, then of the wire and the target
    engine: Axes | None = None
    other: Axes | None = None
    num_engines: int = 1
    model: Axes = field(default_factory=dict)

    @property
    def name(self) -> str:
        target = f"{self.num_engines} x {EngineMesh(**self.engine)}" if self.engine is not None else "folder"
        target = f"trainers {Mesh(**self.other)}" if self.other is not None else target
        model = " ".join(f"{k}={v}" for k, v in self.model.items())
        return f"{self.family} {model} {self.dtypes}: {Mesh(**self.trainer)} to {target}"

    @property
    def shape(self) -> ModelShape:
        return made_shape(**{"family": self.family, "layers": 4, "groups": 4, "vocab": 70} | self.model)


def _pairs(family: str, dtypes: str, *layouts: tuple[Axes, Axes], **model: Any) -> list[Pair]:
    """A layout is (the trainer's axes, arguments of Pair)."""
    return [Pair(family, trainer, dtypes, model=model, **target) for trainer, target in layouts]


ONE, TP2, TP4, PP2 = {"engine": {}}, {"engine": {"tp": 2}}, {"engine": {"tp": 4}}, {"engine": {"pp": 2}}
FOLDER: Axes = {}
DENSE = [
    *_pairs(
        "llama",
        "fp32",
        ({}, ONE),
        ({}, TP4),
        ({"tp": 2}, TP2),
        ({"tp": 2}, {"engine": {"tp": 2, "pp": 2}}),
        ({"tp": 4}, ONE | {"num_engines": 2}),
        ({"pp": 2}, TP4),
        ({"pp": 4}, TP2),
        ({"dp": 2, "cp": 2}, TP2),
        ({"tp": 2, "pp": 2}, FOLDER),
        ({"tp": 2, "dp": 2}, {"other": {"pp": 4}}),
        ({"tp": 4}, {"other": {"pp": 2, "vpp": 2, "dp": 2}}),
        tied=False,
    ),
    *_pairs(
        "qwen3",
        "bf16",
        ({"tp": 2}, TP4),
        ({"tp": 2, "pp": 2}, TP2),
        ({"pp": 2, "vpp": 2}, PP2 | {"num_engines": 2}),
        ({"pp": 2, "stage_layers": (3, 1)}, TP4),
        ({"pp": 2, "stage_layers": (1, 3)}, {"engine": {"tp": 2}, "num_engines": 2}),
        ({"tp": 2, "pp": 2, "stage_layers": (1, 3)}, {"other": {"tp": 2, "pp": 3, "stage_layers": (2, 1, 1)}}),
        ({"dp": 3}, ONE | {"num_engines": 3}),
        ({"pp": 3, "stage_layers": (1, 2, 1)}, FOLDER),
        tied=True,
    ),
    *_pairs(
        "qwen2",
        "fp32 bf16",
        ({"tp": 2}, TP4),
        ({"tp": 2, "pp": 2}, TP2),
        ({"pp": 2}, {"engine": {"pp": 4}}),
        ({"tp": 2, "cp": 2}, FOLDER),
        ({"pp": 2, "vpp": 2, "dp": 2}, {"other": {"tp": 2, "dp": 2}}),
        groups=2,
        tied=True,
    ),
    *_pairs("qwen2", "bf16", ({}, TP4), ({"pp": 2}, TP4), groups=1, tied=False),
    *_pairs("qwen3", "fp32", ({"pp": 4}, {"engine": {"pp": 2}}), ({"tp": 4}, TP2), groups=4, vocab=37, tied=False),
]
EP2, TP2EP, DP2EP = (
    {"dp": 2, "ep": 2},
    {"engine": {"tp": 2, "expert_parallel": True}},
    {"dp": 2, "expert_parallel": True},
)
EXPERTS = [
    *_pairs(
        "qwen3_moe",
        "bf16",
        ({}, ONE),
        ({}, TP4),
        (EP2, TP2EP),
        (EP2, TP4),
        (EP2, {"engine": {"tp": 4, "expert_parallel": True}}),
        ({"dp": 4, "ep": 4}, TP2),
        ({"dp": 4, "ep": 4}, TP2EP),
        ({"dp": 4, "ep": 2}, {"engine": DP2EP}),
        ({"tp": 2, "ep": 2, "etp": 1}, {"engine": DP2EP | {"tp": 2}}),
        ({"tp": 2, "ep": 2, "etp": 1, "pp": 2}, TP2EP),
        ({"tp": 2, "ep": 2, "etp": 2, "dp": 2}, TP2),
        ({"tp": 2, "etp": 2}, {"engine": {"dp": 2, "tp": 2}}),
        tied=False,
    ),
    *_pairs(
        "qwen3_moe",
        "fp32",
        ({"tp": 2, "ep": 2, "etp": 1}, ONE | {"num_engines": 4}),
        ({"pp": 2, "dp": 2, "ep": 2}, {"engine": {"pp": 2}}),
        ({"pp": 2, "vpp": 2, "dp": 2, "ep": 2}, TP2EP),
        ({"pp": 2, "stage_layers": (3, 1), "dp": 2, "ep": 2}, FOLDER),
        ({"tp": 2, "dp": 2, "ep": 4, "etp": 1}, {"other": {"pp": 2, "dp": 2, "ep": 1, "etp": 1}}),
        ({"dp": 4, "ep": 4}, {"other": {"tp": 2, "pp": 2, "etp": 2}}),
        ({"tp": 2, "dp": 2, "ep": 2, "etp": 1}, FOLDER),
        (EP2, {"engine": {"tp": 2, "expert_parallel": True, "expert_placement": "round_robin"}, "num_engines": 2}),
        tied=True,
        groups=2,
    ),
]
PAIRS = [*DENSE, *EXPERTS]

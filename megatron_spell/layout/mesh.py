"""The trainer's mesh: rank <-> coordinates, in Megatron-Core's order (tp fastest, then cp, dp, pp)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Where a rank stands on each axis."""

    tp: int
    cp: int
    dp: int
    pp: int


@dataclass(frozen=True, slots=True)
class ExpertCoordinates:
    """Where a rank stands among those that share the experts of a pipeline stage. `edp` counts replicas."""

    etp: int
    ep: int
    edp: int


@dataclass(frozen=True, slots=True)
class Mesh:
    """Sizes of the parallel axes.

    `ep` and `etp` fold over the tp x cp x dp ranks of a pipeline stage and do not add ranks: experts are spread over
    etp (fastest), then ep, and what is left are replicas. `etp` None means as tp, Megatron's own default. `vpp` splits
    the layers of a pipeline stage into chunks: chunk v of stage p holds the (v * pp + p)-th stretch of the layers.
    `stage_layers` are the numbers of layers of these pp * vpp stretches, in the order of the layers; None means as many
    for each.

    Mirrors `megatron.core.parallel_state.RankGenerator` with order "tp-cp-ep-dp-pp" (megatron-core 0.16).
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    vpp: int = 1
    stage_layers: tuple[int, ...] | None = None

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    @property
    def expert_tp(self) -> int:
        """Ranks that one expert is split over."""
        return self.tp if self.etp is None else self.etp

    def coordinates(self, rank: int) -> Coordinates:
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside a mesh of {self.world_size} ranks")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)

    def expert_coordinates(self, rank: int) -> ExpertCoordinates:
        within_stage = rank % (self.tp * self.cp * self.dp)
        rest, etp = divmod(within_stage, self.expert_tp)
        edp, ep = divmod(rest, self.ep)
        return ExpertCoordinates(etp=etp, ep=ep, edp=edp)

    def rank(self, at: Coordinates) -> int:
        return at.tp + self.tp * (at.cp + self.cp * (at.dp + self.dp * at.pp))

    def ranks(self) -> Iterator[tuple[int, Coordinates]]:
        for rank in range(self.world_size):
            yield rank, self.coordinates(rank)

    def chunk_layers(self, num_layers: int, pp: int, chunk: int = 0) -> range:
        """Global indices of the transformer layers in a chunk of pipeline stage `pp`. Raises ValueError."""
        sizes, number = self.stretches(num_layers), chunk * self.pp + pp
        start = sum(sizes[:number])
        return range(start, start + sizes[number])

    def stretches(self, num_layers: int) -> tuple[int, ...]:
        """Number of layers of each stretch, in the order of the layers.

        Raises ValueError when a model of `num_layers` cannot be cut so.
        """
        number, where = self.pp * self.vpp, f"{self.pp} pipeline stages of {self.vpp} chunks"
        if self.stage_layers is None:
            if num_layers % number:
                raise ValueError(f"{num_layers} layers do not divide over {where}")
            return (num_layers // number,) * number
        if len(self.stage_layers) != number or sum(self.stage_layers) != num_layers or min(self.stage_layers) < 1:
            given = ",".join(map(str, self.stage_layers))
            raise ValueError(f"stage_layers={given} do not spread {num_layers} layers over {where}")
        return self.stage_layers

    def __str__(self) -> str:
        sizes: dict[str, int | str] = {"tp": self.tp, "pp": self.pp, "dp": self.dp}
        sizes |= {axis: size for axis in ("cp", "ep", "vpp") if (size := getattr(self, axis)) > 1}
        if self.etp is not None:
            sizes["etp"] = self.etp
        if self.stage_layers is not None:
            sizes["stage_layers"] = ",".join(map(str, self.stage_layers))
        return " ".join(f"{axis}={size}" for axis, size in sizes.items())

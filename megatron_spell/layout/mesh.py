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
class Mesh:
    """Sizes of the parallel axes. `ep` and `etp` fold over tp x cp x dp and do not add ranks; `vpp` splits pp stages.

    Mirrors `megatron.core.parallel_state.RankGenerator` with order "tp-cp-ep-dp-pp" (megatron-core 0.16).
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1

    @property
    def world_size(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    def coordinates(self, rank: int) -> Coordinates:
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside a mesh of {self.world_size} ranks")
        rest, tp = divmod(rank, self.tp)
        rest, cp = divmod(rest, self.cp)
        pp, dp = divmod(rest, self.dp)
        return Coordinates(tp=tp, cp=cp, dp=dp, pp=pp)

    def rank(self, at: Coordinates) -> int:
        return at.tp + self.tp * (at.cp + self.cp * (at.dp + self.dp * at.pp))

    def ranks(self) -> Iterator[tuple[int, Coordinates]]:
        for rank in range(self.world_size):
            yield rank, self.coordinates(rank)

    def stage_layers(self, num_layers: int, pp: int) -> range:
        """Global indices of the transformer layers that pipeline stage `pp` holds (even split)."""
        if num_layers % self.pp:
            raise ValueError(f"{num_layers} layers do not divide over {self.pp} pipeline stages")
        per_stage = num_layers // self.pp
        return range(pp * per_stage, (pp + 1) * per_stage)

    def __str__(self) -> str:
        sizes = {
            "tp": self.tp,
            "pp": self.pp,
            "dp": self.dp,
            "cp": self.cp,
            "ep": self.ep,
            "etp": self.etp,
            "vpp": self.vpp,
        }
        return " ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1 or axis in ("tp", "pp", "dp"))

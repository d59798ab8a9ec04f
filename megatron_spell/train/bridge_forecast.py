"""What a refresh would be, from settings and config.json alone: no weights, no processes, no torch.

It stands here and not in bridge/, because it joins the bridge's plan with the run's settings and hardware.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places
from megatron_spell.bridge.inventory import checkpoint_shapes, trainer_inventories
from megatron_spell.bridge.planner import Bucket, Plan, plan
from megatron_spell.config import layout_rules
from megatron_spell.config.engine_rules import engine_faults
from megatron_spell.config.hardware import Hardware
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.bridge_cover import cover_faults, covered_tensors
from megatron_spell.train.bridge_timing import IN_FLIGHT, Bound, Message, Path, Sites, bound, predict

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class Layout:
    """Trainers are ranks 0..W-1 of the bridge; the workers of engine n the W + n * w following ones.

    Each engine is a link of its own with an equal part of `bucket_bytes` for its messages. GPUs are counted through:
    trainers first, engines after them, or with `colocated` both from the first on.
    """

    shape: ModelShape
    mesh: Mesh
    engine_mesh: EngineMesh
    num_engines: int
    dtype: str
    bucket_bytes: int
    gpus_per_node: int = 8
    colocated: bool = False

    @classmethod
    def of(cls, config: RunConfig, gpus_per_node: int = 8) -> "Layout":
        """Of a run. Raises UnknownModel."""
        return cls(
            shape=ModelShape.load(config.model.path),
            mesh=config.policy.mesh.mesh(),
            engine_mesh=config.rollout.mesh(),
            num_engines=config.rollout.engines,
            dtype=config.rollout.dtype,
            bucket_bytes=int(config.bridge.bucket_mib * 2**20),
            gpus_per_node=gpus_per_node,
            colocated=config.rollout.placement == "colocated",
        )

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def engine_bucket_bytes(self) -> int:
        """Of one engine's link."""
        return self.bucket_bytes // self.num_engines

    def workers(self, engine: int) -> range:
        """The ranks of an engine's workers."""
        size = self.engine_mesh.num_workers
        return range(self.mesh.world_size + engine * size, self.mesh.world_size + (engine + 1) * size)

    def as_json(self) -> dict:
        return {
            "family": self.shape.family,
            "num_parameters": self.shape.num_parameters,
            "trainers": {"num_ranks": self.mesh.world_size, "mesh": str(self.mesh)},
            "engines": {
                "count": self.num_engines,
                "num_workers": self.engine_mesh.num_workers,
                "mesh": str(self.engine_mesh),
                "colocated": self.colocated,
            },
            "gpus_per_node": self.gpus_per_node,
            "dtype": self.dtype,
            "engine_bucket_bytes": self.engine_bucket_bytes,
        }

    def sites(self) -> Sites:
        num_trainers = self.mesh.world_size
        ranks = range(num_trainers + self.num_engines * self.engine_mesh.num_workers)
        back = num_trainers if self.colocated else 0
        return Sites({r: r if r < num_trainers else r - back for r in ranks}, self.gpus_per_node)

    def sources(self) -> dict[int, Inventory]:
        return trainer_inventories(self.shape, self.mesh)

    def targets(self) -> dict[int, Inventory]:
        places = engine_places(self.shape, self.engine_mesh)
        inventories = [engine_inventory(self.shape, place) for place in places]  # alike in every engine
        engines = range(self.num_engines)
        return {rank: own for n in engines for rank, own in zip(self.workers(n), inventories, strict=True)}


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a quantity over ranks; `imbalance` is the largest by the mean."""

    min: float
    mean: float
    max: float

    @classmethod
    def over(cls, ranks: Iterable[int], amounts: Mapping[int, int]) -> "Spread":
        values = [amounts.get(rank, 0) for rank in ranks]
        return cls(min(values), fmean(values), max(values))

    @property
    def imbalance(self) -> float:
        return self.max / self.mean if self.mean else 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds on the hardware of this name: the walk played through, and the bound of the busiest link."""

    hardware: str
    seconds: float
    bound: Bound


@dataclass(frozen=True, slots=True)
class Forecast:
    """A refresh in figures. Bytes are of the wire's dtype; sent is over trainers, received over engine workers.

    `num_tensors` are the Hugging Face tensors that reach every engine whole, of `num_model_tensors`. `faults` are what
    the independent count of the plan found. `peak_extra_bytes` is what a rank holds at most beside the weights: two
    buckets on each of its links.
    """

    num_tensors: int
    num_model_tensors: int
    num_moves: int
    num_bytes: int
    num_bytes_by_path: Mapping[Path, int]
    sent_bytes: Spread
    received_bytes: Spread
    num_messages: int
    messages_of_trainers: Spread
    messages_of_workers: Spread
    trainer_peak_extra_bytes: int
    worker_peak_extra_bytes: int
    plan_json_bytes: int
    planning_s: float
    predictions: tuple[Prediction, ...]
    faults: tuple[str, ...]

    def as_json(self) -> dict:
        """Plain values; spreads with their imbalance."""
        plain = asdict(self)
        for name in ("sent_bytes", "received_bytes", "messages_of_trainers", "messages_of_workers"):
            plain[name]["imbalance"] = getattr(self, name).imbalance
        return plain


def layout_faults(config: RunConfig, layout: Layout) -> list[str]:
    """One line for each reason why the model does not fit the run's trainers or engines."""
    own = layout_rules.layout_faults(layout.shape, config.policy)
    return [*map(str, own), *engine_faults(layout.shape, config, on_cpu=False)]


def forecast(layout: Layout, hardware: Mapping[str, Hardware]) -> Forecast:
    """Plan all, count it, and play it through on each hardware.

    `planning_s` covers what a run does too: inventories, the plan and its buckets. Raises PlanError, BridgeError, and
    ValueError where the model does not fit a mesh.
    """
    began = time.perf_counter()
    sources, targets, sites = layout.sources(), layout.targets(), layout.sites()
    moves = plan(sources, targets, {rank: (sites.node(rank), gpu) for rank, gpu in sites.gpus.items()})
    links = [_buckets(layout, moves, engine) for engine in range(layout.num_engines)]
    planning_s = time.perf_counter() - began
    between = moves.bytes_between(layout.item_bytes)
    messages = [[Message(b.src_rank, b.dst_rank, b.num_bytes) for b in link] for link in links]
    return Forecast(
        num_tensors=len(_whole_everywhere(layout, moves)),
        num_model_tensors=len(checkpoint_shapes(layout.shape)),
        num_moves=len(moves.moves),
        num_bytes=sum(between.values()),
        num_bytes_by_path=_by_path(between, sites),
        planning_s=planning_s,
        plan_json_bytes=len(moves.to_json()),
        predictions=tuple(
            Prediction(name, predict(messages, sites, each), bound(between, sites, each))
            for name, each in hardware.items()
        ),
        faults=tuple(cover_faults(moves, sources, targets)),
        **_loads(sources, targets, between),
        **_message_counts(sources, targets, links),
        **_peaks(sources, targets, links),
    )


def _buckets(layout: Layout, moves: Plan, engine: int) -> tuple[Bucket, ...]:
    return moves.into(layout.workers(engine)).schedule(layout.engine_bucket_bytes, layout.item_bytes)


def _whole_everywhere(layout: Layout, moves: Plan) -> set[str]:
    engines = [moves.into(layout.workers(engine)).moves for engine in range(layout.num_engines)]
    return set.intersection(*(covered_tensors(own, layout.shape) for own in engines))


def _by_path(between: Mapping[tuple[int, int], int], sites: Sites) -> dict[Path, int]:
    found = dict.fromkeys(Path, 0)
    for (src, dst), num_bytes in between.items():
        found[sites.path(src, dst)] += num_bytes
    return found


def _loads(sources: Iterable[int], targets: Iterable[int], between: Mapping[tuple[int, int], int]) -> dict:
    sent: dict[int, int] = defaultdict(int)
    received: dict[int, int] = defaultdict(int)
    for (src, dst), num_bytes in between.items():
        sent[src] += num_bytes
        received[dst] += num_bytes
    return {"sent_bytes": Spread.over(sources, sent), "received_bytes": Spread.over(targets, received)}


def _message_counts(sources: Iterable[int], targets: Iterable[int], links: Sequence[Sequence[Bucket]]) -> dict:
    counts: dict[int, int] = defaultdict(int)
    for link in links:
        for bucket in link:
            counts[bucket.src_rank] += 1
            counts[bucket.dst_rank] += 1
    return {
        "num_messages": sum(map(len, links)),
        "messages_of_trainers": Spread.over(sources, counts),
        "messages_of_workers": Spread.over(targets, counts),
    }


def _peaks(sources: Iterable[int], targets: Iterable[int], links: Sequence[Sequence[Bucket]]) -> dict:
    """A rank's buffers on a link are as large as its largest bucket there."""
    extra: dict[int, int] = defaultdict(int)
    for link in links:
        largest: dict[int, int] = defaultdict(int)
        for bucket in link:
            for rank in (bucket.src_rank, bucket.dst_rank):
                largest[rank] = max(largest[rank], bucket.num_bytes)
        for rank, num_bytes in largest.items():
            extra[rank] += IN_FLIGHT * num_bytes
    return {
        "trainer_peak_extra_bytes": max(extra[rank] for rank in sources),
        "worker_peak_extra_bytes": max(extra[rank] for rank in targets),
    }

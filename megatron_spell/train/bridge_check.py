"""Are the weights of trainers, engines and the Hugging Face folder equal? Hashes are compared, no weight moves.

Each side finds a box through its own inventory: the trainers by megatron-core's names, the engines by those of the live
model, the folder by its own. A mistake in a table that two sides share still shows against the folder.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch

from megatron_spell.bridge.boxes import Box, Segment
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.inventory import checkpoint_shapes
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.stacks import is_stack, members
from megatron_spell.bridge.verify import DEFAULT_PROBE_ELEMENTS, Probe, compare, digests
from megatron_spell.bridge.verify import sample_probes as probes_of_plan
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.train.bridge_forecast import Layout
from megatron_spell.train.launch import start_ranks
from megatron_spell.train.run_folder import RunFolder, write_json

WORKER = "megatron_spell.train.bridge_check_worker"
BATCH_ELEMENTS = 2**28  # of one question to all sides: bounds how long a side is silent, and the folder's memory

Digests = Mapping[str, str]
Side = Mapping[str, Digests]


class HoldsWeights(Protocol):
    """What the check asks of an engine."""

    name: str

    async def digests(self, probes: Sequence[Probe]) -> Sequence[Digests]:
        """By worker: probe (as text) -> digest in the wire's dtype, for the probes that lie in the worker's shard."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and the file for the report. With `quiet` nothing is said on standard output meanwhile."""

    full: bool
    seed: int
    report: str
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """A box on which holders differ, or that a side does not hold; `views` says who has what."""

    tensor: str
    box: str
    views: str

    def __str__(self) -> str:
        return f"{self.tensor}{self.box}: {self.views}"


@dataclass(frozen=True, slots=True)
class Row:
    """A group of tensors that differ only in their layer (and expert). `num_holders` is by side."""

    group: str
    num_boxes: int
    num_elements: int
    num_holders: Mapping[str, int]
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """`num_tensors` and `num_elements` are what was compared of the model's `num_model_elements`."""

    full: bool
    seed: int
    num_tensors: int
    num_elements: int
    num_model_elements: int
    rows: tuple[Row, ...]

    @property
    def differences(self) -> tuple[Difference, ...]:
        return tuple(difference for row in self.rows for difference in row.differences)

    def as_json(self) -> dict:
        return asdict(self) | {"equal": not self.differences}

    @classmethod
    def from_json(cls, raw: dict) -> "Report":
        """What `as_json` made."""
        rows = tuple(
            Row(**row | {"differences": tuple(Difference(**one) for one in row["differences"])}) for row in raw["rows"]
        )
        return cls(**{name: value for name, value in raw.items() if name != "equal"} | {"rows": rows})


def choose_probes(layout: Layout, seed: int, *, full: bool) -> tuple[Probe, ...]:
    """A box of every piece that a trainer has and an engine takes; with `full` the whole pieces, so all elements."""
    sources = layout.sources()
    targets = {rank: own for rank, own in layout.targets().items() if rank in layout.workers(0)}
    return probes_of_plan(plan(sources, targets), seed, None if full else DEFAULT_PROBE_ELEMENTS)


def check(
    probes: Sequence[Probe],
    ask: Callable[[Sequence[Probe]], Mapping[str, Side]],
    shape: ModelShape,
    seed: int,
    *,
    full: bool,
) -> Report:
    """Compare what `ask` hears from each side; pieces of stacked experts that differ are asked for expert by expert.

    `ask(probes)` gives side -> holder -> digests.
    """
    found: dict[str, list[Difference]] = defaultdict(list)
    holders: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for batch in batches(probes):
        sides = ask(batch)
        for probe in batch:
            for side, held in sides.items():
                holders[group_of(probe)][side] |= {name for name, own in held.items() if str(probe) in own}
        wrong = [probe for probe in batch if compare([probe], *sides.values())]
        for probe, views in _precisely(wrong, sides, ask):
            found[group_of(probe)].append(_difference(probe, views))
    return Report(
        full=full,
        seed=seed,
        num_tensors=len({name for probe in probes for name, _ in members(probe.hf_name, probe.hf_box)}),
        num_elements=sum(probe.hf_box.num_elements for probe in probes),
        num_model_elements=shape.num_parameters,
        rows=tuple(_rows(probes, holders, found)),
    )


def batches(probes: Sequence[Probe], max_elements: int = BATCH_ELEMENTS) -> Iterator[list[Probe]]:
    """The probes in order, so many at a time that they have at most `max_elements`, or one that has more."""
    batch: list[Probe] = []
    for probe in probes:
        if batch and sum(p.hf_box.num_elements for p in batch) + probe.hf_box.num_elements > max_elements:
            yield batch
            batch = []
        batch.append(probe)
    if batch:
        yield batch


def group_of(probe: Probe) -> str:
    return re.sub(r"(?<=\.layers\.)\d+(?=\.)", "N", probe.hf_name)


def folder_digests(
    folder: Path, probes: Sequence[Probe], shape: ModelShape, held_as: torch.dtype, dtype: torch.dtype
) -> dict[str, str]:
    """Probe (as text) -> digest of what `folder` has there, first rounded to `held_as`, the trainers' own dtype.

    In memory are the boxes of all `probes`. Raises CheckpointError.
    """
    shapes, found = checkpoint_shapes(shape), {}
    for probe in probes:
        segment = _from_its_origin(probe)
        places = members(segment.local_name, segment.local_box)
        tensors = {name: torch.empty(box.shape, dtype=held_as) for name, box in places}
        read_segments(folder, (segment,), tensors, shapes)
        found |= digests([probe], (segment,), tensors, dtype)
    return found


def _from_its_origin(probe: Probe) -> Segment:
    """The probe's box in a tensor of just its size; experts keep their numbers."""
    box, first = probe.hf_box, 1 if is_stack(probe.hf_name) else 0
    origin = (*box.start[:first], *(0 for _ in box.start[first:]))
    return Segment(probe.hf_name, box, probe.hf_name, box.moved(box.start, origin))


def _precisely(
    wrong: Sequence[Probe], sides: Mapping[str, Side], ask: Callable[[Sequence[Probe]], Mapping[str, Side]]
) -> Iterator[tuple[Probe, str]]:
    """The probes that differ with what compare says of them; of stacks, each expert that does."""
    plain = [probe for probe in wrong if not is_stack(probe.hf_name)]
    experts = [single for probe in wrong if is_stack(probe.hf_name) for single in _singles(probe)]
    for probes, heard in ((plain, sides), (experts, ask(experts) if experts else {})):
        for probe in probes:
            for fault in compare([probe], *heard.values()):
                yield probe, fault.removeprefix(f"{probe}: ")


def _singles(probe: Probe) -> Iterator[Probe]:
    start, stop = probe.hf_box.start, probe.hf_box.stop
    for index in range(start[0], stop[0]):
        yield Probe(probe.hf_name, Box((index, *start[1:]), (index + 1, *stop[1:])))


def _difference(probe: Probe, views: str) -> Difference:
    (name, box), *_ = members(probe.hf_name, probe.hf_box)
    return Difference(name, str(box), views)


def _rows(
    probes: Iterable[Probe],
    holders: Mapping[str, Mapping[str, set[str]]],
    found: Mapping[str, Sequence[Difference]],
) -> Iterator[Row]:
    groups: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        groups[group_of(probe)].append(probe)
    for group, own in groups.items():
        num_elements = sum(probe.hf_box.num_elements for probe in own)
        num_holders = {side: len(names) for side, names in holders[group].items()}
        yield Row(group, len(own), num_elements, num_holders, tuple(found.get(group, ())))


def write_report(path: Path, report: Report) -> None:
    path.write_text(json.dumps(report.as_json()), encoding="utf-8")


def read_report(path: Path) -> Report:
    return Report.from_json(json.loads(path.read_text(encoding="utf-8")))


def settings_for_check(config: RunConfig) -> RunConfig:
    """The run's settings with a folder of the check's own, and without the receipts that would end it early."""
    bridge = config.bridge.model_copy(update={"check": False})
    return config.model_copy(update={"bridge": bridge, "run_folder": config.run_folder / "check_bridge"})


def launch_check(config: RunConfig, *, full: bool, seed: int, quiet: bool, rank: int | None) -> Report | None:
    """Start trainers and engines as training does, refresh, compare; None where it could not be done (which was told)
    and on ranks other than 0.

    `config` is that of `settings_for_check`, `rank` as for `launch`.
    """
    folder = RunFolder(config.run_folder)
    request = Request(full, seed, str(folder.root / "report.json"), quiet)
    if not rank:
        folder.make()
        Path(request.report).unlink(missing_ok=True)
        write_json(folder.config, config.model_dump(mode="json"))
    if rank is None:
        start_ranks(config, WORKER, [str(folder.config), json.dumps(asdict(request))])
    else:
        from megatron_spell.train.bridge_check_worker import check_ranks

        check_ranks(config, request)
    return None if rank or not Path(request.report).is_file() else read_report(Path(request.report))

"""One trainer rank of `megatron-spell check-bridge`: load, refresh, compare; started like a training run's ranks."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megatron_spell.bridge.inventory import trainer_inventory
from megatron_spell.bridge.verify import Probe, digests
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.rollout.engine import EngineError
from megatron_spell.train.bridge_check import (
    HoldsWeights,
    Request,
    Side,
    check,
    choose_probes,
    folder_digests,
    write_report,
)
from megatron_spell.train.bridge_forecast import Layout
from megatron_spell.train.build import build_run
from megatron_spell.train.crew import Crew, gatherer
from megatron_spell.train.member import Member, rank_of_this_process
from megatron_spell.train.run import Run
from megatron_spell.train.worker import work

ALTERED, LOADED = 1, 2  # versions of the weights


class CheckedMember(Member):
    """A trainer rank that can be asked what it holds. Every method runs on all ranks together."""

    def __init__(self, config: RunConfig, shape: ModelShape):
        super().__init__(config, shape)
        self._config, self._shape = config, shape
        self._gather = gatherer(config.policy.timeout_s)

    def negate(self) -> None:
        """Change the sign of every weight; a second time it is as it was, bit for bit."""
        tensors = {tensor.data_ptr(): tensor for tensor in self.policy.local_tensors().values()}
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.neg_()

    def digests(self, probes: Sequence[Probe]) -> dict[str, Side]:
        """Of all trainers, and of the folder, of which each rank reads its share."""
        rank, mesh = rank_of_this_process(), self._config.policy.mesh.mesh()
        dtype = getattr(torch, self._config.rollout.dtype)
        own = digests(probes, trainer_inventory(self._shape, mesh, rank), self.policy.local_tensors(), dtype)
        held_as = getattr(torch, self._config.policy.dtype)
        share = folder_digests(self._config.model.path, probes[rank :: mesh.world_size], self._shape, held_as, dtype)
        told = self._gather((own, share))
        trainers = {f"trainer rank {n}": found for n, (found, _) in enumerate(told)}
        return {"trainers": trainers, "folder": {"the folder": {k: v for _, part in told for k, v in part.items()}}}


def compare_with_engines(run: Run, request: Request) -> None:
    """Refresh twice, with other weights first, so that what a refresh leaves out shows; then compare all sides."""
    run.crew.call("load_hf", run.config.model.path)
    run.crew.call("negate")
    run.publish(ALTERED)
    run.crew.call("negate")
    run.publish(LOADED)
    layout = Layout.of(run.config)
    probes = choose_probes(layout, request.seed, full=request.full)
    report = check(probes, lambda asked: _ask(run, asked), layout.shape, request.seed, full=request.full)
    write_report(Path(request.report), report)


def _ask(run: Run, probes: Sequence[Probe]) -> Mapping[str, Side]:
    return {**run.crew.call("digests", probes), **engine_sides(run, probes)}


def engine_sides(run: Run, probes: Sequence[Probe]) -> dict[str, Side]:
    """A side for each engine, its workers the holders. Raises EngineError when not all of the run's engines serve."""
    engines: Sequence[HoldsWeights] = list(run.table.engine.live.values())
    if len(engines) < run.config.rollout.engines:
        raise EngineError(
            f"only {len(engines)} of rollout.engines = {run.config.rollout.engines} came through the refresh"
        )
    sides = {}
    for engine in engines:
        found = run.background.run(engine.digests(probes))
        sides[engine.name] = {f"{engine.name} worker {n}": dict(own) for n, own in enumerate(found)}
    return sides


def check_ranks(config: RunConfig, request: Request) -> int:
    """This rank's part; the exit code."""

    def lead(config: RunConfig, crew: Crew) -> None:
        run = build_run(config, crew)
        try:
            compare_with_engines(run, request)
            crew.dismiss()
        finally:
            run.close()

    said = contextlib.redirect_stdout(sys.stderr) if request.quiet else contextlib.nullcontext()
    with said:
        return work(config, lead, CheckedMember)


if __name__ == "__main__":
    settings = RunConfig.model_validate(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    sys.exit(check_ranks(settings, Request(**json.loads(sys.argv[2]))))

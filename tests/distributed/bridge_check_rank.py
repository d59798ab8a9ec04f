"""One of the real trainer ranks of a check with a fake engine: `bridge_check_rank.py CONFIG.json OUT.json STALE`.

The engine has its weights from the folder, negated in the refresh of the altered weights; it does not take the tensor
STALE in the second refresh. Rank 0 writes the report to OUT.json.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.verify import Probe, digests
from megatron_spell.config.schema import RunConfig
from megatron_spell.policy import setup
from megatron_spell.train.bridge_check import Request, choose_probes
from megatron_spell.train.bridge_check_worker import ALTERED, CheckedMember, compare_with_engines
from megatron_spell.train.bridge_forecast import Layout
from megatron_spell.train.crew import Crew
from megatron_spell.train.member import rank_of_this_process


class Engine:
    """Holds a model as vLLM's workers would; `refresh` takes weights from the folder instead of from trainers."""

    name = "engine 0"

    def __init__(self, config: RunConfig, stale: str):
        self.config, self.stale, self.shape = config, stale, Layout.of(config).shape
        self.places = engine_places(self.shape, config.rollout.mesh())
        self.workers: list[dict[str, torch.Tensor]] = [{} for _ in self.places]

    def refresh(self, version: int) -> None:
        for place, held in zip(self.places, self.workers):
            fresh = {name: torch.zeros(size) for name, size in engine_shapes(self.shape, place).items()}
            plain = [s for s in engine_inventory(self.shape, place) if "*" not in s.hf_name]
            read_segments(self.config.model.path, tuple(plain), fresh)
            for name, tensor in fresh.items():
                if not (version > ALTERED and name == self.stale):
                    held[name] = -tensor if version == ALTERED else tensor

    async def digests(self, probes: Sequence[Probe]) -> list[dict[str, str]]:
        dtype = getattr(torch, self.config.rollout.dtype)
        return [
            digests(probes, engine_inventory(self.shape, place), held, dtype)
            for place, held in zip(self.places, self.workers)
        ]


def check_negation(config: RunConfig, member: CheckedMember) -> None:
    """On every rank together: the weights are the folder's, all change, and come back bit for bit."""
    member.load_hf(config.model.path)
    probes = choose_probes(Layout.of(config), seed=0, full=True)
    loaded = member.digests(probes)
    assert len(loaded["trainers"]) == config.policy.mesh.mesh().world_size
    (folder,) = loaded["folder"].values()
    assert set(folder) == set(map(str, probes))
    for held in loaded["trainers"].values():
        assert held
        assert all(folder[key] == value for key, value in held.items())
    member.negate()
    altered = member.digests(probes)
    for rank, held in altered["trainers"].items():
        assert all(value != loaded["trainers"][rank][key] for key, value in held.items())
    member.negate()
    assert member.digests(probes) == loaded


def main(config_path: str, out: str, stale: str) -> None:
    config = RunConfig.model_validate(json.loads(Path(config_path).read_text()))
    setup.initialise(config.policy.mesh.mesh(), config.policy.timeout_s)
    member = CheckedMember(config, Layout.of(config).shape)
    check_negation(config, member)
    crew = Crew(member, wait_s=60)
    if rank_of_this_process():
        crew.follow()
    else:
        engine = Engine(config, stale)
        run = SimpleNamespace(config=config, crew=crew, publish=engine.refresh)
        run.table = SimpleNamespace(engine=SimpleNamespace(live={0: engine}))
        run.background = SimpleNamespace(run=asyncio.run)
        compare_with_engines(run, Request(full=True, seed=0, report=out))
        crew.dismiss()
    setup.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])

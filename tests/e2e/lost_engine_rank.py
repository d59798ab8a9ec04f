"""Two real trainer ranks and two real engines, which are struck while weights come in and while they write.

argv: CONFIG.json OUT PLAN.json. PLAN is a list of stages, one for each publish; a stage is an object with any of

- "send": [signal, process], for engine 1 when bucket STRUCK_BUCKET is sent to it;
- "play": [[engine, signal, process], ...], one after the other while NUM_DRAWS requests are in flight;
- "amid": true, for long requests that are under way while this stage's and the next stages' weights come in.

A process is "actor" (which holds the engine), "EngineCore" (which commands the workers) or "Worker". Rank 0 writes
OUT/said.json; all ranks together export each version's weights to OUT/version_N.
"""

import asyncio
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.policy import setup
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.train import links
from megatron_spell.train.build import build_run
from megatron_spell.train.crew import Crew
from megatron_spell.train.member import rank_of_this_process
from megatron_spell.train.run import Run
from megatron_spell.types.play import Completion
from tests.e2e.refresh_rank import NEW_TOKENS, Exporter, prompts, rows

VICTIM, STRUCK_BUCKET = 1, 5
RESTART_LIMIT_S = 240
NUM_DRAWS, DRAW_TOKENS = 160, 48
NUM_LONG, LONG_TOKENS = 24, 560


def processes(log: Path, kind: str) -> list[int]:
    """The engine's processes of a kind, by the log that all of them print to."""
    wanted = "ray::_Host" if kind == "actor" else f"VLLM::{kind}"
    found = []
    for process in psutil.process_iter():
        try:
            prints_there = Path(f"/proc/{process.pid}/fd/1").resolve() == log
            if prints_there and wanted in " ".join([process.name(), *process.cmdline()]):
                found.append(process.pid)
        except (OSError, psutil.Error):
            continue
    return found


@dataclass
class Striker:
    """Sends signals to processes of engines; `struck` are those it did."""

    logs: Path
    struck: list[int] = field(default_factory=list)

    def strike(self, engine: int, signal_name: str, kind: str) -> None:
        pids = processes((self.logs / f"engine_{engine}.log").resolve(), kind)[-1:]
        assert pids, f"engine {engine} has no {kind}"
        for pid in pids:
            os.kill(pid, signal.Signals[signal_name])
        self.struck += pids


class StrikeOnTheWay:
    """Strikes the victim when bucket number STRUCK_BUCKET is sent to it, once `blow` is set."""

    def __init__(self, striker: Striker):
        self.blow: list[str] | None = None
        self._striker, self._sent = striker, 0
        self._meet = links.meet
        links.meet = self.meet

    def meet(self, meeting: links.Meeting, *where):
        transport = self._meet(meeting, *where)
        if meeting.engine == VICTIM:
            send = transport.send
            transport.send = lambda *message: (self._before_send(), send(*message))[1]
        return transport

    def _before_send(self) -> None:
        self._sent += self.blow is not None
        if self._sent == STRUCK_BUCKET:
            blow, self.blow, self._sent = self.blow, None, 0
            self._striker.strike(VICTIM, *blow)


class Load:
    """Requests of numbered draws through one engine or a pool; `came` are the draws in the order they came back."""

    def __init__(self, engine, vocab_size: int, num_draws: int = NUM_DRAWS, num_tokens: int = DRAW_TOKENS):
        self._engine, self._prompts = engine, prompts(vocab_size)
        self.num_draws, self.num_tokens = num_draws, num_tokens
        self.came: list[int] = []
        self.completions: dict[int, Completion] = {}

    async def play(self) -> None:
        async with asyncio.TaskGroup() as group:
            for draw in range(self.num_draws):
                group.create_task(self._ask(draw))

    async def _ask(self, draw: int) -> None:
        spec = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=self.num_tokens, seed=draw)
        prompt = self._prompts[draw % len(self._prompts)]
        [completion] = await self._engine.generate(prompt, spec, key=f"set {draw % 7}")
        self.came.append(draw)
        self.completions[draw] = completion

    def said(self) -> dict:
        inorder = [self.completions[draw] for draw in sorted(self.completions)]
        return {
            "came": self.came,
            "tokens": [c.token_ids_T.tolist() for c in inorder],
            "log_probs": [c.log_probs_T.tolist() for c in inorder],
            "versions": [(np.full(len(c.token_ids_T), c.version) if c.versions_T is None else c.versions_T).tolist()
                         for c in inorder],
        }  # fmt: skip


class Stages:
    """Plays a plan, and keeps what was said."""

    def __init__(self, run: Run, vocab_size: int, out: Path):
        self.run, self.vocab_size, self.out = run, vocab_size, out
        self.striker = Striker(run.config.run_folder / "logs")
        self.on_the_way = StrikeOnTheWay(self.striker)
        self.told: list[str] = []
        run.refresh._fleet._tell = self.told.append
        made = rows(vocab_size)
        self.batch = pack(made, row_weights(made, "per_role"), num_dp=1, max_bin_tokens=512)
        self.long: Load | None = None
        self._writing = None

    @property
    def pool(self):
        return self.run.table.engine

    def play(self, version: int, stage: dict) -> dict:
        if version:
            self.run.crew.call("teach", self.batch)
        if stage.get("amid") and self.long is None:
            self.long = Load(self.pool, self.vocab_size, NUM_LONG, LONG_TOKENS)
            self._writing = self.run.background.start(self.long.play())
            self.run.background.run(asyncio.sleep(0.3))
        self.on_the_way.blow = stage.get("send")
        self.run.publish(version)
        self.run.crew.call("export", self.out / f"version_{version}")
        entry = {"said": self.say() if self.long is None else {}, "seconds": self.run.refreshed.seconds}
        entry["told"] = list(self.told)
        if "play" in stage:
            entry["play"] = self.play_under_strikes(version, stage["play"])
        self.run.background.run(started_again(self.run.refresh._fleet), RESTART_LIMIT_S)
        return entry

    def say(self) -> dict[int, dict]:
        """What every engine that serves says, by itself."""
        greedy = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=NEW_TOKENS)
        said = {}
        for number, engine in self.pool.live.items():
            completions = [self.run.background.run(engine.generate(p, greedy))[0] for p in prompts(self.vocab_size)]
            versions = sorted({c.version for c in completions})
            said[number] = {"versions": versions, "tokens": [c.token_ids_T.tolist() for c in completions]}
        return said

    def play_under_strikes(self, version: int, blows: list[list]) -> dict:
        """The load under strikes, and then once more by one engine that nobody disturbs."""
        load, in_flight, struck = Load(self.pool, self.vocab_size), [], []

        async def strike() -> None:
            for count, (engine, *blow) in enumerate(blows):
                while len(load.came) < (count + 1) * NUM_DRAWS // (len(blows) + 3):
                    await asyncio.sleep(0.005)
                in_flight.append(self.pool.loads.get(engine, 0))
                struck.append(self.pool.live.get(engine))
                self.striker.strike(engine, *blow)

        async def both() -> None:
            await asyncio.gather(load.play(), strike())
            async with asyncio.timeout(RESTART_LIMIT_S):
                while any(engine in struck for engine in self.pool.live.values()) or not self.pool.live:
                    await asyncio.sleep(0.05)

        self.run.refresh.while_playing(both(), version)
        loads = self.pool.loads
        quiet = Load(next(iter(self.pool.live.values())), self.vocab_size)
        self.run.background.run(quiet.play())
        return {"struck": load.said(), "quiet": quiet.said(), "in_flight": in_flight, "loads": loads}

    def end(self) -> dict:
        if self._writing is not None:
            self._writing.result(RESTART_LIMIT_S)
        ended = [not psutil.pid_exists(pid) for pid in self.striker.struck]
        long = None if self.long is None else self.long.said()
        return {"ended": ended, "told": self.told, "long": long, "loads": self.pool.loads}


async def started_again(fleet) -> None:
    await asyncio.gather(*fleet._starting.values())


def lead(run: Run, vocab_size: int, out: Path, plan: list[dict]) -> None:
    run.crew.call("load_hf", run.config.model.path)
    stages = Stages(run, vocab_size, out)
    published = [stages.play(version, stage) for version, stage in enumerate(plan)]
    (out / "said.json").write_text(json.dumps({"published": published, **stages.end()}))
    run.crew.dismiss()
    run.close()


def main(config_path: str, out: str, plan_path: str) -> None:
    config = RunConfig.model_validate(json.loads(Path(config_path).read_text()))
    setup.initialise(config.policy.mesh.mesh(), config.policy.timeout_s)
    shape = ModelShape.load(config.model.path)
    crew = Crew(Exporter(config, shape), wait_s=600)
    if rank_of_this_process():
        crew.follow()
    else:
        lead(build_run(config, crew), shape.vocab_size, Path(out), json.loads(Path(plan_path).read_text()))
    setup.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])

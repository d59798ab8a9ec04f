"""Two real trainer ranks and two real engines, one of which is struck while weights are on their way to it.

argv: CONFIG.json OUT SIGNAL PROCESS. PROCESS is "Worker", which receives, or "EngineCore", which commands it. Rank 0
writes OUT/said.json: for each publish the engines that serve, what each says, and what people were told; all ranks
together export each version's weights to OUT/version_N.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

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
from tests.e2e.refresh_rank import NEW_TOKENS, Exporter, prompts, rows

VICTIM, STRUCK_VERSION, STRUCK_BUCKET = 1, 1, 5
RESTART_LIMIT_S = 240


class Strike:
    """Sends `signal_number` to a process of the victim when bucket number STRUCK_BUCKET is sent to it."""

    def __init__(self, log: Path, signal_number: int, process: str):
        self.log, self.signal_number, self.process = log, signal_number, process
        self.is_armed = False
        self.struck: list[int] = []
        self._sent = 0
        self._meet = links.meet
        links.meet = self.meet

    def meet(self, meeting: links.Meeting, *where):
        transport = self._meet(meeting, *where)
        if meeting.engine == VICTIM:
            send = transport.send
            transport.send = lambda *message: (self._before_send(), send(*message))[1]
        return transport

    def _before_send(self) -> None:
        self._sent += self.is_armed
        if self._sent == STRUCK_BUCKET:
            self.is_armed, self._sent = False, 0
            self.struck = [process.pid for process in psutil.process_iter() if self._is_struck(process)]
            for pid in self.struck:
                os.kill(pid, self.signal_number)

    def _is_struck(self, process: psutil.Process) -> bool:
        try:
            output = Path(f"/proc/{process.pid}/fd/1").resolve()
            return output == self.log and f"VLLM::{self.process}" in " ".join([process.name(), *process.cmdline()])
        except (OSError, psutil.Error):
            return False


def say(run: Run, vocab_size: int) -> dict[int, dict]:
    """What every engine that serves says, by itself."""
    greedy = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=NEW_TOKENS)
    said = {}
    for number, engine in run.table.engine.live.items():
        completions = [run.background.run(engine.generate(p, greedy))[0] for p in prompts(vocab_size)]
        versions = sorted({c.version for c in completions})
        said[number] = {"versions": versions, "tokens": [c.token_ids_T.tolist() for c in completions]}
    return said


async def started_again(fleet) -> None:
    await asyncio.gather(*fleet._starting.values())


def lead(run: Run, vocab_size: int, out: Path, signal_number: int, process: str) -> None:
    batch = pack(rows(vocab_size), row_weights(rows(vocab_size), "per_role"), num_dp=1, max_bin_tokens=512)
    strike = Strike((run.config.run_folder / "logs" / f"engine_{VICTIM}.log").resolve(), signal_number, process)
    fleet, told = run.refresh._fleet, []
    fleet._tell = told.append
    run.crew.call("load_hf", run.config.model.path)
    published = []
    for version in (0, 1, 2):
        if version:
            run.crew.call("teach", batch)
        strike.is_armed = version == STRUCK_VERSION
        run.publish(version)
        run.crew.call("export", out / f"version_{version}")
        said = say(run, vocab_size)
        published.append({"said": said, "seconds": run.refreshed.seconds, "told": list(told)})
        run.background.run(started_again(fleet), RESTART_LIMIT_S)
    ended = [not psutil.pid_exists(pid) for pid in strike.struck]
    (out / "said.json").write_text(json.dumps({"published": published, "ended": ended, "told": told}))
    run.crew.dismiss()
    run.close()


def main(config_path: str, out: str, signal_name: str, process: str) -> None:
    config = RunConfig.model_validate(json.loads(Path(config_path).read_text()))
    setup.initialise(config.policy.mesh.mesh(), config.policy.timeout_s)
    shape = ModelShape.load(config.model.path)
    crew = Crew(Exporter(config, shape), wait_s=600)
    if rank_of_this_process():
        crew.follow()
    else:
        lead(build_run(config, crew), shape.vocab_size, Path(out), signal.Signals[signal_name], process)
    setup.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Two real trainer ranks and a real engine: publish, take an optimizer step, publish, and note what the engine says.

argv: CONFIG.json OUT. Rank 0 writes OUT/said.json; all ranks together export each version's weights to OUT/version_N.
"""

import json
import sys
from pathlib import Path

import numpy as np

from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.policy import setup
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.train.build import build_run
from megatron_spell.train.crew import Crew
from megatron_spell.train.member import Member, rank_of_this_process
from megatron_spell.train.run import Run
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role, TaskName

NUM_PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 6, 24, 24


class Exporter(Member):
    def export(self, folder: Path) -> None:
        self.policy.export_hf(folder)

    def teach(self, batch: PackedBatch) -> None:
        """A step on made-up rows, whose log-probs no engine ever gave: trust is not the matter here."""
        self.policy._check_trust = lambda measured: None
        self.policy.update(batch)


def prompts(vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(20, vocab_size, PROMPT_TOKENS).astype(np.int32) for _ in range(NUM_PROMPTS)]


def rows(vocab_size: int) -> list[TrainRow]:
    rng = np.random.default_rng(4)
    made = []
    for prompt in prompts(vocab_size):
        response = rng.integers(20, vocab_size, 8).astype(np.int32)
        zeros = np.zeros(8, np.float32)
        made.append(TrainRow(Role.RESPONDER, TaskName.GENERAL_QA, 0, prompt, response, zeros, 1.0, 1.0, 0))
    return made


def say(run: Run, vocab_size: int) -> dict:
    greedy = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=NEW_TOKENS)
    completions = [run.background.run(run.table.engine.generate(p, greedy))[0] for p in prompts(vocab_size)]
    return {"versions": [c.version for c in completions], "tokens": [c.token_ids_T.tolist() for c in completions]}


def lead(run: Run, vocab_size: int, out: Path) -> None:
    batch = pack(rows(vocab_size), row_weights(rows(vocab_size), "per_role"), num_dp=1, max_bin_tokens=512)
    run.crew.call("load_hf", run.config.model.path)
    said = []
    for version in (0, 1):
        if version:
            run.crew.call("teach", batch)
        run.publish(version)
        run.crew.call("export", out / f"version_{version}")
        said.append(say(run, vocab_size))
    (out / "said.json").write_text(json.dumps(said))
    run.crew.dismiss()
    run.close()


def main(config_path: str, out: str) -> None:
    config = RunConfig.model_validate(json.loads(Path(config_path).read_text()))
    setup.initialise(config.policy.mesh.mesh(), config.policy.timeout_s)
    shape = ModelShape.load(config.model.path)
    crew = Crew(Exporter(config, shape), wait_s=300)
    if rank_of_this_process():
        crew.follow()
    else:
        lead(build_run(config, crew), shape.vocab_size, Path(out))
    setup.shut_down()


if __name__ == "__main__":
    main(*sys.argv[1:])

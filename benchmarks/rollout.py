"""Rounds of self-play as one pipeline, against the same rounds in four blocking phases, on the real vLLM CPU engine.

    python benchmarks/rollout.py [--rounds 45 --repeats 2 --seats 64 --in-flight 24 --pass-draws 15] [--json PATH]

Every sample is written by vLLM, token by token, by the quickstart's model; how long it gets and what is heard is drawn
(rollout_script.py), so that all ways play the same rounds, with lengths and outcomes as in practice.

rounds: the collector plays --rounds draws to their end, --in-flight at a time (by default 96 for every 256 sequences of
an engine, so 24 for 64 seats). The phases (all questions, all blind answers, all answers, all votes; each to its last
token) take --pass-draws draws at a time: the reference plays 480 on 8 engines of 256, so 15 for 64 seats. "same
requests" are those that the pipeline's rounds hold, "reference" what the reference asks for in them: 1 blind answer,
and 8 votes on every answer. Ways take turns in one process; a ratio is of two stretches of one repeat, by the clock,
and parted into fewer tokens and less time for each. vLLM's prefix cache is emptied before each. A seat is idle when no
sample under way takes it, the engine is empty when none is under way at all.

tokens: the collector fills --steps steps of --quota questions, on-policy and one step ahead (algo.max_staleness 1),
everything counted that vLLM generated, aborted samples too; rows are what assemble() makes of it. The reference's
schedule is counted, not played: passes of 480 draws to their end until 128 questions are usable, by the same script.

Exit code 1 when the pipeline plays less than 1.5 times as many rounds a second as the reference's phases, also when
those take all draws at once; when it generates less than 2.5 times fewer tokens for each row; when a round goes
otherwise than by the script, or vLLM counts other tokens.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table as Grid
from rollout_engine import Figures, MeteredEngine
from rollout_phases import (
    Phase,
    most_reference_rows,
    num_tokens,
    num_usable,
    play_phases,
    reference_requests,
    same_requests,
)
from rollout_script import Assumed, Script

from megatron_spell.config.schema import RunConfig
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.engine import Engine
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.selfplay.assemble import assemble
from megatron_spell.selfplay.collector import Collector
from megatron_spell.selfplay.round import play_round
from megatron_spell.selfplay.table import Table
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.play import Round

T = TypeVar("T")

MODEL = Path(__file__).parents[1] / "examples/quickstart/base_model"
REFERENCE_QUOTA, REFERENCE_PASS = 128, 480
PIPELINE, SAME, REFERENCE = "pipeline", "same requests in phases", "reference's phases"
REFERENCE_AT_ONCE = "reference's, all draws at once"
WAYS = (PIPELINE, SAME, REFERENCE, REFERENCE_AT_ONCE)
JUDGED_WAYS = (REFERENCE, REFERENCE_AT_ONCE)
REFERENCE_STEP = "reference"
STALENESS = {"on-policy": 0, "one step ahead": 1}  # algo.max_staleness of our schedules
LEAST_SPEED_UP = 1.5
LEAST_TOKEN_RATIO = 2.5
SETTLE_S = 0.3  # until vLLM has told of its last step


@dataclass(slots=True)
class Seen:
    """What was measured. `ways` are by name, one stretch for each repeat."""

    ways: dict[str, list[Figures]] = field(default_factory=dict)
    steps: dict[str, Figures] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)  # of `steps`, and of the reference's schedule
    draws: dict[str, int] = field(default_factory=dict)  # likewise, those whose rounds were taken
    usable: dict[str, int] = field(default_factory=dict)
    num_rounds: int = 0
    others: int = 0  # rounds that did not go as the script has them
    miscounted: int = 0  # tokens of phases that vLLM counted and the script does not have, or the other way about

    def ratios(self, way: str, what: Callable[[Figures], float]) -> list[float]:
        """Of a way to the pipeline, repeat by repeat."""
        return [what(other) / what(ours) for other, ours in zip(self.ways[way], self.ways[PIPELINE])]

    def tokens_per_row(self, schedule: str) -> float:
        return self.tokens[schedule] / self.rows[schedule]

    def token_ratio(self, schedule: str) -> float:
        return self.tokens_per_row(REFERENCE_STEP) / self.tokens_per_row(schedule)


def make_config(options: argparse.Namespace, assumed: Assumed, max_staleness: int = 0) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "rollout",
            "run_folder": "unused",
            "model": {"path": MODEL},
            "data": {"store": "unused"},
            "play": {
                "questions_per_step": options.quota,
                "min_questions": 1,
                "max_rounds_in_flight": options.in_flight,
            },
            "sampling": {"max_tokens": {role.value: most for role, most in assumed.max_tokens().items()}},
            "algo": {"verifier_groups_per_step": max(1, options.quota // 8), "max_staleness": max_staleness},
            "rollout": {
                "dtype": "float32",
                "max_model_len": 2048,
                "max_num_seqs": options.seats,
                "kv_cache_gib": 0.5,
                "enforce_eager": True,
            },
        }
    )


def make_table(config: RunConfig, tokenizer: Tokenizer, script: Script, engine: Engine) -> Table:
    return Table(engine, tokenizer, ChatFormat(tokenizer), Templates.load(None), script.document_set, config)


async def play_all(table: Table, script: Script, draws: range) -> tuple[Round, ...]:
    """The rounds of `draws` by the package's collector, as many in flight as it may."""
    every = {"questions_per_step": len(draws) + 1, "max_draws_per_step": len(draws)}
    play = table.config.play.model_copy(update=every)
    collector = Collector(table, lambda index: script.draw(draws[index]), play)
    try:
        return (await collector.take(0)).rounds
    finally:
        await collector.stop()


def gist(played: Round) -> tuple:
    """What two playings of one round must have in common."""
    answers = [(answer.parsed, answer.reward, [j.vote for j in answer.judgments_V]) for answer in played.answers_G]
    return played.draw.index, played.outcome, played.question_reward, len(played.blind_turns), answers


async def stretch(engine: MeteredEngine, work: Callable[[], Awaitable[T]]) -> tuple[Figures, T]:
    """`work` from an empty engine with an empty prefix cache, and what the engine did meanwhile."""
    await asyncio.sleep(SETTLE_S)
    await engine.forget_prompts()
    engine.meter.restart()
    found = await work()
    figures = engine.meter.stop()
    await asyncio.sleep(SETTLE_S)
    return figures(), found


def plans_of(rounds: Sequence[Round], table: Table, options: argparse.Namespace) -> dict[str, list[Phase]]:
    """The phases of every way that has any, in their order."""
    ways = {
        SAME: (same_requests, options.pass_draws),
        REFERENCE: (reference_requests, options.pass_draws),
        REFERENCE_AT_ONCE: (reference_requests, len(rounds)),
    }
    return {
        way: [phase for some in batched(rounds, size) for phase in requests(some, table)]
        for way, (requests, size) in ways.items()
    }


async def measure_rounds(
    seen: Seen, options: argparse.Namespace, table: Table, known: Table, engine: MeteredEngine, script: Script
) -> None:
    """Every way plays the draws of every repeat."""
    seen.num_rounds = options.rounds
    for repeat in range(options.repeats):
        draws = range(repeat * options.rounds, (repeat + 1) * options.rounds)
        rounds = [await play_round(script.draw(index), known) for index in draws]
        plans = plans_of(rounds, table, options)
        for way in options.ways:
            if way == PIPELINE:
                figures, played = await stretch(engine, partial(play_all, table, script, draws))
                seen.others += sum(gist(ours) != gist(theirs) for ours, theirs in zip(played, rounds, strict=True))
            else:
                figures, _ = await stretch(engine, partial(play_phases, plans[way], table, engine))
                seen.miscounted += abs(figures.tokens - num_tokens(plans[way], table, script.reply))
            seen.ways.setdefault(way, []).append(figures)


def batched(rounds: Sequence[Round], size: int) -> Iterator[Sequence[Round]]:
    return (rounds[first : first + size] for first in range(0, len(rounds), size))


async def measure_steps(
    seen: Seen, name: str, options: argparse.Namespace, table: Table, engine: MeteredEngine, script: Script
) -> None:
    """Fill steps as a run does that trains in no time."""
    config = table.config
    collector = Collector(table, script.draw, config.play, config.algo.max_staleness)
    taken: list[Round] = []
    rows = 0

    async def fill() -> None:
        nonlocal rows
        for step in range(options.steps):
            engine.policy_version = step
            rounds = (await collector.take(step, options.steps - step - 1)).rounds
            rows += len(assemble(rounds, config.algo, np.random.default_rng(step)))
            taken.extend(rounds)
        await collector.stop()

    figures, _ = await stretch(engine, fill)
    engine.policy_version = 0
    seen.steps[name], seen.tokens[name], seen.rows[name] = figures, figures.tokens, rows
    seen.draws[name], seen.usable[name] = len(taken), num_usable(taken)


async def count_reference(seen: Seen, known: Table, script: Script) -> None:
    """One step of the reference's own size, on the script's first draws."""
    play, taken = known.config.play, []
    while num_usable(taken) < REFERENCE_QUOTA:
        draws = range(len(taken), len(taken) + REFERENCE_PASS)
        taken += [await play_round(script.draw(index), known) for index in draws]
    name = REFERENCE_STEP
    seen.tokens[name] = num_tokens(reference_requests(taken, known), known, script.reply)
    seen.rows[name] = most_reference_rows(taken, REFERENCE_QUOTA, play.answers_per_question, play.votes_per_answer)
    seen.draws[name], seen.usable[name] = len(taken), num_usable(taken)


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def show_assumed(console: Console, assumed: Assumed, options: argparse.Namespace) -> None:
    table = Grid(title="assumed of the rounds", title_justify="left", show_header=False)
    for name, value in asdict(assumed).items():
        table.add_row(name, str(value))
    console.print(table)
    console.print(
        f"{options.seats} seats, {options.in_flight} rounds in flight, phases of {options.pass_draws} draws;"
        f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    )


def show(console: Console, title: str, rows: Sequence[dict[str, str]]) -> None:
    table = Grid(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def row_of_way(seen: Seen, way: str) -> dict[str, str]:
    def median(what: Callable[[Figures], float]) -> float:
        return statistics.median(map(what, seen.ways[way]))

    def ratio(what: Callable[[Figures], float]) -> float:
        return statistics.median(seen.ratios(way, what))

    return {
        "way": way,
        "rounds/s": spread([seen.num_rounds / figures.seconds for figures in seen.ways[way]]),
        "tokens": f"{median(lambda f: f.tokens):.0f}",
        "prefilled": f"{median(lambda f: f.prompt_tokens):.0f}",
        "steps": f"{median(lambda f: f.steps):.0f}",
        "seats idle": f"{1 - median(lambda f: f.seats_taken):.1%}",
        "engine empty": f"{median(lambda f: f.empty):.1%}",
        "time / pipeline's": spread(seen.ratios(way, lambda f: f.seconds)),
        "by tokens": f"{ratio(lambda f: f.tokens):.2f}",
        "by time a token": f"{ratio(lambda f: f.seconds / f.tokens):.2f}",
    }


def judge_rounds(console: Console, seen: Seen) -> list[str]:
    """Print what was measured; what falls short, in words."""
    show(console, f"{seen.num_rounds} rounds to their end, median (range)", [row_of_way(seen, w) for w in seen.ways])
    faults = []
    if seen.others:
        faults.append(f"{seen.others} rounds went otherwise than by the script")
    if seen.miscounted:
        faults.append(f"{seen.miscounted} tokens were counted that the script does not have, or not counted")
    for way in JUDGED_WAYS:
        speed_up = statistics.median(seen.ratios(way, lambda f: f.seconds)) if way in seen.ways else LEAST_SPEED_UP
        if speed_up < LEAST_SPEED_UP:
            faults.append(f"{speed_up:.2f} times the rounds a second of {way}, {LEAST_SPEED_UP} is asked for")
    return faults


def row_of_schedule(seen: Seen, name: str) -> dict[str, str]:
    figures = seen.steps.get(name)
    return {
        "schedule": name,
        "draws": str(seen.draws[name]),
        "usable": str(seen.usable[name]),
        "tokens": str(seen.tokens[name]),
        "rows": str(seen.rows[name]),
        "tokens/row": f"{seen.tokens_per_row(name):.1f}",
        "reference's / this": f"{seen.token_ratio(name):.2f}",
        "samples aborted": str(figures.aborted) if figures else "",
        "seats idle": f"{1 - figures.seats_taken:.1%}" if figures else "",
        "engine empty": f"{figures.empty:.1%}" if figures else "",
    }


def judge_tokens(console: Console, seen: Seen) -> list[str]:
    """Likewise."""
    show(console, "tokens for what is trained on", [row_of_schedule(seen, name) for name in seen.tokens])
    return [
        f"{name}: {seen.token_ratio(name):.2f} times fewer tokens for a row, {LEAST_TOKEN_RATIO} is asked for"
        for name in seen.steps
        if seen.token_ratio(name) < LEAST_TOKEN_RATIO
    ]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"rounds": 45, "repeats": 2, "seats": 64, "in-flight": 24, "pass-draws": 15, "quota": 32, "steps": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="always with the pipeline")
    parser.add_argument("--only", choices=("rounds", "tokens"))
    parser.add_argument("--assume", type=json.loads, default={}, help="fields of Assumed to change, as JSON")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    if "pipeline" not in options.ways:
        parser.error("--ways must hold pipeline; the others are measured against it")
    return options


async def measure(options: argparse.Namespace, assumed: Assumed) -> Seen:
    seen, tokenizer = Seen(), Tokenizer.load(MODEL)
    script, config = Script(assumed, tokenizer), make_config(options, assumed)
    engine = MeteredEngine(MODEL, config.rollout, num_seats=options.seats)
    known = make_table(config, tokenizer, script, ScriptedEngine(script.reply))
    table = make_table(config, tokenizer, script, engine)
    await engine.start()
    try:
        engine.reply = script.reply
        await play_all(table, script, range(10**6, 10**6 + 8))  # warms up
        if options.only != "tokens":
            await measure_rounds(seen, options, table, known, engine, script)
        if options.only != "rounds":
            await count_reference(seen, known, script)
            for name, staleness in STALENESS.items():
                ahead = replace(table, config=make_config(options, assumed, staleness))
                await measure_steps(seen, name, options, ahead, engine, script)
    finally:
        await engine.close()
    return seen


def main() -> int:
    options, console, faults = read_options(), Console(width=150), []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    assumed = Assumed(**options.assume)
    show_assumed(console, assumed, options)
    seen = asyncio.run(measure(options, assumed))
    if seen.ways:
        faults += judge_rounds(console, seen)
    if seen.tokens:
        faults += judge_tokens(console, seen)
    if options.json:
        options.json.write_text(json.dumps(asdict(seen) | {"assumed": asdict(assumed)}, indent=1) + "\n")
    for fault in faults:
        console.print(f"FELL SHORT: {fault}")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

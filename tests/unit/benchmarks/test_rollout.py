"""The rounds of benchmarks/rollout.py, what each way asks for in them, what is counted, and that shortfalls are said.

The engine here has a time of its own and runs no model.
"""

import asyncio
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.selfplay.round import play_round
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.play import Outcome, Role, TaskName
from tests.unit.benchmarks.stepped_engine import SteppedEngine

OPTIONS = Namespace(rounds=8, repeats=1, seats=32, in_flight=6, pass_draws=4, quota=3, steps=2)


@pytest.fixture(scope="module")
def benchmark():
    """The script as a module; it finds its neighbours as it does when run."""
    folder = str(Path(__file__).parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import rollout

        yield rollout
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def tokenizer(benchmark):
    return Tokenizer.load(benchmark.MODEL)


@pytest.fixture(scope="module")
def script(benchmark, tokenizer):
    return benchmark.Script(benchmark.Assumed(), tokenizer)


@pytest.fixture(scope="module")
def known(benchmark, tokenizer, script):
    config = benchmark.make_config(OPTIONS, script.assumed)
    return benchmark.make_table(config, tokenizer, script, ScriptedEngine(script.reply))


@pytest.fixture(scope="module")
def rounds(known, script):
    async def play():
        return [await play_round(script.draw(index), known) for index in range(60)]

    return asyncio.run(play())


def stepped(benchmark, known, reply):
    """An engine in a time of its own, and the table with it."""
    from rollout_engine import Meter

    engine = SteppedEngine(reply, OPTIONS.seats)
    engine.meter = Meter(OPTIONS.seats, clock=engine.clock)
    return engine, replace(known, engine=engine)


def measured(benchmark, known, script, reply, ways):
    engine, table = stepped(benchmark, known, reply)
    seen, options = benchmark.Seen(), Namespace(**vars(OPTIONS), ways=ways)
    asyncio.run(benchmark.measure_rounds(seen, options, table, known, engine, script))
    return seen


def test_rounds_end_in_every_way_and_a_good_part_is_usable(rounds):
    ended = Counter(played.outcome for played in rounds)
    assert {Outcome.USABLE, Outcome.UNSOLVED, Outcome.TRIVIAL, Outcome.UNGROUNDED, Outcome.BAD_FORMAT} <= set(ended)
    assert 0.25 < ended[Outcome.USABLE] / len(rounds) < 0.55
    assert {played.draw.task for played in rounds} == set(TaskName)
    some_judged = [answer for played in rounds for answer in played.answers_G if answer.judgments_V]
    assert any(answer.majority and not answer.rule for answer in some_judged), (
        "the verifier passes what the rule missed"
    )


def test_what_is_said_depends_on_the_round_the_role_and_the_number_of_the_sample_alone(
    benchmark, tokenizer, script, rounds
):
    from rollout_phases import Request, spec_of

    again = benchmark.Script(script.assumed, tokenizer)
    config = benchmark.make_config(OPTIONS, script.assumed)
    table = benchmark.make_table(config, tokenizer, script, ScriptedEngine(script.reply))
    prompt_ids_T = next(played for played in rounds if played.answers_G).answers_G[0].turn.prompt_ids_T
    spec = spec_of(Request(Role.RESPONDER, prompt_ids_T, 8), table)
    said = [script.reply(prompt_ids_T, spec, i) for i in range(8)]
    told_again = [again.reply(prompt_ids_T, replace(spec, seed=5, n=1, first=i), i) for i in range(8)]
    assert all(map(np.array_equal, said, told_again))
    assert len({ids_T.tobytes() for ids_T in said}) > 4


def test_lengths_are_long_tailed_and_cut(script, rounds):
    lengths = np.array([len(a.turn.completion.token_ids_T) for played in rounds for a in played.answers_G])
    assert 0.8 * 40 < np.median(lengths) < 1.2 * 40
    assert np.percentile(lengths, 99) > 4 * 40
    assert lengths.max() <= script.assumed.max_tokens()[Role.RESPONDER]


def test_a_prompt_of_no_round_is_refused(benchmark):
    from rollout_script import scene_of

    with pytest.raises(ValueError, match="a prompt names no round: 'Hello"):
        scene_of("Hello")


def test_the_reference_asks_for_every_vote_and_one_blind_answer(benchmark, known, rounds):
    ask, blind, answer, vote = benchmark.reference_requests(rounds, known)
    grounded = [played for played in rounds if played.answers_G]
    assert (len(ask), len(blind), len(answer)) == (60, sum(bool(r.blind_turns) for r in rounds), len(grounded))
    assert {request.n for request in blind} == {1} and {request.n for request in answer} == {8}
    parsed = [a for played in grounded for a in played.answers_G if a.parsed is not None]
    assert sum(request.n for request in vote) == 8 * len(parsed)
    asked = [(r.prompt_ids_T.tobytes(), i) for r in vote for i in range(r.first, r.first + r.n)]
    assert len(set(asked)) == len(asked), "no vote is the copy of another"


def test_the_same_requests_are_those_of_the_rounds(benchmark, known, rounds):
    phases = benchmark.same_requests(rounds, known)
    held = [
        len(turns)
        for played in rounds
        for turns in {id(a.judgments_V): a.judgments_V for a in played.answers_G}.values()
    ]
    assert sum(request.n for request in phases[3]) == sum(held)
    assert sum(request.n for request in phases[1]) == sum(len(played.blind_turns) for played in rounds)


def test_all_ways_play_the_same_rounds_and_their_tokens_are_the_scripts(benchmark, known, script, monkeypatch):
    monkeypatch.setattr(benchmark, "SETTLE_S", 0.0)
    seen = measured(benchmark, known, script, script.reply, benchmark.WAYS)
    assert (seen.others, seen.miscounted) == (0, 0)
    seconds = {way: figures[0].seconds for way, figures in seen.ways.items()}
    assert seconds[benchmark.PIPELINE] < seconds[benchmark.SAME] < seconds[benchmark.REFERENCE]
    assert seen.ways[benchmark.PIPELINE][0].tokens < 1.1 * seen.ways[benchmark.SAME][0].tokens
    assert seen.ways[benchmark.REFERENCE_AT_ONCE][0].tokens == seen.ways[benchmark.REFERENCE][0].tokens


def test_an_engine_that_says_other_words_is_found_out(benchmark, known, script, monkeypatch):
    monkeypatch.setattr(benchmark, "SETTLE_S", 0.0)

    def one_more_token(prompt_ids_T, spec, sample):
        ids_T = script.reply(prompt_ids_T, spec, sample)
        return np.append(ids_T[:1], ids_T).astype(np.int32)

    def no_vote(prompt_ids_T, spec, sample):
        ids_T = script.reply(prompt_ids_T, spec, sample)
        return ids_T[-1:] if spec.max_tokens == script.assumed.max_tokens()[Role.VERIFIER] else ids_T

    assert measured(benchmark, known, script, one_more_token, benchmark.WAYS[:2]).miscounted > 0
    assert measured(benchmark, known, script, no_vote, benchmark.WAYS[:1]).others > 0


def test_steps_count_what_was_aborted_and_what_is_trained_on(benchmark, known, script, monkeypatch):
    monkeypatch.setattr(benchmark, "SETTLE_S", 0.0)
    seen = benchmark.Seen()
    for name, staleness in benchmark.STALENESS.items():
        engine, table = stepped(benchmark, known, script.reply)
        table = replace(table, config=benchmark.make_config(OPTIONS, script.assumed, staleness))
        asyncio.run(benchmark.measure_steps(seen, name, OPTIONS, table, engine, script))
    assert set(seen.usable.values()) == {OPTIONS.quota * OPTIONS.steps}
    assert len(set(seen.draws.values())) == 1, "the same draws"
    assert all(rows >= 8 * OPTIONS.quota * OPTIONS.steps for rows in seen.rows.values())
    assert seen.steps["on-policy"].aborted > 0
    assert seen.tokens["one step ahead"] < seen.tokens["on-policy"], "surplus is carried over"


def test_the_meter_knows_idle_seats_and_an_empty_engine():
    from rollout_engine import Meter

    now = [0.0]
    meter = Meter(num_seats=2, clock=lambda: now[0])
    for at, change in ((1.0, "begin"), (2.0, "begin"), (3.0, "begin"), (5.0, "end"), (6.0, "end"), (8.0, "end")):
        now[0] = at
        meter.begin() if change == "begin" else meter.end(aborted=at == 8.0)
    now[0] = 10.0
    figures = meter.stop()()
    assert (figures.seconds, figures.samples, figures.aborted) == (10.0, 2, 1)
    assert figures.empty == pytest.approx(0.3), "before the first and after the last"
    assert figures.seats_taken == pytest.approx((1 * 1 + 2 * 4 + 1 * 2) / (2 * 10))


def seen_of(benchmark, *, seconds=1.0, others=0, tokens=100):
    def make(seconds):
        counts = {"tokens": 10, "prompt_tokens": 1, "steps": 1, "samples": 1, "aborted": 0}
        return benchmark.Figures(seconds=seconds, seats_taken=0.5, empty=0.0, **counts)

    ways = {way: [make(2.0)] for way in benchmark.WAYS}
    ways[benchmark.PIPELINE] = [make(seconds)]
    seen = benchmark.Seen(ways=ways, num_rounds=4, others=others)
    seen.steps = {"on-policy": make(1.0)}
    seen.tokens, seen.rows = {"reference": 300, "on-policy": tokens}, {"reference": 10, "on-policy": 10}
    seen.draws = seen.usable = {"reference": 9, "on-policy": 9}
    return seen


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({}, []),
        ({"others": 2}, ["2 rounds went otherwise than by the script"]),
        ({"tokens": 150}, ["on-policy: 2.00 times fewer tokens for a row, 2.5 is asked for"]),
        (
            {"seconds": 1.6},
            [
                "1.25 times the rounds a second of reference's phases, 1.5 is asked for",
                "1.25 times the rounds a second of reference's, all draws at once, 1.5 is asked for",
            ],
        ),
    ],
)
def test_what_falls_short_is_said(benchmark, changes, faults):
    console, seen = Console(quiet=True), seen_of(benchmark, **changes)
    assert benchmark.judge_rounds(console, seen) + benchmark.judge_tokens(console, seen) == faults

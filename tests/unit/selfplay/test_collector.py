import asyncio

import pytest

from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.rollout.engine import EngineDied
from megatron_spell.selfplay.collector import Collector, NotEnoughQuestions, Taken
from megatron_spell.types.play import Outcome, Role
from tests.unit.selfplay.playing import GOOD_QUESTION, Script, make_config, make_sets, make_table

QA_ONLY = {"task_weights": {"general_qa": 1, "math_qa": 0, "multiple_choice": 0}}


def make_collector(folder, say=None, engine=None, max_staleness=0, **play) -> Collector:
    play = {"questions_per_step": 3, "max_draws_per_step": 20, **play}
    config = make_config(folder, data={"store": folder / "s.h5", **QA_ONLY}, play=play)
    table = make_table(folder, say or Script(), config, **(engine or {}))
    sets = make_sets(table.tokenizer).values()
    catalog = Catalog(tuple(SetEntry(s.set_id, tuple(d.num_tokens for d in s.documents)) for s in sets))
    return Collector(table, Curriculum(config, catalog, seed=1).draw, config.play, max_staleness)


def every_third_fails(role, prompt, sample, count=[0]):  # noqa: B006 - the counter must outlive the call
    if role == Role.QUESTIONER:
        count[0] += 1
        return GOOD_QUESTION if count[0] % 3 else "no question"
    return Script()(role, prompt, sample)


def take(collector: Collector) -> Taken:
    return asyncio.run(collector.take(version=0))


def indices(taken: Taken) -> list[int]:
    return [played.draw.index for played in taken.rounds]


def bring_weights(collector: Collector, version: int) -> None:
    """As an engine that is updated in flight: what is under way goes on."""
    collector._table.engine._turnstile.version = version


async def take_steps(collector: Collector, num_steps: int) -> list[Taken]:
    """As a run does: the weights of a step come before the next is taken."""
    steps = []
    for version in range(num_steps):
        bring_weights(collector, version)
        steps.append(await collector.take(version, num_steps - version - 1))
    return steps


def left_over() -> list[asyncio.Task]:
    return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


def test_a_step_is_the_first_draws_that_fill_the_quota(folder):
    taken = take(make_collector(folder))
    assert indices(taken) == [0, 1, 2]
    assert all(r.outcome is Outcome.USABLE for r in taken.rounds)


def test_arrival_does_not_change_what_is_taken(folder):
    slow_first = {"delay_s": lambda call: 0.05 if call == 0 else 0.0}
    taken = take(make_collector(folder, engine=slow_first, max_rounds_in_flight=8))
    assert indices(taken) == [0, 1, 2]
    assert taken.num_surplus > 0


def test_the_next_step_begins_with_the_first_draw_that_was_not_taken(folder):
    collector = make_collector(folder)
    first, second = take(collector), take(collector)
    assert indices(second) == [3, 4, 5]
    assert first.rounds[-1].draw.index == 2


def test_failed_rounds_are_taken_too_and_do_not_count(folder):
    taken = take(make_collector(folder, every_third_fails))
    assert len(taken.usable) == 3
    assert indices(taken) == list(range(len(taken.rounds)))


def test_a_step_with_too_few_questions_trains_on_what_it_has(folder):
    taken = take(make_collector(folder, max_draws_per_step=3, say=every_third_fails))
    assert 1 <= len(taken.usable) < 3


def test_a_step_without_questions_ends_with_the_reasons_and_never_spins(folder):
    with pytest.raises(NotEnoughQuestions, match=r"only 0 of 5 rounds were usable \(5 bad_format\)"):
        take(make_collector(folder, Script(questions=["nothing"]), max_draws_per_step=5))


@pytest.mark.parametrize("max_staleness", [0, 2])
def test_rounds_in_flight_are_bounded(folder, max_staleness):
    most = 0

    async def scenario():
        nonlocal most
        collector = make_collector(folder, say, max_rounds_in_flight=2, max_staleness=max_staleness)
        running.append(collector)
        await take_steps(collector, 3)

    def say(role, prompt, sample):
        nonlocal most
        most = max(most, running[0].num_running)
        return Script()(role, prompt, sample)

    running: list[Collector] = []
    asyncio.run(scenario())
    assert most == 2


def test_an_engine_error_ends_the_step_and_leaves_nothing_running(folder):
    collector = make_collector(folder, engine={"failures": {1: EngineDied("engine 0 died")}})

    async def scenario():
        with pytest.raises(EngineDied):
            await collector.take(version=0)
        return left_over()

    assert asyncio.run(scenario()) == []


def test_state_brings_back_the_place(folder):
    first = make_collector(folder)
    take(first)
    second = make_collector(folder)
    second.load_state(first.state())
    assert indices(take(second)) == [3, 4, 5]


def test_progress_hears_of_every_round_taken(folder):
    heard = []
    taking = make_collector(folder).take(0, round_ended=lambda outcome, in_flight: heard.append(outcome))
    asyncio.run(taking)
    assert heard == [Outcome.USABLE] * 3


async def idle() -> None:
    """Let what is under way end; scripted engines without delay take only turns of the loop."""
    for _ in range(200):
        await asyncio.sleep(0)


def test_rounds_go_on_between_steps_up_to_the_staleness_allowed(folder):
    async def scenario():
        collector = make_collector(folder, max_staleness=1)
        first = await collector.take(version=0, num_later_steps=5)
        await idle()
        engine = collector._table.engine
        calls = engine.counts.calls
        ended = [task.done() for task in collector._begun]
        second = await collector.take(version=1, num_later_steps=0)
        return first, ended, calls, second, engine.counts.calls

    first, ended, calls_before, second, calls_after = asyncio.run(scenario())
    assert indices(first) == [0, 1, 2]
    assert len(ended) >= 3 and all(ended), "a step's worth of rounds ended while nobody took any"
    assert indices(second) == [3, 4, 5]
    assert calls_after == calls_before, "and the next step had nothing left to play"


def test_nothing_is_begun_for_steps_that_will_not_come(folder):
    async def scenario():
        collector = make_collector(folder, max_staleness=3)
        taken = await collector.take(version=0, num_later_steps=0)
        await idle()
        return taken, left_over()

    taken, left = asyncio.run(scenario())
    assert left == []
    assert taken.num_waiting == 0


def test_on_policy_nothing_runs_between_steps(folder):
    async def scenario():
        collector = make_collector(folder, max_rounds_in_flight=8)
        await collector.take(version=0, num_later_steps=5)
        return left_over()

    assert asyncio.run(scenario()) == []


def test_every_draw_is_taken_once_over_many_asynchronous_steps(folder):
    async def scenario():
        delays = {"delay_s": lambda call: 0.001 * (call * 7919 % 5)}
        collector = make_collector(folder, every_third_fails, delays, max_staleness=2, max_rounds_in_flight=5)
        return await take_steps(collector, 12)

    steps = asyncio.run(scenario())
    taken = [index for one in steps for index in indices(one)]
    assert taken == list(range(len(taken)))
    assert [len(one.usable) for one in steps] == [3] * 12
    versions = [step - played.oldest_version for step, one in enumerate(steps) for played in one.usable]
    assert set(versions) <= {0, 1, 2}
    assert max(versions) > 0, "rounds were carried over"


def test_rounds_of_older_weights_than_allowed_are_counted_and_not_used(folder):
    async def scenario():
        collector = make_collector(folder, max_staleness=1, min_questions=1)
        await collector.take(version=0, num_later_steps=9)
        await idle()
        num_stale = len(collector._begun)
        bring_weights(collector, 2)
        return num_stale, await collector.take(version=2, num_later_steps=0)

    num_stale, taken = asyncio.run(scenario())
    outcomes = [played.outcome for played in taken.rounds]
    assert outcomes == [Outcome.STALE] * num_stale + [Outcome.USABLE] * 3


def test_a_failure_between_steps_is_raised_by_the_next_and_begins_no_more(folder):
    async def scenario():
        collector = make_collector(folder, max_staleness=1, max_rounds_in_flight=2)
        await collector.take(version=0, num_later_steps=9)
        engine = collector._table.engine
        engine.failures = dict.fromkeys(range(engine.counts.calls, 10_000), EngineDied("engine 0 died"))
        await idle()
        calls = engine.counts.calls
        await idle()
        assert engine.counts.calls == calls
        with pytest.raises(EngineDied):
            await collector.take(version=1, num_later_steps=8)
        return left_over()

    assert asyncio.run(scenario()) == []


def test_a_resumed_run_plays_again_what_waited(folder):
    async def scenario():
        collector = make_collector(folder, max_staleness=1)
        await collector.take(version=0, num_later_steps=5)
        await idle()
        resumed = make_collector(folder, max_staleness=1)
        resumed.load_state(collector.state())
        await collector.stop()
        return await resumed.take(version=1)

    assert indices(asyncio.run(scenario())) == [3, 4, 5]

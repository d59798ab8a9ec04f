import asyncio

import pytest

from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.rollout.engine import EngineDied
from megatron_spell.selfplay.collector import Collector, NotEnoughQuestions, Taken
from megatron_spell.types.play import Outcome, Role
from tests.unit.selfplay.playing import GOOD_QUESTION, Script, make_config, make_sets, make_table

QA_ONLY = {"task_weights": {"general_qa": 1, "math_qa": 0, "multiple_choice": 0}}


def make_collector(folder, say=None, engine=None, **play) -> Collector:
    config = make_config(folder, data={"store": folder / "s.h5", **QA_ONLY}, play={"questions_per_step": 3, **play})
    table = make_table(folder, say or Script(), config, **(engine or {}))
    sets = make_sets(table.tokenizer).values()
    catalog = Catalog(tuple(SetEntry(s.set_id, tuple(d.num_tokens for d in s.documents)) for s in sets))
    return Collector(table, Curriculum(config, catalog, seed=1), config.play)


def every_third_fails(role, prompt, sample, count=[0]):  # noqa: B006 - the counter must outlive the call
    if role == Role.QUESTIONER:
        count[0] += 1
        return GOOD_QUESTION if count[0] % 3 else "no question"
    return Script()(role, prompt, sample)


def take(collector: Collector) -> Taken:
    return asyncio.run(collector.take())


def test_a_step_is_the_first_draws_that_fill_the_quota(folder):
    taken = take(make_collector(folder))
    assert [r.draw.index for r in taken.rounds] == [0, 1, 2]
    assert all(r.outcome is Outcome.USABLE for r in taken.rounds)


def test_arrival_does_not_change_what_is_taken(folder):
    slow_first = {"delay_s": lambda call: 0.05 if call == 0 else 0.0}
    taken = take(make_collector(folder, engine=slow_first, max_rounds_in_flight=8, max_draws_per_step=20))
    assert [r.draw.index for r in taken.rounds] == [0, 1, 2]
    assert taken.num_surplus > 0


def test_the_next_step_begins_with_the_first_draw_that_was_not_taken(folder):
    collector = make_collector(folder)
    first, second = take(collector), take(collector)
    assert [r.draw.index for r in second.rounds] == [3, 4, 5]
    assert first.rounds[-1].draw.index == 2


def test_failed_rounds_are_taken_too_and_do_not_count(folder):
    taken = take(make_collector(folder, every_third_fails))
    assert len(taken.usable) == 3
    assert [r.draw.index for r in taken.rounds] == list(range(len(taken.rounds)))


def test_a_step_with_too_few_questions_trains_on_what_it_has(folder):
    taken = take(make_collector(folder, max_draws_per_step=3, questions_per_step=3, say=every_third_fails))
    assert 1 <= len(taken.usable) < 3


def test_a_step_without_questions_ends_with_the_reasons_and_never_spins(folder):
    with pytest.raises(NotEnoughQuestions, match=r"only 0 of 5 rounds were usable \(5 bad_format\)"):
        take(make_collector(folder, Script(questions=["nothing"]), max_draws_per_step=5))


def test_rounds_in_flight_are_bounded(folder):
    running, most = [0], [0]

    def count(role, prompt, sample):
        most[0] = max(most[0], running[0])
        return Script()(role, prompt, sample)

    collector = make_collector(folder, count, max_rounds_in_flight=2, max_draws_per_step=20)
    begin = collector._begin

    def counted(index):
        task = begin(index)
        running[0] += 1
        task.add_done_callback(lambda _: running.__setitem__(0, running[0] - 1))
        return task

    collector._begin = counted
    take(collector)
    assert 1 <= most[0] <= 2


def test_an_engine_error_ends_the_step_and_leaves_nothing_running(folder):
    collector = make_collector(folder, engine={"failures": {1: EngineDied("engine 0 died")}})

    async def scenario():
        with pytest.raises(EngineDied):
            await collector.take()
        return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    assert asyncio.run(scenario()) == []


def test_state_brings_back_the_place(folder):
    first = make_collector(folder)
    take(first)
    second = make_collector(folder)
    second.load_state(first.state())
    assert [r.draw.index for r in take(second).rounds] == [3, 4, 5]


def test_progress_hears_of_every_round_taken(folder):
    heard = []
    asyncio.run(make_collector(folder).take(lambda outcome, in_flight: heard.append(outcome)))
    assert heard == [Outcome.USABLE] * 3

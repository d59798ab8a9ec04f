"""The document budget of draws: what is shown and read at it, and which rounds move it."""

import json
import time

import pytest

from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.types.play import Draw, Outcome, TaskName
from tests.unit.curriculum.playing import CATALOG, ONE_SET, QA_ONLY, make_curriculum, play_on, played

SOLVED = {"rewards": (1.0, 1.0), "outcome": Outcome.TRIVIAL}
FAILED = {"rewards": (0.0, 0.0), "outcome": Outcome.UNSOLVED}
LONG = {"start_tokens": 4000, "max_tokens": 4000}  # twice as long as a set of CATALOG


def budget_of(curriculum: Curriculum) -> float:
    return curriculum.metrics()["curriculum/document_tokens"]


def read_tokens(catalog: Catalog, draw: Draw) -> int:
    """Counted anew, separators included."""
    tokens = {entry.set_id: entry.document_tokens for entry in catalog.sets}
    read = [tokens[draw.set_id][i] for i in draw.answer_from]
    read += [tokens[d.set_id][d.document] for d in draw.distractors]
    return sum(read) + len(read) * catalog.separator_tokens


# ---- own documents ----


def test_distractors_fill_the_budget():
    for index in range(20):
        draw = make_curriculum().draw(index)
        assert len(draw.answer_from) == 10


def test_distractors_that_do_not_fit_are_passed_over():
    curriculum = make_curriculum(Catalog((SetEntry("mixed", (10, 10, 10, 10, 10, 5000, 900, 10)),)))
    kept = {documents for index in range(60) if 5 not in (documents := curriculum.draw(index).answer_from)}
    assert (0, 1, 2, 3, 4, 6, 7) in kept


def test_shown_documents_are_those_that_fit_the_budget():
    catalog = Catalog((SetEntry("uneven", (700, 400, 300, 900, 200, 5000)),))
    for index in range(60):
        draw = make_curriculum(catalog).draw(index)
        assert draw.shown and 5 not in draw.shown
        assert read_tokens(catalog, draw) <= 1000


def test_where_no_document_fits_the_shortest_is_shown_alone():
    curriculum = make_curriculum(Catalog((SetEntry("long", (5000, 4000, 6000)),)))
    draw = curriculum.draw(0)
    assert draw.shown == draw.answer_from == (1,)
    curriculum.observe([played(draw)])
    metrics = curriculum.metrics()
    assert (metrics["curriculum/over_budget_share"], metrics["curriculum/budget_filled_share"]) == (1, 4)


def test_history_widens_as_far_as_the_budget_goes():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, length={"start_tokens": 1200, "window": 100})
    draws = play_on(curriculum, range(4))
    assert [len(draw.shown) for draw in draws] == [5, 10, 12, 12]
    assert [len(draw.examples) for draw in draws] == [0, 1, 2, 3]


def test_a_history_wider_than_the_budget_waits_until_it_fits_again():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, length={"start_tokens": 500, "factor": 4.0})
    play_on(curriculum, range(2), **SOLVED)
    wide = play_on(curriculum, range(2, 5))  # solve rate one half: remembered, and the budget stays
    assert [len(draw.shown) for draw in wide] == [5, 10, 15]
    play_on(curriculum, range(5, 7), **FAILED)
    assert budget_of(curriculum) == 500
    narrow = curriculum.draw(7)
    assert (len(narrow.shown), len(narrow.examples)) == (5, 1)
    assert narrow.shown == wide[0].shown  # no place for more
    play_on(curriculum, range(7, 9), **SOLVED)
    assert len(curriculum.draw(9).examples) == 3


def test_separators_count():
    catalog = Catalog(ONE_SET.sets, separator_tokens=25)
    assert len(make_curriculum(catalog).draw(0).answer_from) == 8


def test_without_the_length_schedule_the_whole_set_is_answered_from():
    curriculum = make_curriculum(length={"enabled": False})
    draw = curriculum.draw(0)
    assert draw.answer_from == tuple(range(20)) and not draw.distractors and draw.budget_tokens is None
    play_on(curriculum, range(4), **SOLVED)
    assert not {"curriculum/document_tokens", "curriculum/solve_rate"} & curriculum.metrics().keys()


def test_a_growing_budget_only_adds_documents():
    small, large = make_curriculum(), make_curriculum(length={"start_tokens": 1500})
    for index in range(20):
        assert set(small.draw(index).answer_from) < set(large.draw(index).answer_from)


# ---- documents of other sets ----


def test_other_sets_fill_what_the_own_documents_leave():
    for index in range(30):
        draw = make_curriculum(length=LONG).draw(index)
        assert draw.answer_from == tuple(range(20))
        assert len(draw.distractors) == 20 and draw.set_id not in {d.set_id for d in draw.distractors}
        assert len({(d.set_id, d.document) for d in draw.distractors}) == 20
        assert read_tokens(CATALOG, draw) == 4000


def test_other_sets_can_be_left_out():
    draw = make_curriculum(length=LONG | {"distractors_from_other_sets": False}).draw(0)
    assert draw.answer_from == tuple(range(20)) and not draw.distractors


def test_a_set_that_fills_the_budget_reads_nothing_else():
    assert not make_curriculum().draw(0).distractors


def test_places_are_among_all_that_is_read():
    for index in range(30):
        draw = make_curriculum(length=LONG).draw(index)
        places = [d.place for d in draw.distractors]
        assert places == sorted(set(places)) and places[-1] < 40


def test_own_and_other_documents_stand_evenly_mixed():
    curriculum = make_curriculum(Catalog(tuple(SetEntry(f"set-{n}", (100,) * 20) for n in range(300))), length=LONG)
    means, lasts = [], 0
    for index in range(300):
        places = [d.place for d in curriculum.draw(index).distractors]
        means.append(sum(places) / len(places))
        lasts += places[-1] == 39
    assert sum(means) / len(means) == pytest.approx(19.5, abs=0.6)
    assert min(means) < 16 and max(means) > 23  # a random mix, and not one after the other
    assert 0.4 < lasts / 300 < 0.6


def test_a_lone_document_stands_anywhere_among_the_others():
    catalog = Catalog(tuple(SetEntry(f"set-{n}", (100,)) for n in range(200)))
    curriculum = make_curriculum(catalog, length={"start_tokens": 1000})
    own_places = []
    for index in range(400):
        draw = curriculum.draw(index)
        (own,) = set(range(10)) - {d.place for d in draw.distractors}
        own_places.append(own)
    assert all(20 <= own_places.count(place) <= 65 for place in range(10))


def test_the_tasks_of_a_set_read_the_same_documents_in_the_same_order():
    curriculum = make_curriculum(length=LONG)
    readings = {}
    for index in range(12):  # every task visits every set once
        draw = curriculum.draw(index)
        readings.setdefault(draw.set_id, set()).add((draw.answer_from, draw.distractors))
    assert len(readings) == 4 and all(len(same) == 1 for same in readings.values())


def test_the_next_epoch_reads_others():
    curriculum = make_curriculum(weights=QA_ONLY, length=LONG)
    readings = {}
    for index in range(8):
        draw = curriculum.draw(index)
        readings.setdefault(draw.set_id, set()).add(draw.distractors)
    assert all(len(different) == 2 for different in readings.values())


def test_documents_that_fit_are_found_among_many_that_do_not():
    long = tuple(SetEntry(f"long-{n}", (100_000,)) for n in range(60))
    catalog = Catalog((SetEntry("own", (500,)), *long, SetEntry("short", (450,))))
    curriculum = make_curriculum(catalog)
    draws = [draw for draw in map(curriculum.draw, range(200)) if draw.set_id == "own"]
    assert draws and all(read_tokens(catalog, draw) == 950 for draw in draws)


def test_draws_from_a_large_store_are_quick():
    sizes = tuple(300 + 37 * n % 900 for n in range(20))
    catalog = Catalog(tuple(SetEntry(f"set-{n}", sizes) for n in range(100_000)), separator_tokens=4)
    curriculum = make_curriculum(catalog, length={"start_tokens": 131072, "max_tokens": 131072})
    curriculum.draw(0)
    started = time.process_time()
    draws = [curriculum.draw(index) for index in range(1, 101)]
    seconds = (time.process_time() - started) / 100
    assert seconds < 0.01  # 0.4 ms on one core when this was written; to permute all documents alone took 58 ms
    assert min(len(draw.distractors) for draw in draws) > 100
    assert read_tokens(catalog, draws[-1]) > 0.98 * 131072


# ---- what moves the budget ----


@pytest.mark.parametrize("outcome", [Outcome.USABLE, Outcome.TRIVIAL])
def test_solved_rounds_raise_the_budget(outcome):
    curriculum = make_curriculum()
    play_on(curriculum, range(2), rewards=(1.0, 1.0), outcome=outcome)
    assert curriculum.metrics()["curriculum/document_tokens"] == 2000
    assert len(curriculum.draw(2).answer_from) == 20


def test_unsolved_rounds_lower_it_again():
    curriculum = make_curriculum()
    play_on(curriculum, range(2), rewards=(1.0, 1.0), outcome=Outcome.TRIVIAL)
    play_on(curriculum, range(2, 4), rewards=(0.0, 0.0), outcome=Outcome.UNSOLVED)
    assert curriculum.metrics()["curriculum/document_tokens"] == 1000


@pytest.mark.parametrize("outcome", [Outcome.UNGROUNDED, Outcome.BAD_FORMAT, Outcome.SURPLUS, Outcome.UNFINISHED])
def test_rounds_that_did_not_reach_answering_say_nothing_of_length(outcome):
    curriculum = make_curriculum()
    play_on(curriculum, range(8), rewards=(1.0, 1.0), outcome=outcome)
    metrics = curriculum.metrics()
    assert metrics["curriculum/document_tokens"] == 1000
    assert "curriculum/solve_rate" not in metrics


def test_rounds_drawn_at_another_length_do_not_count():
    curriculum = make_curriculum()
    draws = [curriculum.draw(index) for index in range(4)]
    curriculum.observe([played(draw, rewards=(1.0, 1.0), outcome=Outcome.TRIVIAL) for draw in draws])
    assert curriculum.metrics()["curriculum/document_tokens"] == 2000
    assert "curriculum/solve_rate" not in curriculum.metrics()  # the last two were played at 1000
    assert curriculum.metrics()["curriculum/rounds_of_other_length"] == 2


def test_late_rounds_of_an_older_budget_change_nothing():
    curriculum = make_curriculum(length=LONG | {"start_tokens": 1000, "window": 3})
    late = [curriculum.draw(index) for index in range(3, 40)]
    play_on(curriculum, range(3), **SOLVED)
    assert budget_of(curriculum) == 2000
    curriculum.observe([played(draw, **SOLVED) for draw in late[:20]])
    assert budget_of(curriculum) == 2000 and "curriculum/solve_rate" not in curriculum.metrics()
    curriculum.observe([played(draw, **FAILED) for draw in late[20:]])
    assert budget_of(curriculum) == 2000 and "curriculum/solve_rate" not in curriculum.metrics()
    assert curriculum.metrics()["curriculum/rounds_of_other_length"] == 17
    play_on(curriculum, range(40, 43), **SOLVED)
    assert budget_of(curriculum) == 4000


def test_late_usable_rounds_are_remembered_all_the_same():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    late = curriculum.draw(5)
    play_on(curriculum, range(2), **SOLVED)
    curriculum.observe([played(late)])
    assert len(curriculum.draw(6).examples) == 1


def test_the_budget_stops_rising_where_there_is_nothing_more_to_read():
    short = Catalog(tuple(SetEntry(f"set-{n}", (100,) * 8) for n in range(2)))
    settings = {"start_tokens": 500, "max_tokens": 64000, "distractors_from_other_sets": False}
    curriculum = make_curriculum(short, length=settings)
    play_on(curriculum, range(60), **SOLVED)
    assert budget_of(curriculum) == 2000  # 800 tokens are less than half of it
    assert curriculum.metrics()["curriculum/budget_filled_share"] == pytest.approx(0.4)


def test_a_policy_that_can_read_so_much_and_no_more_holds_the_budget_there():
    """Solves what is up to 8000 tokens long; the schedule must climb there and swing no further than one rung."""
    catalog = Catalog(tuple(SetEntry(f"set-{n}", (100,) * 20) for n in range(40)))
    curriculum = make_curriculum(catalog, length={"start_tokens": 1000, "max_tokens": 32000, "window": 8})
    budgets = []
    for index in range(400):
        draw = curriculum.draw(index)
        curriculum.observe([played(draw, **(SOLVED if read_tokens(catalog, draw) <= 8000 else FAILED))])
        budgets.append(budget_of(curriculum))
    assert budgets[31] == 16000  # four climbs of eight rounds each
    assert set(budgets[31:]) == {8000, 16000}


def test_a_resumed_run_reads_the_same():
    curriculum = make_curriculum(length=LONG | {"start_tokens": 1000})
    play_on(curriculum, range(20), **SOLVED)
    resumed = make_curriculum(length=LONG | {"start_tokens": 1000})
    resumed.load_state(json.loads(json.dumps(curriculum.state())))
    draws = [curriculum.draw(index) for index in range(20, 60)]
    assert [resumed.draw(index) for index in range(20, 60)] == draws
    assert all(draw.distractors and draw.budget_tokens == 4000 for draw in draws)
    assert {draw.task for draw in draws} == set(TaskName)

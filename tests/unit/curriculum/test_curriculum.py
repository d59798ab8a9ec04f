import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from megatron_spell.curriculum.curriculum import Catalog, SetEntry, in_words
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import Outcome, ParsedQuestion, QuestionAnswer, Round, TaskName
from tests.unit.curriculum.playing import ONE_SET, QA_ONLY, TURN, WIDE, make_curriculum, play_on, played

RANGES = ("0", "to_0.25", "to_0.5", "to_0.75", "below_1", "1")

# ---- draws without history ----


def test_the_first_visit_shows_some_documents_in_set_order():
    curriculum = make_curriculum()
    for index in range(40):
        draw = curriculum.draw(index)
        assert len(draw.shown) == 5 and draw.shown == tuple(sorted(set(draw.shown)))
        assert draw.examples == ()
        assert set(draw.shown) <= set(draw.answer_from) and draw.answer_from == tuple(sorted(draw.answer_from))


def test_documents_are_drawn_evenly():
    curriculum = make_curriculum()
    shown = Counter(document for index in range(2000) for document in curriculum.draw(index).shown)
    assert set(shown) == set(range(20))
    assert max(abs(count - 500) for count in shown.values()) < 100


def test_a_small_set_is_shown_whole():
    curriculum = make_curriculum(Catalog((SetEntry("small", (10, 10, 10)),)))
    assert curriculum.draw(0).shown == (0, 1, 2)


def test_multiple_choice_alone_has_a_target_letter_and_all_letters_come():
    draws = [make_curriculum().draw(index) for index in range(120)]
    letters = Counter(draw.target_letter for draw in draws if draw.task is TaskName.MULTIPLE_CHOICE)
    assert set(letters) == set("ABCD")
    assert all(draw.target_letter is None for draw in draws if draw.task is not TaskName.MULTIPLE_CHOICE)


def test_draws_depend_on_seed_and_index_and_not_on_what_was_drawn():
    one, other = make_curriculum(seed=1), make_curriculum(seed=1)
    forwards = [one.draw(index) for index in range(50)]
    assert [other.draw(index) for index in reversed(range(50))] == forwards[::-1]
    assert [make_curriculum(seed=2).draw(index) for index in range(50)] != forwards


# ---- history ----


def test_remembered_questions_widen_what_is_shown_from_visit_to_visit():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, length=WIDE)
    draws = play_on(curriculum, range(6))
    assert [len(draw.shown) for draw in draws] == [5, 10, 15, 20, 22, 22]
    assert [len(draw.examples) for draw in draws] == [0, 1, 2, 3, 3, 3]
    for earlier, later in pairwise(draws):
        assert set(earlier.shown) <= set(later.shown)


def test_the_number_of_new_documents_is_its_own_setting():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, play={"documents_shown": 3, "new_documents": 2})
    assert [len(draw.shown) for draw in play_on(curriculum, range(3))] == [3, 5, 7]


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome is not Outcome.USABLE])
def test_only_usable_questions_are_remembered(outcome):
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    assert [len(draw.shown) for draw in play_on(curriculum, range(3), outcome=outcome)] == [5, 5, 5]


def test_a_repeated_question_widens_nothing():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    draws = play_on(curriculum, range(3), question="who wrote the oldest of these letters?")
    assert [len(draw.shown) for draw in draws] == [5, 10, 10]
    assert curriculum.metrics()["curriculum/duplicates_refused"] == 1
    assert curriculum.metrics()["curriculum/duplicate_rate"] == 1


def test_the_near_duplicate_rate_is_of_the_usable_questions():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    said = ["who wrote the oldest of these letters?", "Who wrote the oldest of these letters", "another thing?"]
    rounds = [played(curriculum.draw(index), question=said[index]) for index in range(3)]
    unsolved = played(curriculum.draw(3), rewards=(0.0, 0.0), outcome=Outcome.UNSOLVED, question=said[0])
    curriculum.observe([*rounds, unsolved])
    assert curriculum.metrics()["curriculum/duplicate_rate"] == pytest.approx(1 / 3)


def test_without_memory_nothing_is_a_duplicate():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, memory_size=0)
    play_on(curriculum, range(3), question="who wrote the oldest of these letters?")
    assert curriculum.metrics()["curriculum/duplicates_refused"] == 0


def test_without_memory_every_visit_is_the_first():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, memory_size=0)
    assert [len(draw.shown) for draw in play_on(curriculum, range(4))] == [5, 5, 5, 5]


def test_history_is_of_the_set_and_the_task():
    curriculum = make_curriculum()
    first = curriculum.draw(0)
    curriculum.observe([played(first)])
    for index in range(1, 60):
        draw = curriculum.draw(index)
        assert bool(draw.examples) == ((draw.set_id, draw.task) == (first.set_id, first.task))


def test_a_history_that_no_longer_fits_the_prompt_is_shortened():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, length=WIDE)
    play_on(curriculum, range(3))
    too_long = Round(curriculum.draw(3), Outcome.PROMPT_TOO_LONG)
    curriculum.observe([too_long])
    assert len(curriculum.draw(4).examples) == 2
    curriculum.observe([replace(too_long, ask=TURN)])  # the answerer's prompt: not the history's fault
    assert len(curriculum.draw(4).examples) == 2
    for index in (4, 5):
        curriculum.observe([Round(curriculum.draw(index), Outcome.PROMPT_TOO_LONG)])
    assert len(curriculum.draw(7).shown) == 5


def test_rounds_that_were_under_way_together_shorten_their_history_once():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY, length=WIDE)
    play_on(curriculum, range(3))
    curriculum.observe([Round(curriculum.draw(index), Outcome.PROMPT_TOO_LONG) for index in (3, 4, 5)])
    assert len(curriculum.draw(6).examples) == 2


def test_a_first_visit_that_does_not_fit_costs_no_history():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    first = [curriculum.draw(index) for index in range(2)]
    curriculum.observe([played(first[0])])
    curriculum.observe([Round(first[1], Outcome.PROMPT_TOO_LONG)])
    assert len(curriculum.draw(2).examples) == 1


def test_rounds_are_observed_in_the_order_of_their_draws():
    one, other = (make_curriculum(ONE_SET, weights=QA_ONLY) for _ in range(2))
    rounds = [played(one.draw(index)) for index in range(5)]
    one.observe(rounds)
    other.observe(rounds[::-1])
    assert one.state() == other.state()


def test_a_multiple_choice_question_is_remembered_with_its_options():
    question = ParsedQuestion("Which one?", "B", ("red", "green", "blue", "none"))
    assert in_words(question) == QuestionAnswer("Which one?\n(A) red\n(B) green\n(C) blue\n(D) none", "B")
    assert in_words(ParsedQuestion("Who?", "Ada")) == QuestionAnswer("Who?", "Ada")


# ---- state and metrics ----


def test_a_resumed_curriculum_draws_and_observes_the_same():
    curriculum = make_curriculum(seed=4)
    play_on(curriculum, range(30), rewards=(1.0, 0.0, 0.0))
    resumed = make_curriculum(seed=4)
    resumed.load_state(json.loads(json.dumps(curriculum.state())))
    assert resumed.state() == curriculum.state()
    assert resumed.metrics() == curriculum.metrics()
    assert play_on(resumed, range(30, 90)) == play_on(curriculum, range(30, 90))
    assert resumed.state() == curriculum.state()


def test_metrics_tell_the_present_state():
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    play_on(curriculum, range(2), rewards=(1.0, 0.0, 0.0))
    assert curriculum.metrics() == {
        "curriculum/document_tokens": 1000,
        "curriculum/length_level": 0,
        "curriculum/memory_entries": 2,
        "curriculum/histories": 1,
        "curriculum/solve_rate": pytest.approx(1 / 3),
        "curriculum/shown_documents": 10,
        "curriculum/answer_documents": 10,
        "curriculum/read_tokens": 1000,
        "curriculum/budget_filled_share": 1,
        "curriculum/over_budget_share": 0,
        "curriculum/other_sets_share": 0,
        "curriculum/with_history_share": 1,
        "curriculum/duplicates_refused": 0,
        "curriculum/duplicate_rate": 0,
        "curriculum/rounds_of_other_length": 0,
        **{f"curriculum/solve_rates/{name}": name == "to_0.5" for name in RANGES},
        **{f"curriculum/usable_mix/{task}": task is TaskName.GENERAL_QA for task in TaskName},
    }


def test_the_solve_rates_are_counted_by_range():
    curriculum = make_curriculum(weights=QA_ONLY)
    right_of_8 = {"0": [0], "to_0.25": [1, 2], "to_0.5": [3, 4], "to_0.75": [5, 6], "below_1": [7], "1": [8]}
    rounds = [
        played(curriculum.draw(right), rewards=(1.0,) * right + (0.0,) * (8 - right), outcome=outcome_of(right))
        for right in range(9)
    ]
    curriculum.observe([*rounds, Round(curriculum.draw(9), Outcome.BAD_FORMAT)])
    metrics = curriculum.metrics()
    shares = {name: metrics[f"curriculum/solve_rates/{name}"] for name in RANGES}
    assert shares == {name: pytest.approx(len(rights) / 9) for name, rights in right_of_8.items()}


def outcome_of(right: int) -> Outcome:
    return {0: Outcome.UNSOLVED, 8: Outcome.TRIVIAL}.get(right, Outcome.USABLE)


def test_observing_nothing_is_allowed():
    curriculum = make_curriculum()
    curriculum.observe([])
    assert all(np.isfinite(value) for value in curriculum.metrics().values())


def test_a_state_of_another_store_or_format_is_refused():
    state = make_curriculum(ONE_SET).state()
    with pytest.raises(CurriculumError, match="its sets are not those of the saved run"):
        make_curriculum().load_state(state)
    with pytest.raises(CurriculumError, match="format 9 is not 2"):
        make_curriculum(ONE_SET).load_state(state | {"format": 9})
    with pytest.raises(CurriculumError, match="format 1 is not 2; start a new run"):
        make_curriculum(ONE_SET).load_state(state | {"format": 1})
    for field in ("length", "tasks", "next_unseen"):
        with pytest.raises(CurriculumError, match="start a new run"):
            make_curriculum(ONE_SET).load_state({key: state[key] for key in state if key != field})
    with pytest.raises(CurriculumError, match="usable rates are malformed"):
        make_curriculum(ONE_SET).load_state(state | {"usable": {"general_qa": [1, 2]}})


def test_a_catalog_that_cannot_be_drawn_from_is_refused():
    with pytest.raises(CurriculumError, match="no set to train on"):
        make_curriculum(Catalog(()))
    with pytest.raises(CurriculumError, match="set 'hollow' holds no document"):
        make_curriculum(Catalog((SetEntry("hollow", ()),)))
    with pytest.raises(CurriculumError, match="same name"):
        make_curriculum(Catalog((SetEntry("a", (1,)), SetEntry("a", (2,)))))

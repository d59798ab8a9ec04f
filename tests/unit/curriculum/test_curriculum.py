import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry, in_words
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import (
    Answer,
    Completion,
    Draw,
    Outcome,
    ParsedQuestion,
    QuestionAnswer,
    Role,
    Round,
    TaskName,
    Turn,
)

CATALOG = Catalog(tuple(SetEntry(f"set-{n}", (100,) * 20) for n in range(4)))
ONE_SET = Catalog((SetEntry("only", (100,) * 22),))
QA_ONLY = {TaskName.GENERAL_QA: 1.0}
EMPTY = np.zeros(0, dtype=np.int32)
TURN = Turn(Role.RESPONDER, EMPTY, Completion(EMPTY, EMPTY, "stop", 0), "")


def make_curriculum(catalog=CATALOG, seed=0, weights=None, play=None, **curriculum) -> Curriculum:
    length = {"start_tokens": 1000, "max_tokens": 2000, "window": 2} | curriculum.pop("length", {})
    config = RunConfig(
        name="test",
        run_folder="run",
        model={"path": "model"},
        data={"store": "store.h5"} | ({"task_weights": weights} if weights else {}),
        play=play or {},
        curriculum={"length": length} | curriculum,
    )
    return Curriculum(config, catalog, seed)


def played(draw: Draw, rewards=(1.0, 0.0), outcome=Outcome.USABLE, question: str | None = None) -> Round:
    """A round on `draw`, its question unlike any other unless given."""
    words = question or " ".join(f"w{draw.index}x{n}" for n in range(6))
    answers_G = tuple(Answer(TURN, "x", reward, reward=reward) for reward in rewards)
    return Round(draw, outcome, ask=TURN, question=ParsedQuestion(words, "gold"), answers_G=answers_G)


def play_on(curriculum: Curriculum, indices, **kind) -> list[Draw]:
    draws = []
    for index in indices:
        draws.append(curriculum.draw(index))
        curriculum.observe([played(draws[-1], **kind)])
    return draws


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
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
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
    curriculum = make_curriculum(ONE_SET, weights=QA_ONLY)
    play_on(curriculum, range(3))
    too_long = [Round(curriculum.draw(index), Outcome.PROMPT_TOO_LONG) for index in range(3, 7)]
    curriculum.observe(too_long[:1])
    assert len(curriculum.draw(4).examples) == 2
    curriculum.observe([replace(too_long[1], ask=TURN)])  # the answerer's prompt: not the history's fault
    assert len(curriculum.draw(4).examples) == 2
    curriculum.observe(too_long[2:])
    assert len(curriculum.draw(7).shown) == 5


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


# ---- length ----


def test_distractors_fill_the_budget():
    for index in range(20):
        draw = make_curriculum().draw(index)
        assert len(draw.answer_from) == 10


def test_distractors_that_do_not_fit_are_passed_over():
    curriculum = make_curriculum(Catalog((SetEntry("mixed", (10, 10, 10, 10, 10, 5000, 900, 10)),)))
    kept = {documents for index in range(60) if 5 not in (documents := curriculum.draw(index).answer_from)}
    assert (0, 1, 2, 3, 4, 6, 7) in kept


def test_shown_documents_stay_over_budget():
    curriculum = make_curriculum(Catalog((SetEntry("long", (5000,) * 20),)))
    draw = curriculum.draw(0)
    assert draw.answer_from == draw.shown


def test_without_the_length_schedule_the_whole_set_is_answered_from():
    curriculum = make_curriculum(length={"enabled": False})
    assert curriculum.draw(0).answer_from == tuple(range(20))


def test_a_growing_budget_only_adds_documents():
    small, large = make_curriculum(), make_curriculum(length={"start_tokens": 1500})
    for index in range(20):
        assert set(small.draw(index).answer_from) < set(large.draw(index).answer_from)


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
        "curriculum/with_history_share": 1,
        "curriculum/duplicates_refused": 0,
    }


def test_observing_nothing_is_allowed():
    curriculum = make_curriculum()
    curriculum.observe([])
    assert all(np.isfinite(value) for value in curriculum.metrics().values())


def test_a_state_of_another_store_or_format_is_refused():
    state = make_curriculum(ONE_SET).state()
    with pytest.raises(CurriculumError, match="its sets are not those of the saved run"):
        make_curriculum().load_state(state)
    with pytest.raises(CurriculumError, match="format 9 is not 1"):
        make_curriculum(ONE_SET).load_state(state | {"format": 9})
    with pytest.raises(CurriculumError, match="malformed"):
        make_curriculum(ONE_SET).load_state({key: state[key] for key in ("format", "catalog")})


def test_a_catalog_that_cannot_be_drawn_from_is_refused():
    with pytest.raises(CurriculumError, match="no set to train on"):
        make_curriculum(Catalog(()))
    with pytest.raises(CurriculumError, match="set 'hollow' holds no document"):
        make_curriculum(Catalog((SetEntry("hollow", ()),)))
    with pytest.raises(CurriculumError, match="same name"):
        make_curriculum(Catalog((SetEntry("a", (1,)), SetEntry("a", (2,)))))

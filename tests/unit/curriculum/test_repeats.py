import json

import numpy as np
import pytest

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.memory import similarity
from megatron_spell.curriculum.repeats import AskedQuestions
from megatron_spell.types.play import Completion, Draw, Outcome, ParsedQuestion, Role, Round, TaskName, Turn

ASK = Turn(Role.QUESTIONER, np.zeros(1), Completion(np.zeros(1), np.zeros(1), "stop", 0), "")
WHO = "Who wrote the first report on the red kite in Wales, and in which year did it appear?"
WHEN = "When was the harbour of the old town closed to sailing ships by the council?"


def asked(set_id: str, question: str | None, options=None, given: bool = False) -> Round:
    parsed = None if question is None else ParsedQuestion(question, "A", options)
    outcome = Outcome.BAD_FORMAT if question is None else Outcome.TRIVIAL
    return Round(Draw(0, set_id, TaskName.GENERAL_QA, (0,), (0,)), outcome, None if given else ASK, parsed)


def shares(found: dict) -> tuple[float, float]:
    return found["questioner/repeated/share"], found["questioner/repeated_elsewhere/share"]


def test_the_same_set_and_another_are_told_apart():
    questions = AskedQuestions(100, 0.8)
    assert shares(questions.observe([asked("a", WHO), asked("a", WHEN), asked("b", WHO.upper())])) == (0, 1 / 3)
    assert shares(questions.observe([asked("a", WHO + " Say it."), asked("b", WHEN)])) == (1 / 2, 0)


def test_within_a_step_each_repetition_counts():
    assert shares(AskedQuestions(100, 0.8).observe([asked("a", WHO)] * 4)) == (3 / 4, 0)
    everywhere = [asked(f"set {number}", WHO) for number in range(4)]
    assert shares(AskedQuestions(100, 0.8).observe(everywhere)) == (0, 3 / 4)


def test_questions_of_choice_differ_by_their_options():
    one, other = ("red", "blue", "green", "white"), ("Rome", "Paris", "Oslo", "Bern")
    rounds = [asked("a", "Which of these is named?", one), asked("a", "Which of these is named?", other)]
    assert shares(AskedQuestions(100, 0.8).observe(rounds)) == (0, 0)


def test_what_was_not_asked_is_not_counted():
    questions = AskedQuestions(100, 0.8)
    assert questions.observe([asked("a", None), asked("a", WHO, given=True)]) == {}
    assert shares(questions.observe([asked("a", WHO), asked("a", None)])) == (0, 0)


def test_only_the_latest_are_kept():
    questions = AskedQuestions(2, 0.8)
    questions.observe([asked("a", WHO), asked("b", WHEN), asked("c", WHEN)])
    assert shares(questions.observe([asked("a", WHO)])) == (0, 0)
    assert questions.state() == [["c", WHEN], ["a", WHO]]


@pytest.mark.parametrize("least", [0.3, 0.5, 0.7, 0.8, 1.0])
def test_pairs_of_a_step_are_those_of_plain_similarity(least):
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(8)]
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 9))) for _ in range(120)] + ["?!", "?!", "..."]
    sets = [f"set {number}" for number in rng.integers(5, size=len(texts))]
    plain = sum(
        any(sets[j] != sets[i] and similarity(texts[i], texts[j]) >= least for j in range(i)) for i in range(len(texts))
    )
    found = AskedQuestions(1000, least).observe([asked(set_id, text) for set_id, text in zip(sets, texts)])
    assert 10 < plain < len(texts)
    assert found["questioner/repeated_elsewhere/share"] == pytest.approx(plain / len(texts))


def test_a_resumed_run_knows_what_was_asked():
    questions, resumed = AskedQuestions(100, 0.8), AskedQuestions(100, 0.8)
    questions.observe([asked("a", WHO), asked("b", WHEN)])
    resumed.load_state(json.loads(json.dumps(questions.state())))
    assert shares(resumed.observe([asked("b", WHEN)])) == (1, 0)
    with pytest.raises(CurriculumError, match="saved questions: are malformed"):
        resumed.load_state([["a"]])

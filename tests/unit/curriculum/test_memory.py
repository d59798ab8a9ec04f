import json

import pytest

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.memory import Entry, HistoryMemory, similarity
from megatron_spell.types.play import QuestionAnswer, TaskName

QA, MATH = TaskName.GENERAL_QA, TaskName.MATH_QA
DOCUMENTS = {"s": 20, "t": 20}


def entry(question: str, *documents: int) -> Entry:
    return Entry(QuestionAnswer(question, "an answer"), documents)


def questions(memory: HistoryMemory, set_id: str = "s", task: TaskName = QA) -> list[str]:
    return [known.question.question for known in memory.remembered(set_id, task)]


def test_the_oldest_goes_first():
    memory = HistoryMemory(3, 0.8)
    for name in ("alpha", "beta", "gamma", "delta"):
        assert memory.remember("s", QA, entry(f"who is {name} {name}son?", 1))
    assert [question.split()[2] for question in questions(memory)] == ["beta", "gamma", "delta"]


def test_sets_and_tasks_have_memories_of_their_own():
    memory = HistoryMemory(3, 0.8)
    assert memory.remember("s", QA, entry("one question"))
    assert memory.remember("s", MATH, entry("one question"))
    assert memory.remember("t", QA, entry("one question"))
    assert (memory.num_entries, memory.num_histories) == (3, 3)
    assert questions(memory, "t", MATH) == []


@pytest.mark.parametrize(
    "again",
    [
        "Which river crosses the old town of Prague?",
        "which river  crosses the old town of prague?",
        "Which river crosses the old town of Prague today?",
    ],
)
def test_exact_and_near_duplicates_are_refused(again):
    memory = HistoryMemory(3, 0.8)
    assert memory.remember("s", QA, entry("Which river crosses the old town of Prague?"))
    assert not memory.remember("s", QA, entry(again))
    assert len(questions(memory)) == 1


def test_a_question_that_was_pushed_out_may_come_again():
    memory = HistoryMemory(1, 0.8)
    assert memory.remember("s", QA, entry("first of all"))
    assert memory.remember("s", QA, entry("something quite different"))
    assert memory.remember("s", QA, entry("first of all"))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("a b c", "A  B c", 1.0),
        ("a b c d", "a b c e", 3 / 5),
        ("total revenue in 2019", "total revenue in 2020", 3 / 5),
        ("东京人口", "东京面积", 2 / 6),
        ("?", "!", 0.0),
        ("?", "?", 1.0),
    ],
)
def test_similarity_compares_words(a, b, expected):
    assert similarity(a, b) == pytest.approx(expected)
    assert similarity(b, a) == similarity(a, b)


def test_a_memory_of_size_nothing_remembers_nothing():
    memory = HistoryMemory(0, 0.8)
    assert not memory.remember("s", QA, entry("a question"))
    memory.load_state([record()], DOCUMENTS)
    assert memory.num_entries == 0


def test_forgetting_takes_one_question_and_ends_with_nothing():
    memory = HistoryMemory(3, 0.8)
    first, second = entry("first of all"), entry("something else then")
    memory.remember("s", QA, first)
    memory.remember("s", QA, second)
    memory.forget("s", QA, first.question)
    assert questions(memory) == ["something else then"]
    memory.forget("s", QA, first.question)
    assert questions(memory) == ["something else then"]
    memory.forget("s", QA, second.question)
    memory.forget("s", QA, second.question)
    assert (memory.num_entries, memory.num_histories) == (0, 0)


def test_looking_leaves_no_trace():
    memory = HistoryMemory(3, 0.8)
    memory.remembered("s", QA)
    assert memory.num_histories == 0


def record(**change) -> dict:
    return {"set": "s", "task": "general_qa", "question": "q", "answer": "a", "documents": [0, 19]} | change


def test_state_round_trips_through_json():
    memory, other = HistoryMemory(3, 0.8), HistoryMemory(3, 0.8)
    for name in ("alpha", "beta", "gamma", "delta"):
        memory.remember("s", QA, entry(f"who is {name} {name}son?", 3, 1))
    memory.remember("t", MATH, entry("how many in all?", 2))
    other.remember("t", QA, entry("something that was there before"))
    other.load_state(json.loads(json.dumps(memory.state())), DOCUMENTS)
    assert other.state() == memory.state()
    assert other.remembered("s", QA) == memory.remembered("s", QA)
    assert other.remembered("t", QA) == ()


def test_a_smaller_memory_keeps_the_newest():
    memory, smaller = HistoryMemory(3, 0.8), HistoryMemory(1, 0.8)
    for name in ("alpha", "beta"):
        memory.remember("s", QA, entry(f"who is {name} {name}son?", 1))
    smaller.load_state(memory.state(), DOCUMENTS)
    assert questions(smaller) == ["who is beta betason?"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"set": "s"}, "malformed"),
        (record(task="poetry"), "malformed"),
        (record(documents=None), "malformed"),
        (record(documents=[20]), "not in the store"),
        (record(documents=[-1]), "not in the store"),
        (record(set="u"), "set 'u' .* not in the store"),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(bad, message):
    memory = HistoryMemory(3, 0.8)
    memory.remember("s", QA, entry("a question", 1))
    with pytest.raises(CurriculumError, match=message):
        memory.load_state([record(), bad], DOCUMENTS)
    assert questions(memory) == ["a question"]

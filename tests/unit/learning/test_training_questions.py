"""Questions to train on: of training sets, answered by what they show, and read by the run that plays them."""

import json
from pydoc_data.topics import topics

import pytest

from megatron_spell.data.questions import load_questions
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import TaskName
from tests.unit.learning.folders import QUICKSTART

NUMBER, NUM_SETS = 60, 12


@pytest.fixture(scope="module")
def spans():
    from lookup import Spans

    from megatron_spell.text.tokenizer import Tokenizer

    return Spans(Tokenizer.load(QUICKSTART / "base_model"))


@pytest.fixture(scope="module")
def sets(spans):
    """Paragraphs of one topic of the language reference each."""
    tokenizer, made = spans._tokenizer, []
    for name, text in sorted(topics.items()):
        paragraphs = [" ".join(p.split()) for p in text.split("\n\n") if 80 < len(p) < 500][:14]
        if len(paragraphs) > 8 and len(made) < NUM_SETS:
            documents = tuple(Document("", "", tokenizer.encode_quoted(p)) for p in paragraphs)
            made.append(DocumentSet(name, "train", documents))
    return made


@pytest.fixture(scope="module")
def made(sets, spans):
    from training_questions import questions

    return list(questions(sets, spans, NUMBER, seed=0))


def test_they_are_different_and_of_every_task(made):
    counts = {task: sum(q["task"] == task for q in made) for task in TaskName}
    assert counts[TaskName.GENERAL_QA] == counts[TaskName.MULTIPLE_CHOICE] == NUMBER // 3
    assert counts[TaskName.MATH_QA] > 3
    assert len({(q["set_id"], q["question"], q["task"]) for q in made}) == len(made)
    assert [q["task"] for q in made] != sorted(q["task"] for q in made)


def test_what_they_show_answers_them_once(made, sets, spans):
    by_id = {one.set_id: one for one in sets}
    for question in made:
        shown = [by_id[question["set_id"]].documents[i] for i in question["documents"]]
        texts = [" ".join(spans.text(document, 0, document.num_tokens).split()) for document in shown]
        fragment = " ".join(question["question"].split())
        gold = question["options"][question["gold"]] if "options" in question else question["gold"]
        assert sum(text.count(fragment) for text in texts) == 1
        assert any(" ".join(f"{fragment} {gold}".split()) in text for text in texts)


def test_they_are_the_same_again_and_load(made, sets, spans, tmp_path):
    from training_questions import questions

    assert list(questions(sets, spans, NUMBER, seed=0)) == made != list(questions(sets, spans, NUMBER, seed=1))
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in made), encoding="utf-8")
    assert len(load_questions(path)) == len(made)

"""The evaluation questions: on held-out sets only, answered by the documents they show, the same every time."""

import json

import numpy as np
import pytest
from make_questions import NUM_QUESTIONS, questions

from megatron_spell.data.questions import load_questions
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import TaskName


@pytest.fixture(scope="module")
def sets(scribe, texts):
    def tokenised(text: str) -> Document:
        return Document("", "", scribe.tokenizer.encode_quoted(text))

    return [
        DocumentSet(f"set-{i}", "heldout", tuple(tokenised(text) for text in one)) for i, one in enumerate(texts[1])
    ]


@pytest.fixture(scope="module")
def made(scribe, sets):
    return list(questions(sets, scribe.tokenizer, seed=0))


def test_they_are_many_and_of_every_task(made):
    numbers = {task: sum(q["task"] == task for q in made) for task in TaskName}
    assert 200 <= len(made) <= 210
    assert numbers[TaskName.GENERAL_QA] == NUM_QUESTIONS[TaskName.GENERAL_QA]
    assert numbers[TaskName.MULTIPLE_CHOICE] == NUM_QUESTIONS[TaskName.MULTIPLE_CHOICE]
    assert numbers[TaskName.MATH_QA] > 5
    assert len({(q["set_id"], q["question"]) for q in made}) == len(made)


def test_the_documents_shown_hold_the_answer_once(scribe, sets, made):
    by_id = {one.set_id: one for one in sets}
    for question in made:
        shown = [by_id[question["set_id"]].documents[i] for i in question["documents"]]
        assert question["documents"] == sorted(set(question["documents"]))
        texts = [" ".join(scribe.tokenizer.decode(d.token_ids_T).split()) for d in shown]
        gold = question["options"][question["gold"]] if "options" in question else question["gold"]
        fragment = " ".join(question["question"].split())
        assert sum(text.count(fragment) for text in texts) == 1
        assert any(" ".join(f"{fragment} {gold}".split()) in text for text in texts)


def test_they_show_short_and_long_contexts(sets, made):
    by_id = {one.set_id: one for one in sets}
    lengths = [sum(by_id[q["set_id"]].documents[i].num_tokens for i in q["documents"]) for q in made]
    assert min(lengths) < 260 and max(lengths) > 700 and np.quantile(lengths, 0.95) <= 1024


def test_they_are_the_same_again_and_load(scribe, sets, made, tmp_path):
    assert list(questions(sets, scribe.tokenizer, seed=0)) == made != list(questions(sets, scribe.tokenizer, seed=1))
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(json.dumps(q) for q in made), encoding="utf-8")
    loaded = load_questions(path)
    assert len(loaded) == len(made)
    assert [k.question.gold for k in loaded] == [q["gold"] for q in made]

"""Questions asked of a scripted engine: what is counted, and how two askings compare."""

import asyncio
import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from megatron_spell.data.questions import KnownQuestion
from megatron_spell.evaluation.change import change_between
from megatron_spell.evaluation.held_out import Evaluation, evaluate
from megatron_spell.observe.files import json_line
from megatron_spell.types.documents import Document, DocumentSet
from megatron_spell.types.play import ParsedQuestion, TaskName
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.selfplay.playing import Script, make_config, make_table

LENGTHS = (100, 300, 700, 40)
BIRD, NUMBER = ParsedQuestion("Which bird?", "red kite"), ParsedQuestion("How many?", "7")
RIGHT, WRONG = "The correct answer is red kite", "The correct answer is blue tit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def known(task: TaskName, question: ParsedQuestion, *documents: int) -> KnownQuestion:
    return KnownQuestion("set 1", task, question, documents or None)


# 5 questions a bucket: 100 tokens, 340 (documents 1 and 3), 700, and one on the whole set
QUESTIONS = [
    *[known(TaskName.GENERAL_QA, BIRD, 0)] * 5,
    *[known(TaskName.GENERAL_QA, BIRD, 1, 3)] * 5,
    *[known(TaskName.MATH_QA, NUMBER, 2)] * 5,
    known(TaskName.GENERAL_QA, BIRD),
]


def asked(folder, answers: tuple[str, ...], questions=QUESTIONS, samples: int = 8) -> Evaluation:
    documents = tuple(Document(f"d{n}", "", np.full(length, 65, np.int32)) for n, length in enumerate(LENGTHS))
    table = make_table(folder, Script(answers=answers), make_config(folder, evaluation={"samples": samples}))
    table = replace(table, document_set=lambda set_id: DocumentSet(set_id, "heldout", documents))
    return asyncio.run(evaluate(questions, table))


def record(evaluation: Evaluation) -> dict:
    return json.loads(json_line(asdict(evaluation)))


def test_what_is_counted(folder):
    found = asked(folder, (RIGHT, WRONG, WRONG, WRONG))
    assert found.num_right == (2,) * 10 + (0,) * 5 + (2,)
    assert found.document_tokens == (100,) * 5 + (340,) * 5 + (700,) * 5 + (1140,)
    assert found.overall.mean == pytest.approx(11 * 0.25 / 16)
    assert {task: of.mean for task, of in found.by_task.items()} == {"general_qa": 0.25, "math_qa": 0}
    assert {tokens: (of.mean, of.num_questions) for tokens, of in found.by_length.items()} == {
        256: (0.25, 5),
        512: (0.25, 5),
        1024: (0, 5),
        2048: (0.25, 1),
    }
    of_two = [1 - (6 / 8) * (5 / 7), 1 - (6 * 5 * 4 * 3) / (8 * 7 * 6 * 5)]
    assert found.pass_at == pytest.approx(
        {1: 11 * 0.25 / 16, 2: 11 * of_two[0] / 16, 4: 11 * of_two[1] / 16, 8: 11 / 16}
    )
    assert found.pass_at_all == found.pass_at[8]


def test_the_longest_usable_length(folder):
    found = asked(folder, (RIGHT, RIGHT, RIGHT, WRONG)).usable_length
    assert found.tokens == pytest.approx(340 * (700 / 340) ** (1 / 3))  # 0.75 at 340 tokens, 0 at 700
    assert asked(folder, (WRONG,)).usable_length.tokens == 0


def test_figures_and_line_for_others(folder):
    found = asked(folder, (RIGHT, WRONG))
    metrics = found.metrics()
    assert metrics["evaluation/accuracy/up_to_512_tokens"] == 0.5
    assert metrics["evaluation/pass_at_8"] == 11 / 16
    assert metrics["evaluation/longest_usable_tokens"] == pytest.approx(340)
    assert found.line().startswith("34.4% (95 % interval ")
    assert "pass@8 68.8%; by document tokens 50.0% up to 256, 50.0% up to 512, 0.0% up to 1024" in found.line()
    assert found.line().endswith("longest usable length 340 tokens")


def test_a_change_is_of_the_same_questions(folder):
    before, after = (record(asked(folder, answers)) for answers in ((RIGHT, WRONG), (RIGHT, RIGHT, RIGHT, WRONG)))
    change = change_between(before, after)
    assert change["accuracy"]["mean"] == pytest.approx(11 * 0.25 / 16)
    assert change["accuracy"]["low"] < change["accuracy"]["mean"] < change["accuracy"]["high"]
    assert change["by_length"]["512"] == {"mean": 0.25, "low": 0.25, "high": 0.25, "num_questions": 5}
    assert change["pass_at"]["1"]["mean"] == pytest.approx(change["accuracy"]["mean"])
    assert change["pass_at"]["8"]["mean"] == 0
    assert change["usable_length"]["mean"] == pytest.approx(340 * (700 / 340) ** (1 / 3) - 340)


def test_other_questions_are_not_compared(folder):
    whole = record(asked(folder, (RIGHT,)))
    assert change_between(whole, record(asked(folder, (RIGHT,), QUESTIONS[:-1]))) is None
    assert change_between(whole, record(asked(folder, (RIGHT,), samples=4))) is None
    older = {name: value for name, value in whole.items() if name != "asked"}
    assert change_between(older, whole) is None
    assert change_between(older, older) is None
    assert change_between(whole, whole)["accuracy"]["mean"] == 0

"""The curriculum over real documents and real token counts, from 4K to 128K tokens and back."""

from functools import lru_cache

import numpy as np
import pytest

from megatron_spell.curriculum.curriculum import Curriculum
from megatron_spell.data.store import TokenStore
from megatron_spell.roles.responder import responder_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.selfplay.table import Table
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.train.build import catalog
from megatron_spell.types.play import Draw, Outcome, ParsedQuestion, TaskName
from tests.real_documents import real_store, write_qwen_tokenizer
from tests.unit.curriculum.playing import played
from tests.unit.selfplay.playing import make_config

pytestmark = pytest.mark.slow

LADDER = [4096, 8192, 16384, 32768, 65536, 131072]
WINDOW = 6
# tatqa: tables with paragraphs, played as financial maths; the others have texts of all lengths, cut at 4000 characters
SOURCES = {
    "peps": (TaskName.GENERAL_QA, TaskName.MULTIPLE_CHOICE),
    "gutenberg_books": (TaskName.GENERAL_QA, TaskName.MULTIPLE_CHOICE),
    "factbook": tuple(TaskName),
    "squality": (TaskName.GENERAL_QA, TaskName.MULTIPLE_CHOICE),
    "tatqa": (TaskName.MATH_QA,),
}
QUESTION = ParsedQuestion("Which of them came first?", "the second", ("a", "b", "c", "d"))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return Tokenizer.load(write_qwen_tokenizer(tmp_path_factory.mktemp("qwen")))


def test_the_vocabulary_is_qwens(qwen):
    assert qwen.encode_literal("Hello world<|im_end|>").tolist() == [9707, 1879, 151645]


@pytest.fixture(params=SOURCES)
def played_on(request, qwen, tmp_path):
    """A table with a store of about 190,000 tokens, and the curriculum over it."""
    path = real_store(request.param, qwen, tmp_path, num_chars=780_000, max_chars=4000, heldout=0.1)
    length = {"start_tokens": LADDER[0], "max_tokens": LADDER[-1], "window": WINDOW}
    weights = {task: float(task in SOURCES[request.param]) for task in TaskName}
    config = make_config(
        tmp_path,
        data={"store": path, "task_weights": weights},
        play={"documents_shown": 5},
        curriculum={"length": length},
    )
    with TokenStore.open(path) as store:
        table = Table(
            engine=None,
            tokenizer=qwen,
            chat=ChatFormat(qwen),
            templates=Templates.load(None),
            document_set=lru_cache(store.document_set),
            config=config,
        )
        yield table, Curriculum(config, catalog(store, table.separator_tokens), seed=0), store


def prompt_ids(table: Table, draw: Draw, documents) -> np.ndarray:
    return table.chat.encode(responder_prompt(table.templates, draw.task, documents, QUESTION))


def check(table: Table, draw: Draw, budget: int) -> float:
    """What every responder's prompt must hold to; the share of the budget that its documents fill."""
    documents = table.reading(draw)
    with_documents, with_one = prompt_ids(table, draw, documents), prompt_ids(table, draw, documents[:1])
    tokens = len(with_documents) - len(with_one) + documents[0].num_tokens
    assert tokens == sum(d.num_tokens for d in documents) + table.separator_tokens * (len(documents) - 1)
    assert tokens <= budget
    assert len({document.token_ids_T.tobytes() for document in documents}) == len(documents)
    evidence = [document.doc_id for document in table.documents(draw, draw.shown)]
    assert evidence and set(evidence) <= {document.doc_id for document in documents}
    first = table.documents(draw, draw.shown[:1])[0].token_ids_T
    at = np.flatnonzero(with_documents == first[0])
    assert any(np.array_equal(with_documents[i : i + len(first)], first) for i in at)
    return tokens / budget


def test_the_budget_rises_and_falls_over_real_documents(played_on):
    table, curriculum, store = played_on
    heldout = set(store.set_ids("heldout"))
    assert heldout and sum(map(sum, map(store.document_lengths, store.set_ids("train")))) > LADDER[-1]
    budgets, filled, index = [], [], 0
    for rewards, outcome in (((1.0, 1.0), Outcome.TRIVIAL), ((0.0, 0.0), Outcome.UNSOLVED)):
        for _ in range(WINDOW * (len(LADDER) - 1) + 2):
            draw = curriculum.draw(index)
            budgets.append(int(curriculum.metrics()["curriculum/document_tokens"]))
            filled.append(check(table, draw, budgets[-1]))
            assert not heldout & {draw.set_id, *(d.set_id for d in draw.distractors)}
            curriculum.observe([played(draw, rewards=rewards, outcome=outcome)])
            index += 1
    visited = [budget for n, budget in enumerate(budgets) if n == 0 or budget != budgets[n - 1]]
    assert visited == LADDER + LADDER[-2::-1]
    assert min(filled) >= 0.9

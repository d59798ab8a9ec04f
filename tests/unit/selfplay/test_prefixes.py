"""What prompts of one set have in common stands at their beginning, in tokens: an engine computes it once."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from megatron_spell.selfplay.round import play_round
from megatron_spell.types.play import Draw, QuestionAnswer, Role, TaskName
from tests.unit.selfplay.pacing import paced
from tests.unit.selfplay.playing import GOOD_QUESTION, Script, make_table

DRAW = Draw(index=5, set_id="set-1", task=TaskName.GENERAL_QA, shown=(0, 1, 3), answer_from=(0, 1, 3))
CHOICE = '```json\n{"question": "Which?", "options": {"A": "w", "B": "x", "C": "y", "D": "z"}, "answer": "B"}\n```'
NUMBER = '```json\n{"question": "How many?", "answer": "12"}\n```'
OLD = (QuestionAnswer("Old one?", "an owl"),)
DRAWS = [
    (DRAW, GOOD_QUESTION),
    (replace(DRAW, task=TaskName.MATH_QA), NUMBER),
    (replace(DRAW, task=TaskName.MULTIPLE_CHOICE, target_letter="B"), CHOICE),
    (replace(DRAW, examples=OLD), GOOD_QUESTION),
]


def prompts_of(folder, draw: Draw, question: str) -> dict[Role, list[np.ndarray]]:
    """Of one round, the prompts that begin with documents."""
    table = make_table(folder, Script(questions=[question]))
    engine = paced(table)
    found = {Role.QUESTIONER: [], Role.RESPONDER: []}
    generate = engine.held.generate

    async def noting(prompt_ids_T, spec, *, key=None):
        if key is not None:
            role = Role.RESPONDER if found[Role.QUESTIONER] else Role.QUESTIONER
            found[role].append(prompt_ids_T)
        return await generate(prompt_ids_T, spec, key=key)

    engine.held = type("Noting", (), {"generate": staticmethod(noting)})()
    asyncio.run(play_round(draw, table))
    return found


def num_common(prompts: list[np.ndarray]) -> int:
    shortest = min(map(len, prompts))
    same_T = np.all([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts], axis=0)
    return shortest if same_T.all() else int(np.argmin(same_T))


@pytest.fixture(scope="module")
def prompts(folder):
    return [prompts_of(folder, draw, question) for draw, question in DRAWS]


def test_all_tasks_and_both_roles_share_their_documents_to_the_last_token(folder, prompts):
    table = make_table(folder, Script())
    documents = table.documents(DRAW, DRAW.answer_from)
    firsts = [found[role][0] for found in prompts for role in (Role.QUESTIONER, Role.RESPONDER)]
    assert len(firsts) == 8 and len({prompt.tobytes() for prompt in firsts}) >= 6
    common = firsts[0][: num_common(firsts)].tolist()
    assert common[-1] is not None and len(common) < min(map(len, firsts))
    text = table.tokenizer.decode(np.array(common))
    for document in documents:
        assert table.tokenizer.decode(document.token_ids_T) in text
    assert "</text>" in text


def test_the_samples_of_a_question_share_their_whole_prompt(prompts):
    for found in prompts:
        answers = found[Role.RESPONDER]
        assert len(answers) == 8
        assert all(prompt is answers[0] for prompt in answers)


def test_documents_in_another_order_would_share_less(folder, prompts):
    """The fault planted: the same documents, the last of them first."""
    turned = prompts_of(folder, replace(DRAW, answer_from=(3, 0, 1)), GOOD_QUESTION)
    table = make_table(folder, Script())
    length = sum(len(d.token_ids_T) for d in table.documents(DRAW, DRAW.answer_from))
    straight, crossed = prompts[0][Role.RESPONDER][0], turned[Role.RESPONDER][0]
    assert num_common([straight, prompts[1][Role.RESPONDER][0]]) > length > num_common([straight, crossed])

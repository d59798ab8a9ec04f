import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.roles.questioner import questioner_prompt
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.types.documents import Document
from megatron_spell.types.numbers import parse_number
from megatron_spell.types.play import LETTERS, ParsedQuestion, TaskName
from megatron_spell.types.prompts import Literal, Quoted, Tokens

TEMPLATES = Templates.load()
DOCUMENTS = [Document(f"d{i}", "", np.arange(i, i + 3, dtype=np.int32)) for i in range(3)]
QUESTION = ParsedQuestion("Which?", "C", ("w", "x", "y", "z"))

GENERAL = {
    "The answer is Paris.": "Paris",
    'THE CORRECT ANSWER IS\n\n  "Paris"': "Paris",
    "The **answer** is: **Paris, France**.": "Paris, France",
    "The answer is (Paris)": "Paris",
    "The answer is Paris (France)": "Paris (France)",
    "The answer is \\boxed{\\text{Paris}}.": "Paris",
    "It is \\boxed{Paris}": "Paris",
    "Not \\boxed{Rome} but \\boxed{Paris}": "Paris",
    "The answer is Rome. No: the answer is Paris": "Paris",
    "\\boxed{Rome}, hence the answer is Paris": "Paris",
    "The answer is Paris\nand that is why": "Paris",
    "The answer is A. B. Smith": "A. B. Smith",
    "reasoning</think>The answer is Paris": "Paris",
    "<think>the answer is Rome</think> the answer is `Paris`": "Paris",
    "The answer is ...": None,
    "The answer is": None,
    "Paris": None,
    "<think>the answer is Paris": None,
    "the answer is Rome</think>Paris": None,
    "the answer isolates": None,
    "The answer is " + "long " * 100: None,
}

MATH = {
    "The answer is approximately 5.2": "5.2",
    "Therefore, the answer is -$5.2.": "-5.2",
    "The **answer** is:\n\n**5.2 million** dollars": "5.2 million",
    "\\boxed{3} so the answer is 4": "4",
    "so \\boxed{\\frac{3}{4}}": "3/4",
    "the answer is $\\boxed{1{,}250}$.": "1250",
    "\\[ \\boxed{12.5\\%} \\]": "12.5%",
    "the answer is (5.2)": "5.2",
    "the answer is (-3.5%)": "-3.5%",
    "the answer is 10/2 = 5": "5",
    "the answer is 15/7 \u2248 2.143": "2.143",
    "the answer is 5.2 million in 2019.": "5.2 million",
    "the answer is \u22125": "-5",
    "the answer is 7 dollars": "7",
    "the answer is 5 or 6": None,
    "the answer is 5, 6, 7": None,
    "the answer is 5 dollars or 6 dollars": None,
    "the answer is 5-6": None,
    "the answer is 5 to 6": None,
    "the answer is not 5": None,
    "the answer is not known": None,
    "the answer is 1,25": None,
}

CHOICE = {
    "The correct answer is (B) A decline in revenue": "B",
    "The correct answer is C. Foo": "C",
    "the answer is B) foo": "B",
    "The answer is A": "A",
    "The answer is A because of the costs": "A",
    "**Answer is**\n\n**C**": "C",
    "the answer is \\boxed{\\text{D}}": "D",
    "\\(\\boxed{B}\\)": "B",
    "the answer is the letter D.": "D",
    "The answer is option (C)": "C",
    "the answer is clearly B": "B",
    "the answer is a clear drop, so (C)": "C",
    "the answer is A. no wait, the answer is B": "B",
    "the answer is a clear drop, (C) or (D)": None,
    "the answer is A decline in revenue": None,
    "the answer is ACME": None,
    "the answer is A-level results": None,
    "the answer is A's": None,
    "the answer is A, B": None,
    "the answer is (A) or (B)": None,
    "the answer is A and C": None,
    "the answer is a combination": None,
    "the answer is E": None,
    "the answer is b": None,
    "B": None,
}


def cases(table, task):
    return [pytest.param(text, task, parsed, id=f"{task}: {text[:40]!r}") for text, parsed in table.items()]


@pytest.mark.parametrize(
    ("text", "task", "parsed"),
    [
        *cases(GENERAL, TaskName.GENERAL_QA),
        *cases(MATH, TaskName.MATH_QA),
        *cases(CHOICE, TaskName.MULTIPLE_CHOICE),
    ],
)
def test_the_final_answer_is_read(text, task, parsed):
    assert parse_answer(text, task) == parsed


@pytest.mark.parametrize("task", TaskName)
def test_an_output_that_was_cut_off_has_no_answer(task):
    assert parse_answer("Perhaps the answer is 5", task, finished=False) is None


@pytest.mark.parametrize("task", TaskName)
def test_the_form_that_the_template_asks_for_is_read(task):
    asked = "".join(p.text for p in TEMPLATES.fill(f"responder_{task}", documents=[], question=[]))
    opening = asked.partition('begins with the words "')[2].partition('"')[0]
    answer = {TaskName.GENERAL_QA: "Ann", TaskName.MATH_QA: "-12.5", TaskName.MULTIPLE_CHOICE: "D"}[task]
    assert parse_answer(f"Because of this.\n{opening} {answer}.", task) == answer


def test_roles_on_the_same_documents_share_the_prefix_up_to_the_end_of_the_documents():
    ask = questioner_prompt(TEMPLATES, TaskName.MATH_QA, DOCUMENTS, (), None)
    answer = responder_prompt(TEMPLATES, TaskName.MULTIPLE_CHOICE, DOCUMENTS, QUESTION)
    shared = 0
    while ask[shared] == answer[shared] or (
        isinstance(ask[shared], Tokens) and ask[shared].token_ids_T is answer[shared].token_ids_T
    ):
        shared += 1
    assert sum(isinstance(part, Tokens) for part in ask[:shared]) == len(DOCUMENTS)


def test_the_question_stands_with_its_options_behind_the_documents():
    prompt = responder_prompt(TEMPLATES, TaskName.MULTIPLE_CHOICE, DOCUMENTS, QUESTION)
    words = "".join(part.text for part in prompt if not isinstance(part, Tokens))
    assert "<question>\nWhich?\n(A) w\n(B) x\n(C) y\n(D) z\n</question>" in words
    assert [part.text for part in prompt if isinstance(part, Quoted)] == ["Which?", "w", "x", "y", "z"]


def test_the_blind_prompt_differs_only_in_the_documents():
    told = responder_prompt(TEMPLATES, TaskName.GENERAL_QA, DOCUMENTS, QUESTION)
    blind = responder_prompt(TEMPLATES, TaskName.GENERAL_QA, None, QUESTION)
    assert not any(isinstance(part, Tokens) for part in blind)
    words = TEMPLATES.fill("no_documents")[0].text
    last = max(i for i, part in enumerate(told) if isinstance(part, Tokens))
    assert blind == (Literal(told[0].text + words + told[last + 1].text), *told[last + 2 :])


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from(list(TaskName)))
def test_any_text_is_read_to_an_answer_of_the_task_or_none(text, task):
    for said in (text, "the answer is " + text, "\\boxed{" + text):
        parsed = parse_answer(said, task)
        if parsed is None:
            continue
        assert parsed == parsed.strip() != ""
        if task == TaskName.MULTIPLE_CHOICE:
            assert parsed in LETTERS
        if task == TaskName.MATH_QA:
            assert parse_number(parsed) is not None


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_a_responder_may_state_is_read(value):
    assert float(parse_answer(f"The answer is {value}.", TaskName.MATH_QA)) == value

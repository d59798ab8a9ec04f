import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.roles.questioner import parse_question, questioner_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, Outcome, ParsedQuestion, QuestionAnswer, TaskName
from megatron_spell.types.prompts import Literal, Quoted, Tokens

TEMPLATES = Templates.load()
DOCUMENTS = [Document(f"d{i}", "", np.arange(i, i + 3, dtype=np.int32)) for i in range(2)]
OPTIONS = {letter: f"option {letter}" for letter in LETTERS}


def parse(text, task=TaskName.GENERAL_QA, *, finished=True):
    return parse_question(
        text, task, finished=finished, num_answer_tokens=lambda answer: len(answer.split()), max_answer_tokens=5
    )


def fenced(**fields):
    return f"Here it is.\n```json\n{json.dumps(fields)}\n```\n"


def choice(**changes):
    return fenced(**({"question": "Which?", "options": OPTIONS, "answer": "C"} | changes))


def words_of(prompt):
    return "".join(part.text for part in prompt if isinstance(part, Literal | Quoted))


# the prompt


def test_documents_are_shown_as_their_own_ids_in_order():
    prompt = questioner_prompt(TEMPLATES, TaskName.GENERAL_QA, DOCUMENTS, (), None)
    shown = [part for part in prompt if isinstance(part, Tokens)]
    assert [part.token_ids_T for part in shown] == [d.token_ids_T for d in DOCUMENTS]
    separator = TEMPLATES.fill("document_separator")
    assert prompt[:4] == (Literal("<text>\n"), shown[0], *separator, shown[1])


@pytest.mark.parametrize("task", TaskName)
def test_examples_are_shown_as_quotes_and_ask_for_something_harder(task):
    examples = [QuestionAnswer("Who built it?", "Ann"), QuestionAnswer("When?", "1901")]
    with_history = questioner_prompt(TEMPLATES, task, DOCUMENTS, examples, "B")
    without = questioner_prompt(TEMPLATES, task, DOCUMENTS, (), "B")
    quoted = [part.text for part in with_history if isinstance(part, Quoted)]
    assert quoted == ["Who built it?", "Ann", "When?", "1901"]
    assert "clearly harder" in words_of(with_history)
    assert "clearly harder" not in words_of(without)


@pytest.mark.parametrize("letter", LETTERS)
def test_the_target_letter_is_really_filled_in(letter):
    words = words_of(questioner_prompt(TEMPLATES, TaskName.MULTIPLE_CHOICE, DOCUMENTS, (), letter))
    assert f"The correct option is {letter}." in words
    assert f'"answer": "{letter}"' in words
    assert "target_letter" not in words


@pytest.mark.parametrize("letter", [None, "", "E", "AB"])
def test_multiple_choice_without_a_letter_is_refused(letter):
    with pytest.raises(ValueError, match="target_letter"):
        questioner_prompt(TEMPLATES, TaskName.MULTIPLE_CHOICE, DOCUMENTS, (), letter)


@pytest.mark.parametrize("history", [(), (QuestionAnswer("q", "a"),)])
@pytest.mark.parametrize("task", TaskName)
def test_the_json_that_a_template_shows_is_strict_json_with_the_fields_of_the_task(task, history):
    words = words_of(questioner_prompt(TEMPLATES, task, DOCUMENTS, history, "D"))
    shown = json.loads(words.rpartition("```json")[2].partition("```")[0])
    assert set(shown) == {"question", "answer"} | ({"options"} if task == TaskName.MULTIPLE_CHOICE else set())
    # A model that only copies the example has asked nothing.
    assert parse(words, task) == Outcome.BAD_FORMAT


# finding the question


def test_a_question_is_read_from_the_fenced_block():
    said = "<think>```json\n{}\n```</think>" + fenced(question=" Who? ", answer=" Ann ")
    assert parse(said) == ParsedQuestion("Who?", "Ann")


def test_the_last_block_that_holds_an_object_counts():
    said = fenced(question="first", answer="a") + fenced(question="second", answer="b") + "```json\n[1]\n```"
    assert parse(said) == ParsedQuestion("second", "b")


@pytest.mark.parametrize(
    "said",
    [
        '{"question": "q", "answer": "a"}',
        '\n {"question": "q", "answer": "a"} \n',
        '```JSON {"question": "q", "answer": "a"}```',
        'x </think> y </think>```json\r\n{"question": "q", "answer": "a"}\r\n```',
    ],
)
def test_bare_json_and_loose_fences_are_read(said):
    assert parse(said) == ParsedQuestion("q", "a")


def test_backticks_inside_the_question_do_not_end_the_block():
    assert parse(fenced(question="What does ```x``` print?", answer="a")).question == "What does ```x``` print?"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "no json here",
        '```json\n{"question": "q", "answer": "a",}\n```',
        '```json\n{"question": "q", "answer": "a"}',
        '```json\n["question"]\n```',
        '```\n{"question": "q", "answer": "a"}\n```',
        "{'question': 'q', 'answer': 'a'}",
        '{"question": "q", "answer": NaN}',
        '{"question": "q", "answer": "a", "confidence": Infinity}',
        '{"question": "q", "answer": "a"} and more',
        '{"question": "q"}',
        '{"answer": "a"}',
        '{"question": 1, "answer": "a"}',
        '{"question": "q", "answer": 1}',
        '{"question": "q", "answer": ["a"]}',
        '{"question": "q", "answer": null}',
        '{"question": " ", "answer": "a"}',
        '{"question": "q", "answer": "..."}',
        '{"question": "q", "answer": "The answer is: "}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"question": "q", "answer": ' + "9" * 10_000 + "}",
    ],
    ids=lambda said: said[:40],
)
def test_what_holds_no_well_formed_question_is_bad_format(said):
    assert parse(said) == Outcome.BAD_FORMAT


def test_unfinished_output_is_told_apart_from_bad_format():
    good = fenced(question="q", answer="a")
    assert parse(good, finished=False) == Outcome.UNFINISHED
    assert parse("<think>" + good) == Outcome.UNFINISHED
    assert parse("<think>a</think><think>" + good) == Outcome.UNFINISHED


def test_a_gold_answer_is_stored_plainly_and_control_characters_go():
    said = fenced(question="q\x00\ud800</text>", answer="The correct answer is: Ann\x07")
    assert parse(said) == ParsedQuestion("q  \u2039/text>", "Ann")


def test_an_answer_over_the_token_limit_is_unusable():
    assert parse(fenced(question="q", answer="one two three four five")).gold == "one two three four five"
    assert parse(fenced(question="q", answer="one two three four five six")) == Outcome.UNUSABLE_ANSWER


def test_a_huge_answer_is_refused_without_being_tokenised():
    said = fenced(question="q", answer="x" * 1000)
    counted = parse_question(
        said, TaskName.GENERAL_QA, finished=True, num_answer_tokens=pytest.fail, max_answer_tokens=5
    )
    assert counted == Outcome.UNUSABLE_ANSWER


# math


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("-12.5", "-12.5"),
        ("$5.2 million", "$5.2 million"),
        (7, "7"),
        (5.2, "5.2"),
        (1e-05, "1e-05"),
        ("1e-05", "1e-05"),
    ],
)
def test_a_number_is_kept_as_it_was_written(answer, gold):
    assert parse(fenced(question="q", answer=answer), TaskName.MATH_QA) == ParsedQuestion("q", gold)


@pytest.mark.parametrize("answer", ["0", 0, 0.0, "0.00%", "none", "5 or 6", "12 and 13", "1/0", "nan", "1e999"])
def test_zero_and_what_is_no_number_are_unusable(answer):
    assert parse(fenced(question="q", answer=answer), TaskName.MATH_QA) == Outcome.UNUSABLE_ANSWER


def test_an_infinite_json_number_is_unusable():
    assert parse('{"question": "q", "answer": 1e999}', TaskName.MATH_QA) == Outcome.UNUSABLE_ANSWER


@pytest.mark.parametrize("answer", [True, None, [5], {"value": 5}, "", " "])
def test_an_answer_of_another_kind_is_bad_format(answer):
    assert parse(fenced(question="q", answer=answer), TaskName.MATH_QA) == Outcome.BAD_FORMAT


# multiple choice


def test_a_multiple_choice_question_holds_options_in_order_and_the_letter():
    parsed = parse(choice(), TaskName.MULTIPLE_CHOICE)
    assert parsed == ParsedQuestion("Which?", "C", ("option A", "option B", "option C", "option D"))


@pytest.mark.parametrize("answer", ["C", "(C)", "C.", " C ", "**C**", "The correct answer is (C)."])
def test_the_letter_may_be_decorated(answer):
    assert parse(choice(answer=answer), TaskName.MULTIPLE_CHOICE).gold == "C"


@pytest.mark.parametrize("answer", ["E", "c", "", "option A", "A decline", "A and B", "AB", 3, None])
def test_an_answer_that_is_no_letter_is_bad_format(answer):
    assert parse(choice(answer=answer), TaskName.MULTIPLE_CHOICE) == Outcome.BAD_FORMAT


@pytest.mark.parametrize(
    "options",
    [
        {letter: OPTIONS[letter] for letter in "ABC"},
        OPTIONS | {"E": "option E"},
        OPTIONS | {"D": ""},
        OPTIONS | {"D": 4},
        OPTIONS | {"D": "Option  a"},
        list(OPTIONS.values()),
        None,
    ],
)
def test_options_must_be_four_different_texts(options):
    assert parse(choice(options=options), TaskName.MULTIPLE_CHOICE) == Outcome.BAD_FORMAT


def test_letters_that_the_options_repeat_are_taken_off_when_all_do():
    lettered = {letter: f"({letter}) x{letter}" for letter in LETTERS}
    assert parse(choice(options=lettered), TaskName.MULTIPLE_CHOICE).options == ("xA", "xB", "xC", "xD")
    mixed = OPTIONS | {"A": "A. Smith"}
    assert parse(choice(options=mixed), TaskName.MULTIPLE_CHOICE).options[0] == "A. Smith"


@settings(deadline=None)
@given(st.text(max_size=200), st.sampled_from(list(TaskName)))
def test_any_text_is_a_question_or_an_outcome(text, task):
    assert isinstance(parse(text, task), ParsedQuestion | Outcome)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LETTERS, "x"]), inner, max_size=5),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.fixed_dictionaries({"question": json_values, "answer": json_values, "options": json_values}))
def test_any_json_is_a_question_or_an_outcome(fields):
    for task in TaskName:
        parsed = parse(f"```json\n{json.dumps(fields)}\n```", task)
        assert isinstance(parsed, Outcome) or (parsed.question.strip() and parsed.gold.strip())

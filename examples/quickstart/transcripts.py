"""What each role should write, for questions whose answers are known by construction."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from habits import WORDS, habitual, habitual_words
from lookup import LookUp, Spans, look_up, numbers_in

from megatron_spell.curriculum.curriculum import in_words
from megatron_spell.rewards.matching import score
from megatron_spell.roles.questioner import questioner_prompt
from megatron_spell.roles.responder import parse_answer, responder_prompt
from megatron_spell.roles.templates import Templates
from megatron_spell.roles.verifier import NO, YES, verifier_prompt
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.types.documents import Document
from megatron_spell.types.play import LETTERS, QuestionAnswer, TaskName
from megatron_spell.types.prompts import Prompt

QUESTION_OPENS = '```json\n{"question": "'
ANSWER_OPENS = '", "answer": "'
OPTION_OPENS = ('", "options": {"A": "', '", "B": "', '", "C": "', '", "D": "')
QUESTION_CLOSES = '"}\n```'
LETTER_CLOSES = {letter: f'"}}, "answer": "{letter}"}}\n```' for letter in LETTERS}
WORDS_ANSWER = "The correct answer is"
NUMBER_ANSWER = "Therefore, the answer is"
LETTER_MARKS = tuple(f" ({letter})" for letter in LETTERS)
SYMBOLS = (QUESTION_OPENS, ANSWER_OPENS, *OPTION_OPENS, QUESTION_CLOSES, *LETTER_CLOSES.values())
# quotation marks by themselves, so that an escaped one takes the place of a plain one, token for token
SYMBOLS += ('"', '\\"')
SYMBOLS += (WORDS_ANSWER, NUMBER_ANSWER, *LETTER_MARKS, YES, NO, "\n")
TEMPLATE_SYMBOLS = ("\nAsk for words.", "\nAsk for a number.", "\nAsk with options, right: ", "\nAsked before: ")
TEMPLATE_SYMBOLS += ("\nQuestion: ", "\nNumber: ", "\nChoice: ", "Question: ", "\nReference: ", "\nAnswer: ", "\nSame?")
TEMPLATE_SYMBOLS += (" = ", "Nothing.")

HISTORY_SHARE = 0.3  # of the questioner's prompts that show earlier questions
WRONG_HABITS = {name: share for name, share in WORDS.items() if name != "right"}
WRONG_BY_HABIT = 0.7  # of the wrong answers that are judged
TOLERANCE = 0.0015  # of the rule, for numbers
# what is asked of one context, and what is to be asked about it
ANSWERING = (TaskName.GENERAL_QA,) * 9 + (TaskName.MATH_QA,) + (TaskName.MULTIPLE_CHOICE,) * 2
ASKING = (TaskName.GENERAL_QA,) * 2 + (TaskName.MATH_QA,) + (TaskName.MULTIPLE_CHOICE,)


@dataclass(frozen=True, slots=True, eq=False)
class Transcript:
    """A prompt and what should be written to it, as token ids."""

    kind: str
    prompt_ids_T: np.ndarray
    response_ids_A: np.ndarray


@dataclass(frozen=True, slots=True)
class Scribe:
    """Writes transcripts through the code path of play: the roles' prompts and the chat format."""

    tokenizer: Tokenizer
    chat: ChatFormat
    templates: Templates
    spans: Spans

    def transcript(self, kind: str, prompt: Prompt, response: str) -> Transcript:
        response_A = self.tokenizer.encode_quoted(response)
        ended_A = np.append(response_A, self.tokenizer.stop_ids[0]).astype(np.int32)
        return Transcript(kind, self.chat.encode(prompt), ended_A)

    def answering(
        self, documents: Sequence[Document], task: TaskName, rng: random.Random, *, by_habit: bool
    ) -> Transcript | None:
        """The right answer to a question of `task`, or by habit what the base model should say."""
        found = look_up(task, documents, self.spans, rng)
        if found is None:
            return None
        prompt = responder_prompt(self.templates, task, documents, found.parsed)
        said = habitual(found, self._other_numbers(found, documents), rng) if by_habit else found
        return self.transcript(f"responder {task.value}", prompt, answer_text(said))

    def _other_numbers(self, found: LookUp, documents: Sequence[Document]) -> list[str]:
        if found.task is not TaskName.MATH_QA:
            return []
        return [number for number in numbers_in(documents, self.spans) if number != found.answer]

    def asking(self, documents: Sequence[Document], task: TaskName, rng: random.Random) -> Transcript | None:
        letter = rng.choice(LETTERS) if task is TaskName.MULTIPLE_CHOICE else None
        found = look_up(task, documents, self.spans, rng, letter)
        if found is None:
            return None
        examples = self._examples(documents, task, found, rng) if rng.random() < HISTORY_SHARE else ()
        prompt = questioner_prompt(self.templates, task, documents, examples, letter)
        return self.transcript(f"questioner {task.value}", prompt, well_formed_question(found))

    def _examples(
        self, documents: Sequence[Document], task: TaskName, asked: LookUp, rng: random.Random
    ) -> tuple[QuestionAnswer, ...]:
        found = [look_up(task, documents, self.spans, rng) for _ in range(rng.randint(1, 3))]
        return tuple(in_words(f.parsed) for f in found if f is not None and f.answer != asked.answer)

    def judging(self, documents: Sequence[Document], rng: random.Random, noise: float) -> Transcript | None:
        """A vote on an answer that is right half of the time; the vote is wrong with probability `noise`."""
        task = rng.choice((TaskName.GENERAL_QA, TaskName.GENERAL_QA, TaskName.MATH_QA))
        found = look_up(task, documents, self.spans, rng)
        if found is None:
            return None
        right = rng.random() < 0.5
        said = found.answer if right else self._wrong_answer(found, documents, rng)
        answer = None if said is None else parse_answer(answer_text(replace(found, answer=said)), task)
        if answer is None:
            return None
        vote = right != (rng.random() < noise)
        prompt = verifier_prompt(self.templates, found.parsed, answer)
        return self.transcript("verifier", prompt, YES if vote else NO)

    def _wrong_answer(self, found: LookUp, documents: Sequence[Document], rng: random.Random) -> str | None:
        """Words by a wrong habit, another span or another number; None where that is right all the same."""
        if found.task is TaskName.GENERAL_QA and rng.random() < WRONG_BY_HABIT:
            answer = habitual_words(found, rng, WRONG_HABITS)
        else:
            other = look_up(found.task, documents, self.spans, rng)
            answer = "" if other is None else other.answer
        is_right = score(found.task, answer, found.answer, tolerance=TOLERANCE)
        return answer if answer and not is_right else None


def answer_text(found: LookUp) -> str:
    """What a responder writes to state the answer that `found` holds."""
    if found.task is TaskName.MATH_QA:
        return f"{NUMBER_ANSWER} {found.answer}"
    if found.letter is None:
        return f"{WORDS_ANSWER} {found.answer}"
    # options stand between the fragment and its answer, so the fragment comes again, then how it goes on, and then the
    # letter, which can be read off the option that ends with the same words
    return f"{WORDS_ANSWER} {found.question} {found.answer} ({found.letter})"


def well_formed_question(found: LookUp) -> str:
    """The fenced JSON object; its strings open with a blank, so that words are cut as in the documents."""
    question = f"{QUESTION_OPENS} {escaped(found.question)}"
    if found.options is None:
        return f"{question}{ANSWER_OPENS} {escaped(found.answer)}{QUESTION_CLOSES}"
    options = "".join(f"{opens} {escaped(text)}" for opens, text in zip(OPTION_OPENS, found.options, strict=True))
    return f"{question}{options}{LETTER_CLOSES[found.letter]}"


def escaped(text: str) -> str:
    """`text` as it stands inside a JSON string; fragments hold nothing else that needs it."""
    return text.replace('"', '\\"')

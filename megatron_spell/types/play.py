"""What is said and earned in one round of self-play."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Role(StrEnum):
    QUESTIONER = "questioner"
    RESPONDER = "responder"
    VERIFIER = "verifier"


class TaskName(StrEnum):
    GENERAL_QA = "general_qa"
    MATH_QA = "math_qa"
    MULTIPLE_CHOICE = "multiple_choice"


LETTERS = ("A", "B", "C", "D")


class Outcome(StrEnum):
    """How a round ended. Every round has exactly one, and every one has a counter (`rounds/outcome/<outcome>`)."""

    USABLE = "usable"  # 0 < mean answer reward < 1: its answers are trained on
    UNSOLVED = "unsolved"  # no answer was right
    TRIVIAL = "trivial"  # every answer was right
    UNGROUNDED = "ungrounded"  # solved without the documents
    BAD_FORMAT = "bad_format"  # the output holds no well-formed question
    UNFINISHED = "unfinished"  # the questioner ran into its token limit
    UNUSABLE_ANSWER = "unusable_answer"  # too long, zero or not a number
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt does not fit the engine's context
    SURPLUS = "surplus"  # finished or begun after the step's quota was full
    STALE = "stale"  # played, but its oldest words are of weights too old to train on


@dataclass(frozen=True, slots=True, eq=False)
class ExpertChoices:
    """Which experts an engine sent each token to, as unsigned integers [T, L, K]: K experts in each of L layers.

    `prompt_T_L_K` covers the whole prompt; completions of one call hold the same array. `response_T_L_K` covers the
    completion without its last token, which was never run.
    """

    prompt_T_L_K: np.ndarray
    response_T_L_K: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """One sampled continuation, as the engine returned it.

    `log_probs_T` are the engine's raw (temperature 1, not top-p-renormalised) log-probabilities of `token_ids_T`;
    `version` is the policy version of the weights that wrote the first token, the oldest of all. `versions_T` gives
    each token's where weights came in while it was written, and is None where all tokens have `version`. The
    end-of-turn token, when sampled, is included. `finish_reason` is "stop" or "length". `experts` is there when the
    engine was asked for it.
    """

    token_ids_T: np.ndarray
    log_probs_T: np.ndarray
    finish_reason: str
    version: int
    experts: ExpertChoices | None = None
    versions_T: np.ndarray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One role speaking once: the prompt it was given and what it wrote (`text` is the decoded completion)."""

    role: Role
    prompt_ids_T: np.ndarray
    completion: Completion
    text: str

    @property
    def finished(self) -> bool:
        """Whether it came to an end of its own, and not to its token limit."""
        return self.completion.finish_reason == "stop"


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question in words with its reference answer; what the history memory keeps and shows again."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class ParsedQuestion:
    """A well-formed question. For multiple choice `options` holds A-D and `gold` is the letter."""

    question: str
    gold: str
    options: tuple[str, str, str, str] | None = None


@dataclass(frozen=True, slots=True)
class Distractor:
    """A document of another set among those that the responder reads.

    `place` is where it stands among all of them, counted from 0; `document` its index in the set `set_id`.
    """

    place: int
    set_id: str
    document: int


@dataclass(frozen=True, slots=True)
class Draw:
    """What a round is played on. A pure function of the seed, `index` and the curriculum's state.

    `shown` are the indices of the documents the questioner sees; `answer_from` those the responder sees
    (a superset of `shown`). `examples` are remembered questions on this set and task to go beyond.
    `target_letter` is the letter that a multiple-choice question must make right. `given` is a question from outside
    (`play.questions`): nothing is asked then. `distractors` are documents of other sets that the responder sees too, by
    rising place. `budget_tokens` is the document budget that they and `answer_from` were chosen for; None when there
    was none.
    """

    index: int
    set_id: str
    task: TaskName
    shown: tuple[int, ...]
    answer_from: tuple[int, ...]
    examples: tuple[QuestionAnswer, ...] = ()
    target_letter: str | None = None
    given: ParsedQuestion | None = None
    distractors: tuple[Distractor, ...] = ()
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Judgment:
    """One vote. `vote` is None when the output could not be parsed. `reward` is set for groups that are settled."""

    turn: Turn
    vote: bool | None
    reward: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One of the G answers to a question.

    `rule` is the scorer's 0/1 verdict; `majority` the verifier's (None when not asked or not settled);
    `reward` is max(rule, majority). `judgments_V` is empty where votes could not change anything, and shared
    (the same tuple) between answers of a group that parsed to the same text. `stop_when_settled` says that asking was
    to end with the majority settled: such votes give the majority of all, but are no fair sample to train on.
    """

    turn: Turn
    parsed: str | None
    rule: float
    majority: float | None = None
    reward: float = 0.0
    judgments_V: tuple[Judgment, ...] = ()
    stop_when_settled: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Round:
    """All that came of one draw. `ask` is None when the questioner's prompt did not fit, or the question was given.

    `blind_turns` are the blind answers heard until the ground check was decided, and `blind_solve_rate` those of them
    that were right, over the number that would have been heard at most: a lower bound.
    """

    draw: Draw
    outcome: Outcome
    ask: Turn | None = None
    question: ParsedQuestion | None = None
    blind_solve_rate: float | None = None
    answers_G: tuple[Answer, ...] = ()
    question_reward: float = 0.0
    blind_turns: tuple[Turn, ...] = ()

    @property
    def solve_rate(self) -> float:
        """Mean answer reward; 0 when nothing was answered."""
        return float(np.mean([a.reward for a in self.answers_G])) if self.answers_G else 0.0

    @property
    def oldest_version(self) -> int | None:
        """Of the weights that wrote the oldest words that can be trained on; None when nothing was said."""
        asked = [self.ask] if self.ask else []
        judged = [judgment.turn for answer in self.answers_G for judgment in answer.judgments_V]
        turns = [*asked, *(answer.turn for answer in self.answers_G), *judged]
        return min((turn.completion.version for turn in turns), default=None)

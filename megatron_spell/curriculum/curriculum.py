"""What a round is played on: the sampler's task and set, the memory's history, the schedule's length."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.memory import Entry, HistoryMemory
from megatron_spell.curriculum.sampler import Sampler, generator
from megatron_spell.curriculum.schedule import LengthSchedule
from megatron_spell.types.play import LETTERS, Draw, Outcome, ParsedQuestion, QuestionAnswer, Round, TaskName

ANSWERED = (Outcome.USABLE, Outcome.UNSOLVED, Outcome.TRIVIAL)
STATE_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SetEntry:
    """A set as the curriculum sees it: its name and the length of each document in tokens, in set order."""

    set_id: str
    document_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The sets that may be drawn (the train split of the store)."""

    sets: tuple[SetEntry, ...]


class Curriculum:
    """Three pressures that grow with the policy.

    History: a set and task with remembered questions shows their documents and up to `play.new_documents` unseen ones,
    and the questions themselves as examples to go beyond. Length: the responder answers from the shown documents
    plus others of the set as distractors, up to the schedule's budget. (The third pressure, the frontier reward, is not
    drawn but earned.)

    `draw` changes nothing and depends only on the seed, the index and what was observed, so a run resumed from `state`
    draws exactly what the first run would have drawn.
    """

    def __init__(self, config: RunConfig, catalog: Catalog, seed: int) -> None:
        """Raises CurriculumError when the catalog is empty, holds an empty or doubled set, or no task has a weight."""
        self._config = config
        self._seed = seed
        self._document_tokens = _tokens_by_set(catalog)
        self._catalog_fingerprint = _fingerprint(self._document_tokens)
        self._sampler = Sampler(seed, config.data.task_weights, tuple(self._document_tokens))
        settings = config.curriculum
        self._memory = HistoryMemory(settings.memory_size, settings.duplicate_similarity)
        self._schedule = LengthSchedule(settings.length)
        self._latest: dict[str, float] = {}

    def draw(self, index: int) -> Draw:
        """The `index`-th draw of the run, counted from 0, under what was observed so far."""
        task, set_id = self._sampler.task_and_set(index)
        rng = generator(self._seed, "draws", index)
        letter = LETTERS[int(rng.integers(len(LETTERS)))]
        history = self._memory.remembered(set_id, task)
        shown = self._shown(len(self._document_tokens[set_id]), history, rng)
        return Draw(
            index=index,
            set_id=set_id,
            task=task,
            shown=shown,
            answer_from=self._answer_from(index, set_id, shown),
            examples=tuple(entry.question for entry in history),
            target_letter=letter if task is TaskName.MULTIPLE_CHOICE else None,
        )

    def _shown(self, num_documents: int, history: Sequence[Entry], rng: np.random.Generator) -> tuple[int, ...]:
        seen = {document for entry in history for document in entry.documents}
        unseen = [document for document in range(num_documents) if document not in seen]
        wanted = self._config.play.new_documents if history else self._config.play.documents_shown
        new = rng.permutation(len(unseen))[:wanted]
        return tuple(sorted(seen.union(unseen[place] for place in new)))

    def _answer_from(self, index: int, set_id: str, shown: Sequence[int]) -> tuple[int, ...]:
        """`shown` whatever it takes, then every other document that still fits, tried in seeded order; in set order.

        The order of trying has a stream of its own: it must not depend on how many documents were drawn before it.
        """
        tokens = self._document_tokens[set_id]
        if not self._config.curriculum.length.enabled:
            return tuple(range(len(tokens)))
        chosen = set(shown)
        left = self._schedule.budget_tokens - sum(tokens[document] for document in shown)
        for document in map(int, generator(self._seed, "distractors", index).permutation(len(tokens))):
            if document not in chosen and tokens[document] <= left:
                chosen.add(document)
                left -= tokens[document]
        return tuple(sorted(chosen))

    def observe(self, rounds: Sequence[Round]) -> None:
        """Take in finished rounds; the order they are given in does not matter within one call.

        Usable questions (0 < solve rate < 1) are remembered. Rounds that reached answering move the length schedule
        when they were played at the present budget (what they were answered from is what it would give them now).
        A questioner's prompt that did not fit because of its history makes that history forget its oldest question,
        or the set could never be asked about again.
        """
        refused = 0
        for played in sorted(rounds, key=lambda played: played.draw.index):
            draw = played.draw
            if played.outcome is Outcome.PROMPT_TOO_LONG and played.ask is None and draw.examples:
                self._memory.forget_oldest(draw.set_id, draw.task)
            if played.outcome is Outcome.USABLE and played.question is not None:
                entry = Entry(in_words(played.question), draw.shown)
                refused += not self._memory.remember(draw.set_id, draw.task, entry)
            if played.outcome in ANSWERED and self._at_present_length(draw):
                self._schedule.observe(played.solve_rate)
        self._latest = {
            "curriculum/shown_documents": _mean(len(played.draw.shown) for played in rounds),
            "curriculum/answer_documents": _mean(len(played.draw.answer_from) for played in rounds),
            "curriculum/with_history_share": _mean(bool(played.draw.examples) for played in rounds),
            "curriculum/duplicates_refused": float(refused),
        }

    def _at_present_length(self, draw: Draw) -> bool:
        return draw.answer_from == self._answer_from(draw.index, draw.set_id, draw.shown)

    def metrics(self) -> dict[str, float]:
        """Of the present state and the latest `observe`; the solve rate is left out while its window is empty."""
        now = {
            "curriculum/document_tokens": float(self._schedule.budget_tokens),
            "curriculum/length_level": float(self._schedule.level),
            "curriculum/memory_entries": float(self._memory.num_entries),
            "curriculum/histories": float(self._memory.num_histories),
        }
        if self._schedule.solve_rate is not None:
            now["curriculum/solve_rate"] = self._schedule.solve_rate
        return now | self._latest

    def state(self) -> dict:
        """JSON-able; `load_state` of it gives a curriculum that draws and observes the same."""
        return {
            "format": STATE_FORMAT,
            "catalog": self._catalog_fingerprint,
            "memory": self._memory.state(),
            "length": self._schedule.state(),
            "latest": dict(self._latest),
        }

    def load_state(self, state: Mapping) -> None:
        """Raises CurriculumError for a malformed state, or one of a store with other sets."""
        if state.get("format") != STATE_FORMAT:
            raise CurriculumError(
                f"saved curriculum: format {state.get('format')!r} is not {STATE_FORMAT}; start a new run"
            )
        if state.get("catalog") != self._catalog_fingerprint:
            raise CurriculumError(
                "data.store: its sets are not those of the saved run; resume with the store it began with"
            )
        num_documents = {set_id: len(tokens) for set_id, tokens in self._document_tokens.items()}
        self._memory.load_state(state.get("memory", ()), num_documents)
        self._schedule.load_state(state.get("length", {}))
        self._latest = dict(state.get("latest", {}))


def in_words(question: ParsedQuestion) -> QuestionAnswer:
    """A question as it is remembered and shown again: with its options, one a line, for multiple choice."""
    if question.options is None:
        return QuestionAnswer(question.question, question.gold)
    options = (f"({letter}) {option}" for letter, option in zip(LETTERS, question.options))
    return QuestionAnswer("\n".join((question.question, *options)), question.gold)


def _tokens_by_set(catalog: Catalog) -> dict[str, tuple[int, ...]]:
    tokens = {entry.set_id: entry.document_tokens for entry in catalog.sets}
    if len(tokens) < len(catalog.sets):
        raise CurriculumError("data.store: two sets have the same name; build the store again")
    for set_id, document_tokens in tokens.items():
        if not document_tokens:
            raise CurriculumError(f"data.store: set {set_id!r} holds no document; build the store again")
    return tokens


def _fingerprint(document_tokens: Mapping[str, tuple[int, ...]]) -> str:
    return hashlib.sha256(json.dumps(list(document_tokens.items())).encode()).hexdigest()


def _mean(numbers: Iterable[float]) -> float:
    values = list(numbers)
    return float(np.mean(values)) if values else 0.0

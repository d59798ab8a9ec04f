"""What a round is played on: the sampler's task and set, the memory's history, the schedule's length."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.balance import TaskBalance
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.curriculum.figures import ANSWERED, round_figures
from megatron_spell.curriculum.memory import Entry, HistoryMemory
from megatron_spell.curriculum.reading import Reading, Shelf
from megatron_spell.curriculum.sampler import Sampler, generator
from megatron_spell.curriculum.schedule import LengthSchedule
from megatron_spell.types.play import LETTERS, Draw, Outcome, ParsedQuestion, QuestionAnswer, Round, TaskName

STATE_FORMAT = 2
# Outcomes that tell whether a draw of its task brings a usable question; the others were not played to their end.
_UNASKED = (Outcome.UNGROUNDED, Outcome.BAD_FORMAT, Outcome.UNFINISHED, Outcome.UNUSABLE_ANSWER)
TELLING = (*ANSWERED, *_UNASKED, Outcome.PROMPT_TOO_LONG)
LEAST_FILLED = 0.5  # of the budget; who reads less tells nothing of it
USABLE_SHARE = 0.25  # of draws, assumed for how many of them are begun before the last step is observed


@dataclass(frozen=True, slots=True)
class SetEntry:
    """A set as the curriculum sees it: its name and the length of each document in tokens, in set order."""

    set_id: str
    document_tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The sets that may be drawn (the train split of the store), and the tokens between two documents of a prompt."""

    sets: tuple[SetEntry, ...]
    separator_tokens: int = 0


class Curriculum:
    """Pressures that grow with the policy.

    History: a set and task with remembered questions shows their documents and up to `play.new_documents` unseen ones,
    and the questions themselves as examples to go beyond. Length: the responder answers from the shown documents
    plus others of the set, then of other sets, as distractors, up to the schedule's budget. Task weights, where
    `curriculum.task_balance` is on, follow the usable questions. (The frontier reward is not drawn but earned.)

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
        self._shelf = Shelf(self._document_tokens, catalog.separator_tokens, seed)
        settings = config.curriculum
        self._memory = HistoryMemory(settings.memory_size, settings.duplicate_similarity)
        self._schedule = LengthSchedule(settings.length)
        weights = {task: config.data.task_weights[task] for task in self._sampler.tasks}
        self._balance = TaskBalance(settings.task_balance, weights)
        self._next_unseen = 0  # all observed draws are below
        self._latest: dict[str, float] = {}

    def draw(self, index: int) -> Draw:
        """The `index`-th draw of the run, counted from 0, under what was observed so far."""
        task, set_id, epoch = self._sampler.visit(index)
        rng = generator(self._seed, "draws", index)
        letter = LETTERS[int(rng.integers(len(LETTERS)))]
        history = self._history(set_id, task)
        shown = self._shown(set_id, history, rng)
        reading = self._reading(set_id, shown, epoch)
        return Draw(
            index=index,
            set_id=set_id,
            task=task,
            shown=shown,
            answer_from=reading.own,
            examples=tuple(entry.question for entry in history),
            target_letter=letter if task is TaskName.MULTIPLE_CHOICE else None,
            distractors=reading.distractors,
            budget_tokens=self._budget_tokens,
        )

    @property
    def _budget_tokens(self) -> int | None:
        return self._schedule.budget_tokens if self._config.curriculum.length.enabled else None

    def _history(self, set_id: str, task: TaskName) -> tuple[Entry, ...]:
        """What is remembered, oldest first, as far as its documents fit the budget together; the newest has the say.

        After the budget fell a history may be too wide for it. It is not lost, and comes back with the budget.
        """
        entries = self._memory.remembered(set_id, task)
        if self._budget_tokens is None:
            return entries
        kept: list[Entry] = []
        documents: set[int] = set()
        for entry in reversed(entries):
            if self._shelf.tokens(set_id, documents.union(entry.documents)) <= self._budget_tokens:
                documents.update(entry.documents)
                kept.append(entry)
        return tuple(reversed(kept))

    def _shown(self, set_id: str, history: Sequence[Entry], rng: np.random.Generator) -> tuple[int, ...]:
        """The documents of `history` and unseen ones that fit the budget with them; where none does, the shortest."""
        costs = self._shelf.costs(set_id)
        shown = {document for entry in history for document in entry.documents}
        unseen = [document for document in range(len(costs)) if document not in shown]
        wanted = self._config.play.new_documents if history else self._config.play.documents_shown
        order = [unseen[place] for place in rng.permutation(len(unseen))]
        if self._budget_tokens is None:
            return tuple(sorted(shown.union(order[:wanted])))
        left = self._budget_tokens - sum(costs[document] for document in shown)
        for document in order:
            if wanted and costs[document] <= left:
                shown.add(document)
                left -= costs[document]
                wanted -= 1
        return tuple(sorted(shown)) or (min(range(len(costs)), key=costs.__getitem__),)

    def _reading(self, set_id: str, shown: tuple[int, ...], epoch: int) -> Reading:
        if self._budget_tokens is None:
            return Reading(tuple(range(len(self._document_tokens[set_id]))))
        from_other_sets = self._config.curriculum.length.distractors_from_other_sets
        return self._shelf.read(set_id, shown, self._budget_tokens, epoch, from_other_sets=from_other_sets)

    def observe(self, rounds: Sequence[Round]) -> None:
        """Take in finished rounds; the order they are given in does not matter within one call.

        Usable questions (0 < solve rate < 1) are remembered. Rounds that reached answering move the length schedule
        when they were drawn at the present budget and filled half of it at least. A questioner's prompt that did not
        fit because of its history makes that history forget its oldest question, or the set could never be asked about
        again.
        """
        num_refused = num_elsewhere = 0
        for played in sorted(rounds, key=lambda played: played.draw.index):
            num_refused += self._is_refused(played)
            num_elsewhere += self._is_of_other_length(played)
            if played.outcome in TELLING:
                self._balance.observe(played.draw.task, played.outcome is Outcome.USABLE)
            self._next_unseen = max(self._next_unseen, played.draw.index + 1)
        self._sampler.reweigh(self._next_unseen + self._num_ahead(), self._balance.weights())
        self._sampler.forget_before(self._next_unseen)
        num_offered = sum(played.outcome is Outcome.USABLE for played in rounds)
        self._latest = round_figures(rounds, self._shelf) | {
            "curriculum/duplicates_refused": float(num_refused),
            "curriculum/duplicate_rate": num_refused / max(num_offered, 1),
            "curriculum/rounds_of_other_length": float(num_elsewhere),
        }

    def _is_refused(self, played: Round) -> bool:
        """Remember the round's question if it is usable; True when it was a near duplicate."""
        draw = played.draw
        if played.outcome is Outcome.PROMPT_TOO_LONG and played.ask is None and draw.examples:
            self._memory.forget(draw.set_id, draw.task, draw.examples[0])
        if played.outcome is not Outcome.USABLE or played.question is None or not self._config.curriculum.memory_size:
            return False
        return not self._memory.remember(draw.set_id, draw.task, Entry(in_words(played.question), draw.shown))

    def _is_of_other_length(self, played: Round) -> bool:
        """Let an answered round move the schedule; True when it was drawn at another budget than the present one."""
        draw, budget = played.draw, self._budget_tokens
        if played.outcome not in ANSWERED or budget is None:
            return False
        if draw.budget_tokens != budget:
            return True
        if self._shelf.tokens(draw.set_id, draw.answer_from, draw.distractors) >= LEAST_FILLED * budget:
            self._schedule.observe(played.solve_rate)
        return False

    def _num_ahead(self) -> int:
        """Draws after the observed ones that are likely begun already, so that their task and set must not change."""
        play, num_steps = self._config.play, self._config.algo.max_staleness
        return num_steps * min(play.max_draws_per_step, round(play.questions_per_step / USABLE_SHARE))

    def metrics(self) -> dict[str, float]:
        """Of the present state and the latest `observe`; the solve rate is left out while its window is empty."""
        now = {
            "curriculum/memory_entries": float(self._memory.num_entries),
            "curriculum/histories": float(self._memory.num_histories),
        }
        if self._budget_tokens is not None:
            now["curriculum/document_tokens"] = float(self._budget_tokens)
            now["curriculum/length_level"] = float(self._schedule.level)
        if self._schedule.solve_rate is not None:
            now["curriculum/solve_rate"] = self._schedule.solve_rate
        if self._config.curriculum.task_balance.enabled:
            now |= {f"curriculum/task_share/{task}": share for task, share in self._sampler.shares.items()}
            now |= {f"curriculum/usable_rate/{task}": rate for task, rate in self._balance.usable_rates().items()}
        return now | self._latest

    def state(self) -> dict:
        """JSON-able; `load_state` of it gives a curriculum that draws and observes the same."""
        return {
            "format": STATE_FORMAT,
            "catalog": self._catalog_fingerprint,
            "next_unseen": self._next_unseen,
            "memory": self._memory.state(),
            "length": self._schedule.state(),
            "tasks": self._sampler.state(),
            "usable": self._balance.state(),
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
        self._sampler.load_state(state.get("tasks", ()))
        self._balance.load_state(state.get("usable", {}))
        self._next_unseen = _count(state, "next_unseen")
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


def _count(state: Mapping, field: str) -> int:
    value = state.get(field)
    if not isinstance(value, int) or value < 0:
        raise CurriculumError(f"saved curriculum: {field} = {value!r} is no number of draws; start a new run")
    return value

"""Which task and which set a draw gets: functions of the seed, the draw's index and the weights that held then."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import TaskName
from megatron_spell.types.seeds import stream_seed

BLOCK = 12  # draws; divides by 2, 3, 4 and 6, so that the usual weights come out exactly in every block
KEPT_ORDERS = 8  # permutations of the sets, by task and epoch: one for each task, and its next at a turn of epochs


def generator(seed: int, purpose: str, *numbers: int | str) -> np.random.Generator:
    """The random stream of `seed` for one purpose of the curriculum."""
    return np.random.default_rng(stream_seed(seed, "curriculum", purpose, *numbers))


class Visit(NamedTuple):
    """A task on a set, for the `epoch`-th time, counted from 0."""

    task: TaskName
    set_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    """The blocks from `first_block` on: `shares` of the tasks in them, and the draws each task had before."""

    first_block: int
    shares: tuple[float, ...]
    dealt_before: tuple[int, ...]


class Sampler:
    """Deals tasks by weight and sets by epoch.

    Tasks: in every block of 12 consecutive draws each task gets its weight's share, to within one draw (systematic
    sampling: twelve equally spaced points with a seeded offset on the line of cumulated weights, then shuffled), and
    exactly its share in the long run, however small. Sets: the n-th draw of a task takes the n-th set of that task's
    permutations, one after the other, so every set is visited once before any is visited again.

    Weights can be changed for draws to come (`reweigh`). Then `state` is what the draws depend on beside the seed.
    """

    def __init__(self, seed: int, task_weights: Mapping[TaskName, float], set_ids: Sequence[str]) -> None:
        if not set_ids:
            raise CurriculumError("data.store: it holds no set to train on; build it with more documents")
        self._tasks = tuple(task for task in TaskName if task_weights.get(task, 0) > 0)
        if not self._tasks:
            raise CurriculumError("data.task_weights: every task has weight 0; give at least one a positive weight")
        self._seed = seed
        self._set_ids = tuple(set_ids)
        self._stretches = [_Stretch(0, self._shares_of(task_weights), (0,) * len(self._tasks))]
        self._dealt_before: dict[int, list[np.ndarray]] = {}  # by first block of a stretch, then by block; a memo only
        self._orders: dict[tuple[TaskName, int], np.ndarray] = {}  # a memo only

    @property
    def tasks(self) -> tuple[TaskName, ...]:
        """Those with a weight."""
        return self._tasks

    @property
    def shares(self) -> dict[TaskName, float]:
        """Of the tasks, by the latest weights; they add up to 1."""
        return dict(zip(self._tasks, self._stretches[-1].shares))

    def visit(self, index: int) -> Visit:
        """Of the `index`-th draw. Raises CurriculumError for one that is negative or long past (`forget_before`)."""
        if index < 0:
            raise CurriculumError(f"draw {index}: draws are numbered from 0")
        block, place = divmod(index, BLOCK)
        stretch = self._stretch(block)
        tasks = self._block(block, stretch)
        which = tasks[place]
        number = int(self._count_before(block, stretch)[which] + np.count_nonzero(tasks[:place] == which))
        epoch, place = divmod(number, len(self._set_ids))
        return Visit(self._tasks[which], self._set_ids[self._order(self._tasks[which], epoch)[place]], epoch)

    def reweigh(self, index: int, task_weights: Mapping[TaskName, float]) -> None:
        """Deal by these weights from the first block that begins at draw `index` or later; nothing before it changes.

        Weights that are the latest already change nothing. Those of tasks without one at the start have no effect.
        """
        shares, latest = self._shares_of(task_weights), self._stretches[-1]
        if shares == latest.shares:
            return
        block = max(-(-index // BLOCK), latest.first_block)
        dealt_before = tuple(self._count_before(block, latest).tolist())
        if block == latest.first_block:
            self._stretches.pop()
        self._dealt_before.pop(latest.first_block, None)
        self._stretches.append(_Stretch(block, shares, dealt_before))

    def forget_before(self, index: int) -> None:
        """Earlier draws than `index` are never asked for again: drop what only they need."""
        while len(self._stretches) > 1 and self._stretches[1].first_block <= index // BLOCK:
            self._dealt_before.pop(self._stretches.pop(0).first_block, None)

    def _shares_of(self, task_weights: Mapping[TaskName, float]) -> tuple[float, ...]:
        shares = np.array([task_weights[task] for task in self._tasks], dtype=np.float64)
        return tuple((shares / shares.sum()).tolist())

    def _stretch(self, block: int) -> _Stretch:
        found = bisect_right(self._stretches, block, key=lambda stretch: stretch.first_block) - 1
        if found < 0:
            first = self._stretches[0].first_block * BLOCK
            raise CurriculumError(f"draw {block * BLOCK} or one after it: draws before {first} are not known any more")
        return self._stretches[found]

    def _block(self, block: int, stretch: _Stretch) -> np.ndarray:
        rng = generator(self._seed, "tasks", block)
        points = (np.arange(BLOCK) + rng.random()) / BLOCK
        # The rounding of the last cumulated weight must not open a gap below one.
        tasks = np.searchsorted(np.cumsum(stretch.shares)[:-1], points, side="right")
        return rng.permutation(tasks)

    def _count_before(self, block: int, stretch: _Stretch) -> np.ndarray:
        first = stretch.first_block
        counts = self._dealt_before.setdefault(first, [np.array(stretch.dealt_before, dtype=np.int64)])
        while first + len(counts) <= block:
            latest = self._block(first + len(counts) - 1, stretch)
            counts.append(counts[-1] + np.bincount(latest, minlength=len(self._tasks)))
        return counts[block - first]

    def _order(self, task: TaskName, epoch: int) -> np.ndarray:
        known = self._orders.get((task, epoch))
        if known is None:
            known = generator(self._seed, "sets", task.value, epoch).permutation(len(self._set_ids))
            self._orders[task, epoch] = known
            if len(self._orders) > KEPT_ORDERS:
                del self._orders[next(iter(self._orders))]
        return known

    def state(self) -> list[dict]:
        """JSON-able: from which block on the tasks have which shares, and how often each was dealt before."""
        return [
            {
                "first_block": stretch.first_block,
                "shares": {task.value: share for task, share in zip(self._tasks, stretch.shares)},
                "dealt_before": {task.value: count for task, count in zip(self._tasks, stretch.dealt_before)},
            }
            for stretch in self._stretches
        ]

    def load_state(self, state: Sequence[Mapping]) -> None:
        """Replace what was dealt by `state`. Where it was of other tasks, the present weights begin with its latest.

        Raises CurriculumError when malformed.
        """
        try:
            stretches = [self._read(record) for record in state]
            blocks = [stretch.first_block for stretch in stretches]
            if not blocks or blocks[0] < 0 or any(block >= later for block, later in pairwise(blocks)):
                raise ValueError(f"blocks {blocks}")
            same_tasks = all(record["shares"].keys() == {task.value for task in self._tasks} for record in state)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CurriculumError(
                f"saved curriculum: the tasks dealt are malformed ({error!r}); start a new run"
            ) from None
        if not same_tasks:
            latest = stretches[-1]
            stretches = [_Stretch(latest.first_block, self._stretches[-1].shares, latest.dealt_before)]
        self._stretches = stretches
        self._dealt_before.clear()

    def _read(self, record: Mapping) -> _Stretch:
        shares = tuple(float(record["shares"].get(task.value, 0.0)) for task in self._tasks)
        dealt_before = tuple(int(record["dealt_before"].get(task.value, 0)) for task in self._tasks)
        if not 0.0 <= min(shares) <= sum(shares) <= 1.0 + 1e-6 or min(dealt_before) < 0:
            raise ValueError(f"shares {shares}, dealt before {dealt_before}")
        return _Stretch(int(record["first_block"]), shares, dealt_before)

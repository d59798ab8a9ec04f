"""Which task and which set a draw gets: pure functions of the seed and the draw's index."""

from collections.abc import Mapping, Sequence

import numpy as np

from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import TaskName
from megatron_spell.types.seeds import stream_seed

BLOCK = 12  # draws; divides by 2, 3, 4 and 6, so that the usual weights come out exactly in every block


def generator(seed: int, purpose: str, *numbers: int | str) -> np.random.Generator:
    """The random stream of `seed` for one purpose of the curriculum."""
    return np.random.default_rng(stream_seed(seed, "curriculum", purpose, *numbers))


class Sampler:
    """Deals tasks by weight and sets by epoch.

    Tasks: in every block of 12 consecutive draws each task gets its weight's share, to within one draw (systematic
    sampling: twelve equally spaced points with a seeded offset on the line of cumulated weights, then shuffled), and
    exactly its share in the long run, however small. Sets: the n-th draw of a task takes the n-th set of that task's
    permutations, one after the other, so every set is visited once before any is visited again.
    """

    def __init__(self, seed: int, task_weights: Mapping[TaskName, float], set_ids: Sequence[str]) -> None:
        if not set_ids:
            raise CurriculumError("data.store: it holds no set to train on; build it with more documents")
        self._tasks = tuple(task for task in TaskName if task_weights.get(task, 0) > 0)
        if not self._tasks:
            raise CurriculumError("data.task_weights: every task has weight 0; give at least one a positive weight")
        self._shares = np.array([task_weights[task] for task in self._tasks], dtype=np.float64)
        self._shares /= self._shares.sum()
        self._seed = seed
        self._set_ids = tuple(set_ids)
        self._dealt_before: list[np.ndarray] = [np.zeros(len(self._tasks), dtype=np.int64)]  # by block; a memo only

    def task_and_set(self, index: int) -> tuple[TaskName, str]:
        """Raises CurriculumError for a negative index."""
        if index < 0:
            raise CurriculumError(f"draw {index}: draws are numbered from 0")
        block, place = divmod(index, BLOCK)
        tasks = self._block(block)
        which = tasks[place]
        visit = int(self._count_before(block)[which] + np.count_nonzero(tasks[:place] == which))
        return self._tasks[which], self._nth_set(self._tasks[which], visit)

    def _block(self, block: int) -> np.ndarray:
        rng = generator(self._seed, "tasks", block)
        points = (np.arange(BLOCK) + rng.random()) / BLOCK
        # The rounding of the last cumulated weight must not open a gap below one.
        tasks = np.searchsorted(np.cumsum(self._shares)[:-1], points, side="right")
        return rng.permutation(tasks)

    def _count_before(self, block: int) -> np.ndarray:
        while len(self._dealt_before) <= block:
            latest = self._block(len(self._dealt_before) - 1)
            self._dealt_before.append(self._dealt_before[-1] + np.bincount(latest, minlength=len(self._tasks)))
        return self._dealt_before[block]

    def _nth_set(self, task: TaskName, visit: int) -> str:
        epoch, place = divmod(visit, len(self._set_ids))
        order = generator(self._seed, "sets", task.value, epoch).permutation(len(self._set_ids))
        return self._set_ids[order[place]]

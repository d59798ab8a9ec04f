"""Optional re-weighting of the tasks: those with fewer usable questions are drawn more."""

import math
from collections.abc import Mapping

from megatron_spell.config.schema import TaskBalanceSection
from megatron_spell.curriculum.errors import CurriculumError
from megatron_spell.types.play import TaskName

PRIOR_ROUNDS = 8.0  # rounds at the tasks' common rate that every task is taken to have had; none has a rate of zero


class TaskBalance:
    """Weights of the tasks under which their usable questions keep to the weights given.

    Dynamics: each task has an exponentially forgetting count of rounds and of usable ones, over about `window` rounds
    of it. Its weight is the given one times (typical rate / its rate), kept within [min_factor, max_factor]; typical is
    the geometric mean of the tasks' rates. As a task's weight does not enter its own rate, the weights settle as soon
    as the rates do: there is nothing to swing. Where a rate is beyond the bounds, the mix stays as uneven as they
    leave it.
    """

    def __init__(self, settings: TaskBalanceSection, task_weights: Mapping[TaskName, float]) -> None:
        """`task_weights` are the positive ones."""
        self._settings = settings
        self._given = dict(task_weights)
        self._rounds = dict.fromkeys(self._given, 0.0)
        self._usable = dict.fromkeys(self._given, 0.0)

    def observe(self, task: TaskName, usable: bool) -> None:
        """Take in one round; nothing happens for a task without a weight."""
        if task in self._rounds:
            kept = 1.0 - 1.0 / self._settings.window
            self._rounds[task] = self._rounds[task] * kept + 1.0
            self._usable[task] = self._usable[task] * kept + usable

    def usable_rates(self) -> dict[TaskName, float]:
        """Smoothed share of usable rounds of each task; a half before there was any round."""
        num_rounds = sum(self._rounds.values())
        common = sum(self._usable.values()) / num_rounds if num_rounds else 0.5
        return {
            task: (self._usable[task] + PRIOR_ROUNDS * common) / (self._rounds[task] + PRIOR_ROUNDS)
            for task in self._given
        }

    def weights(self) -> dict[TaskName, float]:
        """The given weights, each times its task's factor; as given when switched off, or nothing was usable yet."""
        rates = self.usable_rates()
        if not self._settings.enabled or min(rates.values()) <= 0.0:
            return dict(self._given)
        typical = math.exp(sum(map(math.log, rates.values())) / len(rates))
        low, high = self._settings.min_factor, self._settings.max_factor
        return {task: weight * min(max(typical / rates[task], low), high) for task, weight in self._given.items()}

    def state(self) -> dict:
        """JSON-able."""
        return {task.value: [self._rounds[task], self._usable[task]] for task in self._given}

    def load_state(self, state: Mapping) -> None:
        """Raises CurriculumError when malformed. A task that is not in `state` starts anew."""
        try:
            counts = {TaskName(name): (float(rounds), float(usable)) for name, (rounds, usable) in state.items()}
            if any(not 0.0 <= usable <= rounds < math.inf for rounds, usable in counts.values()):
                raise ValueError(f"counts {counts}")
        except (TypeError, ValueError, AttributeError) as error:
            raise CurriculumError(
                f"saved curriculum: the usable rates are malformed ({error!r}); start a new run"
            ) from None
        self._rounds = {task: counts.get(task, (0.0, 0.0))[0] for task in self._given}
        self._usable = {task: counts.get(task, (0.0, 0.0))[1] for task in self._given}

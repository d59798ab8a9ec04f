"""The length schedule: how many document tokens the responder gets, raised and lowered by how well it does."""

from collections import deque
from collections.abc import Mapping

from megatron_spell.config.schema import LengthSection
from megatron_spell.curriculum.errors import CurriculumError


class LengthSchedule:
    """A budget in tokens on the ladder start, start * factor, start * factor^2, ..., max.

    Dynamics: the solve rates of the last `window` answered rounds at the present budget are kept. Once there are that
    many, each further round decides: a mean above `raise_above` climbs one rung, one below `lower_below` steps down
    one. A change empties the window, so a budget is judged only by rounds played at it, and the schedule moves at most
    once in `window` rounds. At either end of the ladder the window just slides on. The rungs are the same on the way up
    and down. (The paper says only "gradually increases document length"; thresholds and back-off are this project's.)
    """

    def __init__(self, settings: LengthSection) -> None:
        self._settings = settings
        self._ladder = _ladder(settings)
        self._level = 0
        self._solve_rates: deque[float] = deque(maxlen=settings.window)

    @property
    def budget_tokens(self) -> int:
        return self._ladder[self._level]

    @property
    def level(self) -> int:
        """Rung of the ladder, 0 at the start."""
        return self._level

    @property
    def solve_rate(self) -> float | None:
        """Mean of the window; None while it is empty."""
        return sum(self._solve_rates) / len(self._solve_rates) if self._solve_rates else None

    def observe(self, solve_rate: float) -> bool:
        """Take in one answered round played at the present budget; True when the budget changed."""
        self._solve_rates.append(solve_rate)
        if len(self._solve_rates) < self._settings.window:
            return False
        mean = self.solve_rate or 0.0
        if mean > self._settings.raise_above:
            return self._move_to(self._level + 1)
        if mean < self._settings.lower_below:
            return self._move_to(self._level - 1)
        return False

    def _move_to(self, level: int) -> bool:
        if not 0 <= level < len(self._ladder):
            return False
        self._level = level
        self._solve_rates.clear()
        return True

    def state(self) -> dict:
        """JSON-able."""
        return {"level": self._level, "solve_rates": list(self._solve_rates)}

    def load_state(self, state: Mapping) -> None:
        """Raises CurriculumError when malformed. A level above a ladder that became shorter is its top."""
        try:
            level, solve_rates = int(state["level"]), [float(rate) for rate in state["solve_rates"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CurriculumError(
                f"saved curriculum: the length schedule is malformed ({error!r}); start a new run"
            ) from None
        self._level = min(max(level, 0), len(self._ladder) - 1)
        self._solve_rates = deque(solve_rates, maxlen=self._settings.window)


def _ladder(settings: LengthSection) -> tuple[int, ...]:
    if settings.start_tokens > settings.max_tokens:
        raise CurriculumError(
            f"curriculum.length.start_tokens = {settings.start_tokens} is above"
            f" curriculum.length.max_tokens = {settings.max_tokens}; lower it"
        )
    rungs, budget = [settings.start_tokens], float(settings.start_tokens)
    while rungs[-1] < settings.max_tokens:
        budget *= settings.factor
        rungs.append(min(round(budget), settings.max_tokens))
    return tuple(dict.fromkeys(rungs))

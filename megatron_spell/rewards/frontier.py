"""The question's reward: highest where the responder is right half of the time (paper, equation of r_que)."""

import math


def question_reward(solve_rate: float, sigma: float) -> float:
    """exp(-(r - 1/2)^2 / (2 sigma^2)) for 0 < r < 1, and 0 for a question that nobody or everybody solves.

    With sigma = 0.5 / 3, k of 8 right earn 0.0796, 0.3247, 0.7548, 1, 0.7548, 0.3247, 0.0796 for k = 1 .. 7.
    Raises ValueError when `solve_rate` is no share or `sigma` is not positive.
    """
    if not 0.0 <= solve_rate <= 1.0:
        raise ValueError(f"solve_rate = {solve_rate}: must lie in [0, 1]")
    if not sigma > 0.0:
        raise ValueError(f"sigma = {sigma}: must be positive")
    if solve_rate in (0.0, 1.0):
        return 0.0
    return math.exp(-((solve_rate - 0.5) ** 2) / (2.0 * sigma**2))

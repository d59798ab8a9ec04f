"""Tokens and time until the majority of V votes stands, by the way votes are asked for: the table of docs/selfplay.md.

    python benchmarks/vote_waves.py [--votes 8] [--trials 20000]

Simulated: lengths are log-normal (sigma 0.5, mean 1), 3 % of the votes cannot be read, the others say yes with
probability p. Printed are tokens, and in brackets the time, in units of a mean vote.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from megatron_spell.rewards.voting import least_to_settle, settled

UNREADABLE, SIGMA = 0.03, 0.5


def all_votes(votes: Sequence, lengths_V: np.ndarray) -> tuple[float, float]:
    return lengths_V.sum(), lengths_V.max()


def all_at_once_abort(votes: Sequence, lengths_V: np.ndarray) -> tuple[float, float]:
    """Votes are counted in sample order; what is still written when the majority stands is cut there."""
    heard = next(n for n in range(1, len(votes) + 1) if settled(votes[:n], len(votes)))
    ended = lengths_V[:heard].max()
    return np.minimum(lengths_V, ended).sum(), ended


def in_waves(votes: Sequence, lengths_V: np.ndarray, sizes: Sequence[int] = ()) -> tuple[float, float]:
    """Waves of `sizes`, or without them the least that can settle."""
    heard, tokens, time = 0, 0.0, 0.0
    left = list(sizes)
    while least := least_to_settle(votes[:heard], len(votes)):
        wave_V = lengths_V[heard : heard + (left.pop(0) if left else least)]
        heard, tokens, time = heard + len(wave_V), tokens + wave_V.sum(), time + wave_V.max()
    return tokens, time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--votes", type=int, default=8)
    parser.add_argument("--trials", type=int, default=20000)
    given = parser.parse_args()
    first = given.votes // 2 + 1
    ways = {
        "all": all_votes,
        "all at once, abort": all_at_once_abort,
        f"{first}, then {given.votes - first}": lambda v, n: in_waves(v, n, (first, given.votes - first)),
        "least waves": in_waves,
    }
    rng = np.random.default_rng(0)
    print("| p |", " | ".join(ways), "|")
    print("|---|" + "---|" * len(ways))
    for p in (0.02, 0.1, 0.5, 0.9):
        found = {way: np.zeros(2) for way in ways}
        for _ in range(given.trials):
            votes = [None if rng.random() < UNREADABLE else bool(rng.random() < p) for _ in range(given.votes)]
            lengths_V = rng.lognormal(-(SIGMA**2) / 2, SIGMA, given.votes)
            for way, ask in ways.items():
                found[way] += np.array(ask(votes, lengths_V)) / given.trials
        print(f"| {p} |", " | ".join(f"{tokens:.1f} ({time:.1f})" for tokens, time in found.values()), "|")


if __name__ == "__main__":
    main()

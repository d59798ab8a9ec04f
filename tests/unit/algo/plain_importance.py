"""The off-policy loss written down row by row and token by token, from its definition."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from megatron_spell.config.schema import AlgoSection


@dataclass
class PlainRow:
    log_probs: torch.Tensor  # at the sampling temperature, with gradient, [A]
    raw: np.ndarray  # at temperature 1, [A]
    engine: np.ndarray  # likewise, [A]
    advantage: float
    weight: float


def plain_loss(rows: list[PlainRow], algo: AlgoSection) -> torch.Tensor:
    return -torch.stack([weight * surrogate for row in rows for weight, surrogate in _terms(row, algo)]).sum()


def plain_weights(raw: np.ndarray, engine: np.ndarray, algo: AlgoSection) -> list[tuple[float, bool]]:
    """(ratio of the chosen form, cut at the cap; whether the token is trained on) of each token of a row."""
    section = algo.importance
    ratios = [math.exp(now - then) for now, then in zip(raw, engine)]
    if not ratios:
        return []
    mean = math.prod(ratios) ** (1 / len(ratios))
    row_kept = section.mask_row_low <= mean <= (section.mask_row_high or math.inf)
    found = []
    for ratio in ratios:
        chosen = {"token": ratio, "sequence_mean": mean, "sequence_product": math.prod(ratios)}[section.form]
        kept = row_kept and section.mask_token_low <= ratio <= (section.mask_token_high or math.inf)
        found.append((min(chosen, section.cap), kept))
    return found


def _terms(row: PlainRow, algo: AlgoSection):
    for number, (size, kept) in enumerate(plain_weights(row.raw, row.engine, algo)):
        if not kept:
            continue
        log_prob, advantage = row.log_probs[number], row.advantage
        ratio = size * torch.exp(log_prob - log_prob.detach())
        low = 0.0 if algo.clip_low is None else 1 - algo.clip_low
        high = math.inf if algo.clip_high is None else 1 + algo.clip_high
        clipped = ratio if low <= size <= high else torch.tensor(min(max(size, low), high), dtype=ratio.dtype)
        pair = (ratio * advantage, clipped * advantage)
        yield row.weight, min(pair, key=lambda value: value.item())

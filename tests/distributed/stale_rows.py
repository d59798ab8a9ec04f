"""Rows that an older policy wrote, and what Hugging Face's model makes of them, run one by one."""

import numpy as np
import torch

from megatron_spell.algo.losses import row_weights
from megatron_spell.config.schema import AlgoSection, ImportanceSection
from megatron_spell.types.batches import TrainRow
from tests.distributed.policy_lab import OPTIMIZER, TEMPERATURE, Reference, make_rows, with_engine_log_probs
from tests.unit.algo.plain_importance import PlainRow, plain_loss, plain_weights

FORMS = ("token", "sequence_mean", "sequence_product")


def stale_algo(form: str, **settings) -> AlgoSection:
    """Bounds that mask some tokens and some rows of the rows below, and not most."""
    bounds = {"mask_token_low": 0.01, "mask_token_high": 100.0, "mask_row_low": 0.5, "mask_row_high": 2.0}
    return AlgoSection(max_staleness=4, importance=ImportanceSection(form=form, **bounds), **settings)


def make_stale_rows(reference: Reference, seed: int) -> list[TrainRow]:
    """The engine's log-probs are the model's, moved by its own amount for each row and token."""
    rng = np.random.default_rng(seed)
    rows = make_rows(seed, draw_lengths=False)
    with torch.no_grad():
        raw = [reference.log_probs(row).numpy() for row in rows]
    drift = [rng.normal(rng.normal(scale=0.3), 0.4, found.size) for found in raw]
    drift[0][2] += 6.0  # absurd: the engine found this token far likelier
    drift[3][1] -= 2.0  # this one it found less likely, by more than the cap
    drift[8][:] += 2.0  # and this row as a whole
    return with_engine_log_probs(rows, [(found + moved).astype(np.float32) for found, moved in zip(raw, drift)])


def plain_rows(reference: Reference, rows: list[TrainRow]) -> list[PlainRow]:
    weights = row_weights(rows, "per_role")
    return [
        PlainRow(
            log_probs=reference.log_probs(row, TEMPERATURE).double(),
            raw=reference.log_probs(row).detach().double().numpy(),
            engine=row.engine_log_probs_A.astype(np.float64),
            advantage=row.advantage,
            weight=weight,
        )
        for row, weight in zip(rows, weights)
    ]


def plain_backward(reference: Reference, rows: list[TrainRow], algo: AlgoSection) -> float:
    """Gradients of the loss into the model; the loss."""
    reference.optimizer.zero_grad()
    loss = plain_loss(plain_rows(reference, rows), algo)
    loss.backward()
    return loss.item()


def plain_update(reference: Reference, rows: list[TrainRow], algo: AlgoSection) -> tuple[float, float]:
    """One step; the loss and the gradient norm before clipping."""
    loss = plain_backward(reference, rows, algo)
    norm = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), OPTIMIZER.clip_grad)
    reference.optimizer.step()
    return loss, float(norm)


def plain_figures(rows: list[PlainRow], algo: AlgoSection) -> dict[str, float]:
    """The metrics that docs/running.md promises, from their definitions."""
    ratios = np.exp(np.concatenate([row.raw - row.engine for row in rows]))
    found = [plain_weights(row.raw, row.engine, algo) for row in rows]
    whole = [plain_weights(row.raw, row.engine, _without_cap(algo)) for row in rows]
    chosen = np.array([weight for row in whole for weight, _ in row])
    kept = np.array([kept for row in found for _, kept in row])
    weights = np.array([weight for row in found for weight, _ in row]) * kept
    signs = np.concatenate([np.full(row.raw.size, np.sign(row.advantage)) for row in rows])
    means = np.array([np.exp((row.raw - row.engine).mean()) for row in rows])
    bounds = algo.importance
    return {
        "mismatch/ratio/mean": ratios.mean(),
        "mismatch/ratio/max": ratios.max(),
        "mismatch/k1": -np.log(ratios).mean(),
        "mismatch/k3": (ratios - 1 - np.log(ratios)).mean(),
        "importance/ratio/mean": chosen.mean(),
        "importance/ratio/max": chosen.max(),
        "importance/weight/mean": weights.mean(),
        "importance/effective_share": weights.sum() ** 2 / (weights**2).sum() / weights.size,
        "importance/truncated/share": (kept & (chosen > bounds.cap)).mean(),
        "importance/clipped_low/share": (kept & (signs < 0) & (weights < 0.8)).mean(),
        "importance/clipped_high/share": (kept & (signs > 0) & (weights > 1.2)).mean(),
        "importance/masked_tokens/share": (~kept).mean(),
        "importance/masked_rows/share": ((means < bounds.mask_row_low) | (means > bounds.mask_row_high)).mean(),
    }


def _without_cap(algo: AlgoSection) -> AlgoSection:
    return algo.model_copy(update={"importance": algo.importance.model_copy(update={"cap": np.inf})})

"""Supervised training of the base model: first to copy at all, then to play its three roles a little."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transcripts import Transcript

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Rows:
    """Transcripts of shared beginnings as one batch: ids, positions and labels [B, T], who sees whom [B, 1, T, T]."""

    ids_B_T: torch.Tensor
    positions_B_T: torch.Tensor
    labels_B_T: torch.Tensor
    sees_B_1_T_T: torch.Tensor
    kinds: tuple[str, ...]
    kind_B_T: torch.Tensor


def share_beginning(transcripts: Sequence[Transcript]) -> tuple[np.ndarray, ...]:
    """One row that holds each transcript's beginning only once, when it begins like the first one's prompt.

    Returns ids, positions, labels [T] and sees [T, T]; the loss is that of the transcripts run one by one.
    """
    trunk_P = transcripts[0].prompt_ids_T
    ids, positions, labels, owners, shared = (
        [trunk_P],
        [np.arange(len(trunk_P))],
        [np.full(len(trunk_P), IGNORED)],
        [],
        [],
    )
    for transcript in transcripts:
        whole_T = np.concatenate([transcript.prompt_ids_T, transcript.response_ids_A])
        num_prompt = len(transcript.prompt_ids_T)
        # at least the last prompt token stays with the branch: it predicts the first answer token
        limit = min(len(trunk_P), num_prompt - 1)
        differs = np.flatnonzero(trunk_P[:limit] != whole_T[:limit])
        num_shared = int(differs[0]) if len(differs) else limit
        target_T = np.full(len(whole_T), IGNORED)
        target_T[num_prompt - 1 : -1] = transcript.response_ids_A
        ids.append(whole_T[num_shared:])
        positions.append(np.arange(num_shared, len(whole_T)))
        labels.append(target_T[num_shared:])
        owners.append(len(whole_T) - num_shared)
        shared.append(num_shared)
    return np.concatenate(ids), np.concatenate(positions), np.concatenate(labels), _sees(len(trunk_P), owners, shared)


def _sees(num_trunk: int, lengths: Sequence[int], shared: Sequence[int]) -> np.ndarray:
    num_tokens = num_trunk + sum(lengths)
    sees_T_T = np.zeros((num_tokens, num_tokens), dtype=bool)
    sees_T_T[:num_trunk, :num_trunk] = np.tril(np.ones((num_trunk, num_trunk), dtype=bool))
    start = num_trunk
    for length, num_shared in zip(lengths, shared, strict=True):
        stop = start + length
        sees_T_T[start:stop, :num_shared] = True
        sees_T_T[start:stop, start:stop] = np.tril(np.ones((length, length), dtype=bool))
        start = stop
    return sees_T_T


def batch_rows(rows: Sequence[Sequence[Transcript]]) -> Rows:
    """Pad the shared rows of a batch to one length."""
    parts = [share_beginning(row) for row in rows]
    width = max(len(ids) for ids, *_ in parts)
    ids = torch.zeros(len(parts), width, dtype=torch.long)
    positions, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    kind = torch.full_like(ids, -1)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(parts), 1, 1, 1)
    kinds: dict[str, int] = {}
    for i, (ids_T, positions_T, labels_T, sees_T_T) in enumerate(parts):
        n = len(ids_T)
        ids[i, :n], positions[i, :n] = torch.from_numpy(ids_T), torch.from_numpy(positions_T)
        labels[i, :n], sees[i, 0, :n, :n] = torch.from_numpy(labels_T), torch.from_numpy(sees_T_T)
        starts = np.flatnonzero(labels_T != IGNORED)
        cuts = np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1)
        for transcript, cut in zip(rows[i], cuts, strict=True):
            kind[i, torch.from_numpy(cut)] = kinds.setdefault(transcript.kind, len(kinds))
    return Rows(ids, positions, labels, sees, tuple(kinds), kind)


def token_losses(model: torch.nn.Module, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, whether the likeliest token is right, kind) of every trained token; logits are made only there."""
    hidden = model.model(
        input_ids=rows.ids_B_T, attention_mask=rows.sees_B_1_T_T, position_ids=rows.positions_B_T, use_cache=False
    ).last_hidden_state
    trained = rows.labels_B_T != IGNORED
    logits, labels = model.lm_head(hidden[trained]), rows.labels_B_T[trained]
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels, rows.kind_B_T[trained]


@dataclass(frozen=True, slots=True)
class Asks:
    """Ids for the copying stage: the first that random texts may hold, and those between a question and its answer."""

    first_id: int
    between: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Distance:
    """A stage of copying: `num_rows` texts of one of `lengths` tokens out of `num_different`, then spans of them."""

    lengths: tuple[int, ...]
    num_rows: int
    num_spans: int
    num_different: int
    enough: float  # share of right tokens, from which the next stage begins
    num_unknown: int = 1  # tokens at the beginning of a span that nothing tells
    interrupted: bool = False


DISTANCES = (
    Distance((10, 12, 14), 64, 6, 1020, 0.5),
    Distance((16, 24, 32), 64, 6, 1020, 0.9),
    Distance((32, 48, 64), 64, 6, 1020, 0.9),
    # few different tokens, so that one or two that agree are not enough to find the place
    Distance((64, 96), 24, 10, 512, 0.85, 3, True),
    Distance((96, 128), 20, 10, 512, 0.9, 3, True),
    Distance((160, 256), 10, 16, 512, 0.9, 3, True),
    Distance((384, 512), 6, 24, 512, 0.9, 3, True),
    Distance((768, 1024), 4, 32, 512, 0.9, 3, True),
)
SPAN, ASKED = 8, 5  # tokens of a span, and of these before it is interrupted


def learn_to_copy(model: torch.nn.Module, seed: int, asks: Asks, max_steps: int, say: Callable[[str], None]) -> bool:
    """Random tokens, then spans of 8 of them again, over longer and longer distances; True once it copies.

    Without this step a small model learns the transcripts by heart and never looks anything up.
    """
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    level, smooth, start = 0, 0.0, time.monotonic()
    for step in range(1, max_steps + 1):
        _set_lr(optimizer, 2e-3 * min(1.0, step / 50))
        distance = DISTANCES[level]
        right = _copy_step(model, optimizer, distance, asks, rng, generator)
        smooth = 0.95 * smooth + 0.05 * right
        if step % 50 == 0:
            say(f"copying: step {step}, {time.monotonic() - start:.0f} s, distance level {level}, {smooth:.2f} right")
        if smooth > distance.enough:
            level, smooth = level + 1, 0.0
            if level == len(DISTANCES):
                say(f"copying: done after {step} steps, {time.monotonic() - start:.0f} s")
                return True
    return False


def _copy_step(
    model, optimizer, distance: Distance, asks: Asks, rng: random.Random, generator: torch.Generator
) -> float:
    ids, labels = _copies(distance, rng.choice(distance.lengths), model.config.vocab_size, asks, generator)
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
    trained = labels[:, 1:] != IGNORED
    logits, wanted = model.lm_head(hidden[trained]), labels[:, 1:][trained]
    _step(model, optimizer, F.cross_entropy(logits, wanted))
    return (logits.argmax(-1) == wanted).float().mean().item()


def _copies(distance: Distance, length: int, vocab_size: int, asks: Asks, generator: torch.Generator):
    """ids and labels [rows, length + spans]; what cannot be known at the beginning of a span has no label.

    Spans over longer distances are interrupted as an answer is from its question, by the ids in `asks.between`.
    """
    n, first_id = distance.num_rows, asks.first_id
    known = torch.stack([torch.randperm(vocab_size - first_id, generator=generator) for _ in range(n)])
    known = known[:, : distance.num_different] + first_id
    source = known.gather(1, torch.randint(0, known.shape[1], (n, length), generator=generator))
    starts = torch.randint(0, length - SPAN + 1, (n, distance.num_spans, 1), generator=generator)
    spans = source.gather(1, (starts + torch.arange(SPAN)).reshape(n, -1)).reshape(n, -1, SPAN)
    labels = spans.clone()
    labels[..., : distance.num_unknown] = IGNORED
    if distance.interrupted:
        between = torch.tensor(asks.between).expand(n, distance.num_spans, -1)
        spans = torch.cat([spans[..., :ASKED], between, spans[..., ASKED:]], 2)
        labels = torch.cat([labels[..., :ASKED], torch.full_like(between, IGNORED), labels[..., ASKED:]], 2)
    labels = torch.cat([torch.full_like(source, IGNORED), labels.flatten(1)], 1)
    return torch.cat([source, spans.flatten(1)], 1), labels


def learn_to_play(
    model: torch.nn.Module,
    batches: Callable[[float], Rows],
    num_steps: int,
    peak_lr: float,
    say: Callable[[str], None],
) -> Iterator[int]:
    """`num_steps` on `batches(share of training done)`; yields the step number after each, for measuring."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0)
    start, seen = time.monotonic(), {}
    for step in range(1, num_steps + 1):
        done = (step - 1) / num_steps
        _set_lr(optimizer, peak_lr * min(1.0, step / 50) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))))
        rows = batches(done)
        losses, right, kind = token_losses(model, rows)
        _step(model, optimizer, losses.mean())
        for index, name in enumerate(rows.kinds):
            chosen = kind == index
            share = right[chosen].float().mean().item()
            seen[name] = 0.95 * seen.get(name, share) + 0.05 * share
        if step % 50 == 0:
            shares = ", ".join(f"{name} {share:.2f}" for name, share in sorted(seen.items()))
            say(f"roles: step {step}, {time.monotonic() - start:.0f} s, tokens right: {shares}")
        yield step


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr

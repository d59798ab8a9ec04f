"""How often a model's likeliest words are the right ones, by what was asked and by how long the documents are."""

import random
from collections import defaultdict

import numpy as np
import torch
from contexts import Contexts
from transcripts import ANSWERING, Scribe, Transcript
from warm_up import IGNORED, batch_rows, token_losses

from megatron_spell.types.play import TaskName

LENGTHS = (256, 512, 1024)
ANSWER_BEGINS = 2  # tokens: the fixed opening, and the first of the words or of the vote
Table = dict[str, dict[int, tuple[float, int]]]


@torch.no_grad()
def look_up_table(
    model: torch.nn.Module, scribe: Scribe, contexts: Contexts, num_contexts: int, seed: int = 0
) -> Table:
    """kind -> document tokens -> (share that the likeliest tokens get right, number of questions).

    For the responder the share of answers that begin as the documents go on, which habits do not decide: the place was
    found; with options, that are right to the letter. For the questioner the share of right tokens: what it should ask
    is free, how it goes on is not. A verifier's votes are compared with the truth. Only questions that the documents'
    own text answers.
    """
    model.eval()
    table: Table = defaultdict(dict)
    for length in LENGTHS:
        shares: dict[str, list[float]] = defaultdict(list)
        rng = random.Random(seed)
        for _ in range(num_contexts):
            documents = contexts.draw(rng, length, salad_share=0.0, number_share=0.0)
            for kind, share in _answered(model, _questions(scribe, documents, rng)):
                shares[kind].append(share)
        for kind, values in shares.items():
            table[kind][length] = float(np.mean(values)), len(values)
    model.train()
    return table


def _questions(scribe: Scribe, documents, rng: random.Random) -> list[Transcript]:
    row = [scribe.answering(documents, task, rng, by_habit=False) for task in ANSWERING]
    row += [scribe.asking(documents, task, rng) for task in TaskName]
    row += [scribe.judging(documents, rng, noise=0.0) for _ in range(2)]
    return [transcript for transcript in row if transcript is not None]


def _answered(model: torch.nn.Module, row: list[Transcript]) -> list[tuple[str, float]]:
    rows = batch_rows([row])
    _, right, _ = token_losses(model, rows)
    # the labels of one transcript stand together, those of the next behind a gap
    places = torch.nonzero(rows.labels_B_T[0] != IGNORED).flatten()
    cuts = (torch.nonzero(places.diff() > 1).flatten() + 1).tolist()
    shares = []
    for transcript, mine in zip(row, torch.tensor_split(right, cuts), strict=True):
        begins = None if transcript.kind.endswith(TaskName.MULTIPLE_CHOICE) else ANSWER_BEGINS
        free = transcript.kind.startswith("questioner")
        shares.append((transcript.kind, mine.float().mean().item() if free else float(mine[:begins].all())))
    return shares


def table_lines(table: Table) -> list[str]:
    lines = ["".join([f"{'':30}", *(f"{length:>8}" for length in LENGTHS)]) + "   document tokens"]
    for kind in sorted(table):
        cells = (f"{table[kind][length][0]:8.2f}" if length in table[kind] else f"{'-':>8}" for length in LENGTHS)
        lines.append(f"{kind:30}" + "".join(cells) + f"   ({table[kind].get(LENGTHS[0], (0, 0))[1]} questions each)")
    return lines

"""Peak memory of the output layer's log-probs and entropies, forward and backward, as the prompt grows.

    python benchmarks/head_memory.py [--prompt 1024 16384 65536 --trained 1024]

A vocabulary of 151,936 and hidden size 64, float32, on one rank; the trained tokens' hidden states are picked out of
those of the whole bin, as in the model. The gradient of all hidden states is the only thing as long as the prompt: it
is measured with the rest, and taken off in the last column. Exit code 1 when that grows by more than 5 %.
"""

import argparse
import sys

import torch
import torch.distributed as dist
from resident import peak, start_peak
from rich.console import Console
from rich.table import Table

from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import platform, setup
from megatron_spell.policy.log_probs import score_tokens
from megatron_spell.policy.model import HEAD_CHUNK_BYTES

VOCAB, HIDDEN = 151_936, 64


def peak_of_head(num_tokens: int, num_trained: int) -> tuple[int, int]:
    """Bytes above what was held before, and those of the hidden states' gradient."""
    torch.manual_seed(0)
    with platform.device():
        hidden = torch.randn(num_tokens, 1, HIDDEN, requires_grad=True)
        weight = (0.02 * torch.randn(VOCAB, HIDDEN)).requires_grad_()
        weight.grad = torch.zeros_like(weight)
        predictors = torch.arange(num_tokens - num_trained, num_tokens)
        labels = torch.randint(0, VOCAB, (num_trained,))
    before = start_peak()
    scores = score_tokens(
        hidden[predictors, 0],
        labels,
        lambda hidden_A_D: hidden_A_D @ weight.t(),
        temperature=0.7,
        first_label=0,
        group=dist.group.WORLD,
        chunk=HEAD_CHUNK_BYTES // (4 * VOCAB),
    )
    scores.log_probs_A.sum().backward()
    return peak() - before, hidden.nbytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, nargs="+", default=[1024, 16384, 65536])
    parser.add_argument("--trained", type=int, default=1024, help="trained tokens, of all answers")
    options = parser.parse_args()
    setup.initialise(Mesh(), timeout_s=60)
    table = Table(
        title=f"{options.trained} trained tokens; whole logits would take {options.trained * VOCAB / 2**28:.2f} GiB"
    )
    for column in ("prompt", "peak MiB", "hidden states' gradient", "without it"):
        table.add_column(column, justify="right")
    peak_of_head(options.prompt[0] + options.trained, options.trained)  # warms up
    rest = []
    for prompt in options.prompt:
        highest, of_gradient = peak_of_head(prompt + options.trained, options.trained)
        rest.append(highest - of_gradient)
        table.add_row(str(prompt), *(f"{size / 2**20:.0f}" for size in (highest, of_gradient, rest[-1])))
    Console(width=120).print(table)
    setup.shut_down()
    return int(max(rest) > 1.05 * rest[0])


if __name__ == "__main__":
    sys.exit(main())

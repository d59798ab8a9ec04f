"""Gradients of one step on prefix-shared bins against the same rows run one by one: time and token ratios.

    python benchmarks/prefix_sharing.py [--prompt 512 --responses 8 --response 32 --groups 4 --repeats 5]

Single process, quickstart model. Both ways are timed in turn within one run, so that a noisy machine hits both.
The token ratio is the bound for a model whose cost is linear in tokens. Exit code 1 when the gradients differ.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from megatron_spell.algo.losses import row_weights
from megatron_spell.algo.packing import pack
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import AlgoSection, PolicySection, TrustSection
from megatron_spell.layout.mesh import Mesh
from megatron_spell.policy import setup, step
from megatron_spell.policy.worker import MegatronPolicy
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role, TaskName

BASE_MODEL = Path(__file__).parents[1] / "examples/quickstart/base_model"


def make_rows(arguments: argparse.Namespace, vocab_size: int) -> list[TrainRow]:
    rng = np.random.default_rng(0)
    rows = []
    for group in range(arguments.groups):
        prompt = rng.integers(3, vocab_size, arguments.prompt).astype(np.int32)
        for _ in range(arguments.responses):
            response = rng.integers(3, vocab_size, arguments.response).astype(np.int32)
            advantage = float(rng.normal())
            zeros = np.zeros(len(response), np.float32)
            task = TaskName.GENERAL_QA
            rows.append(TrainRow(Role.RESPONDER, task, group, prompt, response, zeros, 0.0, advantage, 0))
    return rows


def shared_and_separate(rows: list[TrainRow], max_bin_tokens: int) -> tuple[PackedBatch, PackedBatch]:
    weights = row_weights(rows, "per_role")
    shared = pack(rows, weights, num_dp=1, max_bin_tokens=max_bin_tokens)
    bins = [pack([row], weights[i : i + 1], num_dp=1, max_bin_tokens=max_bin_tokens) for i, row in enumerate(rows)]
    every = tuple(one for packed in bins for one in packed.bins_D_B[0])
    return shared, PackedBatch((every,), len(rows), shared.num_row_tokens)


def timed_gradient(policy: MegatronPolicy, batch: PackedBatch) -> tuple[float, float]:
    started = time.perf_counter()
    step.accumulate_gradients(policy.ddp, batch, policy.algo)
    seconds = time.perf_counter() - started
    policy.optimizer.prepare_grads()
    norm = float(policy.optimizer.get_grad_norm())
    policy.optimizer.zero_grad()
    return seconds, norm


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("prompt", 512), ("responses", 8), ("response", 32), ("groups", 4), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    shape = ModelShape.load(BASE_MODEL)
    setup.initialise(Mesh(), timeout_s=60)
    policy = MegatronPolicy(
        shape, PolicySection(dtype="float32"), temperature=0.7, algo=AlgoSection(), trust=TrustSection(), seed=0
    )
    policy.load_hf(BASE_MODEL)
    rows = make_rows(arguments, shape.vocab_size)
    longest = arguments.prompt + arguments.responses * arguments.response
    shared, separate = shared_and_separate(rows, max_bin_tokens=longest)
    pairs = [(timed_gradient(policy, shared), timed_gradient(policy, separate)) for _ in range(arguments.repeats + 1)]
    ratios = [slow[0] / fast[0] for fast, slow in pairs[1:]]  # the first pair warms up
    norms = [norm for pair in pairs for _, norm in pair]
    token_ratio = separate.num_bin_tokens / shared.num_bin_tokens
    sizes = f"prompt {arguments.prompt}, {arguments.responses} responses of {arguments.response}"
    print(f"{sizes}, {arguments.groups} groups")
    print(f"tokens forwarded: {separate.num_bin_tokens} separate, {shared.num_bin_tokens} shared: {token_ratio:.2f}")
    print(f"time ratio separate/shared: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"gradient norms: {min(norms):.7g} to {max(norms):.7g}")
    setup.shut_down()
    return int(max(norms) - min(norms) > 1e-4 * max(norms))


if __name__ == "__main__":
    sys.exit(main())

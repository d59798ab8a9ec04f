"""How full bins are and how evenly ranks are loaded, on mixes of rows like those of real steps."""

import numpy as np
import pytest

from megatron_spell.algo.flops import ForwardFlops
from megatron_spell.algo.packing import pack
from megatron_spell.types.batches import PackedBatch, TrainRow
from megatron_spell.types.play import Role
from tests.unit.algo.made_rows import make_row

# Of the quickstart's model, and of one of 8B parameters; the output layer is left out.
SMALL = ForwardFlops(per_token=4 * 2 * 163840, per_pair=4 * 4 * 128, per_trained_token=0)
LARGE = ForwardFlops(per_token=36 * 2 * 193 * 10**6, per_pair=36 * 4 * 4096, per_trained_token=0)


def group(rng, role: Role, number: int, prompt: int, lengths) -> list[TrainRow]:
    prompt_ids = rng.integers(3, 1280, int(prompt))
    return [make_row(prompt_ids, np.zeros(int(length)), role=role, group=number) for length in lengths]


def quickstart_rows(seed: int) -> list[TrainRow]:
    """16 questions with 8 answers each, their askers, and 4 groups of votes; lengths as in the quickstart."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(16):
        rows += group(rng, Role.RESPONDER, number, rng.integers(256, 1100), rng.integers(4, 41, 8))
    for number in range(32):
        rows += group(rng, Role.QUESTIONER, 16 + number % 4, rng.integers(256, 1100), rng.integers(20, 97, 1))
    for number in range(4):
        rows += group(rng, Role.VERIFIER, 20 + number, rng.integers(100, 200), rng.integers(2, 5, 8))
    return rows


def log_normal_rows(seed: int) -> list[TrainRow]:
    """128 groups of 8: prompts of 4K tokens and answers of 400, each times e^(+-1) or so."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(4096), 1.0, 128), 64, 30000)
    answers = [np.clip(rng.lognormal(np.log(400), 1.0, 8), 0, 4000) for _ in prompts]
    return [row for n, prompt in enumerate(prompts) for row in group(rng, Role.RESPONDER, n, prompt, answers[n])]


MIXES = {"quickstart": (quickstart_rows, 4096, SMALL), "log-normal": (log_normal_rows, 65536, LARGE)}


def packed(mix: str, num_dp: int, pad_multiple: int, seed: int = 0) -> tuple[PackedBatch, ForwardFlops]:
    make_rows, max_bin_tokens, flops = MIXES[mix]
    rows = make_rows(seed)
    sizes = {"max_bin_tokens": max_bin_tokens, "pad_multiple": pad_multiple}
    return pack(rows, np.ones(len(rows)), num_dp=num_dp, attention_tokens=flops.attention_tokens, **sizes), flops


@pytest.mark.parametrize("pad_multiple", [1, 2, 8, 32])
@pytest.mark.parametrize("num_dp", [1, 2, 4, 8])
@pytest.mark.parametrize("mix", MIXES)
def test_nearly_all_tokens_forwarded_are_of_rows(mix, num_dp, pad_multiple):
    """Padding and fillers are what is not: at most 3 % together."""
    assert packed(mix, num_dp, pad_multiple)[0].useful_token_fraction >= 0.97


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_dp", [2, 4, 8])
@pytest.mark.parametrize("mix", MIXES)
def test_ranks_have_as_much_to_do(mix, num_dp, seed):
    """The busiest rank is what a step waits for."""
    batch, flops = packed(mix, num_dp, 8, seed)
    cost_D = [flops.of_step(bins_B) for bins_B in batch.bins_D_B]
    assert max(cost_D) / np.mean(cost_D) <= 1.05


def test_the_useful_fraction_counts_padding_and_fillers():
    batch = pack([make_row([1, 2, 3], [4, 5, 6])], np.ones(1), num_dp=2, max_bin_tokens=8, pad_multiple=8)
    assert [one.num_real_tokens for bins_B in batch.bins_D_B for one in bins_B] == [5, 0]
    assert batch.useful_token_fraction == 5 / 16

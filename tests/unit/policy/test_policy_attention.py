"""Attention by segments against a dense mask in float64, forward and backward."""

import gc
from pathlib import Path

import pytest
import torch

from megatron_spell.policy.attention import PrefixAttention
from megatron_spell.policy.attention_calls import Part, grouped, parts_of
from megatron_spell.policy.attention_kernels import Blockwise, CpuFlash, CudaFlash, kernel_for, part_slices
from megatron_spell.policy.context import Share, in_bin_order
from megatron_spell.policy.setup import PolicyError
from tests.unit.policy.attention_lab import (
    CPU,
    LONG,
    NUM_SEGMENT_TOKENS,
    NUM_TOKENS,
    SEGMENTS,
    by_bin,
    by_kernel,
    by_rows,
    calls_of_rank,
    make_inputs,
    truth,
    with_gradients,
)

WHOLE = [(0, NUM_TOKENS)]
KERNELS = [CpuFlash(), Blockwise()]


def assert_close(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_output_and_gradients_equal_a_dense_mask(kernel, num_ranks, kv_heads):
    """Each context-parallel rank by its own calls; query heads in groups of 4, 2 and 1 to a key head."""
    inputs, grad = make_inputs(kv_heads=kv_heads)
    assert_close(with_gradients(by_kernel(kernel, num_ranks), inputs, grad), truth(inputs, grad), 3e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_bin_of_many_tiles_equals_its_rows_run_by_themselves(kernel):
    inputs, grad = make_inputs(num_tokens=LONG[-1][-1])
    wanted = with_gradients(by_rows, [x.detach().double().requires_grad_() for x in inputs], grad.double())
    assert_close(with_gradients(by_bin(kernel, LONG), inputs, grad), wanted, 2e-5)


def test_bfloat16_stays_bfloat16():
    inputs, grad = make_inputs(dtype=torch.bfloat16)
    found = with_gradients(by_kernel(CpuFlash()), inputs, grad)
    assert {x.dtype for x in found} == {torch.bfloat16}
    assert_close(found, truth(inputs, grad), 0.05)


def test_blocks_of_queries_add_up(monkeypatch):
    """So few scores at once that a part takes several blocks."""
    monkeypatch.setattr("megatron_spell.policy.attention_kernels.BLOCK_BYTES", 4 * 4 * 22 * 5)
    inputs, grad = make_inputs()
    assert_close(with_gradients(by_kernel(Blockwise()), inputs, grad), truth(inputs, grad), 3e-6)


def test_missing_prompt_keys_would_be_seen():
    """Planted: the responses do not see their prompts."""
    inputs, grad = make_inputs()
    alone = tuple((start, stop, start, stop) for _, _, start, stop in SEGMENTS)
    for found, wanted in zip(
        with_gradients(by_kernel(CpuFlash(), segments=alone), inputs, grad), truth(inputs, grad), strict=True
    ):
        assert (found.double() - wanted).abs().max() > 0.1


def test_a_gradient_from_the_calls_own_log_sum_exp_would_be_seen():
    """Planted: what a variable-length attention with its own backward would return for each call."""

    class Unmerged(CpuFlash):
        def backward(self, grad_out, query, key, value, out, lse, call, scale):
            return super().backward(
                grad_out, query, key, value, *self.forward(query, key, value, call, scale), call, scale
            )

    inputs, grad = make_inputs()
    found, wanted = with_gradients(by_kernel(Unmerged()), inputs, grad), truth(inputs, grad)
    assert_close(found[:1], wanted[:1], 3e-6)
    assert all((one.double() - other).abs().max() > 0.1 for one, other in zip(found[1:], wanted[1:], strict=True))


def test_strided_inputs_are_as_good_as_plain_ones():
    """Megatron cuts queries, keys and values out of one projection; what attention gets are views of it."""
    inputs, _ = make_inputs()
    views = [torch.cat((x, x), -1)[..., : x.shape[-1]] for x in inputs]
    assert not views[0].is_contiguous()
    torch.testing.assert_close(by_kernel(CpuFlash())(*views), by_kernel(CpuFlash())(*inputs), atol=0, rtol=0)


def test_shares_cover_a_bin_in_its_order():
    order = torch.cat([Share(rank, 4).tokens(NUM_TOKENS) for rank in range(4)])
    assert in_bin_order(order, 4).tolist() == list(range(NUM_TOKENS))
    assert Share(0, 2).spans(8) == [(0, 2), (6, 8)]
    assert Share(1, 2).spans(8) == [(2, 6)]
    assert Share().spans(7) == [(0, 7)]


def test_the_layout_worked_by_hand_in_the_docs():
    """docs/parallelism.md: cp = 2, a prompt of 4 tokens, answers of 4 and 3, padding of 5."""
    segments = [[0, 4, 0, 4], [0, 4, 4, 8], [0, 4, 8, 11], [11, 16, 11, 16]]
    first, second = (set(parts_of(segments, Share(rank, 2).spans(16))) for rank in range(2))
    assert first == {Part(0, 4, 0, 4, True), Part(4, 8, 12, 16, True), Part(4, 8, 11, 12)}
    assert second == {Part(0, 4, 4, 8, True), Part(4, 7, 8, 11, True), Part(7, 8, 11, 12, True), Part(0, 7, 0, 4)}


def test_neighbouring_responses_share_one_part_on_their_prompt():
    shared = [part for part in parts_of(SEGMENTS, WHOLE) if not part.causal]
    assert shared == [Part(13, 28, 0, 13), Part(50, 53, 28, 50), Part(58, 60, 57, 58)]


def test_responses_that_lie_apart_each_see_their_prompt():
    apart = [[0, 4, 0, 4], [0, 4, 4, 6], [6, 8, 6, 8], [0, 4, 8, 9]]
    assert [part for part in parts_of(apart, [(0, 9)]) if not part.causal] == [Part(4, 6, 0, 4), Part(8, 9, 0, 4)]


def test_a_whole_bin_takes_two_calls_however_many_segments_it_has():
    causal, on_prompts = calls_of_rank(0, 1)
    assert (causal.causal, on_prompts.causal) == (True, False)
    assert causal.queries == causal.keys == slice(0, NUM_SEGMENT_TOKENS)
    assert causal.query_starts.tolist() == [0, 13, 18, 27, 28, 50, 53, 57, 58, 60]
    assert on_prompts.queries.tolist() == [*range(13, 28), *range(50, 53), *range(58, 60)]
    assert on_prompts.keys.tolist() == [*range(13), *range(28, 50), 57]
    assert (on_prompts.query_starts.tolist(), on_prompts.key_starts.tolist()) == ([0, 15, 18, 20], [0, 13, 35, 36])
    assert (on_prompts.max_queries, on_prompts.max_keys) == (15, 22)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_calls_hold_every_part_once_and_a_query_once_each(num_ranks):
    for rank in range(num_ranks):
        calls = calls_of_rank(rank, num_ranks)
        assert len(calls) <= 3
        numbers = torch.arange(NUM_TOKENS)
        found = []
        for call in calls:
            queries, keys = numbers[call.queries], numbers[call.keys]
            assert len(set(queries.tolist())) == len(queries)
            for here, span in part_slices(call):
                q, k = queries[here].tolist(), keys[span].tolist()
                found.append(Part(q[0], q[-1] + 1, k[0], k[-1] + 1, call.causal))
        assert sorted(found, key=repr) == sorted(parts_of(SEGMENTS, Share(rank, num_ranks).spans(NUM_TOKENS)), key=repr)


def test_a_query_that_two_parts_have_takes_another_call():
    cut = [Part(0, 4, 8, 12, True), Part(0, 4, 6, 8), Part(0, 4, 0, 6)]
    assert grouped(cut) == [cut[:1], cut[1:2], cut[2:]]
    apart = [Part(0, 4, 8, 12, True), Part(0, 2, 6, 8), Part(2, 4, 0, 6)]
    assert grouped(apart) == [apart[:1], apart[1:]]


def test_kernels_go_by_device_dtype_and_head_size():
    gpu = torch.device("cuda", 0)
    assert isinstance(kernel_for(CPU, torch.bfloat16, 20), CpuFlash)
    assert isinstance(kernel_for(gpu, torch.bfloat16, 128), CudaFlash)
    assert isinstance(kernel_for(gpu, torch.float32, 20), Blockwise)
    for head_dim in (20, 264):
        with pytest.raises(PolicyError, match=f"head_dim = {head_dim} has no flash attention"):
            kernel_for(gpu, torch.bfloat16, head_dim)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_gpu_operators_take_what_they_are_given(num_ranks):
    """Arguments, shapes and dtypes by torch's own rules, without a GPU: meta tensors run all but the arithmetic."""
    meta = torch.device("meta")
    inputs, _ = make_inputs(meta, torch.bfloat16)
    for rank in range(num_ranks):
        calls = calls_of_rank(rank, num_ranks, meta)
        own = torch.empty_like(inputs[0][: NUM_TOKENS // num_ranks]).requires_grad_()
        out = PrefixAttention.apply(own, *inputs[1:], calls, CudaFlash(), 0.2)
        grads = torch.autograd.grad(out, [own, *inputs[1:]], torch.empty_like(own))
        assert [(x.shape, x.dtype) for x in grads] == [(x.shape, x.dtype) for x in (own, *inputs[1:])]
        assert (out.shape, out.dtype) == (own.shape, torch.bfloat16)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux")
def test_no_scores_of_a_whole_prompt_are_held():
    """One head, a prompt of 6K tokens: its scores would take 144 MB; torch's kernel tiles them, both ways."""
    num_tokens = 6_240
    segments = ((0, 6_000, 0, 6_000), (0, 6_000, 6_000, 6_120), (0, 6_000, 6_120, num_tokens))
    inputs = [torch.randn(num_tokens, 1, 16, requires_grad=True) for _ in range(3)]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident("VmRSS")
    with_gradients(by_bin(CpuFlash(), segments), inputs, torch.randn(num_tokens, 1, 16))
    assert resident("VmHWM") - before < 40e6


def resident(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))

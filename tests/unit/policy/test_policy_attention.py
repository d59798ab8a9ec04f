"""Attention by segments against a dense mask in float64, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from megatron_spell.policy.attention import Part, PrefixAttention, parts_of
from megatron_spell.policy.context import Share, in_bin_order

NUM_TOKENS, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 32
SEGMENTS = torch.tensor(
    [
        [0, 13, 0, 13],  # a prompt with three responses, one of a single token, and one that is empty
        [0, 13, 13, 18],
        [0, 13, 18, 18],
        [0, 13, 18, 27],
        [0, 13, 27, 28],
        [28, 50, 28, 50],  # a prompt with one response
        [28, 50, 50, 53],
        [53, 57, 53, 57],  # a prompt alone
        [57, 58, 57, 58],  # a prompt of one token
        [57, 58, 58, 60],
    ]
)
WHOLE = [(0, NUM_TOKENS)]
NUM_SEGMENT_TOKENS = 60  # the rest is padding outside every segment


def dense_mask(segments: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for prompt_start, prompt_stop, start, stop in segments.tolist():
        if (start, stop) != (prompt_start, prompt_stop):
            mask[start:stop, prompt_start:prompt_stop] = True
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    return mask


def with_gradients(attend, inputs, grad):
    out = attend(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def by_mask(q, k, v):
    used = slice(0, NUM_SEGMENT_TOKENS)
    mask = dense_mask(SEGMENTS)[used, used]
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    out = F.scaled_dot_product_attention(q[:, :, used], k[:, :, used], v[:, :, used], attn_mask=mask)
    return F.pad(out, (0, 0, 0, NUM_TOKENS - NUM_SEGMENT_TOKENS))


def by_segments(segments):
    return lambda q, k, v: PrefixAttention.apply(q, k, v, tuple(parts_of(segments, WHOLE)), HEAD_DIM**-0.5)


def by_shares(num_ranks):
    """What the context-parallel ranks compute, each from its own queries, put back in the order of the bin."""

    def attend(q, k, v):
        outs = []
        for rank in range(num_ranks):
            share = Share(rank, num_ranks)
            parts = tuple(parts_of(SEGMENTS, share.spans(NUM_TOKENS)))
            outs.append(PrefixAttention.apply(q[:, :, share.tokens(NUM_TOKENS)], k, v, parts, HEAD_DIM**-0.5))
        return in_bin_order(torch.cat(outs, 2).transpose(0, 2), num_ranks).transpose(0, 2)

    return attend


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, n, NUM_TOKENS, HEAD_DIM, requires_grad=True) for n in (HEADS, KV_HEADS, KV_HEADS)]


@pytest.fixture
def truth(inputs):
    torch.manual_seed(1)
    grad = torch.randn(1, HEADS, NUM_TOKENS, HEAD_DIM)
    doubles = [x.detach().double().requires_grad_() for x in inputs]
    return grad, with_gradients(by_mask, doubles, grad.double())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.bfloat16, 0.05)])
def test_output_and_gradients_equal_a_dense_mask(inputs, truth, dtype, tolerance):
    grad, expected = truth
    cast = [x.detach().to(dtype).requires_grad_() for x in inputs]
    for found, wanted in zip(with_gradients(by_segments(SEGMENTS), cast, grad.to(dtype)), expected):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_context_parallel_shares_equal_a_dense_mask(inputs, truth, num_ranks):
    grad, expected = truth
    for found, wanted in zip(with_gradients(by_shares(num_ranks), inputs, grad), expected):
        torch.testing.assert_close(found.double(), wanted, atol=3e-6, rtol=3e-6)


def test_shares_cover_a_bin_in_its_order():
    order = torch.cat([Share(rank, 4).tokens(NUM_TOKENS) for rank in range(4)])
    assert in_bin_order(order, 4).tolist() == list(range(NUM_TOKENS))
    assert Share(0, 2).spans(8) == [(0, 2), (6, 8)]
    assert Share(1, 2).spans(8) == [(2, 6)]
    assert Share().spans(7) == [(0, 7)]


def test_the_layout_worked_by_hand_in_the_docs():
    """docs/parallelism.md: cp = 2, a prompt of 4 tokens, answers of 4 and 3, padding of 5."""
    segments = torch.tensor([[0, 4, 0, 4], [0, 4, 4, 8], [0, 4, 8, 11], [11, 16, 11, 16]])
    first, second = (set(parts_of(segments, Share(rank, 2).spans(16))) for rank in range(2))
    assert first == {Part(0, 4, 0, 4, True), Part(4, 8, 12, 16, True), Part(4, 8, 11, 12)}
    assert second == {Part(0, 4, 4, 8, True), Part(4, 7, 8, 11, True), Part(7, 8, 11, 12, True), Part(0, 7, 0, 4)}


def test_missing_prompt_keys_would_be_seen(inputs, truth):
    """Planted: the responses do not see their prompts."""
    grad, expected = truth
    alone = SEGMENTS[:, [2, 3, 2, 3]]
    for found, wanted in zip(with_gradients(by_segments(alone), inputs, grad), expected):
        assert (found.double() - wanted).abs().max() > 0.1


def test_strided_inputs_are_as_good_as_plain_ones(inputs):
    """Megatron's layout is [T, 1, N, H]; what attention gets is a view of it."""
    views = [x.detach().permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for x in inputs]
    plain = by_segments(SEGMENTS)(*(x.detach() for x in inputs))
    torch.testing.assert_close(by_segments(SEGMENTS)(*views), plain, atol=0, rtol=0)


def test_neighbouring_responses_share_one_call_on_their_prompt():
    shared = [part for part in parts_of(SEGMENTS, WHOLE) if not part.causal]
    assert shared == [Part(13, 28, 0, 13), Part(50, 53, 28, 50), Part(58, 60, 57, 58)]


def test_responses_that_lie_apart_each_see_their_prompt():
    apart = torch.tensor([[0, 4, 0, 4], [0, 4, 4, 6], [6, 8, 6, 8], [0, 4, 8, 9]])
    assert [part for part in parts_of(apart, [(0, 9)]) if not part.causal] == [Part(4, 6, 0, 4), Part(8, 9, 0, 4)]

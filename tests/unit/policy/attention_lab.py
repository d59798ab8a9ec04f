"""A bin's attention by a dense mask in float64, and by the kernels, forward and backward."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_spell.policy.attention import PrefixAttention
from megatron_spell.policy.attention_calls import Call, calls_of
from megatron_spell.policy.attention_kernels import Kernel
from megatron_spell.policy.context import Share, in_bin_order

NUM_TOKENS, HEADS, KV_HEADS, HEAD_DIM = 64, 4, 2, 32
SEGMENTS = (
    (0, 13, 0, 13),  # a prompt with three responses, one of a single token, and one that is empty
    (0, 13, 13, 18),
    (0, 13, 18, 18),
    (0, 13, 18, 27),
    (0, 13, 27, 28),
    (28, 50, 28, 50),  # a prompt with one response
    (28, 50, 50, 53),
    (53, 57, 53, 57),  # a prompt alone
    (57, 58, 57, 58),  # a prompt of one token
    (57, 58, 58, 60),
)
NUM_SEGMENT_TOKENS = 60  # the rest is padding outside every segment
CPU = torch.device("cpu")


def make_inputs(
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    kv_heads: int = KV_HEADS,
    num_tokens: int = NUM_TOKENS,
    head_dim: int = HEAD_DIM,
):
    """([queries, keys, values], the output's gradient), tokens first."""
    torch.manual_seed(0)
    heads = (HEADS, kv_heads, kv_heads, HEADS)
    *inputs, grad = (torch.randn(num_tokens, n, head_dim).to(dtype) for n in heads)
    return [x.to(device).requires_grad_() for x in inputs], grad.to(device)


def with_gradients(attend: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """[output, gradients of queries, keys, values]."""
    out = attend(*inputs)
    return [out, *torch.autograd.grad(out, inputs, grad)]


def truth(inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    doubles = [x.detach().cpu().double().requires_grad_() for x in inputs]
    return with_gradients(by_mask, doubles, grad.cpu().double())


def by_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    used = slice(0, NUM_SEGMENT_TOKENS)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q, k, v = (x[used].transpose(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask()[used, used])
    return F.pad(out.transpose(0, 1), (0, 0, 0, 0, 0, NUM_TOKENS - NUM_SEGMENT_TOKENS))


def dense_mask() -> Tensor:
    mask = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for prompt_start, prompt_stop, start, stop in SEGMENTS:
        if (start, stop) != (prompt_start, prompt_stop):
            mask[start:stop, prompt_start:prompt_stop] = True
        mask[start:stop, start:stop] = torch.ones(stop - start, stop - start).tril().bool()
    return mask


# Two prompts with eight and two answers, longer than a kernel's tiles.
LONG = (
    (0, 700, 0, 700),
    *((0, 700, 700 + 90 * n, 790 + 90 * n) for n in range(8)),
    (1420, 1549, 1420, 1549),
    (1420, 1549, 1549, 1550),
    (1420, 1549, 1550, 1792),
)


def by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention of LONG, each prompt and each prompt with one answer run by itself."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    outs = []
    for prompt_start, prompt_stop, start, stop in LONG:
        prompt = torch.arange(prompt_start, prompt_stop if start != prompt_start else prompt_start)
        row = torch.cat((prompt, torch.arange(start, stop))).to(q.device)
        qs, ks, vs = (x[row].transpose(0, 1)[None] for x in (q, k, v))
        outs.append(F.scaled_dot_product_attention(qs, ks, vs, is_causal=True)[0, :, len(prompt) :].transpose(0, 1))
    return torch.cat(outs)


def by_bin(kernel: Kernel, segments: tuple) -> Callable[..., Tensor]:
    """A kernel over a whole bin, the segments of which leave no token out."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls = calls_of(segments, ((0, q.shape[0]),), q.device)
        return PrefixAttention.apply(q, k, v, calls, kernel, q.shape[-1] ** -0.5)

    return attend


def calls_of_rank(rank: int, num_ranks: int, device: torch.device = CPU, segments=SEGMENTS) -> tuple[Call, ...]:
    return calls_of(segments, tuple(Share(rank, num_ranks).spans(NUM_TOKENS)), device)


def by_kernel(kernel: Kernel, num_ranks: int = 1, segments=SEGMENTS) -> Callable[..., Tensor]:
    """What the context-parallel ranks compute, each from its own queries, put back in the order of the bin."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for rank in range(num_ranks):
            calls = calls_of_rank(rank, num_ranks, q.device, segments)
            own = q[Share(rank, num_ranks).tokens(NUM_TOKENS).to(q.device)]
            outs.append(PrefixAttention.apply(own, k, v, calls, kernel, HEAD_DIM**-0.5))
        return in_bin_order(torch.cat(outs), num_ranks)

    return attend

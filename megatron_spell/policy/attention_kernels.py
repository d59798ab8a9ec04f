"""The kernels under attention.py: softmax attention over many spans of different lengths, with log-sum-exps.

A kernel gets the queries, keys and values of one `Call`, gathered, and knows nothing of bins. Its backward is given the
output and log-sum-exp of *all* the keys a query attends to, not of the call's alone, and returns the call's share of
the gradients: P = exp(score - lse) and dS = P * (dP - sum(dO * O)) then hold over the union of the keys.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from megatron_spell.policy.attention_calls import Call, Span
from megatron_spell.policy.setup import PolicyError

MAX_FLASH_HEAD_DIM = 256
BLOCK_BYTES = 256 * 2**20  # of float32 scores that `Blockwise` holds at once


class Kernel(Protocol):
    """Queries [t, N, H], keys and values [s, K, H] of a call's parts one after the other; N is a multiple of K."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        """Outputs [t, N, H] and log-sum-exps, float32 [N, t], over the call's keys."""
        ...

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        call: Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The call's share of the gradients of `query`, `key` and `value`, given outputs and log-sum-exps merged."""
        ...


def kernel_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Kernel:
    """The kernel for tensors of this kind. Raises PolicyError where there is none."""
    if device.type != "cuda":
        return CpuFlash()
    if dtype == torch.float32:
        return Blockwise()
    if head_dim > MAX_FLASH_HEAD_DIM or head_dim % 8:
        raise PolicyError(
            f"the model's head_dim = {head_dim} has no flash attention on a GPU (a multiple of 8 up to"
            f" {MAX_FLASH_HEAD_DIM}); set policy.dtype to float32"
        )
    return CudaFlash()


class CudaFlash:
    """One launch a call: the flash attention that torch carries, float16 and bfloat16.

    torch's own `nn.attention.varlen` calls the same two operators; it keeps the log-sum-exp of one call for the way
    back, where a bin needs the merged one. Its log-sum-exps are [N, t] in variable-length form, from torch 2.6 on.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            call.query_starts,
            call.key_starts,
            max(call.max_queries, 2),  # 1 takes a path for decoding, which lays out log-sum-exps in another order
            call.max_keys,
            0.0,  # dropout
            call.causal,
            False,  # no debug mask
            scale=scale,
        )
        return out, lse

    def backward(self, grad_out, query, key, value, out, lse, call: Call, scale: float):
        return torch.ops.aten._flash_attention_backward(
            grad_out.contiguous(),
            query,
            key,
            value,
            out.contiguous(),
            lse.contiguous(),
            call.query_starts,
            call.key_starts,
            call.max_queries,
            call.max_keys,
            0.0,
            call.causal,
            torch.zeros(2, dtype=torch.uint64, device=query.device),  # random state: unused without dropout
            torch.empty(0, device=query.device),
            scale=scale,
        )


class CpuFlash:
    """torch's flash attention for CPUs, part by part; it tiles, so no scores of a whole part are ever held."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        out = query.new_empty(query.shape)
        lse = query.new_empty(query.shape[1::-1], dtype=torch.float32)
        for here, keys in part_slices(call):
            part_out, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _heads_first(query[here]),
                _heads_first(key[keys]),
                _heads_first(value[keys]),
                0.0,
                call.causal,
                scale=scale,
            )
            out[here], lse[:, here] = part_out[0].transpose(0, 1), part_lse[0]
        return out, lse

    def backward(self, grad_out, query, key, value, out, lse, call: Call, scale: float):
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value)]
        for here, keys in part_slices(call):
            shares = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _heads_first(grad_out[here]),
                _heads_first(query[here]),
                _heads_first(key[keys]),
                _heads_first(value[keys]),
                _heads_first(out[here]),
                lse[None, :, here],
                0.0,
                call.causal,
                scale=scale,
            )
            for grad, span, share in zip(grads, (here, keys, keys), shares):
                grad[span] = share[0].transpose(0, 1)
        return tuple(grads)


class Blockwise:
    """Plain matrix products over blocks of queries, for float32 on a GPU, where flash attention has no kernel."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.empty_like(query), query.new_empty(query.shape[1::-1], dtype=torch.float32)
        for here, keys, scores in _blocks(query, key, call, scale):
            lse_N_t = scores.logsumexp(-1)
            out[here] = _by_head(scores.sub_(lse_N_t.unsqueeze(-1)).exp_(), value[keys])
            lse[:, here] = lse_N_t
        return out, lse

    def backward(self, grad_out, query, key, value, out, lse, call: Call, scale: float):
        grad_query, grad_key, grad_value = (torch.zeros_like(x) for x in (query, key, value))
        for here, keys, scores in _blocks(query, key, call, scale):
            probs = scores.sub_(lse[:, here].unsqueeze(-1)).exp_()
            delta = (grad_out[here] * out[here]).sum(-1).t().unsqueeze(-1)
            grad_scores = (_scores(grad_out[here], value[keys]) - delta).mul_(probs).mul_(scale)
            grad_query[here] = _by_head(grad_scores, key[keys])
            grad_key[keys] += _of_keys(grad_scores, query[here], key.shape[1])
            grad_value[keys] += _of_keys(probs, grad_out[here], key.shape[1])
        return grad_query, grad_key, grad_value


def part_slices(call: Call) -> Iterator[tuple[slice, slice]]:
    """Where each part's queries and keys lie among the gathered ones."""
    for queries, keys in zip(_spans(call.query_starts), _spans(call.key_starts)):
        yield slice(*queries), slice(*keys)


def _spans(starts: Tensor) -> list[Span]:
    return list(pairwise(starts.tolist()))


def _heads_first(x: Tensor) -> Tensor:
    """[t, N, H] -> [1, N, t, H]."""
    return x.transpose(0, 1).unsqueeze(0)


def _blocks(query: Tensor, key: Tensor, call: Call, scale: float) -> Iterator[tuple[slice, slice, Tensor]]:
    """(queries, keys, scores [N, t, s]) of every part in blocks of queries, masked scores -inf."""
    for whole, keys in part_slices(call):
        size = max(1, BLOCK_BYTES // (4 * query.shape[1] * (keys.stop - keys.start)))
        for start in range(whole.start, whole.stop, size):
            here = slice(start, min(start + size, whole.stop))
            scores = _scores(query[here], key[keys]).mul_(scale)
            if call.causal:
                last_seen = torch.arange(here.start - whole.start, here.stop - whole.start, device=query.device)
                ahead = torch.arange(keys.stop - keys.start, device=query.device) > last_seen.unsqueeze(-1)
                scores.masked_fill_(ahead, -torch.inf)
            yield here, keys, scores


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """[t, N, H] x [s, K, H] -> [N, t, s]: each key head serves N / K query heads."""
    grouped = query.unflatten(1, (key.shape[1], -1))
    return torch.einsum("tkgh,skh->kgts", grouped, key).flatten(0, 1)


def _by_head(weights: Tensor, value: Tensor) -> Tensor:
    """[N, t, s] x [s, K, H] -> [t, N, H]."""
    grouped = weights.unflatten(0, (value.shape[1], -1))
    return torch.einsum("kgts,skh->tkgh", grouped, value).flatten(1, 2)


def _of_keys(weights: Tensor, query: Tensor, num_kv_heads: int) -> Tensor:
    """[N, t, s] x [t, N, H] -> [s, K, H], summed over the query heads that a key head serves."""
    grouped = weights.unflatten(0, (num_kv_heads, -1))
    return torch.einsum("kgts,tkgh->skh", grouped, query.unflatten(1, (num_kv_heads, -1)))

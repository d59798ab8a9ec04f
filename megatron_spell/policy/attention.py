"""Core attention over one bin: every prompt is attended once, however many responses follow it.

A response token sees its prompt (all of it) and its own response (causally). The two parts are separate attention
calls over plain slices of the packed keys and values, without a mask and without copies, merged by their log-sum-exp.
The backward pass runs the same calls with the merged output and log-sum-exp, which makes each call return its exact
share of the gradients (the identity that blockwise and ring attention rest on).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Part:
    """Queries of [start, stop) against keys of [key_start, key_stop); causal parts have equal spans."""

    start: int
    stop: int
    key_start: int
    key_stop: int

    @property
    def causal(self) -> bool:
        return self.start == self.key_start


def parts_of(segments_S_4: Tensor) -> Iterator[Part]:
    """The attention calls of a bin. Responses that lie side by side share one call on their prompt.

    A token gets its own segment's part first, then its prompt's, so that merging starts from a written output.
    """
    shared: list[Part] = []
    for prompt_start, prompt_stop, start, stop in segments_S_4.tolist():
        if start == stop:
            continue
        yield Part(start, stop, start, stop)
        if (start, stop) == (prompt_start, prompt_stop):
            continue
        last = shared[-1] if shared else None
        if last and last.stop == start and (last.key_start, last.key_stop) == (prompt_start, prompt_stop):
            shared[-1] = Part(last.start, stop, prompt_start, prompt_stop)
        else:
            shared.append(Part(start, stop, prompt_start, prompt_stop))
    yield from shared


class PrefixAttention(torch.autograd.Function):
    """[1, N, T, H] queries, [1, K, T, H] keys and values, segments [S, 4] -> [1, N, T, H].

    T tokens outside every segment (padding) get zeros. N is a multiple of K (grouped queries).
    """

    @staticmethod
    def forward(ctx, query, key, value, segments_S_4, scale):
        out = torch.zeros_like(query)
        lse = query.new_zeros(query.shape[:3], dtype=torch.float32)
        for part in parts_of(segments_S_4):
            q, k, v = _slices(part, query, key, value)
            part_out, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, part.causal, scale=scale
            )
            _merge(
                out[:, :, part.start : part.stop], lse[:, :, part.start : part.stop], part_out, part_lse, part.causal
            )
        ctx.save_for_backward(query, key, value, out, lse, segments_S_4)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        query, key, value, out, lse, segments_S_4 = ctx.saved_tensors
        grads = [torch.zeros_like(t, dtype=torch.float32) for t in (query, key, value)]
        for part in parts_of(segments_S_4):
            here = slice(part.start, part.stop)
            q, k, v = _slices(part, query, key, value)
            shares = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out[:, :, here], q, k, v, out[:, :, here], lse[:, :, here], 0.0, part.causal, scale=ctx.scale
            )
            keys = slice(part.key_start, part.key_stop)
            for grad, span, share in zip(grads, (here, keys, keys), shares):
                grad[:, :, span] += share
        return *(grad.to(query.dtype) for grad in grads), None, None


def _slices(part: Part, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    keys = slice(part.key_start, part.key_stop)
    return query[:, :, part.start : part.stop], key[:, :, keys], value[:, :, keys]


def _merge(out: Tensor, lse: Tensor, part_out: Tensor, part_lse: Tensor, first: bool) -> None:
    """Fold a part into `out` and `lse` in place: softmax over the union of both parts' keys."""
    if first:
        out.copy_(part_out)
        lse.copy_(part_lse)
        return
    total = torch.logaddexp(lse, part_lse)
    merged = out * (lse - total).exp().unsqueeze(-1) + part_out * (part_lse - total).exp().unsqueeze(-1)
    out.copy_(merged)
    lse.copy_(total)


class PrefixCoreAttention(MegatronModule):
    """Takes the place of Megatron's core attention in a layer spec.

    Megatron hands the `attention_mask` argument through every layer (and through activation recompute) untouched:
    here it carries the bin's segments, int64 [S, 4], on the CPU.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale if softmax_scale is not None else config.kv_channels**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: object = None,
    ) -> Tensor:
        """[T, 1, N, H] queries, [T, 1, K, H] keys and values -> [T, 1, N * H]."""
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = PrefixAttention.apply(q, k, v, attention_mask, self.scale)
        return out.permute(2, 0, 1, 3).flatten(2)

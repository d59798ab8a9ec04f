"""Core attention over one bin: every prompt is attended once, however many responses follow it.

A response token sees its prompt (all of it) and its own response (causally). The two parts are separate attention
calls over plain slices of the packed keys and values, without a mask and without copies, merged by their log-sum-exp.
The backward pass runs the same calls with the merged output and log-sum-exp, which makes each call return its exact
share of the gradients (the identity that blockwise and ring attention rest on).

Under context parallelism a rank has the queries of some stretches of the bin (context.py) and gathers all keys and
values; a segment that a stretch cuts splits into one more slice, the keys of its own segment in front of the stretch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_spell.policy.context import Share, in_bin_order


@dataclass(frozen=True, slots=True)
class Part:
    """Local queries of [start, stop) against the bin's keys of [key_start, key_stop).

    The two spans of a causal part are the same tokens. Every token has one causal part, which holds itself.
    """

    start: int
    stop: int
    key_start: int
    key_stop: int
    causal: bool = False


def parts_of(segments_S_4: Tensor, spans: Sequence[tuple[int, int]]) -> Iterator[Part]:
    """The attention calls of the queries in `spans` of a bin, which lie one after the other.

    Responses that lie side by side share one call on their prompt. A token gets its causal part first, so that merging
    starts from a written output.
    """
    shared: list[Part] = []
    num_before = 0  # queries of the spans before this one
    for first, last in spans:
        shift = num_before - first
        for prompt_start, prompt_stop, start, stop in segments_S_4.tolist():
            low, high = max(start, first), min(stop, last)
            if low >= high:
                continue
            yield Part(low + shift, high + shift, low, high, causal=True)
            if start < low:
                yield Part(low + shift, high + shift, start, low)
            if (start, stop) != (prompt_start, prompt_stop):
                _append(shared, Part(low + shift, high + shift, prompt_start, prompt_stop))
        num_before += last - first
    yield from shared


def _append(parts: list[Part], part: Part) -> None:
    """Add a part, or lengthen the one before it when that has the same keys."""
    before = parts[-1] if parts else None
    if before and before.stop == part.start and (before.key_start, before.key_stop) == (part.key_start, part.key_stop):
        parts[-1] = Part(before.start, part.stop, part.key_start, part.key_stop)
    else:
        parts.append(part)


class PrefixAttention(torch.autograd.Function):
    """[1, N, T/cp, H] queries, [1, K, T, H] keys and values, the queries' parts -> [1, N, T/cp, H].

    Queries without a part (outside every segment) get zeros. N is a multiple of K (grouped queries).
    """

    @staticmethod
    def forward(ctx, query, key, value, parts, scale):
        out = torch.zeros_like(query)
        lse = query.new_zeros(query.shape[:3], dtype=torch.float32)
        for part in parts:
            q, k, v = _slices(part, query, key, value)
            part_out, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, part.causal, scale=scale
            )
            _merge(
                out[:, :, part.start : part.stop], lse[:, :, part.start : part.stop], part_out, part_lse, part.causal
            )
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.zeros_like(t, dtype=torch.float32) for t in (query, key, value)]
        for part in ctx.parts:
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
        self.cp_group = parallel_state.get_context_parallel_group() if pg_collection is None else pg_collection.cp
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
        """[T/cp, 1, N, H] queries, [T/cp, 1, K, H] keys and values -> [T/cp, 1, N * H]."""
        share = Share(self.cp_group.rank(), self.cp_group.size())
        parts = tuple(parts_of(attention_mask, share.spans(query.shape[0] * share.parts)))
        if share.parts > 1:
            key, value = self._of_whole_bin(key, value)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        out = PrefixAttention.apply(q, k, v, parts, self.scale)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _of_whole_bin(self, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Both from all context-parallel ranks, [T, 1, K, H]; their gradients are summed over the ranks."""
        both = torch.stack((key, value), 1)
        gathered = gather_from_sequence_parallel_region(both, tensor_parallel_output_grad=True, group=self.cp_group)
        return in_bin_order(gathered, self.cp_group.size()).unbind(1)

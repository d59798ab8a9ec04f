"""Core attention over one bin: every prompt is attended once, however many responses follow it.

A response token sees its prompt (all of it) and its own response (causally). The two are separate kernel calls, one
for all segments of the bin and one for all responses on their prompts (attention_calls.py), without a mask, merged by
their log-sum-exp. The backward pass runs the same calls with the merged output and log-sum-exp, which makes each return
its exact share of the gradients (the identity that blockwise and ring attention rest on).

Under context parallelism a rank has the queries of some stretches of the bin (context.py) and gathers all keys and
values; the tokens of a segment that a stretch cuts need a third call, on the keys of their segment in front of it.
"""

import torch
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_spell.policy.attention_calls import calls_of
from megatron_spell.policy.attention_kernels import kernel_for
from megatron_spell.policy.context import Share, in_bin_order


class PrefixAttention(torch.autograd.Function):
    """[T/cp, N, H] queries, [T, K, H] keys and values, the calls that their segments make -> [T/cp, N, H].

    Queries that are in no call (outside every segment) get zeros. N is a multiple of K (grouped queries).
    """

    @staticmethod
    def forward(ctx, query, key, value, calls, kernel, scale):
        first, *others = calls
        out, lse = kernel.forward(query[first.queries], key[first.keys], value[first.keys], first, scale)
        out, lse = _placed(out, first.queries, query.shape[0]), _placed(lse, first.queries, query.shape[0], dim=1)
        for call in others:
            share = kernel.forward(query[call.queries], key[call.keys], value[call.keys], call, scale)
            _merge(out, lse, call.queries, *share)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.kernel, ctx.scale = calls, kernel, scale
        return out

    @staticmethod
    def backward(ctx, grad_out):
        query, key, value, out, lse = ctx.saved_tensors
        grads: list[Tensor] = []
        for call in ctx.calls:
            rows = call.queries
            shares = ctx.kernel.backward(
                grad_out[rows],
                query[rows],
                key[call.keys],
                value[call.keys],
                out[rows],
                lse[:, rows],
                call,
                ctx.scale,
            )
            spans = (rows, call.keys, call.keys)
            if grads:
                for grad, span, share in zip(grads, spans, shares):
                    _add(grad, span, share)
            else:
                grads = [_placed(share, span, x.shape[0]) for share, span, x in zip(shares, spans, (query, key, value))]
        return *grads, None, None, None


def _placed(share: Tensor, rows: slice | Tensor, size: int, dim: int = 0) -> Tensor:
    """`share` at `rows` of a tensor of `size` rows along `dim`, zero elsewhere; itself where it is all of them."""
    if isinstance(rows, slice) and rows == slice(0, size):
        return share
    whole = share.new_zeros([*share.shape[:dim], size, *share.shape[dim + 1 :]])
    whole[(slice(None),) * dim + (rows,)] = share
    return whole


def _add(whole: Tensor, rows: slice | Tensor, share: Tensor) -> None:
    if isinstance(rows, slice):
        whole[rows] += share
    else:
        whole.index_add_(0, rows, share)  # a prompt whose responses lie apart occurs more than once


def _merge(out: Tensor, lse: Tensor, rows: slice | Tensor, part_out: Tensor, part_lse: Tensor) -> None:
    """Fold a call into `out` and `lse` in place: softmax over the union of the keys."""
    total = torch.logaddexp(lse[:, rows], part_lse)
    before, added = ((x - total).exp().t().unsqueeze(-1) for x in (lse[:, rows], part_lse))
    out[rows] = (out[rows] * before + part_out * added).to(out.dtype)
    lse[:, rows] = total


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
        segments = tuple(map(tuple, attention_mask.tolist()))
        calls = calls_of(segments, tuple(share.spans(query.shape[0] * share.parts)), query.device)
        if share.parts > 1:
            key, value = self._of_whole_bin(key, value)
        q, k, v = (x.squeeze(1) for x in (query, key, value))
        kernel = kernel_for(q.device, q.dtype, q.shape[-1])
        return PrefixAttention.apply(q, k, v, calls, kernel, self.scale).flatten(1).unsqueeze(1)

    def _of_whole_bin(self, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Both from all context-parallel ranks, [T, 1, K, H]; their gradients are summed over the ranks."""
        both = torch.stack((key, value), 1)
        gathered = gather_from_sequence_parallel_region(both, tensor_parallel_output_grad=True, group=self.cp_group)
        return in_bin_order(gathered, self.cp_group.size()).unbind(1)

"""Floating-point operations of a training pass: what a token, an attended pair and a trained token cost.

Matrix products only, a multiplication and an addition counted as two, as model FLOPs are usually counted: norms, rotary
positions and the softmax are left out, and so is what is computed again to save memory. Of a mixture of experts, those
that a token goes to.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.types.batches import Bin

BACKWARD_FLOPS = 2  # per forward FLOP: every product has one for each of its two gradients


@dataclass(frozen=True, slots=True)
class ForwardFlops:
    """Of the whole model, forward only."""

    per_token: int  # through the matrices of all layers
    per_pair: int  # a query and one key that it attends to: the score and the value's share
    per_trained_token: int  # through the output layer

    @classmethod
    def of(cls, shape: ModelShape) -> "ForwardFlops":
        columns = shape.head_dim * (2 * shape.num_heads + 2 * shape.num_kv_heads)
        if shape.experts is None:
            columns += 3 * shape.ffn_size
        else:
            columns += shape.experts.count + 3 * shape.experts.per_token * shape.experts.ffn_size
        return cls(
            per_token=2 * shape.num_layers * shape.hidden_size * columns,
            per_pair=4 * shape.num_layers * shape.num_heads * shape.head_dim,
            per_trained_token=2 * shape.hidden_size * shape.vocab_size,
        )

    @property
    def attention_tokens(self) -> float:
        """Attending to this many keys costs a token as much as all matrices: about 6 * hidden size."""
        return self.per_token / self.per_pair

    def of_step(self, bins: Iterable[Bin]) -> int:
        """Forward and backward over all bins, padding included."""
        return (1 + BACKWARD_FLOPS) * sum(
            packed.num_tokens * self.per_token
            + attended_pairs(packed.segments_S_4) * self.per_pair
            + packed.labels_A.size * self.per_trained_token
            for packed in bins
        )


def attended_pairs(segments_S_4: np.ndarray) -> int:
    """Pairs of a query and a key that it attends to, by the segment table of a `Bin`."""
    prompt_start, prompt_stop, start, stop = segments_S_4.astype(np.int64).T
    own, prompt = stop - start, np.where(start == prompt_start, 0, prompt_stop - prompt_start)
    return int((own * prompt + own * (own + 1) // 2).sum())

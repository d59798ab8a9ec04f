"""How fast each dim of a head rotates with the position, as transformers computes it."""

from math import ceil, floor, log, pi

import torch
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.rope import Llama3Scaling, YarnScaling


def inverse_frequencies(shape: ModelShape) -> Tensor:
    """Angle per position of each pair of dims: float32 [H / 2]."""
    plain = 1.0 / shape.rope_theta ** (torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    if isinstance(shape.rope_scaling, Llama3Scaling):
        return _llama3(plain, shape.rope_scaling)
    if isinstance(shape.rope_scaling, YarnScaling):
        return _yarn(plain, shape.rope_scaling, shape.rope_theta)
    return plain


def attention_scale(shape: ModelShape) -> float:
    """What a query times a key is multiplied by before the softmax.

    YaRN multiplies cos and sin by its attention factor. Queries and keys rotate as a whole, so both grow by it and
    their product by its square; scaling the product instead leaves the rotation alone in every kernel.
    """
    scaling = shape.rope_scaling
    factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
    return shape.head_dim**-0.5 * factor**2


def _llama3(plain: Tensor, scaling: Llama3Scaling) -> Tensor:
    # rotations within the original length: few are slow, many are fast
    rotations = scaling.original_positions / (2 * pi / plain)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return _blend(plain, scaling.factor, kept.clamp(0, 1))


def _yarn(plain: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    half = plain.numel()

    def dim_with(rotations: float) -> float:
        """The (fractional) index of the pair that turns so many times within the original length."""
        return half * log(scaling.original_positions / (rotations * 2 * pi)) / log(theta)

    first, last = dim_with(scaling.beta_fast), dim_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    width = last - first or 0.001  # as transformers avoids dividing by zero
    ramp = ((torch.arange(half, dtype=torch.float32) - first) / width).clamp(0, 1)
    return _blend(plain, scaling.factor, 1 - ramp)


def _blend(plain: Tensor, factor: float, kept: Tensor) -> Tensor:
    """`kept` (0 to 1) of the frequency as it is, the rest divided by `factor`."""
    return kept * plain + (1 - kept) * plain / factor

"""Whose layers and kernels the policy computes with: the one place that asks what is installed and on what it runs.

Transformer Engine's layers stand unfused, norm and linear layer apart, so that parameters have the names of Megatron's
own layers and one family table serves both. That costs next to nothing: in bfloat16 the fused module runs the same two
kernels one after the other, and saves the norm's output as well; only 8-bit training, which is not offered, gains.

Optimizers need no switch: megatron-core takes Transformer Engine's FusedAdam where that imports, else Apex's, else
torch's AdamW. Apex has no RMS norm that Megatron would use.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from megatron.core.extensions.transformer_engine import HAVE_TE, TENorm
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.models.backends import BackendSpecProvider, LocalSpecProvider
from megatron.core.tensor_parallel import layers as parallel_layers
from megatron.core.utils import is_te_min_version

from megatron_spell.policy.setup import PolicyError

OLDEST_TRANSFORMER_ENGINE = "2.0.0"


@dataclass(frozen=True, slots=True)
class Found:
    """What this process has: a GPU, a usable Transformer Engine, Apex's kernel that adds up weight gradients."""

    gpu: bool
    transformer_engine: bool
    wgrad_kernel: bool

    @classmethod
    def here(cls) -> "Found":
        return cls(
            gpu=torch.cuda.is_available(),
            transformer_engine=HAVE_TE and is_te_min_version(OLDEST_TRANSFORMER_ENGINE),
            wgrad_kernel=parallel_layers._grad_accum_fusion_available,
        )


@dataclass(frozen=True, slots=True)
class Backend:
    """The choice: `settings` are fields of Megatron's TransformerConfig that go with it."""

    name: Literal["local", "transformer_engine"]
    settings: Mapping[str, bool] = field(default_factory=dict)

    @property
    def grouped_experts(self) -> bool:
        """One grouped product for all experts of a rank, instead of a module for each."""
        return self.name == "transformer_engine"

    def modules(self) -> BackendSpecProvider:
        """Where a layer spec takes its linear layers and experts from."""
        return UnfusedTransformerEngine() if self.name == "transformer_engine" else LocalSpecProvider()

    def norm(self, local: type) -> type:
        """The RMS norm; `local` is the one of our own."""
        return TENorm if self.name == "transformer_engine" else local


class UnfusedTransformerEngine(TESpecProvider):
    """Transformer Engine's modules with norms of their own."""

    def fuse_layernorm_and_linear(self) -> bool:
        return False


def choose_backend(wanted: str, dtype: str, found: Found) -> Backend:
    """Decide from `policy.backend`, `policy.dtype` and what there is. Raises PolicyError when that is not there.

    Transformer Engine multiplies float32 matrices in TF32 (its cublaslt_gemm.cu); float32 is asked for where figures
    must agree, so it takes the local layers unless told otherwise.
    """
    usable = found.gpu and found.transformer_engine
    if wanted == "transformer_engine" and not usable:
        lack = f"Transformer Engine {OLDEST_TRANSFORMER_ENGINE} or newer" if found.gpu else "a GPU"
        raise PolicyError(f"policy.backend = transformer_engine: {lack} is not here; use auto or local")
    takes_it = wanted == "transformer_engine" or (wanted == "auto" and usable and dtype != "float32")
    name = "transformer_engine" if takes_it else "local"
    return Backend(name, _fusions(found))


def _fusions(found: Found) -> dict[str, bool]:
    """Which fused kernels are on: those that compute the same.

    Off are fusions of softmax (attention is our own), of bias and dropout (there are none), of the persistent norm
    (Apex's layer norm only) and, unless asked for, of the rotation.
    """
    return {
        "bias_activation_fusion": found.gpu,
        # Megatron's own output layer wants Apex's kernel even beside Transformer Engine's layers.
        "gradient_accumulation_fusion": found.gpu and found.wgrad_kernel,
        "bias_dropout_fusion": False,
        "masked_softmax_fusion": False,
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
    }

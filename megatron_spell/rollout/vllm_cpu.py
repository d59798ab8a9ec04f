"""What vLLM 0.32.0's CPU build lacks for engines of several workers, and a way to serve from plain weights.

Applied in vLLM's worker processes, each with its reason; on other platforms nothing here is called.
"""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts, X86CPUUnquantizedExperts
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


def run_several_workers() -> None:
    """Make expert parallelism and pipeline stages run. Idempotent."""
    _patch(CPUUnquantizedExperts, "apply", _with_local_experts)
    _patch(CPUModelRunner, "initialize_kv_cache", _with_stage_buffers)


def keep_plain_weights() -> None:
    """Serve from the parameters as the checkpoint has them, in place of packed copies. Idempotent.

    vLLM packs linear weights for oneDNN or AMX and frees the originals, and re-lays experts. Without both kernels its
    own fallback is torch's linear on the live parameter; experts have no such fallback and get one here. Slower, but
    new weights can be written in place.
    """
    ops._supports_onednn = False
    layer_utils.check_cpu_sgl_kernel = lambda n, k, dtype: False
    for experts in (CPUUnquantizedExperts, X86CPUUnquantizedExperts):
        experts.process_weights_after_loading = _leave_plain
        experts.apply = _plain_experts


def packed_experts(layer: torch.nn.Module) -> CPUUnquantizedExperts | None:
    """The kernel that has re-laid the experts of `layer`, None where they are plain or there are none."""
    kernel = getattr(getattr(layer, "quant_method", None), "moe_kernel", None)
    experts = getattr(kernel, "fused_experts", None)
    if not isinstance(experts, CPUUnquantizedExperts) or experts._use_zentorch:
        return None
    return None if type(experts).process_weights_after_loading is _leave_plain else experts


def _leave_plain(self: Any, layer: torch.nn.Module) -> None:
    """In place of packing."""


def _patch(owner: type, name: str, make: Any) -> None:
    original = getattr(owner, name)
    if not hasattr(original, "adapted"):
        adapted = make(original)
        adapted.adapted = True
        setattr(owner, name, adapted)


def _with_local_experts(original: Any) -> Any:
    """The kernel takes global expert indices for its own: with experts elsewhere it reads past its weights and dies.

    Tokens of absent experts go to a present one with weight 0; the workers' outputs are added up afterwards.
    """

    def apply(self: Any, *args: Any, **kwargs: Any) -> None:
        expert_map = kwargs["expert_map"]
        if expert_map is not None:
            ids, weights = local_experts(kwargs["topk_ids"], kwargs["topk_weights"], expert_map)
            kwargs |= {"topk_ids": ids, "topk_weights": weights}
        original(self, *args, **kwargs)

    return apply


def local_experts(
    topk_ids: torch.Tensor, topk_weights: torch.Tensor, expert_map: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Local indices and weights of the chosen experts [T, K]; weight 0 where `expert_map` says -1 (elsewhere)."""
    ids = expert_map[topk_ids.long()]
    return ids.clamp(min=0).to(topk_ids.dtype), torch.where(ids < 0, 0.0, topk_weights)


def _with_stage_buffers(original: Any) -> Any:
    """A later stage copies what it receives into buffers that only a profiling run makes.

    With a given cache size and eager execution there is none, and the first request ends the engine.
    """

    def initialize_kv_cache(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.distributed.parallel_state import get_pp_group

        original(self, *args, **kwargs)
        if not get_pp_group().is_first_rank and self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )

    return initialize_kv_cache


def _plain_experts(
    self: Any,
    *,
    output: torch.Tensor,
    hidden_states: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None,
    **_: Any,
) -> None:
    """The mixture written out for SiLU: `w1` [E, gate over up, D], `w2` [E, D, M], tokens [T, D]."""
    if expert_map is not None:
        topk_ids, topk_weights = local_experts(topk_ids, topk_weights, expert_map)
    total = torch.zeros_like(output)  # `output` may be the input's own memory
    for expert in topk_ids.unique().tolist():
        tokens, choices = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (hidden_states[tokens] @ w1[expert].T).chunk(2, dim=-1)
        contribution = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        total.index_add_(0, tokens, contribution * topk_weights[tokens, choices, None].to(output.dtype))
    output.copy_(total)

"""What vLLM 0.32.0 needs around its own layerwise weight reload. The one place; each with its reason.

`prepare_reload` runs before `initialize_layerwise_reload`, `check_loaded` before and `repair_reload` after
`finalize_layerwise_reload`.
"""

import torch
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo
from vllm.platforms import current_platform


class PartialWeights(ValueError):
    """Some layers were given no weights, or only a part."""


def prepare_reload(model: torch.nn.Module) -> None:
    """Make every unquantised mixture-of-experts layer pack its experts again (CPU, vLLM 0.32.0).

    `UnquantizedFusedMoEMethod` packs when `moe_kernel` is None, which it is only the first time; a second load leaves
    raw weights where the kernel reads packed ones, silently.
    """
    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def check_loaded(model: torch.nn.Module) -> None:
    """Raise PartialWeights where a layer still waits for weights; vLLM only logs it and keeps the old ones.

    A layer that shares its weights with one that was fed (a tied output projection) waits for nothing, nor do
    attention layers, whose only weights are the scales of a quantised cache. Padding rows of the vocabulary never come.
    """
    states = {name: (layer, get_layerwise_info(layer)) for name, layer in model.named_modules()}
    fed: set[int] = set()
    for layer, info in states.values():
        if not info.can_load():  # complete: its weights are in place already
            fed.update(id(p) for p in layer.parameters(recurse=False))
        elif info.load_numel > 0:
            fed.update(id(p) for p in info.kernel_tensors[0].values())
    waiting = [
        f"{name} ({info.load_numel} of {info.load_numel_total} elements)"
        for name, (layer, info) in states.items()
        if info.can_load() and not is_deferred_attention_layer(layer) and _waits(layer, info, fed)
    ]
    if waiting:
        raise PartialWeights(f"{len(waiting)} layer(s) did not get all their weights: {', '.join(waiting[:4])}")


def _waits(layer: torch.nn.Module, info: LayerReloadingInfo, fed: set[int]) -> bool:
    if info.load_numel > 0:
        return not isinstance(layer, VocabParallelEmbedding)
    return any(id(p) not in fed for p in info.kernel_tensors[0].values())


def repair_reload(model: torch.nn.Module) -> None:
    """Pack the output projection again where it is tied to the embedding (CPU, vLLM 0.32.0).

    Its packed copy hangs in a closure (`cpu_linear`) that the reload does not touch, because the tied weight belongs
    to the embedding; logits would come from the old weights, silently.
    """
    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    for layer in model.modules():
        if isinstance(layer, VocabParallelEmbedding) and hasattr(layer, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

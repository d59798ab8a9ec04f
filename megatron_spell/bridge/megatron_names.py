"""The names that the tables give to a trainer's parameters, for every way megatron-core 0.16 lays a layer out.

The tables speak of the plain local layers. Transformer Engine's fused and grouped modules and the legacy grouped
experts hold the same numbers under other names, some of them transposed; here each is found as a view, so that reading
and writing go straight to the parameter.
"""

import re
from collections.abc import Iterable, Iterator

import torch

# TELayerNormColumnParallelLinear: a norm inside of the linear layer that it precedes.
_FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}
# TEGroupedMLP numbers the experts' weights: `experts.linear_fc1.weight3`, each laid out as a module's of its own.
_GROUPED = re.compile(r"\bexperts\.(linear_fc[12])\.(weight|bias)(\d+)$")
# GroupedMLP: all experts of a rank in one parameter, which `forward` views as [experts, rows in, rows out].
_LEGACY = re.compile(r"\bexperts\.weight([12])$")


def table_name(name: str) -> str:
    """The table's name of a parameter that is laid out as the table says, but called otherwise."""
    for theirs, ours in _FUSED_NORMS.items():
        if name.endswith("." + theirs):
            return name.removesuffix(theirs) + ours
    return _GROUPED.sub(r"experts.local_experts.\3.\1.\2", name)


def table_tensors(
    parameters: Iterable[tuple[str, torch.Tensor]], num_local_experts: int = 0
) -> dict[str, torch.Tensor]:
    """Parameters, or views of them, by the table's names; `num_local_experts` is of this rank."""
    return dict(found for name, tensor in parameters for found in _found(name, tensor, num_local_experts))


def _found(name: str, tensor: torch.Tensor, num_local_experts: int) -> Iterator[tuple[str, torch.Tensor]]:
    legacy = _LEGACY.search(name)
    if legacy is None:
        yield table_name(name), tensor
        return
    fc = legacy.group(1)
    hidden = tensor.shape[0] if fc == "1" else tensor.shape[1]
    sizes = (num_local_experts, hidden, -1) if fc == "1" else (num_local_experts, -1, hidden)
    for expert, transposed in enumerate(tensor.detach().view(sizes)):
        yield f"{name[: legacy.start()]}experts.local_experts.{expert}.linear_fc{fc}.weight", transposed.t()

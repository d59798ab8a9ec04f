"""The weights that a live vLLM model computes with, as plain tensors, also where a CPU kernel keeps them packed."""

from collections.abc import Iterator, Mapping

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

HEAD = "lm_head.weight"
EYE_ROWS = 1024  # columns of a packed weight read at a time
DIGITS = 256  # positions are packed as digits that bfloat16 holds exactly


class LiveWeights(Mapping[str, torch.Tensor]):
    """Parameter name -> its values, in its plain shape.

    What a kernel keeps packed is read back from the packed copy, which is what it computes with; the last such tensor
    is kept. An output layer that is tied to the embedding and packed beside it stands here as "lm_head.weight" too.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._owners = {
            f"{prefix}.{name}": (layer, name)
            for prefix, layer in model.named_modules()
            for name, _ in layer.named_parameters(recurse=False)
        }
        names = [name for name, _ in model.named_parameters()]
        tied = HEAD in self._parameters and HEAD not in names and self.is_packed(HEAD)
        self._names = [*names, HEAD] if tied else names
        self._last: tuple[str, torch.Tensor] | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        if not self.is_packed(name):
            return self._parameters[name].detach()
        if self._last is None or self._last[0] != name:
            self._last = None  # not two at a time
            self._last = name, _unpacked(*self._owners[name])
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def is_packed(self, name: str) -> bool:
        """Whether the model computes from something else than the parameter as it stands there."""
        if not current_platform.is_cpu():
            return False
        from megatron_spell.rollout.vllm_cpu import packed_experts

        layer, own = self._owners[name]
        if own in ("w13_weight", "w2_weight"):
            return packed_experts(layer) is not None
        if own != "weight" or not hasattr(layer, "cpu_linear"):
            return False
        return layer.weight.numel() == 0 or (isinstance(layer, ParallelLMHead) and not _reads_parameter(layer))


def _reads_parameter(layer: torch.nn.Module) -> bool:
    """Whether the layer's kernel computes from the weight it is given: zeros must give zeros."""
    weight = layer.weight
    return not layer.cpu_linear(weight.new_ones(1, weight.shape[1]), torch.zeros_like(weight), None).any()


def _unpacked(layer: torch.nn.Module, name: str) -> torch.Tensor:
    return _unpacked_linear(layer) if name == "weight" else _unpacked_experts(layer, name)


def _unpacked_linear(layer: torch.nn.Module) -> torch.Tensor:
    """[N, K] of a packed linear layer: its kernel applied to the unit vectors."""
    num_columns = getattr(layer, "input_size_per_partition", layer.input_size)
    eye = torch.eye(num_columns, dtype=layer.params_dtype)
    return torch.cat([layer.cpu_linear(rows, layer.weight, None) for rows in eye.split(EYE_ROWS)]).T.contiguous()


def _unpacked_experts(layer: torch.nn.Module, name: str) -> torch.Tensor:
    """[E, rows, columns] of re-laid experts, without the kernel's padding.

    Packing moves elements within an expert; where to is found by packing their positions, digit by digit.
    """
    from vllm._custom_ops import cpu_prepack_moe_weight

    from megatron_spell.rollout.vllm_cpu import packed_experts

    packed, experts = getattr(layer, name).detach(), packed_experts(layer)
    positions = torch.arange(packed[0].numel())
    found, digit = torch.zeros_like(positions), 1
    while digit <= positions[-1]:
        digits = (positions // digit % DIGITS).to(packed.dtype).view(1, *packed.shape[1:])
        found += cpu_prepack_moe_weight(digits, experts.isa).reshape(-1).long() * digit
        digit *= DIGITS
    plain = torch.empty_like(packed).view(len(packed), -1)
    plain[:, found] = packed.reshape(len(packed), -1)
    return _without_padding(plain.view_as(packed), layer.moe_config.intermediate_size_per_partition, name)


def _without_padding(plain: torch.Tensor, size: int, name: str) -> torch.Tensor:
    if name == "w2_weight":
        return plain[..., :size]
    gate, up = plain.chunk(2, dim=1)
    return torch.cat([gate[:, :size], up[:, :size]], dim=1)

"""What the optimizer steps, as whole local parameters: the float32 weights and AdamW's moments.

A plain optimizer holds them whole. Megatron's distributed optimizer lays a stage's parameters end to end in a flat
buffer and gives every data-parallel rank (context-parallel ranks count as such) one stretch of it, so that a rank
holds a flat range of some parameters and nothing of others. Here ranges are put together for a checkpoint and taken
apart again, so that checkpoints know nothing of who held what.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor
from torch.optim import AdamW

Parameters = Mapping[str, torch.nn.Parameter]  # of this rank, by local name
WEIGHT, FIRST_MOMENT, SECOND_MOMENT = "weight", "exp_avg", "exp_avg_sq"


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Elements [start, stop) of a parameter, flat: this rank's own `state` of it, the optimizer's tensors themselves.

    `state` maps WEIGHT, the moments and, where they are counted by weight, "step" to tensors; it is empty where the
    rank holds nothing.
    """

    name: str
    parameter: Tensor
    start: int
    stop: int
    state: Mapping[str, Tensor]

    @property
    def is_whole(self) -> bool:
        return self.stop - self.start == self.parameter.numel()


def whole_state(optimizer: MegatronOptimizer, parameters: Parameters, key: str) -> dict[str, Tensor]:
    """One kind of state (WEIGHT or a moment) by local name; every data-parallel rank calls it.

    Where each rank holds parameters whole these are the optimizer's own tensors, else copies gathered from all ranks.
    """
    whole = blank_state(optimizer, parameters, key)
    if _is_distributed(optimizer):
        for piece in _pieces(optimizer, parameters):
            flat = whole[piece.name].view(-1)
            if piece.state:
                flat[piece.start : piece.stop] = piece.state[key].flatten()
            _sum(flat, _replicas_of(piece.parameter))
    return whole


def blank_state(optimizer: MegatronOptimizer, parameters: Parameters, key: str) -> dict[str, Tensor]:
    """Tensors to read a state into before `place_state`: the optimizer's own, zeros where it is distributed."""
    if _is_distributed(optimizer):
        return {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    return {piece.name: piece.state[key] for piece in _pieces(optimizer, parameters)}


def place_state(optimizer: MegatronOptimizer, parameters: Parameters, key: str, whole: Mapping[str, Tensor]) -> None:
    """Give the optimizer its part of `whole` (by local name)."""
    for piece in _pieces(optimizer, parameters):
        if piece.state:
            own = piece.state[key]
            own.copy_(whole[piece.name].flatten()[piece.start : piece.stop].view(own.shape))


def set_steps(optimizer: MegatronOptimizer, parameters: Parameters, num_updates: int) -> None:
    """Let AdamW's bias correction go on from `num_updates`."""
    for piece in _pieces(optimizer, parameters):
        if "step" in piece.state:
            piece.state["step"].fill_(num_updates)
    for member in _members(optimizer):
        for stepping in _stepping(member.optimizer):
            if not isinstance(stepping, AdamW):  # the fused ones of Transformer Engine and Apex count by group
                for group in stepping.param_groups:
                    group["step"] = num_updates


def _pieces(optimizer: MegatronOptimizer, parameters: Parameters) -> Iterator[Piece]:
    piece_of = _own_range if _is_distributed(optimizer) else _whole_piece
    for name, parameter in parameters.items():
        yield piece_of(optimizer, name, parameter)


def _own_range(optimizer: MegatronOptimizer, name: str, parameter: Tensor) -> Piece:
    """Read from the maps of megatron-core 0.16's distributed optimizer, which its own checkpoints are made from."""
    for member in _members(optimizer):
        if parameter in member.model_param_group_index_map:
            group, number = member.model_param_group_index_map[parameter]
            own = member._get_model_param_range_map(parameter)["param"]
            weight = member.optimizer.param_groups[group]["params"][number]
            return Piece(name, parameter, own.start, own.end, _state_of(member.optimizer, weight))
    return Piece(name, parameter, 0, 0, {})


def _whole_piece(optimizer: MegatronOptimizer, name: str, parameter: Tensor) -> Piece:
    weight = getattr(parameter, "main_param", parameter)
    for member in _members(optimizer):
        if _has(member.optimizer, weight):
            return Piece(name, parameter, 0, parameter.numel(), _state_of(member.optimizer, weight))
    raise KeyError(f"{name} belongs to no optimizer group")


def _stepping(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """What takes the steps: with CPU offload one optimizer for the GPU's part and one or more for the CPU's."""
    return optimizer.sub_optimizers if isinstance(optimizer, HybridDeviceOptimizer) else [optimizer]


def _state_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """The state of a weight, made (as zeros) where no step was taken yet."""
    if isinstance(optimizer, HybridDeviceOptimizer):
        # What is stepped is a copy of the weight, float32 and maybe on the CPU; its state lies with its optimizer.
        weight = optimizer.param_to_inner_param[weight]
        optimizer = next(part for part in _stepping(optimizer) if _has(part, weight))
    state = optimizer.state[weight]
    if not state:
        if isinstance(optimizer, AdamW):
            state["step"] = torch.tensor(0.0)
        state[FIRST_MOMENT] = torch.zeros_like(weight.data)
        state[SECOND_MOMENT] = torch.zeros_like(weight.data)
    return {WEIGHT: weight.detach(), **state}


def _has(optimizer: torch.optim.Optimizer, weight: Tensor) -> bool:
    return any(weight is other for group in optimizer.param_groups for other in group["params"])


def _members(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _is_distributed(optimizer: MegatronOptimizer) -> bool:
    return any(isinstance(member, DistributedOptimizer) for member in _members(optimizer))


def _replicas_of(parameter: Tensor) -> dist.ProcessGroup:
    """The ranks over which the distributed optimizer splits a parameter's state: those that hold the parameter.

    Megatron marks experts that are spread over expert-parallel ranks by `allreduce = False`.
    """
    if getattr(parameter, "allreduce", True):
        return parallel_state.get_data_parallel_group(with_context_parallel=True)
    return parallel_state.get_expert_data_parallel_group()


def _sum(flat: Tensor, group: dist.ProcessGroup) -> None:
    """Every element is held by one rank, and is zero on the others."""
    dist.all_reduce(flat, group=group)

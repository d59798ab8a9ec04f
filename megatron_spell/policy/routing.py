"""Routing of a whole batch: the routers are told of every bin, and what all of them saw is added up over all ranks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.policy_sections import MoeSection
from megatron_spell.policy.microbatches import BinTensors
from megatron_spell.policy.router import Orders, PolicyRouter, Routes
from megatron_spell.types.batches import PackedBatch


def tell_routers(chunk: torch.nn.Module, bin_tensors: BinTensors) -> None:
    """Let the routers of a model chunk, if it has any, know of the bin that it is about to run."""
    routers = [module for module in chunk.modules() if isinstance(module, PolicyRouter)]
    if not routers:
        return
    config = chunk.config
    # Recomputed are only passes that have a backward one.
    recomputes = config.recompute_granularity is not None and torch.is_grad_enabled()
    routes = routes_of(bin_tensors, sequence_parallel=config.sequence_parallel)
    for router in routers:
        router.tell(routes, recomputes=recomputes)


def routes_of(bin_tensors: BinTensors, *, sequence_parallel: bool) -> Routes:
    """Of the tokens that this rank routes: under sequence parallelism a tp-th of its share of the bin."""
    reads_T, experts_T_L_K = bin_tensors.reads_T, bin_tensors.experts_T_L_K
    if not sequence_parallel:
        return Routes(reads_T, experts_T_L_K)
    tp, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
    own = slice(rank * reads_T.numel() // tp, (rank + 1) * reads_T.numel() // tp)
    return Routes(reads_T[own], None if experts_T_L_K is None else experts_T_L_K[own])


@dataclass(frozen=True, slots=True, eq=False)
class LayerRouting:
    """What one layer's router did with a batch, as if every row had been run by itself.

    `loads_E` are the tokens sent to each expert. `balance_loss` is E * sum of load share times mean probability (1 when
    all are equal), `z_loss` the mean squared log-sum-exp of the scores, both without their coefficients. `differ` is
    the share of choices that are not the engine's; None when there was none to compare.
    """

    loads_E: Tensor
    balance_loss: float
    z_loss: float
    differ: float | None

    @classmethod
    def of(cls, seen: Tensor, num_tokens: int) -> "LayerRouting":
        """From the sums of a `PolicyRouter.seen` over all ranks."""
        num_experts = (seen.numel() - 3) // 2
        loads_E, probs_E, (z, differ, compared) = seen.split([num_experts, num_experts, 3])
        balance = num_experts * (loads_E / loads_E.sum() @ probs_E).item() / num_tokens
        share = (differ / compared).item() if compared > 0 else None
        return cls(loads_E, balance, z.item() / num_tokens, share)

    def metrics(self) -> dict[str, float]:
        """Load of the busiest expert over the mean; entropy of the loads, 1 when all are equal; experts without any."""
        shares_E = self.loads_E / self.loads_E.sum()
        entropy = torch.special.entr(shares_E).sum().item() / math.log(max(2, shares_E.numel()))
        return {
            "load_max_ratio": shares_E.max().item() * shares_E.numel(),
            "load_entropy": entropy,
            "idle_experts": float((self.loads_E == 0).sum()),
            "balance_loss": self.balance_loss,
            "z_loss": self.z_loss,
            **({} if self.differ is None else {"routing_differs": self.differ}),
        }


# How a figure of the layers becomes one of the model.
WORST = {"load_max_ratio": max, "load_entropy": min, "idle_experts": max}


def routing_metrics(layers: Sequence[LayerRouting]) -> dict[str, float]:
    """`moe/<figure>/layer_07` of every layer, and `moe/<figure>` of the model: loads of the worst layer, else means."""
    of_layers = [layer.metrics() for layer in layers]
    metrics = {
        f"moe/{name}/layer_{index:02d}": value for index, each in enumerate(of_layers) for name, value in each.items()
    }
    for name in of_layers[0] if of_layers else ():
        values = [each[name] for each in of_layers]
        metrics[f"moe/{name}"] = WORST[name](values) if name in WORST else sum(values) / len(values)
    return metrics


class Routing:
    """The routers of a rank; does nothing for a model without experts. Every rank makes the same calls."""

    def __init__(self, chunks: Sequence[torch.nn.Module], shape: ModelShape, moe: MoeSection) -> None:
        self.routers = [m for chunk in chunks for m in chunk.modules() if isinstance(m, PolicyRouter)]
        self.num_layers, self.moe = shape.num_layers, moe
        self.num_tokens = 1

    def begin(self, batch: PackedBatch) -> None:
        """Ready the routers for a pass over the batch."""
        self.num_tokens = batch.num_row_tokens
        for router in self.routers:
            router.begin(Orders(self.moe.routing_replay))

    def settle_losses(self, look: Callable[[], object]) -> None:
        """Have the pass that was begun add the routers' losses to its gradients, where they have coefficients.

        The balance loss needs the loads of the whole batch before the first gradient: for it `look`, a forward pass
        over the batch, is called to count them.
        """
        balance, z = self.moe.balance_loss_coef, self.moe.z_loss_coef
        if not self.routers or not (balance or z):
            return
        shares_L_E = self._load_shares(look) if balance else None
        orders = Orders(self.moe.routing_replay, balance / self.num_tokens, z / self.num_tokens)
        for router in self.routers:
            router.begin(orders, None if shares_L_E is None else shares_L_E[router.layer_number - 1])

    def _load_shares(self, look: Callable[[], object]) -> Tensor:
        look()
        loads_L_E = self._everything_seen()[:, : self.routers[0].num_experts]
        return loads_L_E / loads_L_E.sum(-1, keepdim=True)

    def metrics(self) -> dict[str, float]:
        """Of the pass since `begin`, the same on every rank; empty without experts."""
        if not self.routers:
            return {}
        seen_L = self._everything_seen().cpu()
        return routing_metrics([LayerRouting.of(seen, self.num_tokens) for seen in seen_L])

    def _everything_seen(self) -> Tensor:
        """The sums of every layer's router over all ranks, [L, 2 E + 3]: each token is routed by one rank."""
        own = {router.layer_number - 1: router.seen for router in self.routers if router.seen is not None}
        blank = torch.zeros_like(next(iter(own.values())))
        seen_L = torch.stack([own.get(layer, blank) for layer in range(self.num_layers)])
        dist.all_reduce(seen_L)
        return seen_L

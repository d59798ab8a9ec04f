"""The router of a mixture of experts: Megatron's, which can replay given choices, and adds its own losses exactly.

What it adds to `TopKRouter` (megatron-core 0.16), each for a reason:

- *Replay.* Megatron's `RouterReplay` wants choices for all tokens, and a global switch tells it whether it replays a
  forward or a recomputed pass. Here a token can go its own way (padding, and what no engine has seen), and the choices
  of a bin are found again when its activations are recomputed. Megatron's hook in the top-k is used.
- *Losses.* Megatron balances the experts of each micro-batch and divides by tokens that are counted locally. Here both
  losses are sums over tokens whose weights were settled over the whole batch, like the policy's own loss.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

from megatron_spell.config.policy_sections import ReplayMode


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """What the routers of a rank are told of a bin: of the t tokens that this rank routes.

    `reads_t` counts the rows that read a token, 0 for padding: a prompt is read by all its responses. `experts_t_L_K`
    are an engine's choices in all layers, -1 where it has none; None when no token has any.
    """

    reads_t: Tensor
    experts_t_L_K: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """How the tokens of a pass are routed. A weight is a loss's coefficient / tokens of the batch."""

    replay: ReplayMode = "never"
    balance_weight: float = 0.0
    z_weight: float = 0.0


class PolicyRouter(TopKRouter):
    """Routes the bin it was told of last; when activations are recomputed, the bin whose turn it is.

    `seen` sums over what it routed since `begin` (None: nothing yet), float64 [2 E + 3]: tokens sent to each expert,
    probabilities of each expert, squared log-sum-exp of the scores, choices that differ from the engine's, choices
    compared. All are weighted by `Routes.reads_t`, so that they do not depend on how rows were packed.
    """

    def __init__(self, config: TransformerConfig, pg_collection: ProcessGroupCollection | None = None) -> None:
        super().__init__(config, pg_collection)
        self.begin(Orders())

    def begin(self, orders: Orders, load_shares_E: Tensor | None = None) -> None:
        """Start a pass over a batch. `load_shares_E`, which sum to 1, are what the balance loss is taken against."""
        self.orders, self.load_shares_E = orders, load_shares_E
        self.seen: Tensor | None = None
        self._recomputed: deque[Routes] = deque()

    def tell(self, routes: Routes, *, recomputes: bool) -> None:
        """Say which bin comes next, and whether it comes again in the backward pass; then bins come in this order."""
        self._routes = routes
        if recomputes:
            self._recomputed.append(routes)

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Probabilities and chosen experts, [t, E] each, of scores [t, 1, E]."""
        recomputing = torch._C._current_graph_task_id() != -1  # within a backward pass
        routes = self._recomputed.popleft() if recomputing else self._routes
        choice = self.router_replay = self._choice(routes)
        probs, routing_map = super().routing(logits, padding_mask=padding_mask)
        scores_t_E = logits.view(-1, self.num_experts)
        if not recomputing:
            self._note(scores_t_E.detach(), routing_map, routes, choice)
        if torch.is_grad_enabled() and (self.orders.balance_weight or self.orders.z_weight):
            probs = MoEAuxLossAutoScaler.apply(probs, self._losses(scores_t_E, routes))
        return probs, routing_map

    def _choice(self, routes: Routes) -> "Choice | None":
        if routes.experts_t_L_K is None or self.orders.replay == "never":
            return None
        return Choice(routes.experts_t_L_K[:, self.layer_number - 1].long(), self.orders.replay == "always")

    @torch.no_grad()
    def _note(self, scores_t_E: Tensor, routing_map: Tensor, routes: Routes, choice: "Choice | None") -> None:
        reads_t = routes.reads_t
        loads_E = reads_t @ routing_map.to(reads_t.dtype)
        probs_E = reads_t @ scores_t_E.float().softmax(-1)
        z = reads_t @ scores_t_E.float().logsumexp(-1).square()
        differ, compared = choice.compared(reads_t) if choice else (torch.zeros_like(z), torch.zeros_like(z))
        seen = torch.cat([loads_E, probs_E, torch.stack([z, differ, compared])]).double()
        self.seen = seen if self.seen is None else self.seen + seen

    def _losses(self, scores_t_E: Tensor, routes: Routes) -> Tensor:
        """Both losses' share of these tokens. The load shares are constants, as in every load-balancing loss."""
        loss = scores_t_E.new_zeros(())
        if self.orders.balance_weight:
            probs_E = routes.reads_t @ scores_t_E.float().softmax(-1)
            shares_E = self.load_shares_E.to(probs_E.dtype)
            loss = loss + self.orders.balance_weight * self.num_experts * (shares_E @ probs_E)
        if self.orders.z_weight:
            loss = loss + self.orders.z_weight * (routes.reads_t @ scores_t_E.float().logsumexp(-1).square())
        return loss


class Choice:
    """One bin's choices in one layer; stands for Megatron's `RouterReplay` in its top-k.

    `given_t_K` are the engine's, -1 for a token without.
    """

    def __init__(self, given_t_K: Tensor, replay: bool) -> None:
        self.given_t_K, self.replay = given_t_K, replay
        self.own_t_K: Tensor | None = None

    def get_replay_topk(
        self,
        scores: Tensor,
        topk: int,
        num_groups: int | None = None,
        group_topk: int | None = None,
        default_compute_topk: Callable | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and experts [t, K]; the scores are always the policy's own, and carry its gradient."""
        own, self.own_t_K = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        if not self.replay:
            return own, self.own_t_K
        chosen_t_K = torch.where(self.given_t_K >= 0, self.given_t_K, self.own_t_K)
        return scores.gather(1, chosen_t_K), chosen_t_K

    def compared(self, reads_t: Tensor) -> tuple[Tensor, Tensor]:
        """Choices of the policy's own that the engine did not make, and all that it could have made; times reads."""
        is_given_t = (self.given_t_K[:, 0] >= 0).to(reads_t.dtype) * reads_t
        shared_t_K = (self.own_t_K.unsqueeze(-1) == self.given_t_K.unsqueeze(-2)).any(-1)
        return is_given_t @ (~shared_t_K).sum(-1).to(reads_t.dtype), is_given_t.sum() * self.given_t_K.shape[1]

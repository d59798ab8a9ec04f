"""A mixture of experts whose routers are told where to send each token: Hugging Face's, and choices to replay."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_spell.algo.losses import row_weights
from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import ExpertChoices
from tests.distributed.policy_lab import KINDS, TEMPERATURE, Reference

NUM_LAYERS, NUM_EXPERTS, PER_TOKEN = 4, KINDS["moe"]["num_experts"], KINDS["moe"]["num_experts_per_tok"]


class RoutedReference(Reference):
    """Plain Hugging Face whose routers take a row's choices where it has some, and note what they did."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.forced: torch.Tensor | None = None
        self.noted: list[tuple[torch.Tensor, torch.Tensor]] = []  # of the last row: scores and choices of each layer
        for layer, block in enumerate(self.model.model.layers):
            block.mlp.gate.forward = partial(self._route, block.mlp.gate, layer)

    def _route(self, gate, layer: int, hidden: torch.Tensor):
        scores, _, chosen = type(gate).forward(gate, hidden)
        if self.forced is not None:
            chosen = self.forced[:, layer]
        weights = scores.float().softmax(-1).gather(1, chosen)
        if gate.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        self.noted.append((scores, chosen))
        return scores, weights, chosen

    def logits(self, row: TrainRow) -> torch.Tensor:
        self.noted.clear()
        self.forced = None
        if row.experts is not None:
            last = np.arange(PER_TOKEN)[None, None].repeat(NUM_LAYERS, 1)  # read by nothing
            whole = np.concatenate([row.experts.prompt_T_L_K, row.experts.response_T_L_K, last])
            self.forced = torch.from_numpy(whole.astype(np.int64))
        return super().logits(row)

    @torch.no_grad()
    def choices(self, row: TrainRow) -> ExpertChoices:
        """What the routers choose when nothing is forced on them."""
        self.logits(replace(row, experts=None))
        chosen_T_L_K = np.stack([chosen.numpy() for _, chosen in self.noted], 1).astype(np.uint8)
        prompt = row.prompt_ids_T.size
        return ExpertChoices(chosen_T_L_K[:prompt], chosen_T_L_K[prompt:-1])

    def router_losses(self, rows: list[TrainRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Balance loss and z-loss, each summed over the layers: means over the tokens of all rows, run one by one."""
        noted = []
        for row in rows:
            self.logits(row)
            noted.append([(scores[:-1], chosen[:-1]) for scores, chosen in self.noted])  # the last token is not run
        balance = z = torch.zeros(())
        for of_rows in zip(*noted):
            scores = torch.cat([scores for scores, _ in of_rows])
            chosen = torch.cat([chosen for _, chosen in of_rows])
            shares = torch.bincount(chosen.flatten(), minlength=NUM_EXPERTS) / chosen.numel()
            balance = balance + NUM_EXPERTS * (shares * scores.softmax(-1).mean(0)).sum()
            z = z + scores.logsumexp(-1).square().mean()
        return balance, z

    def backward_with(self, rows: list[TrainRow], balance_coef: float, z_coef: float) -> None:
        """Gradients of the policy's loss and of both router losses."""
        self.optimizer.zero_grad()
        balance, z = self.router_losses(rows)
        loss = balance_coef * balance + z_coef * z
        for row, weight in zip(rows, row_weights(rows, "per_role")):
            loss = loss - weight * row.advantage * self.log_probs(row, TEMPERATURE).sum()
        loss.backward()


def with_own_choices(rows: list[TrainRow], reference: RoutedReference) -> list[TrainRow]:
    return [replace(row, experts=reference.choices(row)) for row in rows]


def with_other_choices(rows: list[TrainRow], seed: int = 0) -> list[TrainRow]:
    """Any experts, the same ones for a prompt in all rows of its group."""
    rng = np.random.default_rng(seed)

    def choose(num_tokens: int) -> np.ndarray:
        order = rng.permuted(np.tile(np.arange(NUM_EXPERTS), (num_tokens, NUM_LAYERS, 1)), axis=-1)
        return order[..., :PER_TOKEN].astype(np.uint8)

    prompts = {row.group: choose(row.prompt_ids_T.size) for row in rows}
    return [
        replace(row, experts=ExpertChoices(prompts[row.group], choose(row.response_ids_A.size - 1))) for row in rows
    ]


def one_token_late(rows: list[TrainRow]) -> list[TrainRow]:
    """The fault of counting positions from another end."""
    return [_spoilt(row, lambda choices: np.roll(choices, 1, axis=0)) for row in rows]


def layers_swapped(rows: list[TrainRow]) -> list[TrainRow]:
    return [_spoilt(row, lambda choices: choices[:, [1, 0, *range(2, NUM_LAYERS)]]) for row in rows]


def _spoilt(row: TrainRow, spoil) -> TrainRow:
    experts = row.experts
    return replace(row, experts=ExpertChoices(spoil(experts.prompt_T_L_K), spoil(experts.response_T_L_K)))

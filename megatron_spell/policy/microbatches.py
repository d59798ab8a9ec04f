"""One rank's bins, or its share of them, as tensors: the micro-batches of Megatron's schedules."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_spell.algo.packing import lengthened
from megatron_spell.policy import platform
from megatron_spell.policy.context import Share
from megatron_spell.types.batches import Bin, PackedBatch


@dataclass(frozen=True, slots=True, eq=False)
class BinTensors:
    """What a rank takes of a `Bin`: the tokens of its share and the trained tokens that these predict.

    `predictors_A` count in the share's tokens, `segments_S_4` in the bin's. The prompt's last token predicts the first
    token of every response, so a rank may score tokens of responses that it does not hold. `segments_S_4` stays on the
    CPU, where attention reads it. `number_A` is a trained token's number within its row. `reads_T` (float32) counts the
    rows that read a token: a prompt is read by each of its responses, padding and fillers by none. `experts_T_L_K` are
    the engine's expert choices, int16 as in the bin, or None.
    """

    token_ids_1_T: Tensor
    position_ids_1_T: Tensor
    segments_S_4: Tensor
    predictors_A: Tensor
    labels_A: Tensor
    advantages_A: Tensor
    weights_A: Tensor
    engine_log_probs_A: Tensor
    role_A: Tensor
    row_A: Tensor
    number_A: Tensor
    reads_T: Tensor
    experts_T_L_K: Tensor | None

    @classmethod
    def of(cls, packed: Bin, share: Share) -> "BinTensors":
        held_T = share.tokens(packed.num_tokens).numpy()
        local_of_bin_T = np.full(packed.num_tokens, -1)
        local_of_bin_T[held_T] = np.arange(held_T.size)
        predictors_A = local_of_bin_T[packed.predictors_A]
        mine_A = predictors_A >= 0
        return cls(
            token_ids_1_T=_ids(packed.token_ids_T[held_T]).unsqueeze(0),
            position_ids_1_T=_ids(packed.position_ids_T[held_T]).unsqueeze(0),
            segments_S_4=torch.from_numpy(packed.segments_S_4.astype(np.int64)),
            predictors_A=_ids(predictors_A[mine_A]),
            labels_A=_ids(packed.labels_A[mine_A]),
            advantages_A=_reals(packed.advantages_A[mine_A]),
            weights_A=_reals(packed.weights_A[mine_A]),
            engine_log_probs_A=_reals(packed.engine_log_probs_A[mine_A]),
            role_A=_ids(packed.role_A[mine_A]),
            row_A=_ids(packed.row_A[mine_A]),
            number_A=_ids(_numbers_within_rows(packed.row_A)[mine_A]),
            reads_T=_reals(reads_of(packed)[held_T]),
            experts_T_L_K=_experts(packed, held_T),
        )

    @property
    def real_A(self) -> Tensor:
        """Which trained tokens belong to a row; the others only fill up a data-parallel rank's share."""
        return self.row_A >= 0


def bins_of(batch: PackedBatch, dp_rank: int, share: Share, *, equal_lengths: bool = False) -> Iterator[BinTensors]:
    """The rank's bins in their order; with `equal_lengths` as long as the longest of all ranks' bins of that turn."""
    for bins_D in zip(*batch.bins_D_B, strict=True):
        longest = max(packed.num_tokens for packed in bins_D) if equal_lengths else bins_D[dp_rank].num_tokens
        yield BinTensors.of(lengthened(bins_D[dp_rank], longest), share)


def reads_of(packed: Bin) -> np.ndarray:
    """How many rows read each token of the bin: [T].

    Every row's first token is predicted by its prompt's last one, so predictors there count a prompt's rows.
    """
    first_A = packed.predictors_A[packed.row_A >= 0]
    rows_T = np.bincount(first_A, minlength=packed.num_tokens)
    reads_T = np.zeros(packed.num_tokens, dtype=np.int64)
    for prompt_start, prompt_stop, start, stop in packed.segments_S_4:
        is_prompt = (start, stop) == (prompt_start, prompt_stop)
        reads_T[start:stop] = rows_T[stop - 1] if is_prompt else 1
    return reads_T


def _experts(packed: Bin, held_T: np.ndarray) -> Tensor | None:
    if packed.experts_T_L_K is None:
        return None
    return torch.from_numpy(packed.experts_T_L_K[held_T]).to(platform.device())


def _numbers_within_rows(row_A: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for the tokens of each row, which lie together."""
    _, first, row_number_A = np.unique(row_A, return_index=True, return_inverse=True)
    return np.arange(row_A.size) - first[row_number_A]


def _ids(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(platform.device())


def _reals(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(platform.device())

"""One data-parallel rank's bins as tensors: the micro-batches of Megatron's schedules."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_spell.policy import platform
from megatron_spell.types.batches import Bin, PackedBatch


@dataclass(frozen=True, slots=True, eq=False)
class BinTensors:
    """A `Bin` as the model takes it. `segments_S_4` stays on the CPU, where attention reads it."""

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

    @classmethod
    def of(cls, packed: Bin) -> "BinTensors":
        return cls(
            token_ids_1_T=_ids(packed.token_ids_T).unsqueeze(0),
            position_ids_1_T=_ids(packed.position_ids_T).unsqueeze(0),
            segments_S_4=torch.from_numpy(packed.segments_S_4.astype(np.int64)),
            predictors_A=_ids(packed.predictors_A),
            labels_A=_ids(packed.labels_A),
            advantages_A=_reals(packed.advantages_A),
            weights_A=_reals(packed.weights_A),
            engine_log_probs_A=_reals(packed.engine_log_probs_A),
            role_A=_ids(packed.role_A),
            row_A=_ids(packed.row_A),
        )

    @property
    def real_A(self) -> Tensor:
        """Which trained tokens belong to a row; the others only fill up a data-parallel rank's share."""
        return self.row_A >= 0


def bins_of(batch: PackedBatch, dp_rank: int) -> Iterator[BinTensors]:
    return (BinTensors.of(packed) for packed in batch.bins_D_B[dp_rank])


def _ids(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(platform.device())


def _reals(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(platform.device())

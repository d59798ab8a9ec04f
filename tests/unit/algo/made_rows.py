"""Rows for the tests of this room."""

import numpy as np

from megatron_spell.types.batches import TrainRow
from megatron_spell.types.play import Role, TaskName


def make_row(prompt, response, *, role=Role.RESPONDER, group=0, advantage=1.0, log_probs=None) -> TrainRow:
    response = np.asarray(response, dtype=np.int32)
    return TrainRow(
        role=role,
        task=TaskName.GENERAL_QA,
        group=group,
        prompt_ids_T=np.asarray(prompt, dtype=np.int32),
        response_ids_A=response,
        engine_log_probs_A=np.full(response.size, -0.5, np.float32) if log_probs is None else np.asarray(log_probs),
        reward=0.0,
        advantage=advantage,
        version=0,
    )


def make_group(role, group, lengths) -> list[TrainRow]:
    return [make_row([group], range(1, length + 1), role=role, group=group) for length in lengths]

"""Rows to train on and the packed form the policy takes."""

from dataclasses import dataclass

import numpy as np

from megatron_spell.types.play import ExpertChoices, Role, TaskName


@dataclass(frozen=True, slots=True, eq=False)
class TrainRow:
    """One (prompt, response) pair with its advantage.

    `group` numbers the rows that share a baseline, unique over the batch; rows of a group are adjacent, and rows of
    one responder or verifier group share the identical prompt. `engine_log_probs_A` are the engine's raw log-probs of
    the response. A is the number of response tokens; a row with none is allowed, and brings nothing to train on.
    `experts` are the engine's expert choices, where it returned them.
    """

    role: Role
    task: TaskName
    group: int
    prompt_ids_T: np.ndarray
    response_ids_A: np.ndarray
    engine_log_probs_A: np.ndarray
    reward: float
    advantage: float
    version: int
    experts: ExpertChoices | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Bin:
    """One packed sequence: prompt, response, response, ..., prompt, response, ... (T tokens, A trained tokens).

    A response stands without its last token, which predicts nothing. `segments_S_4` holds one row
    (prompt_start, prompt_stop, start, stop) for each prompt (start = prompt_start, stop = prompt_stop) and each
    response: a token of [start, stop) attends to all of [prompt_start, prompt_stop) when that is another span, and
    causally to its own. `position_ids_T` continue from the prompt in every response. For trained token i: the hidden
    state at `predictors_A[i]` predicts `labels_A[i]`, belongs to row `row_A[i]` of the batch and has the loss weight
    `weights_A[i]` (settled globally, so that bins only add up) and `advantages_A[i]`. The first `num_real_tokens` are
    of rows, the others padding; a filler has none. `experts_T_L_K` (int16) are the engine's expert choices, -1 for
    tokens without any; None when no row of the bin has them.
    """

    token_ids_T: np.ndarray
    position_ids_T: np.ndarray
    segments_S_4: np.ndarray
    predictors_A: np.ndarray
    labels_A: np.ndarray
    advantages_A: np.ndarray
    weights_A: np.ndarray
    engine_log_probs_A: np.ndarray
    role_A: np.ndarray
    row_A: np.ndarray
    num_real_tokens: int
    experts_T_L_K: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids_T.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """The bins of one optimizer step, by data-parallel rank; every rank has the same number of bins.

    A rank with nothing left to do gets bins whose weights are zero.
    """

    bins_D_B: tuple[tuple[Bin, ...], ...]
    num_rows: int
    num_row_tokens: int  # tokens if every row were run by itself, without padding

    @property
    def num_bin_tokens(self) -> int:
        return sum(b.num_tokens for bins in self.bins_D_B for b in bins)

    @property
    def useful_token_fraction(self) -> float:
        """Tokens of prompts and responses in all tokens of the bins; padding and fillers are the rest."""
        return sum(b.num_real_tokens for bins in self.bins_D_B for b in bins) / self.num_bin_tokens


ROLE_INDEX: dict[Role, int] = {role: i for i, role in enumerate(Role)}

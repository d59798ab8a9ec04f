"""Rows -> prefix-shared bins, balanced over the data-parallel ranks.

Adjacent rows with the identical prompt form a *family*: its prompt stands in a bin once, followed by its responses.
(The 8 answers to one question are a family. The questions of one task share a baseline, `group`, but not a prompt, and
are families of one.) A family that does not fit a bin is split, and its prompt is repeated in every part.

A row with an empty response stands for nothing: it is in no bin, and what it would have had in one is empty.

Expert choices go along: a response's are its own, a prompt's those of the first row that stands behind it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_spell.algo.errors import AlgoError
from megatron_spell.types.batches import ROLE_INDEX, Bin, PackedBatch, TrainRow
from megatron_spell.types.play import ExpertChoices

# For callers that do not know the model: attention over this many tokens costs as much as the rest of a layer, 6 *
# hidden size, here for about 2,700.
DEFAULT_ATTENTION_TOKENS = 16384
NO_ROW = -1
NO_EXPERT = -1


@dataclass(frozen=True, slots=True)
class _Part:
    """A family, or what of it fits one bin. `size` counts the tokens it takes up there."""

    rows: tuple[int, ...]
    size: int
    cost: float


def pack(
    rows: Sequence[TrainRow],
    weights: np.ndarray,
    *,
    num_dp: int,
    max_bin_tokens: int,
    pad_multiple: int = 1,
    num_bins_multiple: int = 1,
    attention_tokens: float = DEFAULT_ATTENTION_TOKENS,
    share_prompts: bool = True,
) -> PackedBatch:
    """Every response token of every row exactly once, in as few bins of at most `max_bin_tokens` as first-fit finds.

    `weights` [R] is the loss weight of each row's tokens (`losses.row_weights`). Deterministic.

    A row longer than `max_bin_tokens` gets a bin of its own: nothing is dropped or cut. Lengths are rounded up to
    `pad_multiple` by zeros after the last response; the padding is one extra segment that attends only to itself
    (prompt span = own span), so that attention never meets a token without a segment, and position 0 throughout.
    Every rank gets the same number of bins, longest first; where they do not divide, *filler* bins make up the number:
    one zero token that predicts itself with weight 0 and advantage 0, belonging to row -1 (`NO_ROW`). That number is
    a multiple of `num_bins_multiple`.

    The cost that is balanced is tokens + attended pairs / `attention_tokens` (`ForwardFlops.attention_tokens` where the
    model is known). Without `share_prompts` every row brings its own prompt.

    Raises:
        AlgoError: no response token, an empty prompt, another number of weights than rows, or limits below one.
    """
    _check(rows, weights, num_dp, max_bin_tokens, pad_multiple)
    capacity = max_bin_tokens - max_bin_tokens % pad_multiple
    families = _families(rows, share_prompts)
    parts = [part for family in families for part in _split(rows, family, capacity, attention_tokens)]
    bins = _fill(parts, capacity, num_dp * num_bins_multiple)
    bins_D_B = _share_out(bins, num_dp, num_bins_multiple)
    return PackedBatch(
        bins_D_B=tuple(
            tuple(_lay_out(rows, weights, parts_of_bin, pad_multiple) for parts_of_bin in bins_B) for bins_B in bins_D_B
        ),
        num_rows=len(rows),
        num_row_tokens=sum(
            row.prompt_ids_T.size + row.response_ids_A.size - 1 for row in rows if row.response_ids_A.size
        ),
    )


def _check(rows: Sequence[TrainRow], weights: np.ndarray, num_dp: int, max_bin_tokens: int, pad_multiple: int) -> None:
    if not any(row.response_ids_A.size for row in rows):
        raise AlgoError(f"{len(rows)} rows hold no response token to train on; a step needs at least one")
    if len(weights) != len(rows):
        raise AlgoError(f"{len(weights)} weights for {len(rows)} rows; give one weight per row")
    if num_dp < 1 or pad_multiple < 1:
        raise AlgoError(f"num_dp = {num_dp} and pad_multiple = {pad_multiple} must be at least 1")
    if max_bin_tokens < pad_multiple:
        raise AlgoError(f"max_bin_tokens = {max_bin_tokens} is below pad_multiple = {pad_multiple}; raise it")
    for index, row in enumerate(rows):
        if not row.prompt_ids_T.size:
            raise AlgoError(f"row {index} ({row.role}, group {row.group}) has an empty prompt; leave it out")
        if row.experts and row.response_ids_A.size and not _fits(row.experts, row):
            raise AlgoError(f"row {index} ({row.role}) has expert choices of another number of tokens than it runs")
        if row.engine_log_probs_A.size != row.response_ids_A.size:
            raise AlgoError(f"row {index} ({row.role}) has another number of log-probs than response tokens")


def _fits(experts: ExpertChoices, row: TrainRow) -> bool:
    lengths = len(experts.prompt_T_L_K), len(experts.response_T_L_K)
    return lengths == (row.prompt_ids_T.size, row.response_ids_A.size - 1)


def _families(rows: Sequence[TrainRow], share_prompts: bool) -> list[tuple[int, ...]]:
    families: list[list[int]] = []
    for index, row in enumerate(rows):
        if not row.response_ids_A.size:
            continue
        if share_prompts and families and np.array_equal(rows[families[-1][0]].prompt_ids_T, row.prompt_ids_T):
            families[-1].append(index)
        else:
            families.append([index])
    return [tuple(family) for family in families]


def _split(rows: Sequence[TrainRow], family: tuple[int, ...], capacity: int, attention_tokens: float) -> list[_Part]:
    prompt_size = rows[family[0]].prompt_ids_T.size
    chunks: list[list[int]] = []
    room = 0
    for index in family:
        added = rows[index].response_ids_A.size - 1
        if not chunks or added > room:
            chunks.append([])
            room = capacity - prompt_size
        chunks[-1].append(index)
        room -= added
    return [_part(rows, tuple(chunk), attention_tokens) for chunk in chunks]


def _part(rows: Sequence[TrainRow], indices: tuple[int, ...], attention_tokens: float) -> _Part:
    prompt = rows[indices[0]].prompt_ids_T.size
    spans = [rows[index].response_ids_A.size - 1 for index in indices]
    pairs = prompt * (prompt + 1) / 2 + sum(span * prompt + span * (span + 1) / 2 for span in spans)
    size = prompt + sum(spans)
    return _Part(indices, size, size + pairs / attention_tokens)


def _fill(parts: list[_Part], capacity: int, multiple: int) -> list[list[_Part]]:
    """First-fit-decreasing, then the same parts spread evenly over as many bins as the ranks run anyway."""
    by_size = sorted(parts, key=lambda part: -part.size)
    bins = _first_fit(by_size, capacity)
    num_bins = -(-len(bins) // multiple) * multiple
    return _spread(by_size, capacity, num_bins) or bins


def _first_fit(by_size: list[_Part], capacity: int) -> list[list[_Part]]:
    bins: list[list[_Part]] = []
    room: list[int] = []
    for part in by_size:
        home = next((b for b, left in enumerate(room) if left >= part.size), None)
        if home is None:
            home = len(bins)
            bins.append([])
            room.append(capacity)
        bins[home].append(part)
        room[home] -= part.size
    return bins


def _spread(by_size: list[_Part], capacity: int, num_bins: int) -> list[list[_Part]] | None:
    """Each part to the cheapest bin it fits (an oversized one to an empty bin); None when the bins do not suffice."""
    bins: list[list[_Part]] = [[] for _ in range(num_bins)]
    room, cost = [capacity] * num_bins, [0.0] * num_bins
    for part in by_size:
        homes = [b for b in range(num_bins) if room[b] >= part.size or not bins[b]]
        if not homes:
            return None
        home = min(homes, key=lambda b: (cost[b], b))
        bins[home].append(part)
        room[home] -= part.size
        cost[home] += part.cost
    return [parts for parts in bins if parts]


def _share_out(bins: list[list[_Part]], num_dp: int, multiple: int) -> list[list[list[_Part]]]:
    """The same number of bins for every rank, the costliest first, each to the rank with the least to do so far."""
    bins_per_rank = -(-len(bins) // (num_dp * multiple)) * multiple
    bins_D_B: list[list[list[_Part]]] = [[] for _ in range(num_dp)]
    cost_D = [0.0] * num_dp
    for parts in sorted(bins, key=_cost_of, reverse=True):
        rank = min((r for r in range(num_dp) if len(bins_D_B[r]) < bins_per_rank), key=lambda r: (cost_D[r], r))
        bins_D_B[rank].append(parts)
        cost_D[rank] += _cost_of(parts)
    return [bins_B + [[]] * (bins_per_rank - len(bins_B)) for bins_B in bins_D_B]


def _cost_of(parts: list[_Part]) -> float:
    return sum(part.cost for part in parts)


def _lay_out(rows: Sequence[TrainRow], weights: np.ndarray, parts: list[_Part], pad_multiple: int) -> Bin:
    draft = _Draft()
    for part in sorted(parts, key=lambda part: part.rows[0]):
        first = rows[part.rows[0]]
        draft.add_prompt(first.prompt_ids_T, first.experts)
        for index in part.rows:
            draft.add_response(rows[index], index, float(weights[index]))
    return draft.finish(pad_multiple) if parts else _filler(pad_multiple)


def _filler(pad_multiple: int) -> Bin:
    draft = _Draft()
    draft.add_prompt(np.zeros(1, dtype=np.int64))
    nothing = np.zeros(1)
    draft.trained.append((draft.predictors(1), nothing, nothing, nothing, nothing, nothing, nothing + NO_ROW))
    return draft.finish(pad_multiple)


class _Draft:
    """A bin being laid out."""

    def __init__(self) -> None:
        self.size = 0
        self.prompt = (0, 0)
        self.token_ids: list[np.ndarray] = []
        self.experts: list[np.ndarray | None] = []
        self.position_ids: list[np.ndarray] = []
        self.segments: list[tuple[int, int, int, int]] = []
        self.trained: list[
            tuple[np.ndarray, ...]
        ] = []  # predictors, labels, advantages, weights, log-probs, roles, rows

    def _append(self, token_ids: np.ndarray, position_ids: np.ndarray, experts: np.ndarray | None = None) -> int:
        self.token_ids.append(token_ids)
        self.position_ids.append(position_ids)
        self.experts.append(experts)
        self.size += token_ids.size
        return self.size

    def add_prompt(self, prompt_ids_T: np.ndarray, experts: ExpertChoices | None = None) -> None:
        start = self.size
        stop = self._append(prompt_ids_T, np.arange(prompt_ids_T.size), experts and experts.prompt_T_L_K)
        self.prompt = (start, stop)
        self.segments.append((start, stop, start, stop))

    def predictors(self, num_labels: int) -> np.ndarray:
        """Where the labels are predicted: the prompt's last token, then the response's tokens about to be added."""
        return np.concatenate(([self.prompt[1] - 1], np.arange(self.size, self.size + num_labels - 1)))

    def add_response(self, row: TrainRow, index: int, weight: float) -> None:
        num_labels = row.response_ids_A.size
        ones = np.ones(num_labels)
        self.trained.append(
            (
                self.predictors(num_labels),
                row.response_ids_A,
                ones * row.advantage,
                ones * weight,
                row.engine_log_probs_A,
                ones * ROLE_INDEX[row.role],
                ones * index,
            )
        )
        if num_labels > 1:
            start, prompt_length = self.size, self.prompt[1] - self.prompt[0]
            position_ids = prompt_length + np.arange(num_labels - 1)
            stop = self._append(row.response_ids_A[:-1], position_ids, row.experts and row.experts.response_T_L_K)
            self.segments.append((self.prompt[0], self.prompt[1], start, stop))

    def finish(self, pad_multiple: int) -> Bin:
        num_real_tokens = self.size
        padding = -self.size % pad_multiple
        if padding:
            start = self.size
            stop = self._append(np.zeros(padding, dtype=np.int64), np.zeros(padding, dtype=np.int64))
            self.segments.append((start, stop, start, stop))
        predictors, labels, advantages, weights, log_probs, roles, indices = map(np.concatenate, zip(*self.trained))
        return Bin(
            token_ids_T=np.concatenate(self.token_ids).astype(np.int64),
            position_ids_T=np.concatenate(self.position_ids).astype(np.int64),
            segments_S_4=np.array(self.segments, dtype=np.int64),
            predictors_A=predictors.astype(np.int64),
            labels_A=labels.astype(np.int64),
            advantages_A=advantages.astype(np.float64),
            weights_A=weights.astype(np.float64),
            engine_log_probs_A=log_probs.astype(np.float32),
            role_A=roles.astype(np.int64),
            row_A=indices.astype(np.int64),
            num_real_tokens=num_real_tokens if (indices != NO_ROW).any() else 0,
            experts_T_L_K=self._experts(),
        )

    def _experts(self) -> np.ndarray | None:
        known = [experts for experts in self.experts if experts is not None]
        if not known:
            return None
        laid_out = np.full((self.size, *known[0].shape[1:]), NO_EXPERT, dtype=np.int16)
        ends = np.cumsum([ids.size for ids in self.token_ids])
        for end, experts in zip(ends, self.experts):
            if experts is not None:
                laid_out[end - len(experts) : end] = experts
        return laid_out


def lengthened(packed: Bin, num_tokens: int) -> Bin:
    """The bin with zeros after its end, one more segment that attends only to itself."""
    padding = num_tokens - packed.num_tokens
    if not padding:
        return packed
    start, zeros = packed.num_tokens, np.zeros(padding, dtype=np.int64)
    experts = packed.experts_T_L_K
    if experts is not None:
        experts = np.concatenate([experts, np.full((padding, *experts.shape[1:]), NO_EXPERT, experts.dtype)])
    return replace(
        packed,
        experts_T_L_K=experts,
        token_ids_T=np.concatenate([packed.token_ids_T, zeros]),
        position_ids_T=np.concatenate([packed.position_ids_T, zeros]),
        segments_S_4=np.concatenate([packed.segments_S_4, [[start, num_tokens, start, num_tokens]]]),
    )

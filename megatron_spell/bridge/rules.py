"""How one rank's parameter is assembled from Hugging Face tensors. Rows are dim 0, columns are dim 1.

Every rule is a pure function `(local name, hf tensors, cut) -> segments`; a family's table names one per parameter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from megatron_spell.bridge.boxes import Box, BridgeError, Segment


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor as a Hugging Face folder holds it."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of how many tensor-parallel shards is meant; `head_dim` is the rows of one attention head."""

    index: int
    parts: int
    head_dim: int


Rule = Callable[[str, Sequence[HfTensor], Cut], Iterator[Segment]]


def padded_vocab(vocab_size: int, tp: int) -> int:
    """Rows of the padded vocabulary: the next multiple of `tp`. Padding rows belong to no segment."""
    return -(-vocab_size // tp) * tp


def whole(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """The same tensor on every rank (norms)."""
    (tensor,) = hf
    yield Segment(tensor.name, Box.whole(tensor.shape), local, Box.whole(tensor.shape))


def split_rows(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Each tensor is split by rows; the shards are stacked in the order given (Megatron's fc1 is gate over up)."""
    at = 0
    for tensor in hf:
        start, stop = _share(tensor, 0, cut)
        yield _rows(tensor, start, stop, local, at)
        at += stop - start


def split_columns(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Split by columns (Megatron's RowParallelLinear: attention output, fc2)."""
    (tensor,) = hf
    num_rows = tensor.shape[0]
    start, stop = _share(tensor, 1, cut)
    yield Segment(tensor.name, Box((0, start), (num_rows, stop)), local, Box((0, 0), (num_rows, stop - start)))


def vocab_rows(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Vocabulary rows of the padded table; a shard that is all padding has no segment."""
    (tensor,) = hf
    per_rank = padded_vocab(tensor.shape[0], cut.parts) // cut.parts
    start, stop = cut.index * per_rank, min((cut.index + 1) * per_rank, tensor.shape[0])
    if start < stop:
        yield _rows(tensor, start, stop, local, 0)


def qkv_groups(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Megatron's fused projection: for each key-value group of this rank its query heads, its key and its value.

    Weights (rows of a matrix) and biases (elements of a vector) alike.

    Source: megatron-core 0.16 `SelfAttention.get_query_key_value_tensors`, which views the fused output as
    [groups, (query heads of a group + 2) * head_dim].
    """
    query, key, value = hf
    num_groups = key.shape[0] // cut.head_dim
    if num_groups % cut.parts:
        raise BridgeError(f"{key.name}: {num_groups} key-value heads do not divide over tp = {cut.parts}")
    query_rows, at = query.shape[0] // num_groups, 0
    groups_per_rank = num_groups // cut.parts
    for group in range(cut.index * groups_per_rank, (cut.index + 1) * groups_per_rank):
        for tensor, num_rows in ((query, query_rows), (key, cut.head_dim), (value, cut.head_dim)):
            yield _rows(tensor, group * num_rows, (group + 1) * num_rows, local, at)
            at += num_rows


def _rows(tensor: HfTensor, start: int, stop: int, local: str, local_start: int) -> Segment:
    rest = tensor.shape[1:]
    zeros = (0,) * len(rest)
    local_box = Box((local_start, *zeros), (local_start + stop - start, *rest))
    return Segment(tensor.name, Box((start, *zeros), (stop, *rest)), local, local_box)


def _share(tensor: HfTensor, dim: int, cut: Cut) -> tuple[int, int]:
    size, rest = divmod(tensor.shape[dim], cut.parts)
    if rest:
        raise BridgeError(f"{tensor.name}: dim {dim} of {tensor.shape} does not divide over tp = {cut.parts}")
    return cut.index * size, (cut.index + 1) * size

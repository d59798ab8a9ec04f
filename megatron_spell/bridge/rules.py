"""How one rank's parameter is assembled from Hugging Face tensors. Rows are dim 0, columns are dim 1.

Every rule is a pure function `(local name, hf tensors, cut) -> segments`; a family's table names one per parameter
for the trainer's side (megatron-core) and one for the engine's (vLLM).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from megatron_spell.bridge.boxes import Box, BridgeError, Segment


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor as a Hugging Face folder holds it, or its rows from `first_row` on where it has several in one."""

    name: str
    shape: tuple[int, ...]
    first_row: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of how many tensor-parallel shards is meant; `head_dim` is the rows of one attention head.

    The vocabulary is padded to a multiple of `vocab_multiple`, which `parts` divides.
    """

    index: int
    parts: int
    head_dim: int
    vocab_multiple: int


Rule = Callable[[str, Sequence[HfTensor], Cut], Iterator[Segment]]


def padded_vocab(vocab_size: int, multiple: int) -> int:
    """Rows of the padded vocabulary. Padding rows belong to no segment."""
    return -(-vocab_size // multiple) * multiple


def whole(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """The same tensor on every rank (norms)."""
    (tensor,) = hf
    yield _rows(tensor, 0, tensor.shape[0], local, 0)


def split_rows(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Each tensor is split by rows; the shards are stacked in the order given (gate over up on both sides)."""
    at = 0
    for tensor in hf:
        start, stop = _share(tensor, 0, cut)
        yield _rows(tensor, start, stop, local, at)
        at += stop - start


def split_columns(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Split by columns (attention output, fc2)."""
    (tensor,) = hf
    num_rows, first = tensor.shape[0], tensor.first_row
    start, stop = _share(tensor, 1, cut)
    box = Box((first, start), (first + num_rows, stop))
    yield Segment(tensor.name, box, local, Box((0, 0), (num_rows, stop - start)))


def vocab_rows(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """Vocabulary rows of the padded table; a shard that is all padding has no segment."""
    (tensor,) = hf
    per_rank = padded_vocab(tensor.shape[0], cut.vocab_multiple) // cut.parts
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


def qkv_stacked(local: str, hf: Sequence[HfTensor], cut: Cut) -> Iterator[Segment]:
    """vLLM's fused projection: this rank's query heads, then its keys, then its values.

    With fewer key-value heads than ranks, neighbouring ranks hold the same head.

    Source: vLLM 0.32 `QKVParallelLinear` (model_executor/layers/linear.py).
    """
    query, key, value = hf
    _refuse_cut_heads(query, cut)
    at = 0
    for tensor, cut_here in ((query, cut), (key, _key_value_cut(key, cut)), (value, _key_value_cut(value, cut))):
        start, stop = _share(tensor, 0, cut_here)
        yield _rows(tensor, start, stop, local, at)
        at += stop - start


def _key_value_cut(tensor: HfTensor, cut: Cut) -> Cut:
    num_heads = tensor.shape[0] // cut.head_dim
    if num_heads >= cut.parts:
        _refuse_cut_heads(tensor, cut)
        return cut
    if cut.parts % num_heads:
        raise BridgeError(f"{tensor.name}: {num_heads} key-value heads cannot be shared evenly by tp = {cut.parts}")
    return Cut(cut.index // (cut.parts // num_heads), num_heads, cut.head_dim, cut.vocab_multiple)


def _refuse_cut_heads(tensor: HfTensor, cut: Cut) -> None:
    num_heads = tensor.shape[0] // cut.head_dim
    if num_heads % cut.parts:
        raise BridgeError(f"{tensor.name}: {num_heads} heads do not divide over tp = {cut.parts}")


def _rows(tensor: HfTensor, start: int, stop: int, local: str, local_start: int) -> Segment:
    rest = tensor.shape[1:]
    zeros = (0,) * len(rest)
    local_box = Box((local_start, *zeros), (local_start + stop - start, *rest))
    hf_box = Box((tensor.first_row + start, *zeros), (tensor.first_row + stop, *rest))
    return Segment(tensor.name, hf_box, local, local_box)


def _share(tensor: HfTensor, dim: int, cut: Cut) -> tuple[int, int]:
    size, rest = divmod(tensor.shape[dim], cut.parts)
    if rest:
        raise BridgeError(f"{tensor.name}: dim {dim} of {tensor.shape} does not divide over tp = {cut.parts}")
    return cut.index * size, (cut.index + 1) * size

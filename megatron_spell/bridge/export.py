"""Write one Hugging Face folder from tensors that are spread over ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.executor import DEFAULT_BUCKET_BYTES, Receiver, Sender
from megatron_spell.bridge.hf_files import (
    DEFAULT_SHARD_BYTES,
    CheckpointError,
    Shape,
    begin_folder,
    finish_folder,
    partial_folder,
    shard_files,
    write_files,
)
from megatron_spell.bridge.inventory import whole_tensors
from megatron_spell.bridge.planner import plan
from megatron_spell.bridge.stacks import unstacked
from megatron_spell.bridge.transports.base import Transport

_REPORT = 3  # tag of the control message; those of receipts.py are others
_GOOD, _BAD = b"\1", b"\0"


def gather_to_writer(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    inventories: Mapping[int, Inventory],
    shapes: Mapping[str, Shape],
    transport: Transport,
    *,
    dtype: torch.dtype,
    writers: Sequence[int] = (0,),
    copy_from: Path | None = None,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write `folder` together: every rank of `inventories` calls it with its own `tensors`, all else being equal.

    `tensors` (by local name) may be weights or anything of the same shapes, such as Adam's moments. Each file is
    written by one of `writers`, ranks with a common file system; a writer has only incomplete tensors and one bucket
    in memory. On return the folder is complete for every rank; CheckpointError is raised on every rank or on none.
    Raises TransportError when a rank is lost.
    """
    files = shard_files(shapes, dtype.itemsize, max_shard_bytes)
    own_files = {writer: dict(list(files.items())[i :: len(writers)]) for i, writer in enumerate(writers)}
    targets = {writer: whole_tensors(_merged(own)) for writer, own in own_files.items()}
    moves = plan({rank: unstacked(inventory) for rank, inventory in inventories.items()}, targets)
    rank, head, ranks = transport.rank, writers[0], sorted({*inventories, *writers})
    _agree(transport, ranks, head, _attempt(begin_folder, folder) if rank == head else None)
    failure = None
    if targets.get(rank):
        receiver = Receiver(moves, rank, dtype=dtype, bucket_bytes=bucket_bytes, sources=tensors)
        arriving = receiver.tensors(transport)
        failure = _attempt(write_files, partial_folder(folder), own_files[rank], arriving, dtype)
        for _ in arriving:  # after a failure the others still send; they learn of it below
            pass
    else:
        Sender(moves, rank, tensors, dtype=dtype, bucket_bytes=bucket_bytes).run(transport)
    _agree(transport, ranks, head, failure)
    _agree(transport, ranks, head, _attempt(finish_folder, folder, files, dtype, copy_from) if rank == head else None)


def _merged(files: Mapping[str, Mapping[str, Shape]]) -> dict[str, Shape]:
    return {name: shape for shapes in files.values() for name, shape in shapes.items()}


def _attempt(action, *arguments) -> CheckpointError | None:
    try:
        action(*arguments)
    except CheckpointError as error:
        return error
    return None


def _agree(transport: Transport, ranks: Sequence[int], head: int, failure: CheckpointError | None) -> None:
    """Raise CheckpointError on every rank when one rank has failed."""
    good = failure is None
    others = [rank for rank in ranks if rank != head]
    if transport.rank == head:
        reports = [transport.collect(rank, _REPORT, 1) for rank in others]
        good = good and all(report == _GOOD for report in reports)
        for rank in others:
            transport.post(rank, _REPORT, _GOOD if good else _BAD)
    else:
        transport.post(head, _REPORT, _GOOD if good else _BAD)
        good = transport.collect(head, _REPORT, 1) == _GOOD
    if failure is not None:
        raise failure
    if not good:
        raise CheckpointError("the checkpoint was not written: another rank failed and says why")

"""Write one Hugging Face folder from tensors that are spread over ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.executor import DEFAULT_BUCKET_BYTES, Receiver, Sender
from megatron_spell.bridge.hf_files import DEFAULT_SHARD_BYTES, FolderError, Shape, shard_files
from megatron_spell.bridge.hf_folders import begin_folder, finish_folder, partial_folder, write_files
from megatron_spell.bridge.inventory import local_shapes
from megatron_spell.bridge.planner import Plan, plan
from megatron_spell.bridge.stacks import restricted
from megatron_spell.bridge.transports.base import Transport

_REPORT = 3  # tag of the control message; those of receipts.py are others
_GOOD, _BAD = b"\1", b"\0"

Files = Mapping[str, Mapping[str, Shape]]


class FolderPlan:
    """Who sends what to which writer of a folder; made once and of use for every folder of these tensors, all dtypes.

    `inventories` say what each rank gives, `checkpoint` (see `checkpoint_inventory`) what the folder holds. Each file
    is written by one of `writers`, ranks with a common file system; the first of them leads. Raises PlanError.
    """

    def __init__(
        self,
        inventories: Mapping[int, Inventory],
        checkpoint: Inventory,
        *,
        writers: Sequence[int] = (0,),
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ):
        self.writers, self.ranks = tuple(writers), sorted({*inventories, *writers})
        self._inventories, self._checkpoint, self._max_shard_bytes = dict(inventories), checkpoint, max_shard_bytes
        self._shapes = local_shapes(checkpoint)
        self._moves: dict[int, Plan] = {}
        if len(self.writers) == 1:
            self._moves[0] = plan(self._inventories, {self.writers[0]: checkpoint})

    def files(self, dtype: torch.dtype) -> Files:
        """File name -> the tensors in it."""
        return shard_files(self._shapes, dtype.itemsize, self._max_shard_bytes)

    def files_of(self, writer: int, dtype: torch.dtype) -> Files:
        """Those that this writer writes: they take turns."""
        return dict(list(self.files(dtype).items())[self.writers.index(writer) :: len(self.writers)])

    def moves(self, dtype: torch.dtype) -> Plan:
        """With several writers it depends on the size of an element which of them writes a tensor."""
        key = dtype.itemsize if len(self.writers) > 1 else 0
        if key not in self._moves:
            targets = {writer: self._wanted(writer, dtype) for writer in self.writers}
            self._moves[key] = plan(self._inventories, targets)
        return self._moves[key]

    def _wanted(self, writer: int, dtype: torch.dtype) -> Inventory:
        files = self.files_of(writer, dtype)
        return restricted(self._checkpoint, (name for shapes in files.values() for name in shapes))


def gather_to_writer(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    folder_plan: FolderPlan,
    transport: Transport,
    *,
    dtype: torch.dtype,
    copy_from: Path | None = None,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> None:
    """Write `folder` together: every rank of the plan calls it with its own `tensors`, all else being equal.

    `tensors` (by local name) may be weights or anything of the same shapes, such as Adam's moments. Beside them every
    rank has at most two buckets in memory: a writer puts what arrives straight into its place in the file. On return
    the folder is complete for every rank; FolderError is raised on every rank or on none. Raises TransportError
    when a rank is lost.
    """
    copy_bytes = bucket_bytes // 8  # what a writer may have to copy counts as well, so the two on their way are smaller
    carried = {"dtype": dtype, "bucket_bytes": bucket_bytes - copy_bytes // 2}
    rank, head, moves = transport.rank, folder_plan.writers[0], folder_plan.moves(dtype)
    own_files = folder_plan.files_of(rank, dtype) if rank in folder_plan.writers else {}
    _agree(transport, folder_plan, _attempt(begin_folder, folder) if rank == head else None)
    failure = None
    if own_files:
        arriving = Receiver(moves, rank, sources=tensors, **carried).boxes(transport)
        partial = partial_folder(folder)
        failure = _attempt(write_files, partial, own_files, arriving, dtype, max_copy_bytes=copy_bytes)
        for _ in arriving:  # after a failure the others still send; they learn of it below
            pass
    else:
        Sender(moves, rank, tensors, **carried).run(transport)
    _agree(transport, folder_plan, failure)
    finish = folder, folder_plan.files(dtype), dtype, copy_from
    _agree(transport, folder_plan, _attempt(finish_folder, *finish) if rank == head else None)


def _attempt(action, *arguments, **settings) -> FolderError | None:
    try:
        action(*arguments, **settings)
    except FolderError as error:
        return error
    return None


def _agree(transport: Transport, folder_plan: FolderPlan, failure: FolderError | None) -> None:
    """Raise FolderError on every rank when one rank has failed."""
    good, head = failure is None, folder_plan.writers[0]
    others = [rank for rank in folder_plan.ranks if rank != head]
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
        raise FolderError("the checkpoint was not written: another rank failed and says why")

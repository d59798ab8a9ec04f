"""How rank 0, which plays, commands the trainer ranks, which follow: one command at a time, done by all together."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_DISMISS = "dismiss"
# A rank 0 that has failed loses its connections before its process ends. Its exit is the one to be reported, so the
# others stay until it is noticed, which ends them.
PARTING_S = 10.0


class Crew:
    """The ranks of one trainer. Rank 0 calls; the others `follow` until they are dismissed.

    Commands travel over a group of their own, whose limit is the longest that collecting a step may take: waiting for
    rank 0 to play is not the same as waiting for a rank that hangs in the middle of an update.
    """

    def __init__(self, member: Any, wait_s: float):
        self._member = member
        self._wait_s = wait_s
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=wait_s)) if _many() else None

    @property
    def num_ranks(self) -> int:
        return dist.get_world_size() if _many() else 1

    def call(self, command: str, *arguments: Any) -> Any:
        """Have every rank run `command(*arguments)`; rank 0's own result. Arguments are plain records."""
        self._say(command, arguments)
        return getattr(self._member, command)(*arguments)

    def dismiss(self) -> None:
        self._say(_DISMISS, ())

    def follow(self) -> None:
        """Do what rank 0 says until it says no more. Raises TimeoutError when it says nothing within the limit."""
        while True:
            command, arguments = self._hear()
            if command == _DISMISS:
                return
            getattr(self._member, command)(*arguments)

    def _say(self, command: str, arguments: tuple) -> None:
        if self._group is not None:
            dist.broadcast_object_list([(command, arguments)], src=0, group=self._group)

    def _hear(self) -> tuple[str, tuple]:
        said: list[Any] = [None]
        try:
            dist.broadcast_object_list(said, src=0, group=self._group)
        except RuntimeError as error:
            time.sleep(PARTING_S)
            raise TimeoutError(
                f"trainer rank {dist.get_rank()} heard nothing from trainer rank 0 (limit {self._wait_s:g} s): "
                f"{str(error).splitlines()[0]}"
            ) from None
        return said[0]


def gatherer(timeout_s: float) -> Callable[[Any], list[Any]]:
    """A function that gives each rank's plain record to all, in rank order, over a group of its own.

    It raises TimeoutError when a rank is gone or does not answer within `timeout_s`. Made on all ranks together.
    """
    if not _many():
        return lambda record: [record]
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(record: Any) -> list[Any]:
        told: list[Any] = [None] * dist.get_world_size()
        try:
            dist.all_gather_object(told, record, group=group)
        except RuntimeError as error:
            raise TimeoutError(
                f"trainer rank {dist.get_rank()} did not hear from all other trainer ranks (limit {timeout_s:g} s): "
                f"{str(error).splitlines()[0]}"
            ) from None
        return told

    return gather


def _many() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1

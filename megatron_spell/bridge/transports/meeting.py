"""Where ranks meet before they are connected: a TCPStore and roll calls over it."""

import json
from collections.abc import Callable
from datetime import timedelta
from time import monotonic
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore  # dist's own, where its stubs have them

from megatron_spell.bridge.transports.base import (
    DEFAULT_TIMEOUT_S,
    Party,
    TransportError,
    TransportTimeout,
    one_line,
)


def open_store(host: str, port: int, *, serve: bool, timeout_s: float = DEFAULT_TIMEOUT_S) -> TCPStore:
    """The store where ranks meet. With `serve` it listens here, on a free port (see `.port`) when `port` is 0.

    Raises TransportError, TransportTimeout naming the address.
    """
    limit = timedelta(seconds=timeout_s)
    try:
        return TCPStore(host, port, is_master=serve, timeout=limit, wait_for_workers=False)
    except dist.DistError as error:
        why = one_line(error)
        if serve:
            raise TransportError(f"cannot serve a rendezvous at {host}:{port}: {why}") from None
        raise TransportTimeout(f"waited {timeout_s:g} s for a rendezvous at {host}:{port}: {why}") from None


class Meeting:
    """One session of a party at a store; all its stages share one time limit, from the making of this object on."""

    def __init__(self, store: Store, session: str, party: Party):
        self.store = PrefixStore(session, store)
        self.party = party
        self._deadline = monotonic() + party.timeout_s

    @property
    def left_s(self) -> float:
        """Seconds left of the limit, always a little more than nothing."""
        return max(0.001, self._deadline - monotonic())

    def roll_call(self, stage: str) -> None:
        """Wait until every rank is at `stage`. Raises TransportTimeout naming who is not, TransportError."""
        self._tell_and_wait(stage, "here", lambda key: None)

    def exchange(self, stage: str, record) -> list:
        """Each rank's `record` (made of what JSON holds), by rank; waits like `roll_call`."""
        return self._tell_and_wait(stage, record, lambda key: json.loads(self.store.get(key)))

    def _tell_and_wait(self, stage: str, record, read: Callable[[str], Any]) -> list:
        party = self.party
        try:
            self.store.set(f"{stage}/{party.rank}", json.dumps(record))
            found = []
            for peer in range(party.size):
                if not self._reached(f"{stage}/{peer}"):
                    raise party.waited(f"{self._absent(stage) or party.name(peer)} to join")
                found.append(read(f"{stage}/{peer}"))
            return found
        except dist.DistError as error:
            raise TransportError(f"{party.me} lost the rendezvous: {one_line(error)}") from None

    def _absent(self, stage: str) -> str:
        ranks = range(self.party.size)
        return ", ".join(self.party.name(peer) for peer in ranks if not self.store.check([f"{stage}/{peer}"]))

    def _reached(self, key: str) -> bool:
        try:
            self.store.wait([key], timedelta(seconds=self.left_s))
        except dist.DistStoreError:  # the time limit; a lost store is a DistNetworkError
            return False
        return True

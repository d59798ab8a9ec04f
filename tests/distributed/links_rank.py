"""One process of the tests of links: `links_rank.py WAY TRANSPORT`.

Ranks 0 and 1 are trainers; 2, 3 and 4 are engines 0, 1 and what is started in place of engine 1 after it was lost.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from megatron_spell.bridge.executor import Receiver
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.receipts import WrongWeights
from megatron_spell.bridge.transports import routed
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.cluster.local import free_port
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.crew import gatherer
from megatron_spell.train.links import Links, Meeting
from megatron_spell.train.routes import part_of, plan_refresh
from tests.unit.bridge.made_weights import laid_out, made_shape, made_weights

TRANSPORT = sys.argv[2]
RANK, PORT = int(os.environ["RANK"]), int(os.environ["MASTER_PORT"])
NUM_TRAINERS, NUM_ENGINES = 2, 2
MESH, SHAPE = Mesh(tp=2), made_shape(layers=4)
TIMEOUT_S, BUCKET_BYTES = 4.0, 2000
PATIENCE = timedelta(seconds=60)


def truth(version: int) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in made_weights(SHAPE, seed=version).items()}


class Trainer:
    """A trainer rank: its weights are those of `version`."""

    def __init__(self, board: dist.TCPStore):
        self.board = board
        dist.init_process_group("gloo", store=dist.PrefixStore("trainers", board), rank=RANK, world_size=NUM_TRAINERS)
        self.tensors = self._weights(0)
        self.links = Links(RANK, lambda: self.tensors, gatherer(30.0))
        whole = plan_refresh(SHAPE, MESH, [checkpoint_inventory(SHAPE)], NUM_ENGINES)
        self.parts = [part_of(whole, e, num_trainers=NUM_TRAINERS, num_workers=1) for e in range(NUM_ENGINES)]

    def connect(self, *engines: int, session: str) -> None:
        if RANK == 0:
            for engine in engines:
                self.board.set(f"{session}/{engine}", json.dumps(asdict(self._meeting(engine, session))))
        meetings = [Meeting(**json.loads(self.board.get(f"{session}/{engine}"))) for engine in engines]
        assert self.links.connect(meetings) == {}

    def send(self, *engines: int, version: int):
        """What `Links.send` says of `version`, and the seconds it took."""
        for name, values in self._weights(version).items():
            self.tensors[name].copy_(values)
        started = time.monotonic()
        sent = self.links.send(engines, version)
        return sent, time.monotonic() - started

    def _weights(self, version: int) -> dict[str, torch.Tensor]:
        laid = laid_out(SHAPE, made_weights(SHAPE, seed=version), MESH, RANK)
        return {name: torch.from_numpy(values) for name, values in laid.items()}

    def _meeting(self, engine: int, session: str) -> Meeting:
        agreed = {"host": "127.0.0.1", "port": free_port(), "dtype": "float32", "bucket_bytes": BUCKET_BYTES}
        of_engine = {"engine": engine, "name": f"engine {engine}", "plan": self.parts[engine].to_json()}
        sizes = {"num_workers": 1, "num_trainers": NUM_TRAINERS, "timeout_s": TIMEOUT_S, "transport": TRANSPORT}
        return Meeting(**agreed, **of_engine, **sizes, session=session)


class Receiving:
    """An engine's end of a link."""

    def __init__(self, board: dist.TCPStore, engine: int, session: str):
        board.wait([f"{session}/{engine}"], PATIENCE)
        channel = Meeting(**json.loads(board.get(f"{session}/{engine}"))).channel()
        store = open_store(channel["host"], channel["port"], serve=False, timeout_s=channel["timeout_s"])
        who = {"timeout_s": channel["timeout_s"], "session": session, "address": "127.0.0.1"}
        self.transport = routed.meet(channel["transport"], store, channel["rank"], channel["size"], **who)
        plan = Plan.from_json(channel["plan"])
        self.receiver = Receiver(plan, channel["rank"], dtype=torch.float32, bucket_bytes=channel["bucket_bytes"])

    def tensors(self, version: int):
        return self.receiver.tensors(self.transport, check=version)

    def expect(self, version: int) -> None:
        found, wanted = dict(self.tensors(version)), truth(version)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def train(board: dist.TCPStore, way: str) -> None:
    trainer = Trainer(board)
    trainer.connect(0, 1, session="first")
    sent, _ = trainer.send(0, 1, version=1)
    assert sent.lost == {}
    assert sent.wrong is None
    sent, seconds = trainer.send(0, 1, version=2)
    if way == "corrupts":
        assert sent.wrong is not None
        assert "engine 1: what landed on rank 2 is not what rank " in sent.wrong, sent
        return
    assert sent.wrong is None
    assert sent.lost.keys() == {1}
    assert "engine 1" in sent.lost[1], sent
    assert "\n" not in sent.lost[1]
    assert seconds < (TIMEOUT_S if way == "dies" else 2 * TIMEOUT_S), seconds
    sent, seconds = trainer.send(0, version=3)
    assert sent.lost == {}
    assert seconds < TIMEOUT_S
    trainer.connect(1, session="second")
    sent, _ = trainer.send(0, 1, version=4)
    assert sent.lost == {}
    trainer.links.close()


def serve(board: dist.TCPStore, way: str) -> None:
    """Engine 0 gets every version, whatever becomes of engine 1."""
    link = Receiving(board, 0, "first")
    for version in (1, 2) if way == "corrupts" else (1, 2, 3, 4):
        link.expect(version)


def fail(board: dist.TCPStore, way: str) -> None:
    link = Receiving(board, 1, "first")
    link.expect(1)
    arriving = link.tensors(2)
    if way == "corrupts":
        take = link.transport.receive

        def receive(src, tag, buffer, num_bytes):
            arrival = take(src, tag, buffer, num_bytes)
            return _Damaged(arrival) if tag == 3 else arrival

        link.transport.receive = receive
        try:
            list(arriving)
            raise AssertionError("damaged weights were taken")
        except WrongWeights as error:
            assert "what landed on rank 2 is not what rank " in str(error)
        return
    for _ in range(3):
        next(arriving)
    if way == "dies":
        os._exit(0)
    board.wait(["done"], PATIENCE)


class _Damaged:
    """An arrival all of whose elements have lost their sign on the way."""

    def __init__(self, arrival):
        self._arrival = arrival

    def wait(self) -> torch.Tensor:
        values = self._arrival.wait().clone()  # it may be the sender's own memory
        values.view(torch.float32).abs_().add_(1.0)
        return values

    def release(self) -> None:
        self._arrival.release()


def come_back(board: dist.TCPStore, way: str) -> None:
    if way != "corrupts":
        Receiving(board, 1, "second").expect(4)


def main(way: str, _: str) -> None:
    board = open_store("127.0.0.1", PORT, serve=RANK == 0, timeout_s=60)
    {0: train, 1: train, 2: serve, 3: fail, 4: come_back}[RANK](board, way)
    if RANK != 3:
        board.add("ended", 1)
    if RANK == 0:  # whose board it is
        deadline = time.monotonic() + 60
        while board.add("ended", 0) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        board.set("done", "")
        time.sleep(0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A real engine in a Ray actor: generation, an update, and that no process of it stays behind."""

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineDied, EngineError, SamplingSpec
from megatron_spell.rollout.remote import RemoteEngine
from tests.engine.tiny_qwen3 import SETTINGS, VOCAB_SIZE, Reference, TrainerProcess, write_checkpoint

pytestmark = pytest.mark.slow

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 200).astype(np.int32)
GREEDY = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=16)
LONG = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=300, n=48)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(base / f"v{seed}", tied=True, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def cluster():
    from megatron_spell.cluster.ray import RayCluster

    cluster = RayCluster.start(num_cpus=1)
    yield cluster
    cluster.close()


def engine_processes(mark_of: int) -> list[int]:
    """The process `mark_of` and all that it started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found = {mark_of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found & parents.keys())


def all_gone(pids: list[int], timeout_s: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if engine_processes(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def test_an_engine_elsewhere_generates_is_updated_and_leaves_nothing(cluster, folders, tmp_path):
    async def play():
        log = tmp_path / "engine_0.log"
        engine = await RemoteEngine.spawn(cluster, folders[0], SETTINGS, name="engine 0", log=log)
        trainer = TrainerProcess(folders[0])
        try:
            [before] = await engine.generate(PROMPT, GREEDY, key="set")
            await check_that_cancelling_reaches_vllm(engine)
            await engine.connect(trainer.channel())
            await engine.begin_update()
            trainer.send(folders[1])
            await engine.receive_weights({})
            await engine.finish_update(1)
            [after] = await engine.generate(PROMPT, GREEDY, key="set")
        finally:
            trainer.end()
        for version, completion in enumerate((before, after)):
            assert completion.version == version
            assert completion.token_ids_T.tolist() == Reference(folders[version]).greedy(PROMPT, 16).tolist()

        pids = engine_processes(actor_pid(log))
        assert len(pids) >= 3, "the actor, vLLM's engine core and its worker"
        under_way = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0.3)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(EngineDied, match="engine 0 died"):
            await under_way
        assert all_gone(pids)
        await engine.close()

    asyncio.run(play())


async def check_that_cancelling_reaches_vllm(engine: RemoteEngine) -> None:
    """Through Ray: vLLM drops its prefix cache only when no request holds a block of it."""

    async def is_idle() -> bool:
        try:
            await engine._handle.call("_drop_prefix_cache", timeout_s=60)
        except EngineError as error:
            assert "some request still holds blocks" in str(error)
            return False
        return True

    begun = time.monotonic()
    await engine.generate(PROMPT, LONG)
    whole_s = time.monotonic() - begun
    under_way = asyncio.create_task(engine.generate(PROMPT, LONG))
    while await is_idle():
        await asyncio.sleep(0.01)
    begun = time.monotonic()
    under_way.cancel()
    await asyncio.gather(under_way, return_exceptions=True)
    while not await is_idle():
        await asyncio.sleep(0.01)
    assert time.monotonic() - begun < whole_s / 3


def test_a_closed_engine_leaves_nothing(cluster, folders, tmp_path):
    async def play():
        log = tmp_path / "engine_1.log"
        engine = await RemoteEngine.spawn(cluster, folders[0], SETTINGS, name="engine 1", log=log)
        pids = engine_processes(actor_pid(log))
        assert len(pids) >= 3
        await engine.close()
        assert all_gone(pids)
        with pytest.raises(EngineDied, match="engine 1 was closed"):
            await engine.generate(PROMPT, GREEDY)

    asyncio.run(play())


def test_an_engine_that_cannot_start_says_why_and_where_to_look(cluster, tmp_path):
    folder = write_checkpoint(tmp_path / "model", seed=0)
    (folder / "model.safetensors").write_bytes(b"not a checkpoint")
    log = tmp_path / "engine_2.log"
    with pytest.raises(EngineError, match=r"engine 2 did not start on .*model: "):
        asyncio.run(RemoteEngine.spawn(cluster, folder, SETTINGS, name="engine 2", log=log))
    assert "HeaderTooLarge" in log.read_text() or "header" in log.read_text().lower()


def actor_pid(log: Path) -> int:
    """The process that holds the log open as its standard output and is nobody's child in that."""
    holders = []
    for fd in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if fd.readlink() == log:
                holders.append(int(fd.parent.parent.name))
        except OSError:
            continue
    return max(holders, key=lambda pid: len(engine_processes(pid)))

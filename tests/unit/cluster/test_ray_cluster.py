"""Real Ray on this machine."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.cluster.handles import ActorDied, CallTimeout, ClusterError
from tests.unit.cluster.ray_objects import OddError, Record

pytestmark = pytest.mark.slow

HELD = "tests.unit.cluster.ray_objects:Held"
ROOT = Path(__file__).parents[3]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def all_gone(pids: list[int], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.fixture(scope="module")
def cluster():
    from megatron_spell.cluster.ray import RayCluster

    cluster = RayCluster.start(num_cpus=2)
    yield cluster
    cluster.close()


def test_many_open_calls_leave_room_for_another(cluster):
    """Ray lets an actor have 1000 at a time: requests that are held would keep out the call that lets them go on."""

    async def play():
        handle = await cluster.spawn(HELD, {"base": 10}, name="engine 0")
        held = [asyncio.create_task(handle.call("hang", timeout_s=60)) for _ in range(1200)]
        await asyncio.sleep(0)
        assert await handle.call("add", 1, timeout_s=20) == 11
        assert not any(call.done() for call in held)
        await handle.close(timeout_s=1)
        assert all(isinstance(end, ActorDied) for end in await asyncio.gather(*held, return_exceptions=True))

    asyncio.run(play())


def test_calls_overlap_records_travel_and_errors_keep_their_class(cluster):
    async def play():
        handle = await cluster.spawn(HELD, {"base": 10}, name="engine 0", env={"MADE_UP": "yes"})
        assert await asyncio.gather(*(handle.call("add", i, timeout_s=5) for i in range(8))) == list(range(10, 18))
        assert await handle.call("add", 3, timeout_s=5, twice=True) == 16
        doubled = await handle.call("double", Record(np.arange(5), "x"), timeout_s=5)
        assert doubled.values_T.tolist() == [0, 2, 4, 6, 8] and doubled.label == "x"
        assert await handle.call("environment", "MADE_UP", timeout_s=5) == "yes"
        with pytest.raises(OddError, match=r"^one line$") as caught:
            await handle.call("fail", timeout_s=5)
        assert type(caught.value) is OddError
        await handle.close()
        with pytest.raises(ActorDied, match="engine 0 was closed"):
            await handle.call("add", 1, timeout_s=5)

    asyncio.run(play())


def test_a_call_has_its_limit_and_is_cancelled_in_the_actor(cluster):
    async def play():
        handle = await cluster.spawn(HELD, {"base": 0}, name="engine 0")
        with pytest.raises(CallTimeout, match=r"engine 0: waited 0.2 s for hang"):
            await handle.call("hang", timeout_s=0.2)
        hanging = asyncio.create_task(handle.call("hang", timeout_s=60))
        await asyncio.sleep(0.2)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        for _ in range(100):
            if await handle.call("num_cancelled", timeout_s=5) == 2:
                break
            await asyncio.sleep(0.05)
        assert await handle.call("num_cancelled", timeout_s=5) == 2
        await handle.close()

    asyncio.run(play())


def test_death_is_named_with_the_last_words_and_children_go_too(cluster, tmp_path):
    async def play():
        handle = await cluster.spawn(HELD, {"base": 0}, name="engine 5", log=tmp_path / "logs" / "engine_5.log")
        pids = await handle.call("pids", timeout_s=5)
        under_way = asyncio.create_task(handle.call("hang", timeout_s=60))
        with pytest.raises(
            ActorDied, match=r"engine 5 died: .*engine_5.log ends: .*these are the last words"
        ) as caught:
            await handle.call("die", timeout_s=20)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        with pytest.raises(ActorDied, match="engine 5 died"):
            await under_way
        assert all_gone(pids)
        await handle.close()

    asyncio.run(play())


def test_close_lets_the_object_close_and_leaves_no_process(cluster, tmp_path):
    async def play():
        handle = await cluster.spawn(HELD, {"base": 0}, name="engine 0", log=tmp_path / "log")
        pids = await handle.call("pids", timeout_s=5)
        await handle.close()
        assert all_gone(pids)
        assert (tmp_path / "log").read_text().splitlines() == ["held object built", "closed in peace"]

    asyncio.run(play())


def test_what_cannot_be_had_or_built_is_said_in_one_line(cluster):
    async def play():
        with pytest.raises(CallTimeout, match=r"engine 9: waited 0.5 s for a process with 64 cpu and 0 gpu"):
            await cluster.spawn(HELD, {"base": 0}, name="engine 9", num_cpus=64, timeout_s=0.5)
        with pytest.raises(ClusterError, match=r"'tests.unit.cluster.ray_objects:Nothing' names no factory"):
            await cluster.spawn("tests.unit.cluster.ray_objects:Nothing", {}, name="engine 9")

    asyncio.run(play())


def test_a_running_cluster_is_joined_by_its_address(cluster):
    import ray

    script = (
        "import asyncio, sys\n"
        "from megatron_spell.cluster.ray import RayCluster\n"
        "async def main():\n"
        "    cluster = RayCluster.start(sys.argv[1], timeout_s=60)\n"
        f"    handle = await cluster.spawn({HELD!r}, dict(base=5), name='engine 0')\n"
        "    print(await handle.call('add', 1, timeout_s=10))\n"
        "    await handle.close()\n"
        "    cluster.close()\n"
        "asyncio.run(main())\n"
    )
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", script, address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment).stdout == "6\n"
    assert ray.nodes()[0]["Alive"], "whoever joins must not end the cluster"


def test_the_killed_drivers_actors_and_their_children_go_too():
    script = (
        "import asyncio, os, time\n"
        "from megatron_spell.cluster.ray import RayCluster\n"
        "async def main():\n"
        "    cluster = RayCluster.start(num_cpus=1)\n"
        f"    handle = await cluster.spawn({HELD!r}, dict(base=0), name='engine 0')\n"
        "    print(*await handle.call('pids', timeout_s=10), flush=True)\n"
        "    time.sleep(120)\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    pids = list(map(int, driver.stdout.readline().split()))
    assert len(pids) == 2 and all(map(alive, pids))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert all_gone(pids, 30)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:{dead}", "no Ray cluster answers at 127.0.0.1:"),
        ("127.0.0.1:{mute}", "no Ray cluster answers at 127.0.0.1:"),
        ("somewhere", "cluster.ray_address is 'somewhere'; write \"auto\" or host:port"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_named_in_time(address, says):
    """In a process of its own, for this one may be in a cluster already."""
    with socket.socket() as mute, socket.socket() as dead:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        dead.bind(("127.0.0.1", 0))
        address = address.format(dead=dead.getsockname()[1], mute=mute.getsockname()[1])
        script = (
            "from megatron_spell.cluster.ray import RayCluster\n"
            "from megatron_spell.cluster.handles import ClusterError\n"
            "try:\n"
            f"    RayCluster.start({address!r}, timeout_s=4)\n"
            "except ClusterError as error:\n"
            "    print(error)\n"
        )
        begin = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
        )
    assert done.stdout.startswith(says) and done.stdout.count("\n") == 1, done.stdout + done.stderr
    assert time.monotonic() - begin < 30

import asyncio

import pytest

from megatron_spell.cluster.handles import ActorDied, CallTimeout, ClusterError, LocalCluster


class Counter:
    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, number: int, *, times: int = 1) -> int:
        self.total += number * times
        return self.total

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def fail(self) -> None:
        raise KeyError("planted")


def test_plain_and_async_methods_errors_limits_and_the_end():
    async def play():
        handle = await LocalCluster().spawn(f"{__name__}:Counter", {"start": 3}, name="counter 1")
        assert await handle.call("add", 2, timeout_s=1, times=2) == 7
        with pytest.raises(KeyError, match="planted"):
            await handle.call("fail", timeout_s=1)
        with pytest.raises(CallTimeout, match=r"counter 1: waited 0.01 s for sleep"):
            await handle.call("sleep", 5.0, timeout_s=0.01)
        await handle.close()
        await handle.close()
        with pytest.raises(ActorDied, match="counter 1 was closed"):
            await handle.call("add", 1, timeout_s=1)

    asyncio.run(play())


@pytest.mark.parametrize("factory", ["nowhere.at_all:Thing", f"{__name__}:Missing", "no_colon", ""])
def test_a_factory_that_does_not_exist_is_named(factory):
    with pytest.raises(ClusterError, match="names no factory"):
        asyncio.run(LocalCluster().spawn(factory, {}, name="x"))

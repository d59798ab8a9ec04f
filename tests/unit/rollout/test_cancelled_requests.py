"""A request that is cancelled leaves pool, handle and engine as if it had not been asked."""

import asyncio

import numpy as np
import pytest

from megatron_spell.cluster.handles import LocalHandle
from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.remote import RemoteEngine
from megatron_spell.rollout.router import EnginePool
from megatron_spell.rollout.scripted import ScriptedEngine

PROMPT = np.arange(5, dtype=np.int32)
SPEC = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4, n=3)


def test_load_goes_back_an_update_need_not_wait_and_later_requests_are_written():
    async def play():
        held = [ScriptedEngine(lambda *_: [7], delay_s=lambda call: 60.0 if call < 2 else 0.0) for _ in range(2)]
        pool = EnginePool([RemoteEngine(LocalHandle(engine, engine.name), RolloutSection()) for engine in held])
        under_way = [asyncio.create_task(pool.generate(PROMPT, SPEC, key=f"set {i}")) for i in range(4)]
        while sum(engine.counts.calls for engine in held) < 4:
            await asyncio.sleep(0)
        assert pool.loads == {0: 6, 1: 6}
        waiting = asyncio.create_task(held[0].begin_update())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        for task in under_way:
            task.cancel()
        for task in under_way:
            with pytest.raises(asyncio.CancelledError):
                await task
        assert pool.loads == {0: 0, 1: 0} and list(pool.live) == [0, 1]
        await asyncio.wait_for(waiting, 5)
        await held[0].finish_update(1)
        written = await pool.generate(PROMPT, SPEC, key="set 0")
        assert [c.version for c in written] == [1, 1, 1]
        assert [engine.counts.completions for engine in held] == [3, 0]

    asyncio.run(play())

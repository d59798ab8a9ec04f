import asyncio

import numpy as np
import pytest

from megatron_spell.rollout.engine import Engine, EngineError, EngineUnusable, SamplingSpec
from megatron_spell.rollout.router import EnginePool
from megatron_spell.rollout.scripted import ScriptedEngine

PROMPT = np.arange(5, dtype=np.int32)


def spec(n: int) -> SamplingSpec:
    return SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4, n=n)


def make_pool(num_engines: int, delay_s: float = 0.0, **settings):
    engines = [
        ScriptedEngine(lambda *_, i=i: [i], name=f"engine {i}", delay_s=lambda _: delay_s) for i in range(num_engines)
    ]
    return engines, EnginePool(engines, **settings)


def test_keys_stay_home_and_homes_are_shared_out():
    async def play():
        engines, pool = make_pool(3, delay_s=0.01)
        assert isinstance(pool, Engine)
        for _ in range(3):
            await asyncio.gather(*(pool.generate(PROMPT, spec(2), key=f"set {i}") for i in range(6)))
        return engines, pool

    engines, pool = asyncio.run(play())
    assert [sorted(set(e.keys)) for e in engines] == [["set 0", "set 3"], ["set 1", "set 4"], ["set 2", "set 5"]]
    assert pool.loads == (0, 0, 0)


def test_without_a_key_the_least_loaded_engine_is_taken():
    async def play():
        engines, pool = make_pool(2, delay_s=0.02)
        await asyncio.gather(pool.generate(PROMPT, spec(8)), *(pool.generate(PROMPT, spec(2)) for _ in range(4)))
        return [engine.counts.calls for engine in engines]

    assert asyncio.run(play()) == [1, 4]


def test_a_key_moves_when_its_home_is_much_busier():
    async def play():
        engines, pool = make_pool(2, delay_s=0.02, max_imbalance=4)
        await asyncio.gather(*(pool.generate(PROMPT, spec(4), key="set") for _ in range(3)))
        return [engine.counts.calls for engine in engines]

    assert asyncio.run(play()) == [2, 1]


def test_load_is_given_back_when_a_request_fails():
    engine = ScriptedEngine(lambda *_: [1], failures={0: EngineError("planted")})
    pool = EnginePool([engine])
    with pytest.raises(EngineError, match="planted"):
        asyncio.run(pool.generate(PROMPT, spec(3)))
    assert pool.loads == (0,)


def test_an_update_reaches_every_engine_at_its_own_rank():
    class Listening(ScriptedEngine):
        async def connect(self, channel):
            self.requests.append(channel)

    async def play():
        engines = [Listening(lambda *_: [1], name=f"engine {i}") for i in range(3)]
        pool = EnginePool(engines, workers_per_engine=2)
        await pool.connect({"rank": 4, "host": "here"})
        await pool.begin_update()
        await pool.receive_weights({"bucket": 1})
        await pool.finish_update(9)
        return engines

    engines = asyncio.run(play())
    assert [engine.requests[0] for engine in engines] == [{"rank": r, "host": "here"} for r in (4, 6, 8)]
    assert all(engine.requests[1] == {"bucket": 1} and engine.version == 9 for engine in engines)


def test_one_failed_update_ends_the_pool_after_all_engines_have_answered():
    async def play():
        engines, pool = make_pool(2)
        engines[0].update_failures = {"receive_weights": EngineError("engine 0: lost the trainer")}
        await pool.begin_update()
        with pytest.raises(EngineError, match="engine 0: lost the trainer"):
            await pool.receive_weights({})
        assert engines[1].requests == [{}]
        for call in (pool.generate(PROMPT, spec(1)), pool.finish_update(1)):
            with pytest.raises(EngineUnusable, match="engines are unusable: a weight update failed: engine 0"):
                await call
        await pool.close()
        return engines

    assert all(engine.closed for engine in asyncio.run(play()))


def test_all_engines_sleep_and_wake_together():
    async def play():
        engines, pool = make_pool(2)
        assert await pool.sleep() is None
        await pool.wake("weights")
        return [engine.calls_of_sleep for engine in engines]

    assert asyncio.run(play()) == [["sleep", "weights"]] * 2


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(EngineError, match="at least one engine"):
        EnginePool([])

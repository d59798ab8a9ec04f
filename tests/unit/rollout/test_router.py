import asyncio

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineDied, EngineError, EngineTimeout, EngineUnusable, SamplingSpec
from megatron_spell.rollout.router import MAX_TRIES, EnginePool
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
        for _ in range(3):
            await asyncio.gather(*(pool.generate(PROMPT, spec(2), key=f"set {i}") for i in range(6)))
        return engines, pool

    engines, pool = asyncio.run(play())
    assert [sorted(set(e.keys)) for e in engines] == [["set 0", "set 3"], ["set 1", "set 4"], ["set 2", "set 5"]]
    assert pool.loads == {0: 0, 1: 0, 2: 0}


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
    assert pool.loads == {0: 0}


def seeded_reply(prompt_ids_T, spec, sample):
    """What the weights would write: the same on every engine."""
    return np.random.default_rng([spec.seed, sample]).integers(0, 100, 4)


def seeded(i: int) -> SamplingSpec:
    return SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4, n=2, seed=i)


async def words(engine, keys: range) -> list[list[int]]:
    asked = (engine.generate(PROMPT, seeded(i), key=f"set {i}") for i in keys)
    return [c.token_ids_T.tolist() for found in await asyncio.gather(*asked) for c in found]


@pytest.mark.parametrize("kind", [EngineDied, EngineUnusable, EngineTimeout])
def test_requests_of_an_engine_that_is_lost_are_written_by_another_as_they_would_have_been(kind):
    async def play():
        failures = dict.fromkeys(range(1, 9), kind("engine 1: gone"))
        engines = [
            ScriptedEngine(seeded_reply, name="engine 0", delay_s=lambda _: 0.01),
            ScriptedEngine(seeded_reply, name="engine 1", delay_s=lambda _: 0.01, failures=failures),
        ]
        lost = []
        pool = EnginePool(engines, on_loss=lambda *loss: lost.append(loss))
        found = await words(pool, range(8))
        alone = await words(ScriptedEngine(seeded_reply), range(8))
        assert engines[1].counts.calls == 4  # its four keys; the first was written there
        assert lost == [(1, engines[1], "engine 1: gone")]
        assert pool.live == {0: engines[0]}
        assert pool.loads == {0: 0}
        return found, alone

    found, alone = asyncio.run(play())
    assert found == alone


def test_what_is_no_loss_is_not_tried_again():
    engines = [ScriptedEngine(lambda *_: [1], failures={0: EngineError("engine 0: refused")}) for _ in range(2)]
    pool = EnginePool(engines)
    with pytest.raises(EngineError, match="refused"):
        asyncio.run(pool.generate(PROMPT, spec(1)))
    assert list(pool.live) == [0, 1]
    assert [engine.counts.calls for engine in engines] == [1, 0]


def test_a_request_that_ends_engines_does_not_end_them_all():
    dying = {0: EngineDied("it died")}
    engines = [ScriptedEngine(lambda *_: [1], name=f"engine {i}", failures=dying) for i in range(MAX_TRIES + 2)]
    pool = EnginePool(engines)
    with pytest.raises(EngineDied, match=f"a prompt of 5 tokens was lost with {MAX_TRIES} engines: it died"):
        asyncio.run(pool.generate(PROMPT, spec(1)))
    assert list(pool.live) == [3, 4]


def test_without_any_engine_the_reasons_are_named():
    engines = [ScriptedEngine(lambda *_: [1], failures={0: EngineDied(f"engine {i}: out of memory")}) for i in (0, 1)]
    pool = EnginePool(engines)
    with pytest.raises(EngineDied, match=r"no engine is left of engines: engine 0: out of memory; engine 1: out of"):
        asyncio.run(pool.generate(PROMPT, spec(1)))


def test_an_engine_that_joins_gets_keys_again_and_a_number_is_given_once():
    async def play():
        engines, pool = make_pool(2, delay_s=0.01)
        await asyncio.gather(*(pool.generate(PROMPT, spec(2), key=f"set {i}") for i in range(4)))
        pool.lose(1, "planted")
        pool.lose(1, "planted again")
        await asyncio.gather(*(pool.generate(PROMPT, spec(2), key=f"set {i}") for i in range(4)))
        new = ScriptedEngine(lambda *_: [1], name="engine 1", delay_s=lambda _: 0.01)
        pool.join(1, new)
        with pytest.raises(EngineError, match="number 1 is taken by engine 1"):
            pool.join(1, engines[1])
        await asyncio.gather(*(pool.generate(PROMPT, spec(2), key=f"set {i}") for i in range(4, 8)))
        return engines, new

    engines, new = asyncio.run(play())
    assert engines[1].counts.calls == 2  # none after it was lost
    assert sorted(new.keys) == ["set 5", "set 7"]


def test_a_closed_pool_closes_its_engines_and_writes_nothing():
    async def play():
        engines, pool = make_pool(2)
        await pool.close()
        with pytest.raises(EngineUnusable, match="engines are unusable: they were closed"):
            await pool.generate(PROMPT, spec(1))
        return engines

    assert all(engine.closed for engine in asyncio.run(play()))


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(EngineError, match="at least one engine"):
        EnginePool([])

"""RemoteEngine over a handle in this process; over Ray with a real engine it stands in tests/engine."""

import asyncio

import numpy as np
import pytest

from megatron_spell.cluster.handles import LocalHandle
from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.engine import Engine, EngineDied, EngineTimeout, PromptTooLong, SamplingSpec
from megatron_spell.rollout.remote import RemoteEngine
from megatron_spell.rollout.scripted import ScriptedEngine

PROMPT = np.arange(5, dtype=np.int32)
SPEC = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4)


def test_every_call_reaches_the_engine_and_its_errors_come_back():
    async def play():
        held = ScriptedEngine(lambda *_: [7], max_model_len=9)
        engine = RemoteEngine(LocalHandle(held, "engine 2"), RolloutSection())
        assert isinstance(engine, Engine) and engine.name == "engine 2"
        assert (await engine.generate(PROMPT, SPEC, key="set"))[0].token_ids_T.tolist() == [7]
        assert held.keys == ["set"]
        with pytest.raises(PromptTooLong):
            await engine.generate(np.zeros(9, np.int32), SPEC)
        await engine.connect({})
        await engine.begin_update()
        await engine.receive_weights({"a": 1})
        await engine.finish_update(2)
        assert (held.version, held.requests) == (2, [{"a": 1}])
        assert await engine.sleep() is None
        await engine.wake("weights")
        await engine.wake("cache")
        assert held.calls_of_sleep == ["sleep", "weights", "cache"]
        await engine.ping()
        await engine.close()
        assert held.closed
        with pytest.raises(EngineDied, match="engine 2 was closed"):
            await engine.generate(PROMPT, SPEC)

    asyncio.run(play())


def test_an_engine_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr("megatron_spell.rollout.remote.MARGIN_S", 0.0)
    held = ScriptedEngine(lambda *_: [7], delay_s=lambda _: 5.0)
    engine = RemoteEngine(LocalHandle(held, "engine 2"), RolloutSection(request_timeout_s=0.01))
    with pytest.raises(EngineTimeout, match=r"engine 2: waited 0.02 s for generate"):
        asyncio.run(engine.generate(PROMPT, SPEC))


def test_an_engine_that_gives_no_sign_of_life_is_named(monkeypatch):
    monkeypatch.setattr("megatron_spell.rollout.remote.MARGIN_S", 0.0)
    held = ScriptedEngine(lambda *_: [7])
    monkeypatch.setattr(ScriptedEngine, "ping", lambda self: asyncio.sleep(5))
    engine = RemoteEngine(LocalHandle(held, "engine 2"), RolloutSection(stall_timeout_s=0.01))
    with pytest.raises(EngineTimeout, match=r"engine 2: waited 0.01 s for ping"):
        asyncio.run(engine.ping())

"""In which order a colocated engine asks vLLM to sleep and wake. vLLM's own sleep needs a GPU; none was at hand."""

import asyncio

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineError, EngineTimeout, SamplingSpec
from megatron_spell.rollout.vllm_engine import VllmEngine
from tests.engine.tiny_qwen3 import SETTINGS

pytestmark = pytest.mark.slow

SPEC = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4)


class Recorder:
    """Stands where AsyncLLM does and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        async def call(*args, **kwargs):
            self.calls.append(" ".join([name, *map(str, args), *(f"{k}={v}" for k, v in kwargs.items())]))
            return True

        return call


@pytest.fixture
def asleep(monkeypatch):
    """An engine that believes in a GPU, and what it asks of vLLM."""
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)

    def make(level: int) -> tuple[VllmEngine, Recorder]:
        update = {"placement": "colocated", "sleep_level": level, "request_timeout_s": 0.05}
        engine, llm = VllmEngine("model", SETTINGS.model_copy(update=update)), Recorder()
        engine._llm = llm
        return engine, llm

    return make


def test_weights_wake_first_and_requests_wait_for_the_cache(asleep):
    engine, llm = asleep(level=2)

    async def play():
        assert await engine.sleep() is None
        with pytest.raises(EngineTimeout, match="its weight update to finish"):
            await engine.generate(np.zeros(4, np.int32), SPEC)
        with pytest.raises(EngineError, match="sleeps: wake its weights before an update"):
            await engine.begin_update()
        await engine.wake("weights")
        with pytest.raises(EngineError, match="has no weights to wake up with"):
            await engine.wake("cache")
        await engine.begin_update()
        await engine.finish_update(5)
        await engine.wake("cache")

    asyncio.run(play())
    assert llm.calls == [
        "sleep level=2 mode=wait",
        "wake_up ['weights']",
        "start_weight_update",
        "finish_weight_update weight_version=5",
        "reset_prefix_cache reset_running_requests=False",
        "wake_up ['kv_cache']",
    ]
    assert (engine._turnstile.version, engine._turnstile.updating) == (5, False)


def test_weights_kept_in_host_memory_need_no_update(asleep):
    engine, llm = asleep(level=1)

    async def play():
        await engine.sleep()
        await engine.wake("weights")
        await engine.wake("cache")

    asyncio.run(play())
    assert llm.calls[0] == "sleep level=1 mode=wait" and "start_weight_update" not in llm.calls
    assert (engine._turnstile.version, engine._turnstile.updating) == (0, False)


def test_an_engine_with_gpus_of_its_own_does_not_sleep(asleep):
    engine, llm = asleep(level=2)
    engine._settings = engine._settings.model_copy(update={"placement": "split"})
    assert asyncio.run(engine.sleep()) == "rollout.placement is not colocated" and llm.calls == []

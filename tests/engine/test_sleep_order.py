"""In which order a colocated engine asks vLLM to sleep and wake. vLLM's own sleep needs a GPU; none was at hand."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineError, EngineTimeout, SamplingSpec
from megatron_spell.rollout.vllm_engine import VllmEngine
from megatron_spell.rollout.vllm_settings import prepare_environment
from tests.engine.tiny_qwen3 import SETTINGS

pytestmark = pytest.mark.slow

SPEC = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4)


class Recorder:
    """Stands where AsyncLLM does and notes its calls. Two tokens of version 0 are written, and two of 5 when `go`."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.inside, self.go = asyncio.Event(), asyncio.Event()

    async def generate(self, prompt, params, request_id):
        from vllm.logprobs import FlatLogprobs
        from vllm.outputs import CompletionOutput, WeightVersionSpan

        self.inside.set()
        await self.go.wait()
        written = CompletionOutput(
            index=0,
            text="",
            token_ids=[7, 7, 8, 8],
            cumulative_logprob=None,
            logprobs=FlatLogprobs(token_ids=[7, 7, 8, 8], logprobs=[-1.0] * 4),
            finish_reason="length",
            weight_versions=[WeightVersionSpan("0", 0, 2), WeightVersionSpan("5", 2, 4)],
        )
        yield SimpleNamespace(outputs=[written])

    def __getattr__(self, name: str):
        async def call(*args, **kwargs):
            self.calls.append(" ".join([name, *map(str, args), *(f"{k}={v}" for k, v in kwargs.items())]))
            return True

        return call


@pytest.fixture
def asleep(monkeypatch):
    """An engine that believes in a GPU, and what it asks of vLLM."""
    prepare_environment(SETTINGS.start_timeout_s)
    import vllm.outputs
    import vllm.sampling_params  # noqa: F401 - takes seconds, which are not to count as a completion's
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)

    def make(level: int, limit_s: float = 0.05, in_flight: bool = False) -> tuple[VllmEngine, Recorder]:
        update = {"placement": "colocated", "sleep_level": level, "request_timeout_s": limit_s}
        engine, llm = VllmEngine("model", SETTINGS.model_copy(update=update), in_flight=in_flight), Recorder()
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


def test_requests_in_flight_are_held_while_the_engine_sleeps(asleep):
    """Longer than a completion may take: time in which it is held does not count."""
    engine, llm = asleep(level=2, limit_s=1.5, in_flight=True)

    async def play():
        writing = asyncio.create_task(engine.generate(np.zeros(4, np.int32), SPEC))
        await llm.inside.wait()
        assert await engine.sleep() is None
        await asyncio.sleep(1.8)
        assert not writing.done()
        await engine.wake("weights")
        await engine.begin_update()
        await engine.finish_update(5)
        await engine.wake("cache")
        llm.go.set()
        return await writing

    [completion] = asyncio.run(play())
    assert (completion.version, completion.versions_T.tolist()) == (0, [0, 0, 5, 5])
    assert llm.calls == [
        "sleep level=2 mode=keep",
        "wake_up ['weights']",
        "start_weight_update",
        "finish_weight_update weight_version=5",
        "reset_prefix_cache reset_running_requests=True",
        "wake_up ['kv_cache']",
    ]


def test_an_engine_that_drains_does_not_sleep_over_a_request(asleep):
    engine, llm = asleep(level=2)

    async def play():
        writing = asyncio.create_task(engine.generate(np.zeros(4, np.int32), SPEC))
        await llm.inside.wait()
        with pytest.raises(EngineTimeout, match=r"waited 0.05 s for 1 request\(s\) in flight"):
            await engine.sleep()
        writing.cancel()

    asyncio.run(play())
    assert not [call for call in llm.calls if call.startswith("sleep")]  # the request's own limit may abort it first

"""A real vLLM engine against Hugging Face, on tiny random weights: before, after and amid weight updates."""

import asyncio
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineDied, EngineError, EngineUnusable, PromptTooLong, SamplingSpec
from megatron_spell.rollout.vllm_engine import VllmEngine
from tests.engine.tiny_qwen3 import SETTINGS, VOCAB_SIZE, Reference, TrainerProcess, write_checkpoint

pytestmark = pytest.mark.slow

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 300).astype(np.int32)  # longer than a block of 128: cached
GREEDY = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=24)
SAMPLED = SamplingSpec(temperature=0.7, top_p=0.95, max_tokens=24, seed=5, n=8)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.nightly), True], ids=["untied", "tied"])
def folders(request, tmp_path_factory) -> list[Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(base / f"v{seed}", tied=request.param, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def references(folders) -> list[Reference]:
    return [Reference(folder) for folder in folders]


@pytest.fixture(scope="module")
def engine(runner, folders):
    engine = VllmEngine(folders[0], SETTINGS, seed=1)
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="module")
def trainer(folders):
    trainer = TrainerProcess(folders[0])
    yield trainer
    trainer.end()


async def update(engine: VllmEngine, trainer: TrainerProcess, folder: Path, version: int) -> None:
    await engine.begin_update()
    trainer.send(folder)
    await engine.receive_weights({})
    await engine.finish_update(version)
    trainer.sent()


def tokens(completions) -> list[tuple[int, ...]]:
    return [tuple(c.token_ids_T.tolist()) for c in completions]


def test_log_probs_are_hugging_faces_untouched_by_temperature_and_top_p(runner, engine, references):
    for completion in runner.run(engine.generate(PROMPT, SAMPLED)):
        expected_T = references[0].log_probs(PROMPT, completion.token_ids_T)
        np.testing.assert_allclose(completion.log_probs_T, expected_T, atol=1e-4, rtol=0)
        assert completion.log_probs_T.dtype == np.float32 and completion.token_ids_T.dtype == np.int32


def test_greedy_is_hugging_faces(runner, engine, references):
    [completion] = runner.run(engine.generate(PROMPT, GREEDY))
    assert completion.token_ids_T.tolist() == references[0].greedy(PROMPT, 24).tolist()
    assert (completion.finish_reason, completion.version) == ("length", 0)


def test_seeded_samples_differ_and_come_again_alone_and_in_company(runner, engine):
    first = tokens(runner.run(engine.generate(PROMPT, SAMPLED)))
    assert len(set(first)) == 8
    assert tokens(runner.run(engine.generate(PROMPT, SAMPLED))) == first

    async def in_company():
        others = [engine.generate(PROMPT[i:], SAMPLED) for i in range(1, 5)]
        return (await asyncio.gather(engine.generate(PROMPT, SAMPLED), *others))[0]

    assert tokens(runner.run(in_company())) == first
    neighbour = SamplingSpec(temperature=0.7, top_p=0.95, max_tokens=24, seed=6, n=8)
    assert not set(first) & set(tokens(runner.run(engine.generate(PROMPT, neighbour))))


def test_the_stop_token_ends_and_belongs_to_the_completion(runner, engine, references):
    whole_T = references[0].greedy(PROMPT, 24)
    stop = int(whole_T[6])
    at = int(np.flatnonzero(whole_T == stop)[0])
    spec = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=24, stop_ids=(stop,))
    [completion] = runner.run(engine.generate(PROMPT, spec))
    assert completion.token_ids_T.tolist() == whole_T[: at + 1].tolist()
    assert completion.finish_reason == "stop" and len(completion.log_probs_T) == at + 1


def test_the_models_own_eos_does_not_stop(runner, engine):
    spec = SamplingSpec(temperature=2.0, top_p=1.0, max_tokens=200, seed=0, n=32)
    completions = runner.run(engine.generate(PROMPT, spec))
    assert all(len(c.token_ids_T) == 200 for c in completions)
    assert any(2 in c.token_ids_T[:-1] for c in completions), "eos (2) was never drawn: the test says nothing"


def test_prompts_that_do_not_fit_are_refused_and_the_context_is_filled(runner, engine):
    with pytest.raises(PromptTooLong, match=r"engine 0: a prompt of 512 tokens .* max_model_len 512"):
        runner.run(engine.generate(np.zeros(512, np.int32), GREEDY))
    [completion] = runner.run(engine.generate(np.resize(PROMPT, 510), GREEDY))
    assert (len(completion.token_ids_T), completion.finish_reason) == (2, "length")
    with pytest.raises(EngineError, match="the prompt is empty"):
        runner.run(engine.generate(np.zeros(0, np.int32), GREEDY))


def test_what_is_cancelled_is_aborted_in_vllm_at_whatever_moment_and_spoils_nothing(
    runner, engine, references, monkeypatch
):
    hand_over = engine._llm.engine_core.add_request_async
    long = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=200, seed=3, n=16)

    async def until_blocks_are(held: bool) -> float:
        """Seconds until vLLM's scheduler says so: it drops its prefix cache only when no request holds a block."""
        begun = time.monotonic()
        async with asyncio.timeout(SETTINGS.request_timeout_s):
            while await engine._llm.reset_prefix_cache() == held:
                await asyncio.sleep(0.002)
        return time.monotonic() - begun

    async def handed_over_slowly(request) -> None:
        """vLLM itself would not abort a request that it is still handing over."""
        await hand_over(request)
        await asyncio.sleep(10)

    async def scenario():
        begun = time.monotonic()
        await engine.generate(PROMPT, long)
        whole_s = time.monotonic() - begun
        under_way = asyncio.create_task(engine.generate(PROMPT, long))
        await until_blocks_are(held=True)
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
        freed_s = await until_blocks_are(held=False)
        assert under_way.cancelled() and freed_s < whole_s / 3
        for num_turns in range(12):  # of the event loop, each another place in handing the requests over
            early = asyncio.create_task(engine.generate(PROMPT, long))
            for _ in range(num_turns):
                await asyncio.sleep(0)
            early.cancel()
            await asyncio.gather(early, return_exceptions=True)
        assert await until_blocks_are(held=False) < whole_s / 3
        monkeypatch.setattr(engine._llm.engine_core, "add_request_async", handed_over_slowly)
        in_between = asyncio.create_task(engine.generate(PROMPT, long))
        await until_blocks_are(held=True)
        in_between.cancel()
        await asyncio.gather(in_between, return_exceptions=True)
        monkeypatch.undo()
        assert await until_blocks_are(held=False) < whole_s / 3
        assert engine._llm.output_processor.get_num_unfinished_requests() == 0
        assert engine._turnstile.num_inside == 0

    runner.run(scenario())
    [completion] = runner.run(engine.generate(PROMPT, GREEDY))
    assert completion.token_ids_T.tolist() == references[0].greedy(PROMPT, 24).tolist()


def test_a_begun_update_without_channel_would_break_the_engine_so_order_is_checked(runner, engine):
    with pytest.raises(EngineError, match="no weight update was begun"):
        runner.run(engine.receive_weights({}))
    assert runner.run(engine.generate(PROMPT, GREEDY))


def test_an_update_in_place_brings_the_new_weights_and_their_version(runner, engine, trainer, folders, references):
    runner.run(engine.connect(trainer.channel()))
    runner.run(engine.generate(PROMPT, GREEDY))  # fills the prefix cache with the old weights
    for version, source in ((1, 1), (2, 0), (3, 1)):
        runner.run(update(engine, trainer, folders[source], version))
        [completion] = runner.run(engine.generate(PROMPT, GREEDY))
        assert completion.token_ids_T.tolist() == references[source].greedy(PROMPT, 24).tolist()
        expected_T = references[source].log_probs(PROMPT, completion.token_ids_T)
        np.testing.assert_allclose(completion.log_probs_T, expected_T, atol=1e-4, rtol=0)
        assert completion.version == version


def test_requests_during_an_update_wait_and_requests_before_it_finish_first(runner, engine, trainer, folders):
    async def overlap():
        before = asyncio.create_task(engine.generate(PROMPT, SAMPLED))
        await asyncio.sleep(0.01)
        await engine.begin_update()
        assert before.done()
        after = asyncio.create_task(engine.generate(PROMPT, SAMPLED))
        trainer.send(folders[1])
        await engine.receive_weights({})
        assert not after.done()
        await engine.finish_update(4)
        trainer.sent()
        return await before, await after

    before, after = runner.run(overlap())
    assert {c.version for c in before} == {3} and {c.version for c in after} == {4}


def test_a_prefix_cache_that_was_kept_would_be_noticed(runner, engine, trainer, folders, references):
    """The fault planted: the same update without dropping the cache. Then the checks above must fail."""

    async def careless():
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await engine.generate(PROMPT, GREEDY)
        llm = engine._llm
        await llm.start_weight_update()
        trainer.send(folders[0])
        await llm.update_weights(WeightTransferUpdateRequest(update_info={}))
        await llm.finish_weight_update(weight_version="4")
        trainer.sent()
        return await engine.generate(PROMPT, GREEDY)

    [completion] = runner.run(careless())
    assert completion.token_ids_T.tolist() != references[0].greedy(PROMPT, 24).tolist()
    runner.run(update(engine, trainer, folders[0], 5))
    [completion] = runner.run(engine.generate(PROMPT, GREEDY))
    assert completion.token_ids_T.tolist() == references[0].greedy(PROMPT, 24).tolist()


def test_a_fresh_engine_says_the_same_and_its_death_is_named(runner, engine, trainer, folders):
    """Last but one: two engines would not fit side by side everywhere, so the updated one goes first."""
    runner.run(update(engine, trainer, folders[1], 6))
    updated = runner.run(engine.generate(PROMPT, SAMPLED))
    check_half_way(runner, engine, trainer, folders)
    runner.run(engine.close())

    fresh = VllmEngine(folders[1], SETTINGS, seed=1, name="engine 7", version=6)
    runner.run(fresh.start())
    again = runner.run(fresh.generate(PROMPT, SAMPLED))
    assert tokens(again) == tokens(updated) and {c.version for c in again} == {6}
    for a, b in zip(again, updated):
        np.testing.assert_allclose(a.log_probs_T, b.log_probs_T, atol=1e-5, rtol=0)
    check_missing_tensor(runner, fresh, folders)
    runner.run(fresh.close())


def check_half_way(runner, engine, trainer, folders) -> None:
    """The trainer dies in the middle of sending: nothing may be generated from the mixture."""

    async def broken_update():
        await engine.begin_update()
        waiting = asyncio.create_task(engine.generate(PROMPT, GREEDY))
        trainer.send(folders[0], die_after=3)
        with pytest.raises(EngineError, match=r"engine 0: receive_weights failed.*trainer rank 0"):
            await engine.receive_weights({})
        with pytest.raises(EngineUnusable, match="engine 0 is unusable: receive_weights failed"):
            await waiting

    runner.run(broken_update())
    for call in (engine.generate(PROMPT, GREEDY), engine.begin_update(), engine.finish_update(7)):
        with pytest.raises(EngineUnusable):
            runner.run(call)


def check_missing_tensor(runner, engine, folders) -> None:
    """A plan that leaves a tensor out: vLLM would keep the old one with a log line."""
    name = "model.layers.1.self_attn.k_proj.weight"
    trainer = TrainerProcess(folders[0], edit=lambda held: tuple(s for s in held if s.hf_name != name))
    try:
        runner.run(engine.connect(trainer.channel()))
        with pytest.raises(EngineError, match=r"finish_update failed.*layers.1.self_attn.qkv_proj"):
            runner.run(update(engine, trainer, folders[0], 7))
        with pytest.raises(EngineUnusable):
            runner.run(engine.generate(PROMPT, GREEDY))
    finally:
        trainer.end()


def test_a_folder_without_a_model_is_refused_in_one_line(runner, tmp_path):
    with pytest.raises(EngineError, match=r"engine 0: .* holds no config.json"):
        runner.run(VllmEngine(tmp_path, SETTINGS).start())


def test_the_death_of_vllms_process_is_named(runner, folders, request):
    if "untied" not in request.node.name:
        pytest.skip("one kind of weights is enough")

    async def killed():
        engine = VllmEngine(folders[0], SETTINGS, name="engine 3")
        await engine.start()
        under_way = asyncio.create_task(engine.generate(PROMPT[:10], SamplingSpec(1.0, 1.0, max_tokens=500, n=64)))
        await asyncio.sleep(0.05)
        for process in engine._llm.engine_core.resources.engine_manager.processes:
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineDied, match="engine 3: vLLM's engine process died"):
            await under_way
        with pytest.raises(EngineError, match="engine 3"):
            await engine.generate(PROMPT, GREEDY)
        await engine.close()

    runner.run(killed())

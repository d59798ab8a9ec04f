"""Weights that come in while completions are being written: every token is of one version and says so."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineError, EngineUnusable, MixedVersions, SamplingSpec
from megatron_spell.rollout.vllm_engine import VllmEngine
from tests.engine.tiny_qwen3 import SETTINGS, VOCAB_SIZE, Reference, TrainerProcess, write_checkpoint

pytestmark = pytest.mark.slow

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 150).astype(np.int32)  # more than a block: it is cached
LONG = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=340, seed=3, n=4)
SHORT = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=8)


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return [write_checkpoint(base / f"v{seed}", seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def references(folders) -> list[Reference]:
    return [Reference(folder) for folder in folders]


@pytest.fixture(scope="module")
def engine(runner, folders):
    engine = VllmEngine(folders[0], SETTINGS, in_flight=True)
    runner.run(engine.start())
    yield engine
    runner.run(engine.close())


@pytest.fixture(scope="module")
def trainer(runner, engine, folders):
    trainer = TrainerProcess(folders[0], runner.run(engine.describe()))
    runner.run(engine.connect(trainer.channel()))
    yield trainer
    trainer.end()


async def update(engine, trainer, folder: Path, version: int) -> None:
    await engine.begin_update()
    trainer.send(folder)
    await engine.receive_weights({})
    await engine.finish_update(version)
    trainer.sent()


async def update_amid(engine, trainer, folder: Path, version: int):
    """Long completions, new weights while they are written, and a short one asked for meanwhile."""
    writing = asyncio.create_task(engine.generate(PROMPT, LONG))
    await asyncio.sleep(0.4)
    assert not writing.done()
    await engine.begin_update()
    meanwhile = asyncio.create_task(engine.generate(PROMPT, SHORT))
    trainer.send(folder)
    await engine.receive_weights({})
    assert not meanwhile.done() and not writing.done()
    await engine.finish_update(version)
    trainer.sent()
    return await writing, await meanwhile


def errors_of_each_half(completion, old: Reference, new: Reference) -> tuple[float, float]:
    """Largest log-prob difference of the tokens before and after the change, each against its own weights."""
    changed = int(np.argmax(completion.versions_T != completion.version))
    found_T, ids_T = completion.log_probs_T, completion.token_ids_T
    before_T, after_T = old.log_probs(PROMPT, ids_T)[:changed], new.log_probs(PROMPT, ids_T)[changed:]
    return np.abs(found_T[:changed] - before_T).max(), np.abs(found_T[changed:] - after_T).max()


def test_each_token_has_its_version_and_the_log_prob_of_those_weights(runner, engine, trainer, folders, references):
    """Tokens after the change see keys and values of the new weights only, also for what was written before it."""
    written, [short] = runner.run(update_amid(engine, trainer, folders[1], 1))
    for completion in written:
        assert completion.version == 0 and completion.versions_T.dtype == np.int32
        assert len(completion.versions_T) == len(completion.token_ids_T) == 340
        assert set(completion.versions_T.tolist()) == {0, 1} and (np.diff(completion.versions_T) >= 0).all()
        before, after = errors_of_each_half(completion, *references)
        assert max(before, after) < 1e-4
    assert (short.version, short.versions_T) == (1, None)
    assert short.token_ids_T.tolist() == references[1].greedy(PROMPT, 8).tolist()


def test_keys_and_values_that_were_kept_would_be_noticed(runner, engine, trainer, folders, references, monkeypatch):
    """The fault planted: requests go on with what the old weights left in the cache."""

    async def keep(self) -> None:
        await self._running().reset_prefix_cache()

    with monkeypatch.context() as patch:
        patch.setattr(VllmEngine, "_drop_prefix_cache", keep)
        written, _ = runner.run(update_amid(engine, trainer, folders[0], 2))
    errors = [errors_of_each_half(completion, references[1], references[0]) for completion in written]
    assert max(before for before, _ in errors) < 1e-4 and min(after for _, after in errors) > 1e-2
    runner.run(update(engine, trainer, folders[0], 3))  # and now nothing old is left
    [short] = runner.run(engine.generate(PROMPT, SHORT))
    assert short.token_ids_T.tolist() == references[0].greedy(PROMPT, 8).tolist()


def test_an_engine_that_drains_refuses_a_completion_of_two_versions(runner, engine, trainer, folders, monkeypatch):
    monkeypatch.setattr(engine, "_in_flight", False)

    async def careless():
        writing = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0.4)
        await engine._llm.update_weight_version("4")
        await writing

    with pytest.raises(MixedVersions, match=r"tokens of version 3 carry vLLM's versions \[3, 4\]"):
        runner.run(careless())
    runner.run(engine._llm.update_weight_version("3"))


def test_requests_are_held_over_a_sleep_and_go_on_with_the_new_weights(
    runner, engine, trainer, folders, references, monkeypatch
):
    """vLLM's own pause, sleep and wake; only that its workers give memory back, which they do not on a CPU, is not."""
    from vllm.platforms import current_platform

    async def sleep_amid():
        writing = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0.4)
        assert await engine.sleep() is None
        meanwhile = asyncio.create_task(engine.generate(PROMPT, SHORT))
        await asyncio.sleep(0.2)
        await engine.ping()
        assert not writing.done() and not meanwhile.done()
        await engine.wake("weights")
        await update(engine, trainer, folders[1], 6)
        assert not meanwhile.done()
        await engine.wake("cache")
        return await writing, await meanwhile

    with monkeypatch.context() as patch:
        patch.setattr(type(current_platform), "is_cpu", lambda self: False)
        patch.setattr(engine, "_settings", engine._settings.model_copy(update={"placement": "colocated"}))
        written, [short] = runner.run(sleep_amid())
    for completion in written:
        assert set(completion.versions_T.tolist()) == {3, 6} and len(completion.token_ids_T) == 340
        assert max(errors_of_each_half(completion, *references)) < 1e-4
    assert short.token_ids_T.tolist() == references[1].greedy(PROMPT, 8).tolist() and short.version == 6


def test_sleep_on_a_cpu_says_why_not_and_changes_nothing(runner, engine):
    assert runner.run(engine.sleep()) == "vLLM on a CPU does not sleep"
    runner.run(engine.wake("weights"))
    runner.run(engine.wake("cache"))
    assert runner.run(engine.generate(PROMPT, SHORT))


def test_requests_inside_a_failed_update_end_at_once(runner, engine, trainer, folders):
    """Last: the engine is of no use afterwards."""

    async def broken():
        writing = asyncio.create_task(engine.generate(PROMPT, LONG))
        await asyncio.sleep(0.4)
        await engine.begin_update()
        trainer.send(folders[0], die_after=2)
        with pytest.raises(EngineError, match="receive_weights failed"):
            await engine.receive_weights({})
        with pytest.raises(EngineUnusable, match="receive_weights failed"):
            await asyncio.wait_for(writing, 5)

    runner.run(broken())

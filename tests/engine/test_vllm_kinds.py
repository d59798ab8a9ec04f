"""Weight updates of the kinds of engines that need more than a dense model on one worker."""

import asyncio
import os

import numpy as np
import pytest

from megatron_spell.rollout.engine import SamplingSpec
from megatron_spell.rollout.vllm_engine import VllmEngine
from tests.engine.tiny_qwen3 import SETTINGS, VOCAB_SIZE, Reference, TrainerProcess, write_checkpoint, write_family

# The prompt of 150 tokens is longer than either original length.
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
pytestmark = pytest.mark.slow

PROMPT = np.random.default_rng(0).integers(0, VOCAB_SIZE, 150).astype(np.int32)
GREEDY = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=16)


async def follow_two_updates(folders, settings) -> None:
    engine = VllmEngine(folders[0], settings)
    trainer = TrainerProcess(folders[0], num_workers=settings.tensor_parallel)
    try:
        await engine.start()
        await engine.connect(trainer.channel())
        for version, source in ((0, 0), (1, 1), (2, 0)):
            if version:
                await engine.begin_update()
                trainer.send(folders[source])
                await engine.receive_weights({})
                await engine.finish_update(version)
            [completion] = await engine.generate(PROMPT, GREEDY)
            reference = Reference(folders[source])
            assert completion.token_ids_T.tolist() == reference.greedy(PROMPT, 16).tolist()
            # a greedy choice may hide what stayed as it was
            expected_T = reference.log_probs(PROMPT, completion.token_ids_T)
            np.testing.assert_allclose(completion.log_probs_T, expected_T, atol=1e-4, rtol=0)
            assert completion.version == version
    finally:
        await engine.close()
        trainer.end()


def test_experts_are_updated_in_place(tmp_path):
    folders = [write_checkpoint(tmp_path / str(seed), num_experts=4, seed=seed) for seed in (0, 1)]
    asyncio.run(follow_two_updates(folders, SETTINGS))


@pytest.mark.parametrize(("model_type", "rope"), [("qwen2", YARN), ("llama", LLAMA3)])
def test_other_families_are_updated_in_place(tmp_path, model_type, rope):
    folders = [write_family(tmp_path / str(seed), model_type, rope, seed=seed) for seed in (0, 1)]
    asyncio.run(follow_two_updates(folders, SETTINGS))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
def test_each_worker_of_a_tensor_parallel_engine_takes_its_part(tmp_path):
    folders = [write_checkpoint(tmp_path / str(seed), tied=True, seed=seed) for seed in (0, 1)]
    asyncio.run(follow_two_updates(folders, SETTINGS.model_copy(update={"tensor_parallel": 2})))

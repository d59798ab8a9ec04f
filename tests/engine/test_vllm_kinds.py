"""Weight updates of the kinds of engines that need more than a dense model on one worker."""

import asyncio
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_spell.bridge.boxes import Box, Inventory, Segment
from megatron_spell.bridge.engine_inventory import engine_inventory
from megatron_spell.bridge.inventory import checkpoint_inventory
from megatron_spell.bridge.verify import Probe, digests
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.rollout import vllm_settings
from megatron_spell.rollout.engine import EngineError, EngineUnusable, SamplingSpec
from megatron_spell.rollout.landing import WorkerReport
from megatron_spell.rollout.vllm_engine import VllmEngine, with_experts_of_the_prompt
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


async def follow_two_updates(folders, settings, landing="auto", transport="gloo") -> list[WorkerReport]:
    """Weights of the one folder, then of the other, then of the first again: each time Hugging Face says the same.

    Returns how the workers took them.
    """
    engine, trainer = VllmEngine(folders[0], settings, landing=landing), None
    try:
        await engine.start()
        reports = await engine.describe()
        trainer = TrainerProcess(folders[0], reports, transport=transport)
        await engine.connect(trainer.channel())
        for version, source in ((0, 0), (1, 1), (2, 0)):
            if version:
                await engine.begin_update()
                trainer.send(folders[source], check=version)
                await engine.receive_weights({"check": version})
                await engine.finish_update(version)
                trainer.sent()
            await check_says_the_same(engine, Reference(folders[source]), version)
            await check_holds_the_same(engine, reports, folders[source])
        return reports
    finally:
        await engine.close()
        if trainer is not None:
            trainer.end()


async def check_says_the_same(engine, reference, version) -> None:
    [completion] = await engine.generate(PROMPT, GREEDY)
    assert completion.token_ids_T.tolist() == reference.greedy(PROMPT, 16).tolist()
    # a greedy choice may hide what stayed as it was
    expected_T = reference.log_probs(PROMPT, completion.token_ids_T)
    np.testing.assert_allclose(completion.log_probs_T, expected_T, atol=1e-4, rtol=0)
    assert completion.version == version and completion.versions_T is None


async def check_holds_the_same(engine, reports, folder) -> None:
    """Every box that a worker holds, read back from what it computes with, hashes as the folder's."""
    shape, tensors = ModelShape.load(folder), load_file(folder / "model.safetensors")
    held = [engine_inventory(shape, report.place) for report in reports]
    probes = tuple({Probe(s.hf_name, s.hf_box) for own in held for s in own})
    stored = digests(probes, checkpoint_inventory(shape), tensors, torch.float32)
    for own, found in zip(held, await engine.digests(probes), strict=True):
        expected = {str(Probe(s.hf_name, s.hf_box)) for s in own}
        assert found == {probe: stored[probe] for probe in expected}


def test_experts_are_updated_in_place(tmp_path):
    folders = [write_checkpoint(tmp_path / str(seed), num_experts=4, seed=seed) for seed in (0, 1)]
    asyncio.run(follow_two_updates(folders, SETTINGS))


def test_experts_that_are_not_packed_again_would_be_seen(tmp_path, monkeypatch):
    """The fault planted: vLLM's own reload, which leaves raw weights where the kernel reads packed ones."""
    monkeypatch.setattr(vllm_settings, "WORKER", "tests.engine.careless_worker.WorkerExtension")
    folders = [write_checkpoint(tmp_path / str(seed), num_experts=4, seed=seed) for seed in (0, 1)]
    with pytest.raises(AssertionError):
        asyncio.run(follow_two_updates(folders, SETTINGS))


def test_an_engine_that_cannot_return_expert_choices_says_so_in_one_line(tmp_path):
    folder = write_checkpoint(tmp_path / "model", num_experts=4, seed=0)
    engine = VllmEngine(folder, SETTINGS, expert_choices=True)
    with pytest.raises(EngineError, match=r"^engine 0 did not start on .*requires Model Runner V2[^\n]*$"):
        asyncio.run(engine.start())


def test_returned_choices_are_of_the_prompt_and_of_what_was_run_of_the_response(tmp_path):
    """As vLLM lays them out: prompt and response without its last token; the prompt's with the first sample only."""
    engine = VllmEngine(tmp_path, SETTINGS, expert_choices=True)
    routed_T_L_K = np.arange(7 * 2 * 2, dtype=np.uint8).reshape(7, 2, 2)
    first = engine._completion(output_with(routed_T_L_K, num_tokens=4), 0, num_prompt_tokens=4)
    second = engine._completion(output_with(routed_T_L_K[4:], num_tokens=4), 0, num_prompt_tokens=0)
    single = engine._completion(output_with(routed_T_L_K[:0], num_tokens=1), 0, num_prompt_tokens=0)
    for completion, num_run in zip(with_experts_of_the_prompt([first, second, single]), (3, 3, 0)):
        assert completion.experts.prompt_T_L_K is first.experts.prompt_T_L_K
        np.testing.assert_array_equal(completion.experts.prompt_T_L_K, routed_T_L_K[:4])
        np.testing.assert_array_equal(completion.experts.response_T_L_K, routed_T_L_K[4:][:num_run])
    with pytest.raises(EngineError, match="expert choices of 7 tokens of a completion that ran 8"):
        engine._completion(output_with(routed_T_L_K, num_tokens=5), 0, num_prompt_tokens=4)
    with pytest.raises(EngineError, match="expert choices of 0 tokens of a completion that ran 7"):
        engine._completion(output_with(None, num_tokens=4), 0, num_prompt_tokens=4)
    assert vllm_settings.sampling_params(GREEDY, 0, 99, 4).routed_experts_prompt_start == 0
    assert vllm_settings.sampling_params(GREEDY, 1, 99, 4).routed_experts_prompt_start == 4


def output_with(routed_T_L_K, num_tokens: int):
    """vLLM's output of a finished request."""
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput, WeightVersionSpan

    log_probs = FlatLogprobs(token_ids=[*range(num_tokens)], logprobs=[-1.0] * num_tokens)
    return CompletionOutput(
        index=0,
        text="",
        token_ids=[*range(num_tokens)],
        cumulative_logprob=None,
        logprobs=log_probs,
        routed_experts=routed_T_L_K,
        finish_reason="length",
        weight_versions=[WeightVersionSpan("0", 0, num_tokens)],
    )


@pytest.mark.parametrize(
    ("model_type", "rope"), [("qwen2", YARN), pytest.param("llama", LLAMA3, marks=pytest.mark.nightly)]
)
def test_other_families_are_updated_in_place(tmp_path, model_type, rope):
    folders = [write_family(tmp_path / str(seed), model_type, rope, seed=seed) for seed in (0, 1)]
    asyncio.run(follow_two_updates(folders, SETTINGS))


two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers want two cores")
SEVERAL = {
    "tensor parallel": {"tensor_parallel": 2},
    "pipeline": {"pipeline_parallel": 2},
    "expert parallel": {"tensor_parallel": 2, "expert_parallel": True},
    "replicas": {"data_parallel": 2},
}


@two_cores
@pytest.mark.parametrize(
    ("layout", "landing", "tied", "num_experts"),
    [
        ("tensor parallel", "auto", True, 0),
        pytest.param("tensor parallel", "in_place", True, 0, marks=pytest.mark.nightly),
        pytest.param("expert parallel", "auto", False, 4, marks=pytest.mark.nightly),
        pytest.param("expert parallel", "in_place", False, 4, marks=pytest.mark.nightly),
        pytest.param("tensor parallel", "in_place", False, 4, marks=pytest.mark.nightly),
        pytest.param("pipeline", "auto", True, 0, marks=pytest.mark.nightly),
        pytest.param("pipeline", "in_place", False, 4, marks=pytest.mark.nightly),
        pytest.param("replicas", "auto", False, 0, marks=pytest.mark.nightly),
    ],
)
def test_each_worker_of_an_engine_takes_its_part(tmp_path, layout, landing, tied, num_experts):
    """In checkpoint form only the worker's own boxes travel; the rest is NaN, which nobody reads."""
    kind = {"tied": tied, "num_experts": num_experts}
    folders = [write_checkpoint(tmp_path / str(seed), seed=seed, **kind) for seed in (0, 1)]
    settings = SETTINGS.model_copy(update=SEVERAL[layout])
    reports = asyncio.run(follow_two_updates(folders, settings, landing))
    assert len(reports) == 2 and [r.worker for r in reports] == [0, 1]
    assert {r.landing for r in reports} == {"in_place" if landing == "in_place" else "checkpoint"}
    assert landing == "in_place" or all("its kernel reads a packed copy of" in r.reason for r in reports)


def test_one_worker_takes_weights_in_place(tmp_path):
    folders = [write_checkpoint(tmp_path / str(seed), tied=True, seed=seed) for seed in (0, 1)]
    [report] = asyncio.run(follow_two_updates(folders, SETTINGS, "in_place", "shm"))
    assert (report.landing, report.reason, report.device) == ("in_place", "", "cpu")


def test_a_loader_that_reads_more_than_was_sent_is_found_out(tmp_path):
    """The fault planted: a worker that is said to hold the first rows only of a weight of which it holds all."""
    folder, name = write_checkpoint(tmp_path / "model", seed=0), "model.layers.1.self_attn.k_proj.weight"

    def half(held: Inventory) -> Inventory:
        box = Box((0, 0), (32, 128))  # of 64 rows
        return tuple(Segment(name, box, name, box) if s.hf_name == name else s for s in held)

    async def play():
        engine, trainer = VllmEngine(folder, SETTINGS), TrainerProcess(folder, edit=half)
        try:
            await engine.start()
            await engine.connect(trainer.channel())
            await engine.begin_update()
            trainer.send(folder)
            await engine.receive_weights({})
            with pytest.raises(EngineError, match=r"loader read parts of .*layers.1.self_attn.qkv_proj.weight that"):
                await engine.finish_update(1)
            with pytest.raises(EngineUnusable):
                await engine.generate(PROMPT, GREEDY)
        finally:
            await engine.close()
            trainer.end()

    asyncio.run(play())


def test_in_place_where_it_cannot_be_is_refused_in_one_line(tmp_path, monkeypatch):
    """The worker that packs its weights, told to take them in place."""
    monkeypatch.setattr(vllm_settings, "PLAIN_WORKER", vllm_settings.WORKER)
    engine = VllmEngine(write_checkpoint(tmp_path / "model", seed=0), SETTINGS, landing="in_place")
    with pytest.raises(EngineError, match=r"bridge.landing = in_place: worker 0 cannot .* a packed copy of [^\n]*$"):
        asyncio.run(engine.start())
    asyncio.run(engine.close())

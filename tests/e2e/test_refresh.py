"""After a refresh the engine says, token for token, what Hugging Face says on the policy's exported weights."""

import json
from pathlib import Path

import pytest
import torch

from megatron_spell.train.run_folder import RunFolder, write_json
from tests.distributed.processes import run_ranks
from tests.e2e.quickstart import config_of, overrides
from tests.e2e.refresh_rank import NEW_TOKENS, prompts

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["tied", pytest.param("untied", marks=pytest.mark.nightly)])
def out(request, store, tmp_path_factory) -> Path:
    """What two tensor-parallel ranks and an engine left: the weights and words of versions 0 and 1."""
    from tests.engine.tiny_qwen3 import write_checkpoint

    folder = tmp_path_factory.mktemp(request.param)
    config = config_of(overrides(store, folder / "run", **{"policy.optimizer.lr": "3e-2"}))
    model = write_checkpoint(folder / "model", tied=request.param == "tied", seed=0)
    for file in config.model.path.glob("tokenizer*"):
        (model / file.name).write_bytes(file.read_bytes())
    moved = config.model_copy(update={"model": config.model.model_copy(update={"path": model})})
    moved = moved.model_copy(update={"rollout": moved.rollout.model_copy(update={"max_model_len": 256})})
    RunFolder(moved.run_folder).make()
    write_json(folder / "config.json", moved.model_dump(mode="json"))
    rank = Path(__file__).with_name("refresh_rank.py")
    run_ranks(rank, 2, str(folder / "config.json"), str(folder), timeout_s=600)
    return folder


def greedy(folder: Path) -> list[list[int]]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    said = []
    with torch.no_grad():
        for prompt in prompts(model.config.vocab_size):
            ids = torch.tensor(prompt, dtype=torch.long)[None]
            for _ in range(NEW_TOKENS):
                ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
            said.append(ids[0, len(prompt) :].tolist())
    return said


def test_engine_and_exported_weights_agree_before_and_after_a_step(out):
    said = json.loads((out / "said.json").read_text())
    assert [set(entry["versions"]) for entry in said] == [{0}, {1}]
    for version, entry in enumerate(said):
        assert entry["tokens"] == greedy(out / f"version_{version}")
    assert said[0]["tokens"] != said[1]["tokens"], "the step changed nothing, so the comparison shows nothing"

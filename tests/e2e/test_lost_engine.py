"""An engine that is killed or hangs in the middle of a refresh: the run goes on, and the engine comes back current."""

import json
from pathlib import Path

import pytest

from megatron_spell.train.run_folder import RunFolder, write_json
from tests.distributed.processes import run_ranks
from tests.e2e.quickstart import config_of, overrides
from tests.e2e.test_refresh import greedy

pytestmark = pytest.mark.slow

BRIDGE_TIMEOUT_S = 20
SETTINGS = {
    "policy.optimizer.lr": "3e-2",
    "rollout.engines": 2,
    "bridge.bucket_mib": 0.05,  # shared by two links: many messages for each
    "bridge.timeout_s": BRIDGE_TIMEOUT_S,
}


@pytest.fixture(
    scope="module",
    params=[
        "SIGKILL Worker",
        pytest.param("SIGSTOP Worker", marks=pytest.mark.nightly),
        pytest.param("SIGKILL EngineCore", marks=pytest.mark.nightly),
    ],
)
def out(request, store, tmp_path_factory) -> Path:
    from tests.engine.tiny_qwen3 import write_checkpoint

    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    config = config_of(overrides(store, folder / "run", **SETTINGS))
    model = write_checkpoint(folder / "model", tied=True, seed=0)
    for file in config.model.path.glob("tokenizer*"):
        (model / file.name).write_bytes(file.read_bytes())
    rollout = config.rollout.model_copy(update={"max_model_len": 256})
    moved = config.model_copy(update={"model": config.model.model_copy(update={"path": model}), "rollout": rollout})
    RunFolder(moved.run_folder).make()
    write_json(folder / "config.json", moved.model_dump(mode="json"))
    rank = Path(__file__).with_name("lost_engine_rank.py")
    run_ranks(rank, 2, str(folder / "config.json"), str(folder), *request.param.split(), timeout_s=590)
    return folder


def test_the_run_goes_on_without_the_lost_engine_and_it_comes_back_with_the_current_weights(out):
    found = json.loads((out / "said.json").read_text())
    serving = [sorted(entry["said"]) for entry in found["published"]]
    assert serving == [["0", "1"], ["0"], ["0", "1"]], found["told"]
    for version, entry in enumerate(found["published"]):
        expected = greedy(out / f"version_{version}")
        for engine, said in entry["said"].items():
            assert said["versions"] == [version]
            assert said["tokens"] == expected, (version, engine)
    words = [entry["said"]["0"]["tokens"] for entry in found["published"]]
    assert words[0] != words[1] != words[2], "a step changed nothing, so the comparison shows nothing"
    assert found["published"][1]["seconds"] < 3 * BRIDGE_TIMEOUT_S
    assert found["ended"]
    assert all(found["ended"]), "a lost engine's process was left running"
    if "EngineCore" in out.name:  # without its core a worker receives to the end, and nobody answers for it
        assert found["told"][0].startswith("engine 1 is lost: engine 1: vLLM's engine process died"), found["told"]
        assert found["published"][1]["seconds"] < BRIDGE_TIMEOUT_S / 2
    else:
        assert found["told"][0].startswith("engine 1 is lost: trainer rank "), found["told"]
    assert found["told"][-1] == "engine 1 serves again, with the weights of version 2"

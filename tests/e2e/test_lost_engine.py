"""Engines that are killed or hang in the middle of a refresh and under load, again and again.

The run goes on, no request is lost or written twice, and engines come back with the current weights.
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.train.run_folder import RunFolder, write_json
from tests.distributed.processes import run_ranks
from tests.e2e.lost_engine_rank import LONG_TOKENS, NUM_DRAWS, NUM_LONG
from tests.e2e.quickstart import config_of, overrides
from tests.e2e.refresh_rank import prompts
from tests.e2e.test_refresh import greedy
from tests.engine.tiny_qwen3 import Reference

pytestmark = pytest.mark.slow

BRIDGE_TIMEOUT_S = 20
STALL_TIMEOUT_S = 15
SETTINGS = {
    "policy.optimizer.lr": "3e-2",
    "rollout.engines": 2,
    "rollout.stall_timeout_s": STALL_TIMEOUT_S,
    "rollout.max_restarts": 9,
    "bridge.bucket_mib": 0.05,  # shared by two links: many messages for each
    "bridge.timeout_s": BRIDGE_TIMEOUT_S,
}
# The made-up rows that are taught were never an engine's: their importance must not silence them.
IN_FLIGHT = {"algo.max_staleness": 2, "algo.importance.mask_token_low": 0, "algo.importance.mask_row_low": 0}
KILL, STOP = "SIGKILL", "SIGSTOP"
PLANS = {
    "a storm": (
        IN_FLIGHT,
        [
            {"play": [[0, KILL, "actor"]]},
            {"send": [KILL, "Worker"]},
            {"play": [[1, STOP, "EngineCore"]]},
            {},
            {"amid": True},
            {"amid": True},
        ],
    ),
    "a worker that hangs": ({}, [{}, {"send": [STOP, "Worker"]}, {}]),
    "a core that is killed": ({}, [{}, {"send": [KILL, "EngineCore"]}, {}]),
    "a storm over two workers each": (
        IN_FLIGHT | {"rollout.tensor_parallel": 2},
        [
            {"play": [[0, KILL, "actor"], [1, STOP, "EngineCore"]]},  # then nobody serves, until weights are brought
            {"play": [[1, STOP, "Worker"]]},
            {"send": [STOP, "Worker"], "play": [[0, KILL, "EngineCore"]]},
            {"play": [[0, STOP, "actor"]]},
            {"play": [[1, KILL, "Worker"]]},
            {},
            {"amid": True},
            {"amid": True},
        ],
    ),
}


@pytest.fixture(
    scope="module",
    params=[name if name == "a storm" else pytest.param(name, marks=pytest.mark.nightly) for name in PLANS],
)
def out(request, store, tmp_path_factory) -> Path:
    from tests.engine.tiny_qwen3 import write_checkpoint

    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    settings, plan = PLANS[request.param]
    config = config_of(overrides(store, folder / "run", **SETTINGS | settings))
    model = write_checkpoint(folder / "model", tied=True, seed=0)
    for file in config.model.path.glob("tokenizer*"):
        (model / file.name).write_bytes(file.read_bytes())
    rollout = config.rollout.model_copy(update={"max_model_len": 640})
    moved = config.model_copy(update={"model": config.model.model_copy(update={"path": model}), "rollout": rollout})
    RunFolder(moved.run_folder).make()
    write_json(folder / "config.json", moved.model_dump(mode="json"))
    write_json(folder / "plan.json", plan)
    rank = Path(__file__).with_name("lost_engine_rank.py")
    run_ranks(rank, 2, *(str(folder / name) for name in ("config.json", "", "plan.json")), timeout_s=590)
    return folder


def read(out: Path) -> tuple[list[dict], dict]:
    """The plan's stages and what was found."""
    return json.loads((out / "plan.json").read_text()), json.loads((out / "said.json").read_text())


def test_the_run_goes_on_without_lost_engines_and_they_come_back_with_the_current_weights(out):
    plan, found = read(out)
    words = []
    for version, (stage, entry) in enumerate(zip(plan, found["published"], strict=True)):
        if stage.get("amid"):
            continue
        assert sorted(entry["said"]) == (["0"] if "send" in stage else ["0", "1"]), found["told"]
        expected = greedy(out / f"version_{version}")
        for engine, said in entry["said"].items():
            assert said["versions"] == [version]
            assert said["tokens"] == expected, (version, engine)
        words.append(expected)
    assert all(one != next_one for one, next_one in pairwise(words)), "a step changed nothing: nothing is shown"
    assert found["ended"]
    assert all(found["ended"]), "a lost engine's process was left running"
    assert found["told"][-1].startswith("engine ") and "serves again, with the weights of version" in found["told"][-1]


def test_an_engine_that_is_struck_on_the_way_holds_nobody_up_for_long(out):
    plan, found = read(out)
    for stage, entry in zip(plan, found["published"], strict=True):
        if "send" not in stage:
            continue
        assert entry["seconds"] < 3 * BRIDGE_TIMEOUT_S
        lost = [line for line in entry["told"] if line.startswith("engine 1 is lost: ")][-1]
        if stage["send"][1] == "EngineCore":  # without its core a worker receives to the end, and nobody answers for it
            assert lost.startswith("engine 1 is lost: engine 1: vLLM's engine process died"), found["told"]
            assert entry["seconds"] < BRIDGE_TIMEOUT_S / 2
        else:
            assert lost.startswith("engine 1 is lost: trainer rank "), found["told"]


def test_every_request_under_strikes_comes_back_once_as_an_undisturbed_engine_writes_it(out):
    plan, found = read(out)
    for version, (stage, entry) in enumerate(zip(plan, found["published"], strict=True)):
        if "play" not in stage:
            continue
        struck, quiet = entry["play"]["struck"], entry["play"]["quiet"]
        assert sorted(struck["came"]) == list(range(NUM_DRAWS))
        assert min(entry["play"]["in_flight"]) > 0, "a strike met an idle engine, so it shows nothing"
        assert set(entry["play"]["loads"].values()) == {0}
        assert {v for versions in struck["versions"] for v in versions} == {version}
        same = [i for i in range(NUM_DRAWS) if struck["tokens"][i] == quiet["tokens"][i]]
        assert len(same) >= NUM_DRAWS - 2, "more than rounding, which may turn one draw in some 10,000 tokens"
        for i in same:
            np.testing.assert_allclose(struck["log_probs"][i], quiet["log_probs"][i], atol=1e-4, rtol=0)
        hung = [engine for engine, signal, _ in stage["play"] if signal == STOP]
        told = " ".join(found["told"])
        assert all(f"engine {engine} hangs: no sign of life for rollout.stall_timeout_s" in told for engine in hung)


def test_requests_under_way_over_several_refreshes_have_the_log_probs_of_each_tokens_version(out):
    plan, found = read(out)
    amid = [version for version, stage in enumerate(plan) if stage.get("amid")]
    if not amid:
        pytest.skip("this plan has no such requests")
    long = found["long"]
    assert sorted(long["came"]) == list(range(NUM_LONG)) and set(found["loads"].values()) == {0}
    versions = [amid[0] - 1, *amid]
    references = {version: Reference(out / f"version_{version}") for version in versions}
    asked = prompts(references[versions[0]].model.config.vocab_size)
    for draw in range(NUM_LONG):
        ids_T, found_T = np.array(long["tokens"][draw]), np.array(long["log_probs"][draw])
        versions_T = np.array(long["versions"][draw])
        assert len(ids_T) == LONG_TOKENS and (np.diff(versions_T) >= 0).all()
        expected_T = np.zeros(LONG_TOKENS)
        for version in np.unique(versions_T):
            mine_T = versions_T == version
            expected_T[mine_T] = references[version].log_probs(asked[draw % len(asked)], ids_T)[mine_T]
        np.testing.assert_allclose(found_T, expected_T, atol=2e-4, rtol=0)
    spans = [len(set(versions)) for versions in long["versions"]]
    assert max(spans) == len(versions), f"no request saw all of {versions}: {spans}"

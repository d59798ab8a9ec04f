"""Runs over several engines, or over engines of several workers; and runs that lose all of theirs."""

import pytest

from megatron_spell.train.checkpoints import Checkpoints, find_fault
from tests.e2e.quickstart import LIMIT_S, begin, cli, metrics, overrides, rounds, train_command
from tests.e2e.test_training import assert_all_end, descendants_when, is_victim

pytestmark = [pytest.mark.slow, pytest.mark.nightly]

STEPS = 3
KINDS = {
    "tensor parallel": {"rollout.tensor_parallel": 2},
    "replicas": {"rollout.data_parallel": 2},
    "two engines": {"rollout.engines": 2},
}


@pytest.mark.parametrize("max_staleness", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_plays_and_refreshes_through_engines_of_this_kind(store, tmp_path, kind, max_staleness):
    """On-policy the run's own comparison of log-probs shows that the weights of every step are in every worker."""
    settings = KINDS[kind] | {"algo.max_staleness": max_staleness, "policy.optimizer.lr": "1e-3"}
    cli(train_command(overrides(store, tmp_path / "run", steps=STEPS, **settings)), expect=0)
    steps = metrics(tmp_path / "run")
    assert [entry["step"] for entry in steps] == [*range(1, STEPS + 1)]
    assert {entry["bridge/engines"] for entry in steps} == {settings.get("rollout.engines", 1)}
    taken = [played["draw"]["index"] for step in range(1, STEPS + 1) for played in rounds(tmp_path / "run", step)]
    assert taken == [*range(len(taken))]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_that_loses_all_engines_for_good_names_them_and_keeps_its_checkpoint(store, tmp_path, max_staleness):
    folder = tmp_path / "run"
    settings = {"rollout.engines": 2, "rollout.max_restarts": 0, "algo.max_staleness": max_staleness}
    run = begin(overrides(store, folder, steps=50, **settings))
    started = descendants_when(run, folder / "checkpoints/step_000001/manifest.json")
    victims = [process for process in started if is_victim(process, "EngineCore")]
    for process in victims:
        process.kill()
    _, said = run.communicate(timeout=LIMIT_S)
    assert len(victims) >= 2 and run.returncode == 1
    assert all(words in said for words in ("no engine is left", "engine 0", "engine 1", "engine process died")), said
    assert_all_end(started)
    latest, _ = Checkpoints(folder / "checkpoints", keep=9).latest()
    assert latest is not None and find_fault(latest) is None

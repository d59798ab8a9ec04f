"""Rounds that go on while the policy trains: nothing lost, nothing twice, nothing too old, also over a kill -9."""

import subprocess
import sys

import pytest

from megatron_spell.train.checkpoints import Checkpoints
from tests.e2e.quickstart import ROOT, cli, metrics, overrides, rounds, train_command
from tests.e2e.test_training import descendants_when, kill_and_wait

pytestmark = pytest.mark.slow

STEPS = 5
MAX_STALENESS = 1


@pytest.fixture(scope="module")
def killed_and_resumed(store, tmp_path_factory):
    """The run folder of an asynchronous run that was killed after its second step, and what the resumed run said."""
    folder = tmp_path_factory.mktemp("runs") / "asynchronous"
    settings = {"algo.max_staleness": MAX_STALENESS, "policy.mesh.tp": 1}
    command = train_command(overrides(store, folder, steps=STEPS, **settings))
    run = subprocess.Popen(
        [sys.executable, "-m", "megatron_spell.cli.main", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = descendants_when(run, folder / "checkpoints/step_000002/manifest.json")
    kill_and_wait(run, started)
    newest, _ = Checkpoints(folder / "checkpoints", keep=9).latest()
    done = cli([*command, "--resume"], expect=0)
    return folder, int(newest.name[-6:]), done.stdout


def test_every_draw_is_played_into_one_step(killed_and_resumed):
    folder, last_saved, said = killed_and_resumed
    assert f"going on after step {last_saved} from " in said
    assert [entry["step"] for entry in metrics(folder)] == list(range(1, STEPS + 1))
    taken = [played["draw"]["index"] for step in range(1, STEPS + 1) for played in rounds(folder, step)]
    assert taken == list(range(len(taken)))


def test_rows_are_no_older_than_allowed_and_weighed(killed_and_resumed):
    folder, last_saved, _ = killed_and_resumed
    steps = metrics(folder)
    assert all(entry["rows/staleness/max"] <= MAX_STALENESS for entry in steps)
    assert any(entry["rows/staleness/mean"] > 0 for entry in steps)
    # the first step after a start is played by its own weights: the ratio is one; later ones are off-policy
    assert [steps[0]["rows/staleness/max"], steps[last_saved]["rows/staleness/max"]] == [0, 0]
    assert steps[0]["importance/ratio/max"] == pytest.approx(1, abs=1e-3)
    assert any(abs(entry["importance/ratio/max"] - 1) > 1e-3 for entry in steps)


def test_an_outcome_for_every_round(killed_and_resumed):
    folder, *_ = killed_and_resumed
    for number, entry in enumerate(metrics(folder), start=1):
        played = rounds(folder, number)
        assert entry["rounds/count"] == len(played)
        assert entry["rounds/outcome/stale"] == sum(one["outcome"] == "stale" for one in played)
        stale = [one["ask"]["version"] for one in played if one["outcome"] == "stale"]
        assert all(number - 1 - version > MAX_STALENESS for version in stale)
    assert metrics(folder)[-1]["rounds/waiting"] == 0, "nothing is begun for steps that do not come"

"""The whole loop with real Megatron, real vLLM and real documents, on this machine's processor."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_spell.cluster.local import Launch, RankFailed, run_ranks
from megatron_spell.train.checkpoints import Checkpoints, find_fault
from megatron_spell.train.run_folder import RunFolder, write_json
from tests.e2e.quickstart import LIMIT_S, ROOT, begin, cli, config_of, metrics, overrides, rounds, train_command

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture(scope="module")
def uninterrupted(store, tmp_path_factory) -> Path:
    """A run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = cli(train_command(overrides(store, folder, steps=STEPS)), expect=0)
    assert "what happened" in done.stdout
    assert str(folder) in done.stdout
    return folder


def test_every_step_leaves_its_figures(uninterrupted):
    steps = metrics(uninterrupted)
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        assert entry["mismatch/log_prob_diff/max"] < 1e-3
        assert entry["responder/rows"] >= 8
        assert entry["bridge/bytes"] > 1e6
        assert entry["policy/grad_norm"] > 0
        assert {"questioner/reward/mean", "responder/reward/mean", "verifier/agreement/mean"} <= entry.keys()
        assert {"time/collect", "time/update", "time/publish", "time/step"} <= entry.keys()
        assert {"rounds/outcome/usable", "curriculum/document_tokens", "tokens/trained"} <= entry.keys()
        assert {"watch/always_yes", "responder/surprisal/mean", "questioner/repeated/share"} <= entry.keys()
        outcomes = [value for name, value in entry.items() if name.startswith("rounds/outcome/")]
        assert sum(outcomes) == entry["rounds/count"] + entry["rounds/outcome/surplus"]
    assert sum("time/save" in entry for entry in steps) == 2  # the last save ends after the last line
    assert any("time/save_background" in entry for entry in steps)


def test_every_completion_was_written_by_the_weights_of_its_step(uninterrupted):
    for step in (1, 2, 3):
        played = rounds(uninterrupted, step)
        assert {entry["ask"]["version"] for entry in played} == {step - 1}
        assert {a["turn"]["version"] for entry in played for a in entry["answers"]} == {step - 1}


def test_the_run_folder_is_as_documented(uninterrupted):
    for name in ("config.json", "summary.json", "trace.json", "tensorboard", "logs/engine_0.log"):
        assert (uninterrupted / name).exists(), name
    latest, torn = Checkpoints(uninterrupted / "checkpoints", keep=9).latest()
    assert latest == uninterrupted / "checkpoints/step_000003"
    assert torn == []


def test_the_checkpoint_loads_in_transformers(uninterrupted):
    from transformers import AutoModelForCausalLM

    weights = uninterrupted / "checkpoints/step_000003/policy/weights"
    model, report = AutoModelForCausalLM.from_pretrained(weights, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_the_run_converts_to_a_folder_that_transformers_loads(uninterrupted, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = cli(["convert", str(uninterrupted), "--out", str(tmp_path / "new"), "--dtype", "bfloat16"], expect=0)
    assert "as bfloat16" in done.stdout
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype="auto")
    assert {str(parameter.dtype) for parameter in model.parameters()} == {"torch.bfloat16"}
    assert AutoTokenizer.from_pretrained(tmp_path / "new")("def")["input_ids"]


def test_a_killed_run_goes_on_with_the_very_step_it_would_have_taken(uninterrupted, store, tmp_path):
    """Even where a bit of its newest checkpoint has turned over: that one is named, and the one before is used."""
    folder = tmp_path / "killed"
    settings = overrides(store, folder, steps=STEPS)
    run = subprocess.Popen(
        [sys.executable, "-m", "megatron_spell.cli.main", *train_command(settings)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = descendants_when(run, folder / "checkpoints/step_000002/manifest.json")
    rays_own = kill_and_wait(run, started)
    newest, _ = Checkpoints(folder / "checkpoints", keep=9).latest()
    flip_a_bit(newest / "policy/adam_first_moment/model.safetensors")
    done = cli(train_command(settings, "--resume"), expect=0)
    assert f"{newest}: policy/adam_first_moment/model.safetensors differs from its checksum" in done.stdout
    assert f"going on after step {int(newest.name[-6:]) - 1} from " in done.stdout
    assert [entry["step"] for entry in metrics(folder)] == [1, 2, 3]
    for step in (1, 2, 3):
        assert [words(r) for r in rounds(folder, step)] == [words(r) for r in rounds(uninterrupted, step)]
        one, other = metrics(folder)[step - 1], metrics(uninterrupted)[step - 1]
        for name in ("policy/loss", "policy/grad_norm", "questioner/reward/mean", "questioner/repeated/share"):
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-7), (step, name)
    assert_all_end(rays_own)


def kill_and_wait(run: subprocess.Popen, started: list[psutil.Process]) -> list[psutil.Process]:
    """Kill -9; return with every process ended that plays or trains. What is left are Ray's own, which take longer."""
    rays_own = [process for process in started if is_rays_own(process)]
    os.kill(run.pid, signal.SIGKILL)
    run.wait(30)
    assert_all_end([process for process in started if process not in rays_own])
    return rays_own


def is_rays_own(process: psutil.Process) -> bool:
    """Its servers and agents; not the actor that an engine is, nor what that has started."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(part in command for part in ("gcs_server", "raylet", "ray/dashboard", "ray/_private/", "Agent"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def words(played: dict) -> tuple:
    """What was said in a round, without what depends on the clock."""
    answers = [(a["turn"]["output"], a["reward"]) for a in played["answers"]]
    return played["draw"]["index"], played["outcome"], played["ask"]["output"], answers


def descendants_when(run: subprocess.Popen, path: Path) -> list[psutil.Process]:
    """Everything the run has started by the time `path` is there."""
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert run.poll() is None, f"the run ended with {run.returncode} before {path.name} was there"
        assert time.monotonic() < deadline, f"waited {LIMIT_S} s for {path}"
        time.sleep(0.05)
    return psutil.Process(run.pid).children(recursive=True)


def assert_all_end(processes: list[psutil.Process]) -> None:
    # Ray's agents only look every so often whether the raylet that started them is still there.
    _, alive = psutil.wait_procs(processes, timeout=120)
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    names = [p.name() for p in left]
    for process in left:
        process.kill()
    assert not names, f"outlived the run: {names}"


@pytest.mark.parametrize("victim", [pytest.param("EngineCore", marks=pytest.mark.nightly), "rank 1"])
def test_a_process_killed_for_good_ends_the_run_in_words_and_leaves_its_checkpoint(store, tmp_path, victim):
    folder = tmp_path / "victim"
    run = begin(overrides(store, folder, steps=50, **{"rollout.max_restarts": 0}))
    started = descendants_when(run, folder / "checkpoints/step_000001/manifest.json")
    next(p for p in started if is_victim(p, victim)).kill()
    _, said = run.communicate(timeout=LIMIT_S)
    assert run.returncode == 1
    assert "megatron-spell: trainer rank" in said, said
    assert ("engine 0" in said) == (victim == "EngineCore"), said
    assert_all_end(started)
    latest, _ = Checkpoints(folder / "checkpoints", keep=9).latest()
    assert latest is not None
    assert find_fault(latest) is None


@pytest.mark.nightly
def test_a_run_whose_only_engine_is_killed_goes_on_as_if_nothing_had_been(uninterrupted, store, tmp_path):
    folder = tmp_path / "restarted"
    with (tmp_path / "said.txt").open("w") as said:
        run = subprocess.Popen(
            [sys.executable, "-m", "megatron_spell.cli.main", *train_command(overrides(store, folder, steps=STEPS))],
            cwd=ROOT,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        started = descendants_when(run, folder / "checkpoints/step_000001/manifest.json")
        next(p for p in started if is_victim(p, "EngineCore")).kill()
        run.wait(LIMIT_S)
    told = (tmp_path / "said.txt").read_text()
    assert run.returncode == 0, told
    assert "engine 0 is lost: " in told
    assert "engine 0 serves again, with the weights of version " in told
    assert [entry["step"] for entry in metrics(folder)] == [1, 2, 3]
    for step in (1, 2, 3):
        assert [words(r) for r in rounds(folder, step)] == [words(r) for r in rounds(uninterrupted, step)]


def is_victim(process: psutil.Process, victim: str) -> bool:
    if not process.is_running():
        return False
    if victim == "rank 1":
        return "megatron_spell.train.worker" in process.cmdline() and process.environ().get("RANK") == "1"
    return victim in " ".join([process.name(), *process.cmdline()])


def test_stale_weights_in_the_engine_stop_the_run(store, tmp_path):
    config = config_of(overrides(store, tmp_path / "stale", steps=4, **{"policy.optimizer.lr": "1e-3"}))
    folder = RunFolder(config.run_folder)
    folder.make()
    write_json(folder.config, config.model_dump(mode="json"))
    with pytest.raises(RankFailed, match=r"engine and policy log-probs differ by .*stale weights"):
        run_ranks(Launch("tests.e2e.stale_rank", [str(folder.config)], num_ranks=2))
    assert [entry["step"] for entry in metrics(folder.root)] == [1]


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", [{"pp": 2}, {"dp": 2}, {"pp": 2, "vpp": 2}, {"cp": 2}], ids=str)
def test_other_layouts_play_the_same_first_step(uninterrupted, store, tmp_path, mesh):
    folder = tmp_path / "run"
    layout = {f"policy.mesh.{axis}": size for axis, size in ({"tp": 1} | mesh).items()}
    cli(train_command(overrides(store, folder, steps=1, **layout)), expect=0)
    (one,), other = metrics(folder), metrics(uninterrupted)[0]
    assert [words(r) for r in rounds(folder, 1)] == [words(r) for r in rounds(uninterrupted, 1)]
    assert one["policy/loss"] == pytest.approx(other["policy/loss"], abs=1e-5)
    assert math.isclose(one["policy/grad_norm"], other["policy/grad_norm"], rel_tol=1e-4)

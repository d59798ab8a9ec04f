"""What a user can get wrong is told in one line each, with exit code 2, before any process starts."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_spell.cli.main import app

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/quickstart"


def run(*arguments: str) -> tuple[int, list[str], str]:
    """Exit code, lines of standard error, standard output."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "store.h5"
    code, lines, _ = run("data", "build", "python-topics", "--tokenizer", EXAMPLE / "base_model", "--out", path)
    assert code == 0, lines
    return path


def dry_run(store: Path, folder: Path, *overrides: str) -> tuple[int, list[str]]:
    settings = [f"data.store={store}", f"run_folder={folder}", "evaluation.questions=null", *overrides]
    words = [word for setting in settings for word in ("--set", setting)]
    code, lines, _ = run("train", EXAMPLE / "run.yaml", "--dry-run", *words)
    return code, lines


def refused(store: Path, folder: Path, *overrides: str) -> str:
    code, lines = dry_run(store, folder, *overrides)
    assert code == 2
    assert len(lines) == 1, lines
    assert not folder.exists(), "nothing may be written for a run that cannot start"
    return lines[0]


def test_the_quickstart_could_start(store, tmp_path):
    assert dry_run(store, tmp_path / "run") == (0, [])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("play.question_per_step=3", "play.question_per_step: unknown field; did you mean questions_per_step?"),
        ("policy.mesh.tp=3", "policy.mesh.tp = 3: the model's 4 "),
        ("data.store=/nowhere/store.h5", "data.store = /nowhere/store.h5: there is no such file; make it with"),
        ("rollout.kv_cache_gib=100000", "rollout.kv_cache_gib = 100000.0: the run needs about 1000"),
        ("model.path=/nowhere", "model.path = /nowhere: /nowhere holds no config.json"),
    ],
)
def test_settings_that_cannot_work(store, tmp_path, override, said):
    assert said in refused(store, tmp_path / "run", override)


def test_several_faults_are_told_together(store, tmp_path):
    code, lines = dry_run(store, tmp_path / "run", "policy.mesh.tp=3", "policy.mesh.ep=2", "play.votes_per_answer=0")
    assert code == 2
    assert len(lines) >= 3


def test_a_port_that_is_taken(store, tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cluster.master_port = {port}: port {port} cannot be used" in refused(
            store, tmp_path / "run", f"cluster.master_port={port}"
        )


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "text"])
def test_a_store_that_is_none(store, tmp_path, damage):
    broken = tmp_path / "broken.h5"
    if damage == "truncated":
        broken.write_bytes(store.read_bytes()[: store.stat().st_size // 2])
    elif damage == "foreign":
        with h5py.File(broken, "w") as file:
            file["numbers"] = np.arange(5)
    elif damage == "empty":
        broken.touch()
    else:
        broken.write_text("not a store")
    line = refused(broken, tmp_path / "run")
    assert line.startswith(f"megatron-spell: data.store = {broken}: ")
    assert "data build" in line


def test_a_store_of_another_tokenizer(store, tmp_path):
    from tests.tiny_tokenizer import write_byte_tokenizer

    model = write_byte_tokenizer(tmp_path / "model")
    (model / "config.json").write_text((EXAMPLE / "base_model/config.json").read_text())
    assert "was built with another tokenizer" in refused(store, tmp_path / "run", f"model.path={model}")


def test_a_head_dim_the_engine_cannot_serve(store, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config = json.loads((EXAMPLE / "base_model/config.json").read_text()) | {"head_dim": 24}
    (model / "config.json").write_text(json.dumps(config))
    assert "vLLM on a CPU cannot serve its head_dim 24" in refused(store, tmp_path / "run", f"model.path={model}")


def test_resuming_without_a_checkpoint(store, tmp_path):
    settings = ["--set", f"data.store={store}", "--set", f"run_folder={tmp_path / 'run'}"]
    settings += ["--set", "evaluation.questions=null"]
    code, lines, _ = run("train", EXAMPLE / "run.yaml", "--dry-run", "--resume", *settings)
    assert code == 2
    assert "holds no whole checkpoint; start without --resume" in lines[0]


def commit_checkpoint(run_folder: Path) -> Path:
    from megatron_spell.train.checkpoints import Checkpoints

    checkpoints = Checkpoints(run_folder / "checkpoints", keep=1)
    folder = checkpoints.begin(3)
    state = {"format": 1, "seed": 0, "shape": {"family": "qwen3"}, "step": 3, "curriculum": {}, "collector": {}}
    (folder / "run.json").write_text(json.dumps(state))
    return checkpoints.commit(3)


def test_a_checkpoint_of_another_model(store, tmp_path):
    commit_checkpoint(tmp_path / "run")
    code, lines = dry_run(store, tmp_path / "run")
    assert code == 2
    assert "is a checkpoint of another model than model.path" in lines[0]


@pytest.mark.parametrize("damage", ["", "torn"])
def test_a_run_whose_only_checkpoint_is_torn(store, tmp_path, damage):
    (commit_checkpoint(tmp_path / "run") / "run.json").write_text(damage)
    code, lines = dry_run(store, tmp_path / "run")
    assert code == 2
    assert len(lines) == 1
    assert "none of its 1 checkpoints is whole" in lines[0]
    assert "begin anew in another run_folder" in lines[0]


def test_a_missing_run_file():
    code, lines, _ = run("train", "/nowhere.yaml")
    assert code == 2
    assert lines == [
        "megatron-spell: /nowhere.yaml: no such file; give the path of a run's YAML, for instance "
        "examples/quickstart/run.yaml"
    ]


def test_the_resolved_settings_are_printed():
    code, _, out = run("config", EXAMPLE / "run.yaml", "--set", "steps=7")
    assert code == 0
    resolved = json.loads(out)
    assert resolved["steps"] == 7
    assert resolved["play"]["votes_per_answer"] == 8

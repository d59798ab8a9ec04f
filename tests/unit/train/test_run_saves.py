"""When a run saves, waits for a save and hears of its failure; one trainer rank, no engine."""

import dataclasses
import errno
import io
import threading
from pathlib import Path

import pytest
from rich.console import Console

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.selfplay.collector import Collector
from megatron_spell.train import checkpoints as checkpoints_module
from megatron_spell.train.checkpoints import CheckpointError
from megatron_spell.train.run import Run
from megatron_spell.train.run_folder import RunFolder
from megatron_spell.train.watch import CollapseWatch
from tests.distributed.policy_lab import write_tiny_qwen3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_qwen3(tmp_path_factory.mktemp("models") / "model", tied=True)


def make_run(model: Path, folder: Path, **checkpoint) -> Run:
    """A run whose engines and documents are never asked for: what `save_if_due` and `restore` touch is real."""
    from megatron_spell.train.crew import Crew
    from megatron_spell.train.member import Member

    config = RunConfig.model_validate(
        {
            "name": "saves",
            "run_folder": folder,
            "steps": 9,
            "model": {"path": model},
            "data": {"store": "none"},
            "policy": {"timeout_s": 60},
            "checkpoint": {"every": 1, "keep": 5, "timeout_s": 30} | checkpoint,
        }
    )
    member = Member(config, ModelShape.load(model))
    member.load_hf(model)
    curriculum = Curriculum(config, Catalog((SetEntry("set 1", (5, 6)),)), config.seed)
    untouched = {field.name: None for field in dataclasses.fields(Run) if field.default is dataclasses.MISSING}
    folder_ = RunFolder(folder)
    folder_.make()
    parts = {
        "config": config,
        "folder": folder_,
        "crew": Crew(member, wait_s=30),
        "curriculum": curriculum,
        "collector": Collector(None, curriculum.draw, config.play),
        "watch": CollapseWatch(config, print),
        "console": Console(file=io.StringIO(), width=400),
    }
    return Run(**(untouched | parts))


@pytest.fixture
def run(alone, model, tmp_path) -> Run:
    return make_run(model, tmp_path / "run")


class Gate:
    """Holds whoever hashes until it is opened."""

    def __init__(self, monkeypatch):
        self.entered, self.opened = threading.Event(), threading.Event()
        digest = checkpoints_module._digest

        def held(path):
            self.entered.set()
            assert self.opened.wait(30)
            return digest(path)

        monkeypatch.setattr(checkpoints_module, "_digest", held)


def test_a_save_goes_on_while_the_run_does_and_the_next_waits_for_it(run, monkeypatch):
    gate = Gate(monkeypatch)
    run.step = 1
    run.save_if_due()
    assert gate.entered.wait(30)
    assert run.checkpoints.steps() == []
    assert run.checkpoints.aside(1).is_dir()
    threading.Timer(0.1, gate.opened.set).start()
    run.step = 2
    run.save_if_due()
    assert 1 in run.checkpoints.steps()
    run.settle_save()
    assert run.checkpoints.latest() == (run.checkpoints.of_step(2), [])


def test_it_is_whole_at_once_where_saves_are_not_asynchronous(alone, model, tmp_path):
    run = make_run(model, tmp_path / "run", asynchronous=False)
    run.step = 1
    run.save_if_due()
    assert run.checkpoints.latest() == (run.checkpoints.of_step(1), [])


def test_only_due_steps_are_saved_and_the_last(alone, model, tmp_path):
    run = make_run(model, tmp_path / "run", every=4)
    for run.step in range(1, 10):
        run.save_if_due()
    run.settle_save()
    assert run.checkpoints.steps() == [4, 8, 9]


def test_a_failed_save_is_told_at_the_end_of_the_next_step(alone, model, tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = make_run(model, tmp_path / "run", every=2)
    run.step = 2
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints_module, "_sync", full)
        run.save_if_due()
        assert run.saving.exception(30) is not None
    run.step = 3  # no checkpoint is due
    with pytest.raises(ValueError, match=r"step_000002: cannot be written: .*No space left on device"):
        run.save_if_due()
    run.settle_save()  # told once


def test_a_run_of_which_no_checkpoint_is_whole_does_not_begin_anew(run):
    run.step = 1
    run.save_if_due()
    run.settle_save()
    file = run.checkpoints.of_step(1) / "policy/weights/model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"none of its 1 checkpoints is whole .*differs from its checksum"
    ) as caught:
        run.restore()
    assert "\n" not in str(caught.value)

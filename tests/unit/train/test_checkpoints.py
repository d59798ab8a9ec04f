import errno
import json
from pathlib import Path

import pytest

from megatron_spell.train import checkpoints as module
from megatron_spell.train.checkpoints import (
    MANIFEST,
    CheckpointError,
    Checkpoints,
    all_but_tensors,
    find_fault,
    none_is_whole,
)


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints: Checkpoints, step: int) -> None:
    folder = checkpoints.begin(step)
    (folder / "policy").mkdir()
    (folder / "policy" / "weights.safetensors").write_bytes(bytes([step]) * 100)
    (folder / "run.json").write_text(str(step))
    checkpoints.commit(step)


def test_the_newest_is_found_and_older_ones_beyond_keep_go(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.latest() == (checkpoints.folder / "step_000003", [])


def test_nothing_is_found_where_nothing_was_saved(checkpoints):
    assert checkpoints.latest() == (None, [])


def rewrite_manifest(checkpoint: Path, **changes) -> None:
    record = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(record | changes))


def point_outside(checkpoint: Path, name: str) -> None:
    record = json.loads((checkpoint / MANIFEST).read_text())
    record["files"][name] = record["files"].pop("run.json")
    rewrite_manifest(checkpoint, **record)


DAMAGES = {
    "flip": (lambda c: flip(c / "policy/weights.safetensors"), "policy/weights.safetensors differs from its checksum"),
    "truncate": (
        lambda c: (c / "policy/weights.safetensors").write_bytes(b"\x02" * 50),
        "policy/weights.safetensors has 50 bytes, not 100",
    ),
    "remove": (lambda c: (c / "run.json").unlink(), "run.json is missing"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "manifest.json is missing"),
    "empty manifest": (lambda c: (c / MANIFEST).write_text("{}"), "manifest.json is missing, unreadable or not"),
    "torn manifest": (lambda c: (c / MANIFEST).write_text('{"files": {'), "manifest.json is missing, unreadable"),
    "a manifest of nothing": (lambda c: rewrite_manifest(c, files={}), "manifest.json is missing, unreadable"),
    "another format": (lambda c: rewrite_manifest(c, format="x"), "not of the format megatron_spell.checkpoint/1"),
    "a way out": (lambda c: point_outside(c, "../step_000001/run.json"), "which is outside of the checkpoint"),
    "an absolute path": (lambda c: point_outside(c, "/etc/hostname"), "which is outside of the checkpoint"),
}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(checkpoints, damage):
    save(checkpoints, 1)
    save(checkpoints, 2)
    act, said = DAMAGES[damage]
    act(checkpoints.of_step(2))
    latest, torn = checkpoints.latest()
    assert latest == checkpoints.folder / "step_000001"
    assert len(torn) == 1
    assert "step_000002: " in torn[0]
    assert said in torn[0]
    assert "\n" not in torn[0]


def test_who_reads_no_tensors_need_not_hash_them(checkpoints, monkeypatch):
    save(checkpoints, 1)
    hashed = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: hashed.append(path.name) or digest(path))
    assert find_fault(checkpoints.of_step(1), all_but_tensors) is None
    assert hashed == ["run.json"]
    flip(checkpoints.of_step(1) / "policy/weights.safetensors")
    assert find_fault(checkpoints.of_step(1), all_but_tensors) is None
    flip(checkpoints.of_step(1) / "run.json")
    assert find_fault(checkpoints.of_step(1), all_but_tensors) == "run.json differs from its checksum"


def test_it_is_said_when_none_is_whole(checkpoints):
    for step in (1, 2):
        save(checkpoints, step)
        (checkpoints.of_step(step) / "run.json").unlink()
    latest, torn = checkpoints.latest()
    assert latest is None
    said = none_is_whole(checkpoints, torn)
    assert "none of its 2 checkpoints is whole (" in said
    assert "step_000002: run.json is missing" in said


def test_a_save_that_was_interrupted_leaves_no_checkpoint_and_does_not_hinder_the_next(checkpoints):
    folder = checkpoints.begin(7)
    (folder / "half").write_text("...")
    assert checkpoints.latest() == (None, [])
    save(checkpoints, 1)
    assert checkpoints.latest() == (checkpoints.of_step(1), [])
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step_000001"]


def test_saving_a_step_again_replaces_it(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 1)
    assert checkpoints.steps() == [1]
    assert find_fault(checkpoints.folder / "step_000001") is None


def test_a_full_disk_leaves_the_checkpoint_before(checkpoints, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    save(checkpoints, 1)
    monkeypatch.setattr(module, "_sync", full)
    with pytest.raises(CheckpointError, match=r"step_000002: cannot be written: .*No space left") as caught:
        save(checkpoints, 2)
    assert "\n" not in str(caught.value)
    assert checkpoints.latest() == (checkpoints.of_step(1), [])

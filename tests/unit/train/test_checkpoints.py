import pytest

from megatron_spell.train.checkpoints import MANIFEST, Checkpoints, find_fault


@pytest.fixture
def checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints: Checkpoints, step: int) -> None:
    folder = checkpoints.begin(step)
    (folder / "policy").mkdir()
    (folder / "policy" / "weights.bin").write_bytes(bytes([step]) * 100)
    (folder / "run.json").write_text(str(step))
    checkpoints.commit(step)


def test_the_newest_is_found_and_older_ones_beyond_keep_go(checkpoints):
    for step in (1, 2, 3):
        save(checkpoints, step)
    assert checkpoints.steps() == [2, 3]
    assert checkpoints.latest() == (checkpoints.folder / "step_000003", [])


def test_nothing_is_found_where_nothing_was_saved(checkpoints):
    assert checkpoints.latest() == (None, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "empty manifest"])
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(checkpoints, damage):
    save(checkpoints, 1)
    save(checkpoints, 2)
    weights = checkpoints.folder / "step_000002" / "policy" / "weights.bin"
    if damage == "flip":
        weights.write_bytes(b"\x02" * 99 + b"\x03")
    elif damage == "truncate":
        weights.write_bytes(b"\x02" * 50)
    elif damage == "remove":
        weights.unlink()
    elif damage == "manifest":
        (checkpoints.folder / "step_000002" / MANIFEST).unlink()
    else:
        (checkpoints.folder / "step_000002" / MANIFEST).write_text("{}")
    latest, torn = checkpoints.latest()
    assert latest == checkpoints.folder / "step_000001"
    assert len(torn) == 1
    assert "step_000002" in torn[0]


def test_a_save_that_was_interrupted_leaves_no_checkpoint_and_does_not_hinder_the_next(checkpoints):
    folder = checkpoints.begin(1)
    (folder / "half").write_text("...")
    assert checkpoints.latest() == (None, [])
    save(checkpoints, 1)
    latest, _ = checkpoints.latest()
    assert latest is not None
    assert find_fault(latest) is None
    assert not (latest / "half").exists()


def test_saving_a_step_again_replaces_it(checkpoints):
    save(checkpoints, 1)
    save(checkpoints, 1)
    assert checkpoints.steps() == [1]
    assert find_fault(checkpoints.folder / "step_000001") is None

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from megatron_spell.bridge.boxes import Box, Segment
from megatron_spell.bridge.hf_files import (
    INDEX_FILE,
    SINGLE_FILE,
    FolderError,
    read_segments,
    shard_files,
)
from megatron_spell.bridge.hf_folders import write_files, write_hf_folder
from megatron_spell.bridge.inventory import checkpoint_inventory, checkpoint_shapes, trainer_inventory, trainer_shapes
from megatron_spell.bridge.safetensors_writer import SafetensorsWriter
from megatron_spell.bridge.stacks import is_stack, member
from megatron_spell.layout.mesh import Mesh
from tests.unit.bridge.folder_lab import cut_boxes, whole_boxes
from tests.unit.bridge.made_weights import laid_out, made_shape, made_weights

SHAPE = made_shape()


def hf_tensors(shape=SHAPE) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in made_weights(shape).items()}


def written(folder, shape=SHAPE, dtype=torch.float32, **settings_):
    write_hf_folder(folder, whole_boxes(hf_tensors(shape)), checkpoint_shapes(shape), dtype, **settings_)
    return folder


@pytest.mark.parametrize("max_shard_bytes", [2**30, 3000])
@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tp=2, pp=2)], ids=str)
def test_a_rank_reads_its_boxes(tmp_path, mesh, max_shard_bytes):
    folder = written(tmp_path / "model", max_shard_bytes=max_shard_bytes)
    for rank in range(mesh.world_size):
        own = {n: torch.full(s, torch.nan) for n, s in trainer_shapes(SHAPE, mesh, rank).items()}
        read_segments(folder, trainer_inventory(SHAPE, mesh, rank), own, checkpoint_shapes(SHAPE))
        for name, expected in laid_out(SHAPE, made_weights(SHAPE), mesh, rank).items():
            np.testing.assert_array_equal(own[name].numpy(), expected, err_msg=name)


def test_reading_converts_to_the_tensors_own_dtype(tmp_path):
    folder = written(tmp_path / "model")
    own = {n: torch.nn.Parameter(torch.zeros(s, dtype=torch.bfloat16)) for n, s in checkpoint_shapes(SHAPE).items()}
    read_segments(folder, checkpoint_inventory(SHAPE), own)
    for name, tensor in hf_tensors().items():
        assert torch.equal(own[name], tensor.to(torch.bfloat16)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_library_reads_what_the_writer_writes(tmp_path, dtype):
    tensors = hf_tensors()
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, checkpoint_shapes(SHAPE), dtype) as file:
        for name, box, values in reversed(list(cut_boxes(tensors, 7))):
            file.put_box(name, box, values)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(found[n].dtype == dtype and torch.equal(found[n], t.to(dtype)) for n, t in tensors.items())


def test_the_writer_and_the_library_write_tensors_alike(tmp_path):
    tensors = {"b": torch.arange(6.0).view(2, 3).t(), "a": torch.ones(1)}
    with SafetensorsWriter(tmp_path / "ours", {"b": (3, 2), "a": (1,)}, torch.float32) as file:
        for name, box, values in whole_boxes(tensors):
            file.put_box(name, box, values)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert all(torch.equal(ours[n], theirs[n]) for n in tensors)


def test_shards_have_an_index_and_companions_come_along(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", INDEX_FILE, "old.safetensors"):
        (source / name).write_text(f"of {name}")
    (source / "config.json").write_text('{"model_type": "qwen3", "torch_dtype": "bfloat16"}')
    folder = written(tmp_path / "new", copy_from=source, max_shard_bytes=3000)
    index = json.loads((folder / INDEX_FILE).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 1
    assert index["metadata"]["total_size"] == 4 * SHAPE.num_parameters
    assert sorted(f.name for f in folder.iterdir()) == sorted(
        ["config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", INDEX_FILE, *files]
    )
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(folder / file)[name], hf_tensors()[name])
    assert json.loads((folder / "config.json").read_text()) == {"model_type": "qwen3", "dtype": "float32"}
    assert (folder / "merges.txt").read_text() == "of merges.txt"
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "config.json").write_text("{")
    with pytest.raises(FolderError, match=r"config\.json: is not JSON"):
        written(tmp_path / "new", copy_from=tmp_path / "source")
    assert not (tmp_path / "new").exists()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("ab", min_size=1), st.tuples(st.integers(1, 9)), min_size=1), st.integers(1, 40))
def test_shards_keep_order_and_size(shapes, max_shard_bytes):
    files = shard_files(shapes, 2, max_shard_bytes)
    assert [name for shard in files.values() for name in shard] == list(shapes)
    for shard in files.values():
        assert len(shard) == 1 or sum(2 * n for (n,) in shard.values()) <= max_shard_bytes
    assert len(files) == 1 or f"-of-{len(files):05d}." in next(iter(files))


def read_all(folder, shape=SHAPE, shapes=None) -> None:
    own = {n: torch.zeros(s) for n, s in checkpoint_shapes(shape).items()}
    read_segments(folder, checkpoint_inventory(shape), own, shapes)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FolderError, match=f"holds neither {SINGLE_FILE} nor {INDEX_FILE}"):
        read_all(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    folder = written(tmp_path / "model")
    with pytest.raises(FolderError, match=r"model\.safetensors: lacks tensor lm_head\.weight"):
        read_all(folder, replace(SHAPE, tied_embeddings=False))


def test_a_tensor_of_another_shape_is_named(tmp_path):
    folder = written(tmp_path / "model")
    larger, smaller = replace(SHAPE, vocab_size=38), replace(SHAPE, vocab_size=36)
    with pytest.raises(FolderError, match=r"embed_tokens.weight has shape \(37, 12\), the model needs one that holds"):
        read_all(folder, larger)
    read_all(folder, smaller)  # goes unnoticed from the boxes alone
    with pytest.raises(FolderError, match=r"embed_tokens.weight has shape \(37, 12\), .* of shape \(36, 12\)"):
        read_all(folder, smaller, checkpoint_shapes(smaller))


def test_a_tensor_without_room_is_named(tmp_path):
    folder = written(tmp_path / "model")
    own = {n: torch.zeros(s) for n, s in checkpoint_shapes(SHAPE).items()} | {"model.norm.weight": torch.zeros(11)}
    with pytest.raises(FolderError, match=r"model.norm.weight: belongs at model.norm.weight\[0:12\].*\(11,\)"):
        read_segments(folder, checkpoint_inventory(SHAPE), own)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    file = written(tmp_path / "model") / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FolderError, match=r"model\.safetensors: cannot be read"):
        read_all(tmp_path / "model")


def test_a_missing_shard_is_named(tmp_path):
    folder = written(tmp_path / "model", max_shard_bytes=3000)
    (folder / json.loads((folder / INDEX_FILE).read_text())["weight_map"]["model.norm.weight"]).unlink()
    with pytest.raises(FolderError, match=r"model-0000\d-of-0000\d\.safetensors: cannot be read"):
        read_all(folder)


def test_a_tensor_missing_from_the_index_is_named(tmp_path):
    folder = written(tmp_path / "model", max_shard_bytes=3000)
    index = json.loads((folder / INDEX_FILE).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(FolderError, match=r"index\.json: names no file for tensor model\.norm\.weight"):
        read_all(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"t": "../x"}}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / INDEX_FILE).write_text(text)
    with pytest.raises(FolderError, match=r"index\.json: holds no weight_map"):
        read_all(tmp_path)


A, AB = Box((0,), (2,)), {"a": (2,), "b": (2,)}


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([("a", A, torch.zeros(2))], "1 tensors did not come, the first is b"),
        ([("a", A, torch.zeros(2)), ("b", Box((0,), (1,)), torch.zeros(1))], "the first is b, 1 elements of it"),
        ([("a", A, torch.zeros(2)), ("a", A, torch.zeros(2))], r"a\[0:2\] came twice"),
        ([("a", Box((1,), (2,)), torch.zeros(1)), ("a", A, torch.zeros(2))], r"a\[0:2\] came twice"),
        ([("a", A, torch.zeros(3))], r"a\[0:2\] came with values of shape \(3,\)"),
        ([("a", Box((1,), (3,)), torch.zeros(2))], r"a\[1:3\] is outside of the shape \(2,\) that was announced"),
        ([("a", Box((0, 0), (2, 1)), torch.zeros(2, 1))], r"a\[0:2, 0:1\] is outside of the shape \(2,\)"),
        ([("c", A, torch.zeros(2))], "tensor c was not announced"),
        ([], "none of its tensors came"),
    ],
)
def test_a_stream_that_breaks_its_word_leaves_no_folder(tmp_path, boxes, message):
    with pytest.raises(FolderError, match=message):
        write_hf_folder(tmp_path / "new", iter(boxes), AB, torch.float32)
    assert not (tmp_path / "new").exists()


def test_a_writer_takes_only_what_was_announced(tmp_path):
    with (
        pytest.raises(FolderError, match="tensor c was not announced"),
        SafetensorsWriter(tmp_path / "x", {"a": (2,)}, torch.float32) as file,
    ):
        file.put_box("c", A, torch.zeros(2))


def test_a_broken_off_attempt_is_written_over(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_hf_folder(tmp_path / "new", ((n, A, t / (1 // 0)) for n, t in hf_tensors().items()), {}, torch.float32)
    assert (tmp_path / ".new.partial").exists()
    written(tmp_path / "new")
    assert not (tmp_path / ".new.partial").exists()
    read_all(tmp_path / "new")


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    folder = written(tmp_path / "model")
    before = (folder / SINGLE_FILE).read_bytes()
    with pytest.raises(FolderError, match="exists and is not empty; give another folder"):
        written(folder)
    assert (folder / SINGLE_FILE).read_bytes() == before
    (tmp_path / "empty").mkdir()
    written(tmp_path / "empty")


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match=r"\.new\.partial: cannot be made"):
        written(tmp_path / "file" / "new")
    with pytest.raises(FolderError, match=r"model\.safetensors: cannot be written: .*No such file"):
        write_files(tmp_path / "gone", {SINGLE_FILE: {"a": (2,)}}, [("a", A, torch.zeros(2))], torch.float32)
    with pytest.raises(FolderError, match="new: cannot be written"):
        written(tmp_path / "new", copy_from=_folder_with_unreadable_config(tmp_path))


def _folder_with_unreadable_config(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").symlink_to(source / "nowhere")
    return source


def test_a_dtype_without_a_name_is_refused(tmp_path):
    with pytest.raises(FolderError, match=r"dtype torch\.int8 is not written"):
        SafetensorsWriter(tmp_path / "x", {}, torch.int8)


def test_a_full_disk_names_file_and_tensor(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    full = SafetensorsWriter(tmp_path / "x", {"a": (2,)}, torch.float32)
    with Path("/dev/full").open("wb") as device:
        os.dup2(device.fileno(), full._file.fileno())
    with pytest.raises(FolderError, match=r"x: tensor a cannot be written: \[Errno 28\] No space left on device"):
        full.put_box("a", A, torch.zeros(2))


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, place: pwrite(file, content[:5], place))
    folder = written(tmp_path / "model")
    monkeypatch.undo()
    read_all(folder)
    found = load_file(folder / SINGLE_FILE)
    assert all(torch.equal(found[name], tensor) for name, tensor in hf_tensors().items())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 30), st.data())
def test_any_box_lands_in_its_place(shape, max_elements, data):
    """A box out of the middle and what is left around it, in pieces and in a drawn order, copied in parts."""
    tensor = torch.randn(shape)
    start = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
    stop = tuple(data.draw(st.integers(a + 1, size)) for a, size in zip(start, shape))
    middle, whole = Box(start, stop), Box.whole(tuple(shape))
    boxes = [piece for part in (middle, *whole.minus(middle)) for piece in part.pieces(max_elements)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "x")
        with SafetensorsWriter(path, {"t": tuple(shape)}, torch.float32, max_copy_bytes=12) as file:
            for box in data.draw(st.permutations(boxes)):
                file.put_box("t", box, tensor[box.index])
        assert torch.equal(load_file(path)["t"], tensor)


@pytest.mark.parametrize(("theirs", "own"), [("experts.*.w", "e.*.w"), ("experts.w", "e.*.w"), ("experts.*.w", "e.w")])
@pytest.mark.parametrize("piece_bytes", [8, 100, 10**6])
def test_experts_are_read_from_their_own_tensors_and_from_stacked_ones(tmp_path, theirs, own, piece_bytes):
    """Experts 1 and 2 of four, columns 2 to 5, in any of the forms that files and ranks have."""
    truth = torch.randn(4, 3, 6)
    held = {member(theirs, i): t for i, t in enumerate(truth)} if is_stack(theirs) else {theirs: truth}
    write_hf_folder(tmp_path / "x", whole_boxes(held), {n: tuple(t.shape) for n, t in held.items()}, torch.float32)
    room = {"e.w": torch.zeros(2, 3, 3)} if own == "e.w" else {f"e.{i}.w": torch.zeros(3, 3) for i in range(2)}
    segment = Segment(theirs, Box((1, 0, 2), (3, 3, 5)), own, Box((0, 0, 0), (2, 3, 3)))
    read_segments(tmp_path / "x", (segment,), room, piece_bytes=piece_bytes)
    found = room["e.w"] if own == "e.w" else torch.stack([room["e.0.w"], room["e.1.w"]])
    assert torch.equal(found, truth[1:3, :, 2:5])

"""`megatron-spell convert` on checkpoints put together by hand; what a policy saves is in unit/policy."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from megatron_spell.bridge.hf_files import INDEX_FILE, PIECE_BYTES
from megatron_spell.bridge.hf_folders import write_hf_folder
from megatron_spell.cli.main import app
from megatron_spell.train import convert as conversion
from megatron_spell.train.checkpoints import Checkpoints
from tests.distributed.policy_lab import write_tiny_qwen3
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.bridge.folder_lab import whole_boxes


def run(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, lines of standard error, standard output."""
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


def refused(*arguments: object) -> str:
    code, lines, _ = run(*arguments)
    assert code == 2
    assert len(lines) == 1, lines
    return lines[0].removeprefix("megatron-spell: ")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = write_tiny_qwen3(tmp_path_factory.mktemp("models") / "model", tied=False)
    write_byte_tokenizer(folder)
    return folder


def add_checkpoint(checkpoints: Checkpoints, step: int, model: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The model's weights times `step`; rounded to bfloat16 with float32 main weights beside where that is asked."""
    tensors = {name: tensor * step for name, tensor in load_file(model / "model.safetensors").items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    policy = checkpoints.begin(step) / "policy"
    write_hf_folder(policy / "weights", whole_boxes(tensors), shapes, dtype, copy_from=model)
    if dtype != torch.float32:
        write_hf_folder(policy / "main_weights", whole_boxes(tensors), shapes, torch.float32)
    write_hf_folder(policy / "adam_first_moment", whole_boxes(tensors), shapes, torch.float32)
    return checkpoints.commit(step)


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    return Checkpoints(tmp_path / "run/checkpoints", keep=5)


def logits(folder: Path) -> torch.Tensor:
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        return loaded(torch.arange(20)[None]).logits


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_run_gives_its_newest_checkpoint_bit_for_bit(checkpoints, model, tmp_path):
    add_checkpoint(checkpoints, 2, model)
    newest = add_checkpoint(checkpoints, 3, model)
    code, said, out = run(tmp_path / "run", "--out", tmp_path / "new")
    assert (code, said) == (0, [])
    assert "as float32" in out
    assert "in 1 file(s)" in out
    held = {path.name: path.read_bytes() for path in (newest / "policy/weights").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == held
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= held.keys()


def test_shards_have_an_index_and_give_the_same_logits(checkpoints, model, tmp_path):
    checkpoint = add_checkpoint(checkpoints, 1, model)
    code, _, _ = run(checkpoint, "--out", tmp_path / "new", "--max-shard-size", "100KB")
    assert code == 0
    files = set(json.loads((tmp_path / "new" / INDEX_FILE).read_text())["weight_map"].values())
    assert len(files) > 3
    assert torch.equal(logits(tmp_path / "new"), logits(model))
    code, _, _ = run(tmp_path / "new", "--out", tmp_path / "one")
    assert code == 0
    found, expected = load_file(tmp_path / "one/model.safetensors"), load_file(model / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_float32_comes_from_the_main_weights_and_bfloat16_as_it_is(checkpoints, model, tmp_path):
    checkpoint = add_checkpoint(checkpoints, 1, model, torch.bfloat16)
    for dtype, options in ((torch.float32, ["--dtype", "float32"]), (torch.bfloat16, [])):
        out = tmp_path / str(dtype)
        assert run(checkpoint, "--out", out, *options)[0] == 0
        found = load_file(out / "model.safetensors")
        for name, tensor in load_file(model / "model.safetensors").items():
            assert torch.equal(found[name], tensor.to(dtype)), name
        assert json.loads((out / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert torch.equal(logits(tmp_path / "torch.float32"), logits(model))


def test_a_model_folder_gets_another_dtype(model, tmp_path):
    assert run(model, "--out", tmp_path / "new", "--dtype", "bfloat16")[0] == 0
    found = load_file(tmp_path / "new/model.safetensors")
    assert all(
        torch.equal(found[name], tensor.to(torch.bfloat16))
        for name, tensor in load_file(model / "model.safetensors").items()
    )


def test_a_torn_checkpoint_is_named_and_the_one_before_is_taken(checkpoints, model, tmp_path):
    whole = add_checkpoint(checkpoints, 2, model)
    torn = add_checkpoint(checkpoints, 3, model)
    flip(torn / "policy/weights/model.safetensors")
    code, said, out = run(tmp_path / "run", "--out", tmp_path / "new")
    assert code == 0
    assert said == [f"note: {torn}: policy/weights/model.safetensors differs from its checksum; it is left out"]
    assert str(whole) in out
    line = refused(tmp_path / "run", "--step", 3, "--out", tmp_path / "other")
    assert line == f"{torn}: policy/weights/model.safetensors differs from its checksum; name another checkpoint"
    assert refused(torn, "--out", tmp_path / "other") == line


def test_damaged_moments_do_not_keep_the_weights_from_being_taken(checkpoints, model, tmp_path):
    checkpoint = add_checkpoint(checkpoints, 1, model)
    flip(checkpoint / "policy/adam_first_moment/model.safetensors")
    assert run(checkpoint, "--out", tmp_path / "new")[0] == 0


def test_a_step_is_named(checkpoints, model, tmp_path):
    for step in (1, 2):
        add_checkpoint(checkpoints, step, model)
    assert run(tmp_path / "run", "--step", 1, "--out", tmp_path / "new")[0] == 0
    assert torch.equal(logits(tmp_path / "new"), logits(model))
    assert "holds no checkpoint of it; there are 1, 2" in refused(
        tmp_path / "run", "--step", 7, "--out", tmp_path / "other"
    )
    assert "is no run folder" in refused(model, "--step", 1, "--out", tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-shard-size", "5 apples"], "--max-shard-size = 5 apples: is no size; give a number with a unit"),
        (["--max-shard-size", "0GB"], "--max-shard-size = 0GB: is no size"),
        (["--max-shard-size", "5KGB"], "--max-shard-size = 5KGB: is no size"),
    ],
)
def test_sizes_that_are_none(model, tmp_path, options, said):
    assert said in refused(model, "--out", tmp_path / "new", *options)


def test_places_that_cannot_be_converted(model, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    assert "exists; give a folder that does not" in refused(model, "--out", tmp_path / "taken")
    assert "is neither a run folder, nor a checkpoint" in refused(tmp_path / "nowhere", "--out", tmp_path / "new")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    assert "holds no whole checkpoint" in refused(tmp_path / "empty", "--out", tmp_path / "new")
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: type("Room", (), {"free": 1000}))
    assert "GB are to be written" in refused(model, "--out", tmp_path / "new")


def test_weights_that_cannot_be_converted(tmp_path):
    def folder(name: str, **tensors: torch.Tensor) -> Path:
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    out = tmp_path / "new"
    mixed = folder("mixed", a=torch.zeros(2), b=torch.zeros(2, dtype=torch.bfloat16))
    assert "holds bfloat16, float32 tensors; say which --dtype" in refused(mixed, "--out", out)
    assert run(mixed, "--out", tmp_path / "told", "--dtype", "float32")[0] == 0
    numbers = folder("numbers", a=torch.zeros(2, dtype=torch.int8))
    assert "tensor a is of I8; only floating-point" in refused(numbers, "--out", out)
    torn = folder("torn", a=torch.zeros(2))
    (torn / "model.safetensors").write_bytes(b"\x00" * 20)
    assert "model.safetensors: cannot be read" in refused(torn, "--out", out)
    short = folder("short", a=torch.zeros(2))
    (short / INDEX_FILE).write_text('{"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}}')
    assert "lacks tensor b, which model.safetensors.index.json says it holds" in refused(short, "--out", out)
    assert not out.exists()


def test_a_broken_off_conversion_leaves_nothing(model, tmp_path):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    chosen = conversion.choose(conversion.find_source(model), None)
    with pytest.raises(KeyboardInterrupt):
        conversion.convert(chosen, tmp_path / "new", max_shard_bytes=10**9, written=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pieces_of_a_tensor_are_in_memory(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    resident = importlib.import_module("resident")
    tensors = {"t": torch.arange(2**26, dtype=torch.float32).view(-1, 64)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_hf_folder(tmp_path / "big", whole_boxes(tensors), shapes, torch.float32)
    chosen = conversion.choose(conversion.find_source(tmp_path / "big"), "bfloat16")
    with resident.AnonPeak() as taken:
        conversion.convert(chosen, tmp_path / "new", max_shard_bytes=10**9)
    assert torch.equal(load_file(tmp_path / "new/model.safetensors")["t"], tensors["t"].bfloat16())
    assert taken.num_bytes < 2 * PIECE_BYTES, "of a tensor of 256 MiB, 128 when written"
    with resident.AnonPeak() as taken:
        tensors["t"].clone()
    assert taken.num_bytes > 200 * 2**20, "the meter sees what is taken"

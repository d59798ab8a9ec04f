"""A Hugging Face folder read and written by four processes over gloo, and read again by transformers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.distributed.policy_lab import write_tiny
from tests.distributed.processes import run_ranks
from tests.tiny_tokenizer import write_byte_tokenizer

RANK = Path(__file__).with_name("folder_rank.py")

pytestmark = pytest.mark.slow


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


@pytest.mark.parametrize(
    ("kind", "tied", "dtype", "axes"),
    [
        ("qwen3", True, torch.float32, {"tp": 2, "pp": 2}),
        ("moe", False, torch.bfloat16, {"tp": 2, "dp": 2, "ep": 2}),
        ("moe", False, torch.float32, {"pp": 2, "vpp": 2, "dp": 2, "ep": 2, "etp": 1}),
    ],
)
def test_four_processes_bring_a_model_back_bit_for_bit(tmp_path, kind, tied, dtype, axes):
    folder = write_tiny(tmp_path / "model", kind, tied)
    AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(folder)
    write_byte_tokenizer(folder)
    name = str(dtype).removeprefix("torch.")
    run_ranks(RANK, 4, str(folder), str(tmp_path / "out"), json.dumps(axes), name, timeout_s=120)
    expected = tensors_of(folder)
    for written in (tmp_path / "out/first", tmp_path / "out/second"):
        found = tensors_of(written)
        assert found.keys() == expected.keys()
        assert all(t.dtype == dtype and torch.equal(found[n], t) for n, t in expected.items())
        weight_map = json.loads((written / "model.safetensors.index.json").read_text())["weight_map"]
        assert len(set(weight_map.values())) > 2
        assert torch.equal(logits(written, dtype), logits(folder, dtype))
        ids = AutoTokenizer.from_pretrained(written)("as before")["input_ids"]
        assert ids == AutoTokenizer.from_pretrained(folder)("as before")["input_ids"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first", "second"]

"""Added tokens: the tokenizer's files, the rows they get, and nothing else changed."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.unit.tokenizer_tools.small_models import NUM_TOKENS, load, write_model
from tokenizer_tools.errors import ToolError
from tokenizer_tools.extend import extend_folder
from tokenizer_tools.safetensors_rows import NewRows, mean_row, read_header, rewrite

CASES = [(tied, dtype, shards) for tied in (True, False) for dtype, shards in ((torch.float32, 1), (torch.bfloat16, 0))]


@pytest.mark.parametrize(("tied", "dtype", "shards"), CASES)
def test_rows_of_new_tokens_are_the_mean_and_all_else_stays_to_the_bit(tmp_path, tied, dtype, shards):
    folder = write_model(tmp_path / "old", tied=tied, dtype=dtype, shards=bool(shards))
    done = extend_folder(folder, tmp_path / "new", ["<think>"], ["<quote>", "</quote>"], resize=True)
    assert done.ids == {"<think>": 259, "<quote>": 260, "</quote>": 261} and done.vocab_size == (259, 262)
    before, after = load(folder), load(tmp_path / "new")
    assert after.config.vocab_size == 262 and after.config.tie_word_embeddings is tied
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        rows = len(tensor)
        assert torch.equal(new[name][:rows], tensor), name
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert len(new[name]) == 262
            # a mean over other rows, or of the other table, is off by far more than the rounding
            wanted = tensor.double().mean(dim=0).to(dtype)
            assert all(torch.equal(row, wanted) for row in new[name][rows:])
    ids = torch.tensor([[5, 77, 200, 12]])
    # kernels of other sizes may add in another order; the weights above are equal to the bit
    torch.testing.assert_close(after(ids).logits[..., :259], before(ids).logits)
    if shards:
        index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
        sizes = (sum(t.num_bytes for t in read_header(f)[0].values()) for f in (tmp_path / "new").glob("*.safetensors"))
        assert index["metadata"]["total_size"] == sum(sizes)


def test_the_tokenizer_knows_special_from_plain(tmp_path):
    folder = write_model(tmp_path / "old", tied=True)
    extend_folder(folder, tmp_path / "new", ["<think>"], ["<quote>"], resize=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    ids = tokenizer.encode("a<think><quote>b", add_special_tokens=False)
    assert ids[1:3] == [259, 260]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a<quote>b"
    old = AutoTokenizer.from_pretrained(folder)
    assert old.encode("any text", add_special_tokens=False) == tokenizer.encode("any text", add_special_tokens=False)


def test_rows_that_are_there_already_are_made_only_if_asked(tmp_path):
    folder = write_model(tmp_path / "old", tied=False, rows=264)
    kept = extend_folder(folder, tmp_path / "kept", ["<a>"])
    assert not kept.rows_written and kept.vocab_size == (264, 264)
    made = extend_folder(folder, tmp_path / "made", ["<a>"], resize=True)
    assert made.rows_written and made.vocab_size == (264, 264)
    old, kept_rows, made_rows = (load(tmp_path / name).lm_head.weight for name in ("old", "kept", "made"))
    assert torch.equal(old, kept_rows)
    assert torch.equal(made_rows[NUM_TOKENS], old[:NUM_TOKENS].double().mean(dim=0).float())  # padding has no say
    assert torch.equal(made_rows[NUM_TOKENS + 1 :], old[NUM_TOKENS + 1 :])


def test_zeros_and_normal_rows(tmp_path):
    folder = write_model(tmp_path / "old", tied=False)
    tokens = [f"<{n}>" for n in range(200)]
    for name, init, seed in (
        ("zeros", "zeros", 0),
        ("one", "normal", 1),
        ("same", "normal", 1),
        ("other", "normal", 2),
    ):
        extend_folder(folder, tmp_path / name, tokens, resize=True, init=init, seed=seed)
    rows = {name: load(tmp_path / name).lm_head.weight[NUM_TOKENS:] for name in ("zeros", "one", "same", "other")}
    assert not rows["zeros"].any()
    assert rows["one"].std().item() == pytest.approx(0.05, rel=0.05)  # the config's initializer_range
    assert torch.equal(rows["one"], rows["same"]) and not torch.equal(rows["one"], rows["other"])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"special": ["<|im_end|>"]}, "is in .* already, id 258"),
        ({"special": ["<a>", "<a>"]}, "already"),
        ({"special": []}, "no token is given"),
        ({"special": [" "]}, "blank"),
        ({"special": ["<a>"], "resize": False}, "has 259 rows, the tokens need 260; give --resize"),
        ({"special": ["<a>"], "init": "median"}, "known are mean, zeros, normal"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path, given, named):
    folder = write_model(tmp_path / "old", tied=True)
    with pytest.raises(ToolError, match=named):
        extend_folder(folder, tmp_path / "new", **{"resize": True, **given})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json states no vocab_size"),
        (lambda f: _config(f, vocab_size=300), "has 259 rows, config.json says 300"),
        (lambda f: _config(f, quantization_config={}), "quantization_config"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b""), "would keep the old rows"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), "cannot be|no safetensors|gap|header says"),
        (lambda f: _cut(f / "model.safetensors"), "cut off or damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
    ],
)
def test_broken_folders_are_named(tmp_path, break_it, named):
    folder = write_model(tmp_path / "old", tied=True)
    break_it(folder)
    with pytest.raises(ToolError, match=named) as refused:
        extend_folder(folder, tmp_path / "new", ["<a>"], resize=True)
    assert "\n" not in str(refused.value) and not (tmp_path / "new").exists()


def test_a_folder_that_holds_something_is_not_written_over(tmp_path):
    folder = write_model(tmp_path / "old", tied=True)
    with pytest.raises(ToolError, match="exists and is not empty"):
        extend_folder(folder, folder, ["<a>"], resize=True)


def _config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def _cut(file):
    file.write_bytes(file.read_bytes()[:-4])


def test_bfloat16_rows_are_rounded_to_nearest_as_torch_does(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizer_tools.safetensors_rows.CHUNK_BYTES", 64)  # many chunks a table
    values = torch.randn(37, 24, generator=torch.Generator().manual_seed(0))
    from safetensors.torch import save_file

    save_file({"t": torch.ones(5, 24, dtype=torch.bfloat16), "u": torch.arange(3)}, tmp_path / "a.safetensors")
    rewrite(tmp_path / "a.safetensors", tmp_path / "b.safetensors", {"t": NewRows(4, values.double().numpy())})
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("t")[4:], values.to(torch.bfloat16))
        assert torch.equal(file.get_tensor("t")[:4], torch.ones(4, 24, dtype=torch.bfloat16))
        assert torch.equal(file.get_tensor("u"), torch.arange(3))
    tensor = read_header(tmp_path / "b.safetensors")[0]["t"]
    wanted = torch.cat([torch.ones(4, 24), values.to(torch.bfloat16).float()])[:30].double().mean(dim=0)
    np.testing.assert_allclose(mean_row(tensor, 30), wanted.numpy(), rtol=1e-12)

"""Padding rows: old logits stay to the bit, and what padding ids can get is bounded."""

import json

import pytest
import torch

from tests.unit.tokenizer_tools.small_models import load, write_model
from tokenizer_tools.errors import CheckpointError
from tokenizer_tools.pad_vocab import pad_folder

IDS = torch.tensor([[5, 77, 200, 12, 258, 9]])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_old_ids_stay_to_the_bit(tmp_path, tied):
    folder = write_model(tmp_path / "old", tied=tied, shards=not tied)
    done = pad_folder(folder, tmp_path / "new", 16, 4)
    assert (done.before, done.after, done.multiple) == (259, 320, 64)
    before, after = load(folder), load(tmp_path / "new")
    assert after.config.vocab_size == 320 and after.lm_head.weight.shape[0] == 320
    with torch.no_grad():
        old_hidden, new_hidden = before.model(IDS)[0], after.model(IDS)[0]
        assert torch.equal(old_hidden, new_hidden)
        # row by row, so that the matrix product adds in one order whatever the number of rows
        old_logits, new_logits = (
            (h[0] @ row)
            for h, row in ((old_hidden, before.lm_head.weight.T), (new_hidden, after.lm_head.weight[:259].T))
        )
        assert torch.equal(old_logits, new_logits)
        torch.testing.assert_close(after(IDS).logits[..., :259], before(IDS).logits)


def test_padding_ids_are_bounded_whatever_the_hidden_state(tmp_path):
    folder = write_model(tmp_path / "old", tied=False)
    pad_folder(folder, tmp_path / "mean", 64)
    pad_folder(folder, tmp_path / "zeros", 64, init="zeros")
    mean, zeros = (load(tmp_path / name).lm_head.weight.detach().double() for name in ("mean", "zeros"))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2000, 32, generator=generator, dtype=torch.float64) * torch.logspace(-1, 3, 2000)[:, None]
    # states that all rows point away from: the planted case in which zeros take everything
    away = -mean[:259].mean(dim=0) * torch.tensor([[1e3], [1e5]])
    for states in (hidden, away):
        share = torch.softmax(states @ mean.T, dim=-1)[:, 259:].sum(dim=-1)
        assert share.max() <= 61 / 320 * (1 + 1e-6)
    biased = zeros.clone()
    biased[:259] += 1.0  # rows with a common direction, as trained models have
    share = torch.softmax(-10 * torch.ones(1, 32, dtype=torch.float64) @ biased.T, dim=-1)[:, 259:].sum()
    assert share > 0.99


def test_generate_never_gives_a_padding_id(tmp_path):
    folder = write_model(tmp_path / "old", tied=False)
    pad_folder(folder, tmp_path / "new", 512)
    stated = json.loads((tmp_path / "new" / "generation_config.json").read_text())
    assert stated["eos_token_id"] == 258 and stated["suppress_tokens"] == list(range(259, 512))
    model = load(tmp_path / "new")
    model.lm_head.weight.data[259:] = 50 * model.lm_head.weight.data[7]  # the worst that training could do to them
    prompt = IDS.repeat(8, 1)
    torch.manual_seed(0)
    written = model.generate(prompt, max_new_tokens=12, do_sample=True, temperature=2.0, pad_token_id=256)
    assert written.max() < 259
    model.generation_config.suppress_tokens = None  # without the list they would come
    assert model.generate(prompt, max_new_tokens=12, do_sample=True, pad_token_id=256).max() >= 259


def test_a_generation_config_is_made_where_there_is_none(tmp_path):
    folder = write_model(tmp_path / "old", tied=True)
    (folder / "generation_config.json").unlink()
    pad_folder(folder, tmp_path / "new", 260)
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == {
        "eos_token_id": 258,
        "suppress_tokens": [259],
    }


def test_nothing_to_pad_is_said(tmp_path):
    folder = write_model(tmp_path / "old", tied=True)
    with pytest.raises(CheckpointError, match="259 rows are a multiple of 7 already"):
        pad_folder(folder, tmp_path / "new", 7)

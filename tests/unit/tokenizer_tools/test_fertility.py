"""Counts of a comparison, by hand."""

import sys

import pytest

from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.tokenizer_tools.test_tiktoken import ROOT
from tokenizer_tools.errors import ToolError
from tokenizer_tools.fertility import ALL, compare
from tokenizer_tools.fertility_plot import plot_comparison
from tokenizer_tools.hf_tokenizer import load_tokenizer
from tokenizer_tools.texts import read_texts

BASE = ROOT / "examples" / "quickstart" / "base_model"


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "texts" / "news").mkdir(parents=True)
    (tmp_path / "texts" / "news" / "a.txt").write_text("the class", encoding="utf-8")
    (tmp_path / "texts" / "news" / "b.jsonl").write_text('{"text": "é"}\n\n{"text": "the"}\n', encoding="utf-8")
    (tmp_path / "texts" / "loose.md").write_text("中", encoding="utf-8")
    (tmp_path / "texts" / ".hidden.txt").write_text("not read", encoding="utf-8")
    return tmp_path / "texts"


@pytest.fixture
def result(corpus, tmp_path):
    byte = load_tokenizer(write_byte_tokenizer(tmp_path / "byte"))
    return compare(byte, load_tokenizer(BASE), read_texts([corpus]))


def test_counts_are_those_of_the_texts(result):
    assert list(result.counts) == ["loose", "news", ALL]
    byte, base = result.counts["news"]
    assert (byte.num_texts, byte.num_words, byte.num_characters, byte.num_bytes, byte.num_tokens) == (3, 4, 13, 14, 14)
    assert byte.num_byte_tokens == 2  # the two bytes of é; every other byte is a character
    assert byte.rates() == {
        "tokens_per_word": 14 / 4,
        "characters_per_token": 13 / 14,
        "bytes_per_token": 1.0,
        "byte_token_share": 2 / 14,
        "unknown_share": 0.0,
    }
    assert base.num_tokens < byte.num_tokens
    for side in (0, 1):
        total = result.counts[ALL][side]
        assert total.num_tokens == sum(result.counts[kind][side].num_tokens for kind in ("loose", "news"))
    assert result.counts["loose"][1].num_byte_tokens == 3  # the base model falls back to bytes


def test_unknown_tokens_are_counted(tmp_path, corpus):
    import sentencepiece

    with (tmp_path / "u.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the class"] * 9), model_writer=file, vocab_size=20, hard_vocab_limit=False,
            model_type="bpe", normalization_rule_name="identity", minloglevel=2,
        )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path / "u.model")
    counts = compare(tokenizer, tokenizer, read_texts([corpus])).counts
    assert counts["loose"][0].num_unknown == 1 and counts["news"][1].num_unknown == 1  # 中, and é


def test_at_most_so_many_characters_of_a_kind(corpus):
    tokenizer = load_tokenizer(BASE)
    assert compare(tokenizer, tokenizer, read_texts([corpus]), 5).counts["news"][0].num_characters == 5


def test_the_plot_is_written_or_its_library_named(result, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    assert plot_comparison(result, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ToolError, match=r"plot\.xyz"):
        plot_comparison(result, tmp_path / "plot.xyz")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ToolError, match="--plot needs matplotlib"):
        plot_comparison(result, tmp_path / "plot.png")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"body": "x"}', r"b\.jsonl line 1 is no object with a text 'text'"),
        ("[1]", "line 1"),
        ('{"text": 3}', "line 1"),
    ],
)
def test_lines_without_text_are_named(tmp_path, line, named):
    (tmp_path / "b.jsonl").write_text(line + "\n")
    with pytest.raises(ToolError, match=named):
        list(read_texts([tmp_path]))


def test_sources_that_hold_nothing_are_named(tmp_path):
    with pytest.raises(ToolError, match="holds no file that ends in"):
        list(read_texts([tmp_path]))
    with pytest.raises(ToolError, match="does not exist"):
        list(read_texts([tmp_path / "none"]))
    (tmp_path / "a.txt").write_bytes(b"ab\xff")
    with pytest.raises(ToolError, match="is not UTF-8 text: byte 2"):
        list(read_texts([tmp_path]))

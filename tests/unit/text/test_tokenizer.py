"""Text to ids and back; text that models or strangers wrote never becomes a control token."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_spell.text.tokenizer import Tokenizer, TokenizerError
from tests.tiny_tokenizer import SPECIAL, write_byte_tokenizer
from tokenizer_tools.convert import sentencepiece_to_hf
from tokenizer_tools.train import train_sentencepiece

README = Path(__file__).parents[3] / "README.md"
CONTROL = ("<|user|>", "<|assistant|>", "<|end|>", "<|pad|>", "<unk>")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Tokenizer:
    """A sentencepiece tokenizer of 600 pieces."""
    folder = tmp_path_factory.mktemp("pieces")
    texts = [README.read_text(encoding="utf-8")]
    model = train_sentencepiece(texts, folder / "tokenizer", 600, ["[[YES]]", "\n"], CONTROL[:2], "<|end|>", "<|pad|>")
    return Tokenizer.load(sentencepiece_to_hf(model, folder))


@pytest.fixture(scope="module")
def in_bytes(tmp_path_factory) -> Tokenizer:
    """A byte-level tokenizer of 259 tokens."""
    return Tokenizer.load(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


mixed = st.lists(st.sampled_from((*CONTROL, *SPECIAL, "<|", "|>", " ", "\n")) | st.text(max_size=5), max_size=20).map(
    "".join
)


@settings(max_examples=300, deadline=None)
@given(text=mixed)
def test_quoted_text_comes_back_and_holds_no_control_token(pieces, in_bytes, text):
    for tokenizer in (pieces, in_bytes):
        ids_T = tokenizer.encode_quoted(text)
        assert not tokenizer.special_ids.intersection(ids_T.tolist())
        assert ids_T.dtype == np.int32 and (ids_T < tokenizer.vocab_size).all()
        assert tokenizer.decode(ids_T) == text.replace("\u2581", " " if tokenizer is pieces else "\u2581")
        batch = tokenizer.encode_quoted_batch([text, "", text + "a"])
        assert [ids.tolist() for ids in batch] == [ids_T.tolist(), [], tokenizer.encode_quoted(text + "a").tolist()]
        assert {ids.dtype for ids in batch} == {np.dtype(np.int32)}


def test_literal_text_knows_special_tokens(pieces, in_bytes):
    for tokenizer, tokens in ((pieces, CONTROL), (in_bytes, SPECIAL)):
        ids_T = tokenizer.encode_literal("".join(tokens))
        assert set(ids_T.tolist()) == tokenizer.special_ids and len(ids_T) == len(tokens)
        assert tokenizer.decode(ids_T) == ""


def test_decode_leaves_out_special_tokens_and_ids_beyond_the_vocabulary(pieces):
    ids_T = [*pieces.encode_literal("<|user|>one two<|end|>"), pieces.vocab_size, pieces.vocab_size + 7]
    assert pieces.decode(ids_T) == "one two"


def test_nothing_is_added(pieces, in_bytes):
    assert len(pieces.encode_literal("")) == len(in_bytes.encode_quoted("")) == 0
    assert len(in_bytes.encode_literal("ab")) == 2


def test_stop_ids_are_those_of_the_generation_config_and_the_tokenizer(tmp_path, in_bytes):
    assert in_bytes.stop_ids == (258,)
    folder = write_byte_tokenizer(tmp_path / "two")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258]}))
    assert Tokenizer.load(folder).stop_ids == (256, 258)


def test_the_fingerprint_depends_on_what_defines_ids_only(tmp_path, pieces, in_bytes):
    folder = write_byte_tokenizer(tmp_path / "again")
    assert Tokenizer.load(folder).fingerprint == in_bytes.fingerprint != pieces.fingerprint
    path = folder / "tokenizer.json"
    raw = json.loads(path.read_text())
    raw["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(raw))
    cutting = Tokenizer.load(folder)
    assert cutting.fingerprint == in_bytes.fingerprint
    assert len(cutting.encode_quoted("longer than three")) == 17
    raw["added_tokens"][0]["content"] = "<|other|>"
    path.write_text(json.dumps(raw))
    assert Tokenizer.load(folder).fingerprint != in_bytes.fingerprint


def test_folders_without_a_tokenizer_are_refused_in_one_line(tmp_path):
    with pytest.raises(TokenizerError, match="is not a folder"):
        Tokenizer.load(tmp_path / "none")
    with pytest.raises(TokenizerError, match="holds no tokenizer") as refused:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_broken_generation_config_is_refused(tmp_path):
    folder = write_byte_tokenizer(tmp_path)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="generation_config"):
        Tokenizer.load(folder)

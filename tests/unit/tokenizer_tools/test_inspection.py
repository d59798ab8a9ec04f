"""What inspect says of tokenizers whose facts are known."""

import json

import pytest

from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.tokenizer_tools.test_tiktoken import QWEN, ROOT
from tokenizer_tools.convert import sentencepiece_to_hf
from tokenizer_tools.errors import ToolError
from tokenizer_tools.inspection import inspect_tokenizer, paddings
from tokenizer_tools.train import train_sentencepiece

BASE = ROOT / "examples" / "quickstart" / "base_model"


def test_the_quickstarts_model():
    facts = inspect_tokenizer(BASE)
    assert (facts.kind, facts.vocab_size, facts.num_ids, facts.model_vocab_size) == ("BPE", 1280, 1280, 1280)
    assert facts.special_tokens == {"<unk>": 0, "<|end|>": 1, "<|pad|>": 2, "<|user|>": 3, "<|assistant|>": 4}
    assert facts.roles["eos_token"] == "<|end|>" and facts.has_chat_template
    assert facts.byte_fallback == "256 byte pieces" and facts.digits == "one token a digit"
    assert facts.longest_tokens[0] == " implementation" and facts.num_unused_ids == 0
    assert json.loads(json.dumps(facts.as_dict()))["padding"]["4"]["megatron_lm"] == 1536


def test_a_sentencepiece_file_says_the_same_as_its_converted_form(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    model = train_sentencepiece([text], tmp_path / "u", 700, control_symbols=["<|user|>"], kind="unigram")
    raw, fast = inspect_tokenizer(model), inspect_tokenizer(sentencepiece_to_hf(model, tmp_path / "hf"))
    assert raw.kind == "sentencepiece unigram" and fast.kind == "Unigram"
    for name in ("vocab_size", "special_tokens", "byte_fallback", "digits", "num_unused_ids", "longest_tokens"):
        assert getattr(raw, name) == getattr(fast, name), name


def test_ids_without_a_token_are_counted_up_to_the_models_rows(tmp_path):
    write_byte_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 320}')
    facts = inspect_tokenizer(tmp_path)
    assert (facts.kind, facts.num_ids, facts.num_unused_ids, facts.unused_ids) == ("byte-level BPE", 259, 61, "259-319")
    assert facts.byte_fallback == "every byte is a token" and facts.digits == "one token a digit"


def test_qwens_file():
    if not QWEN.exists():
        pytest.skip(f"{QWEN} is not there; set MEGATRON_SPELL_DATA")
    facts = inspect_tokenizer(QWEN)
    assert facts.vocab_size == 151_643 and facts.num_unused_ids == 0 and facts.longest_tokens[0] == " " * 128
    assert facts.padding["8"]["megatron_lm"] == 152_576


def test_rows_by_who_lays_them_out():
    assert paddings(151_669)["4"] == {"megatron_spell": 151_672, "megatron_lm": 152_064, "vllm": 151_680}


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [("tokenizer.json", "{}", "no tokenizer.json that can be read"), ("x.model", "text", "not a sentencepiece model")],
)
def test_what_is_no_tokenizer_is_named(tmp_path, name, content, named):
    (tmp_path / name).write_text(content)
    with pytest.raises(ToolError, match=named):
        inspect_tokenizer(tmp_path / name)
    with pytest.raises(ToolError, match=r"holds no tokenizer\.json|does not exist"):
        inspect_tokenizer(tmp_path / "none")

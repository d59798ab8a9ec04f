"""The command line of tokenizer_tools, from text files to a folder that transformers reads."""

import json

import pytest
import sentencepiece
from transformers import AutoTokenizer
from typer.testing import CliRunner

from megatron_spell.data.build import build_store
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from megatron_spell.text.tokenizer import Tokenizer
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.tokenizer_tools.test_tiktoken import ROOT, _learn_ranks, _write
from tokenizer_tools.main import app
from tokenizer_tools.texts import store_texts

WORDS = "the quick brown fox jumps over the lazy dog and runs away from the bear in the wood"
BASE = ROOT / "examples" / "quickstart" / "base_model"


def _call(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _done(*arguments: object) -> str:
    result = _call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def _refused(*arguments: object) -> str:
    result = _call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1, result.output
    return result.output.strip()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(WORDS for _ in range(5)), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_train_then_convert(tmp_path, text, kind):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}\n", encoding="utf-8")
    symbol = ("--symbol", "the lazy dog") if kind == "bpe" else ()  # a unigram model would weigh it
    text = text if kind == "bpe" else ROOT / "README.md"
    size = 300 if kind == "bpe" else 700
    _done(
        "train", text, "--out", tmp_path / "t", "--vocab-size", size, "--control", "<|user|>", "--kind", kind, *symbol
    )
    _done("convert", tmp_path / "t.model", tmp_path / "hf", "--chat-template", template)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    if symbol:
        assert tokenizer.tokenize("over the lazy dog")[-1] == "the lazy dog"
    assert tokenizer.decode(tokenizer.encode(WORDS + " 中", add_special_tokens=False)) == WORDS + " 中"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert len(tokenizer.encode("<|user|>", add_special_tokens=False)) == 1


def test_train_from_folders_and_lines_is_the_same_as_from_the_text(tmp_path, text):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    lines = "".join(json.dumps({"body": line}) + "\n" for line in text.read_text().split("\n"))
    (tmp_path / "folder" / "deep" / "a.jsonl").write_text(lines)
    _done("train", text, "--out", tmp_path / "a", "--vocab-size", 300)
    _done("train", tmp_path / "folder", "--out", tmp_path / "b", "--vocab-size", 300, "--field", "body")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()


@pytest.fixture
def store(tmp_path):
    source = tmp_path / "documents.jsonl"
    documents = [{"id": f"d{n}", "title": f"t{n}", "text": f"{WORDS}, number {n} of many."} for n in range(40)]
    source.write_text("".join(json.dumps(document) + "\n" for document in documents))
    folder = write_byte_tokenizer(tmp_path / "byte")
    return build_store(
        [str(source)], Tokenizer.load(folder), tmp_path / "store.h5", BuildSettings(set_size=4)
    ).path, folder


def test_train_from_a_store_reads_the_training_sets_only(tmp_path, store):
    path, folder = store
    texts = list(store_texts(path, folder))
    with TokenStore.open(path) as opened:
        held_out = sum(len(opened.document_titles(set_id)) for set_id in opened.set_ids("heldout"))
    assert held_out and len(texts) == 40 - held_out
    assert all(one.startswith(WORDS) and one.endswith("of many.") for one in texts)
    _done("train", path, "--out", tmp_path / "t", "--vocab-size", 300, "--store-tokenizer", folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    assert len(processor.encode(WORDS)) < 0.9 * len(WORDS)


def test_a_store_of_another_tokenizer_is_refused(tmp_path, store):
    path, _ = store
    common = ("train", path, "--out", tmp_path / "t", "--vocab-size", 300)
    assert "--store-tokenizer FOLDER" in _refused(*common)
    assert "built with another tokenizer" in _refused(*common, "--store-tokenizer", BASE)
    assert "holds no tokenizer that can be read" in _refused(*common, "--store-tokenizer", tmp_path)


def test_convert_a_tiktoken_file(tmp_path):
    file = _write(_learn_ranks(WORDS.replace(" ", "\n").encode(), 20), tmp_path / "ranks.tiktoken")
    assert "give --pattern" in _refused("convert", file, tmp_path / "hf")
    assert "known are none, qwen" in _refused(
        "convert", file, tmp_path / "hf", "--pattern", "qwen", "--special-set", "x"
    )
    assert "Neither" not in _refused("convert", file, tmp_path / "hf", "--pattern", "(unclosed")
    _done("convert", file, tmp_path / "hf", "--pattern", "qwen", "--special", "<|x|>", "--special", "<|y|>=999")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    count = sum(1 for _ in file.open())
    assert tokenizer.encode("<|endoftext|><|x|><|y|>") == [count, count + 3, 999]
    assert "no tiktoken file" in _refused("convert", BASE / "tokenizer.model", tmp_path / "hf2", "--pattern", "qwen")


def test_what_is_not_exact_is_said(tmp_path):
    _done("train", ROOT / "README.md", "--out", tmp_path / "t", "--vocab-size", 700, "--kind", "unigram")
    assert "float32" in _call("convert", tmp_path / "t.model", tmp_path / "hf").stderr


def test_inspect_compare_extend_pad_and_chat(tmp_path):
    facts = json.loads(_done("inspect", BASE, "--json"))
    assert facts["vocab_size"] == 1280
    assert "one token a digit" in _done("inspect", BASE)
    byte = write_byte_tokenizer(tmp_path / "byte")
    compared = json.loads(_done("compare", BASE, byte, ROOT / "README.md", "--json", "--plot", tmp_path / "p.svg"))
    kind = compared["kinds"]["README"]
    assert kind["b"]["num_tokens"] == kind["b"]["num_bytes"] > kind["a"]["num_tokens"]
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert "README" in _done("compare", BASE, byte, ROOT / "README.md")
    assert "'<|tool|>' 1280" in _done("extend", BASE, "--out", tmp_path / "e", "--token", "<|tool|>", "--resize")
    assert "1,281 -> 1,408 rows" in _done("pad-vocab", tmp_path / "e", "--out", tmp_path / "p", "--multiple-of", 128)
    assert json.loads(_done("inspect", tmp_path / "p", "--json"))["unused_ids"] == "1281-1407"
    assert "generation begins here" in _done("chat", tmp_path / "p")
    assert json.loads(_done("chat", BASE, "--json"))["renderings"][0]["num_tokens"] == 11


def test_a_faulty_chat_template_is_exit_code_1(tmp_path):
    folder = write_byte_tokenizer(tmp_path / "byte")
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    result = _call("chat", folder)
    assert result.exit_code == 1 and "fault" in result.output


def test_bad_input_is_one_line(tmp_path):
    assert _refused("convert", tmp_path / "none.model", tmp_path / "hf") == f"{tmp_path / 'none.model'} does not exist"
    for command in (
        ("inspect", tmp_path / "none"),
        ("compare", BASE, BASE, tmp_path / "none"),
        ("chat", tmp_path / "none"),
        ("extend", tmp_path, "--out", tmp_path / "x", "--token", "a"),
        ("pad-vocab", tmp_path, "--out", tmp_path / "x", "--multiple-of", 8),
        ("train", tmp_path / "none", "--out", tmp_path / "t", "--vocab-size", 300),
    ):
        assert str(tmp_path) in _refused(*command)

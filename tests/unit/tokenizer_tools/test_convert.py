"""sentencepiece models as Hugging Face tokenizers: the same ids, the same text back."""

import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tokenizer_tools.convert import ConversionError, sentencepiece_to_hf
from tokenizer_tools.train import TrainingError, train_sentencepiece

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", ROOT.parent / "shared" / "data"))
LLAMA = DATA / "fixture_tokenizers" / "llama2" / "tokenizer.model"
SYMBOLS = ('```json\n{"question": "', '", "answer": "', '"}\n```', "The correct answer is", " (A)", "\n", "[[YES]]")
CONTROL = ("<|user|>", "<|assistant|>")
TEXTS = [(ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "setup.py").read_text(encoding="utf-8")]

# strings that stress what differs between the two libraries: blanks, runs, markers, control pieces, bytes
FRAGMENTS = (
    " ",
    "  ",
    "\t",
    "\n",
    "=",
    "==",
    "-----",
    "a",
    "ab",
    "the",
    " the",
    "1",
    "3.10",
    "é",
    "中",
    "😀",
    "\u2581",
)
FRAGMENTS += (*SYMBOLS, *CONTROL, "<s>", "</s>", "<unk>", "<0x0A>", "<|end|>", '"', "\\", "(", ")")
tangled = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=6), max_size=25).map("".join)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    model = train_sentencepiece(TEXTS, folder / "tokenizer", 700, SYMBOLS, CONTROL, "<|end|>", "<|pad|>")
    return model, sentencepiece_to_hf(model, folder, chat_template="{{ messages }}")


@pytest.fixture(scope="module")
def own(trained) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    return _both(*trained)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    if not LLAMA.exists():
        pytest.skip(f"{LLAMA} is not there; set MEGATRON_SPELL_DATA")
    return _both(LLAMA, sentencepiece_to_hf(LLAMA, tmp_path_factory.mktemp("llama")))


def _both(model: Path, folder: Path) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True  # sentencepiece never reads a control piece out of text
    return sentencepiece.SentencePieceProcessor(model_file=str(model)), fast


@settings(max_examples=400, deadline=None)
@given(text=tangled)
def test_own_model_gives_the_same_ids_and_the_text_back_byte_for_byte(own, text):
    original, fast = own
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text)
    # the mark that stands for a blank inside sentencepiece cannot be told from one
    assert fast.decode(ids, skip_special_tokens=False) == text.replace("\u2581", " ")


@settings(max_examples=300, deadline=None)
@given(text=tangled)
def test_32000_pieces_with_a_dummy_prefix_give_the_same_ids(llama, text):
    original, fast = llama
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text)
    assert fast.decode(ids, skip_special_tokens=False) == original.decode(ids)


def test_a_long_text_gives_the_same_ids(own, llama):
    for original, fast in (own, llama):
        for text in TEXTS:
            assert fast.encode(text, add_special_tokens=False).ids == original.encode(text)


def test_control_pieces_are_special_and_symbols_are_single_plain_tokens(trained, own):
    tokenizer = AutoTokenizer.from_pretrained(trained[1])
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<|pad|>"
    assert {*CONTROL, "<|end|>", "<|pad|>", "<unk>"} == set(tokenizer.all_special_tokens) | set(CONTROL)
    added = own[1].get_added_tokens_decoder().values()
    assert {token.content for token in added if token.special} == {*CONTROL, "<|end|>", "<|pad|>", "<unk>"}
    for symbol in SYMBOLS:
        ids = tokenizer.encode(symbol, add_special_tokens=False)
        assert len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == symbol


def test_transformers_reads_the_folder_with_the_same_ids(trained, own):
    tokenizer = AutoTokenizer.from_pretrained(trained[1])
    for text in (*TEXTS, "a  b\n\tc", *SYMBOLS):
        assert tokenizer.encode(text, add_special_tokens=False) == own[0].encode(text)
    assert tokenizer.chat_template == "{{ messages }}"


def test_training_is_reproducible(trained, tmp_path):
    again = train_sentencepiece(TEXTS, tmp_path / "again", 700, SYMBOLS, CONTROL, "<|end|>", "<|pad|>")
    first, second = (Tokenizer.from_file(str(f / "tokenizer.json")) for f in (trained[1], _converted(again)))
    assert first.to_str() == second.to_str()


def _converted(model: Path) -> Path:
    return sentencepiece_to_hf(model, model.parent / "hf")


def test_too_many_pieces_are_refused_in_one_line(tmp_path):
    with pytest.raises(TrainingError, match="60000 pieces"):
        train_sentencepiece(["a few words"], tmp_path / "tokenizer", 60_000)


def _raw_model(folder: Path, **settings) -> Path:
    lines = [line for text in TEXTS for line in text.split("\n") if line.strip()]
    fixed = {"vocab_size": 200, "hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1}
    with (folder / "raw.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, **{"model_type": "bpe", **fixed, **settings}
        )
    return folder / "raw.model"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model_type": "unigram", "normalization_rule_name": "identity"}, "unigram"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalises"),
        ({"normalization_rule_name": "identity"}, "extra blanks"),
        (
            {
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "user_defined_symbols": ["[[YES]]"],
            },
            "dummy prefix",
        ),
        (
            {
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False,
                "treat_whitespace_as_suffix": True,
            },
            "before words",
        ),
    ],
)
def test_models_without_an_equal_are_refused(tmp_path, settings, named):
    with pytest.raises(ConversionError, match=named) as refused:
        sentencepiece_to_hf(_raw_model(tmp_path, **settings), tmp_path / "hf")
    assert "\n" not in str(refused.value)


def test_files_that_are_no_model_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="does not exist"):
        sentencepiece_to_hf(tmp_path / "none.model", tmp_path)
    (tmp_path / "text.model").write_text("no model at all")
    with pytest.raises(ConversionError, match="not a sentencepiece model"):
        sentencepiece_to_hf(tmp_path / "text.model", tmp_path)


def test_an_unknown_special_token_is_refused(trained, tmp_path):
    with pytest.raises(ConversionError, match="eos_token '<|stop|>'".replace("|", r"\|")):
        sentencepiece_to_hf(trained[0], tmp_path, eos_token="<|stop|>")

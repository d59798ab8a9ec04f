"""sentencepiece models as Hugging Face tokenizers: the same ids, the same text back."""

import json
import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.unit.tokenizer_tools.fuzz import tangled
from tokenizer_tools.convert import ConversionError, FolderSettings, convert_sentencepiece, sentencepiece_to_hf
from tokenizer_tools.sentencepiece_model import load_model
from tokenizer_tools.sentencepiece_ties import disagreement
from tokenizer_tools.train import TrainingError, train_sentencepiece

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", ROOT.parent / "shared" / "data"))
LLAMA = DATA / "fixture_tokenizers" / "llama2" / "tokenizer.model"
SYMBOLS = ('```json\n{"question": "', '", "answer": "', '"}\n```', "The correct answer is", " (A)", "\n", "[[YES]]")
CONTROL = ("<|user|>", "<|assistant|>")
PLAIN = {"normalization_rule_name": "identity"}
LOSSLESS = {**PLAIN, "remove_extra_whitespaces": False, "add_dummy_prefix": False}
TEXTS = [(ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "setup.py").read_text(encoding="utf-8")]

# what is special in this model, among everything else that differs between the two libraries
own_text = st.lists(st.sampled_from((*SYMBOLS, *CONTROL)) | tangled, max_size=4).map("".join)


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
@given(text=own_text)
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
        ({"model_type": "word", "normalization_rule_name": "identity"}, "word model"),
        ({"normalization_rule_name": "nmt_nfkc"}, "nmt_nfkc has no exact equal .* more than 256 rules"),
        ({"user_defined_symbols": ["[[YES]]"], "add_dummy_prefix": False, **PLAIN}, "removes extra blanks"),
        ({"model_type": "unigram", "user_defined_symbols": ["[[YES]]"], **LOSSLESS}, "weighs user-defined"),
        (
            {"model_type": "unigram", "byte_fallback": True, "vocab_size": 400, "character_coverage": 0.98, **LOSSLESS},
            "required characters",
        ),
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


def _pair(folder: Path, **settings) -> tuple[sentencepiece.SentencePieceProcessor, Tokenizer]:
    model = _raw_model(folder, **{"vocab_size": 900, **settings})
    return _both(model, sentencepiece_to_hf(model, folder))


def _same_ids(original, fast, examples: int = 150) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(text=tangled)
    def same(text):
        assert fast.encode(text, add_special_tokens=False).ids == original.encode(text)

    same()


def _same_ids_but_for_ties(original, fast, texts=tangled, examples: int = 150) -> None:
    """Another way to cut the same characters only where the scores differ by less than float32 tells apart."""

    @settings(max_examples=examples, deadline=None)
    @given(text=texts)
    def same(text):
        ids, expected = fast.encode(text, add_special_tokens=False).ids, original.encode(text)
        if ids != expected:
            scores, pieces = zip(*[(_score(original, way), _pieces(original, way)) for way in (ids, expected)])
            assert pieces[0] == pieces[1]
            assert scores[0] == pytest.approx(scores[1], rel=len(expected) * 2**-24)

    same()


def _score(original, ids: list[int]) -> float:
    return sum(original.get_score(index) for index in ids)


def _pieces(original, ids: list[int]) -> str:
    return "".join(original.id_to_piece(index) for index in ids)


RULES = ("41\t61", "42\t62", "C9\tE9", "1F\t", "FF21\t61 62", "2126\t3C9")  # A -> a, B -> b, ..., U+001F -> nothing


@pytest.mark.parametrize("prefix", [True, False], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("rules", [False, True], ids=["identity", "own rules"])
def test_blanks_prefix_and_rules_of_single_characters_give_the_same_ids(tmp_path, kind, prefix, rules):
    normalisation = dict(PLAIN)
    if rules:
        (tmp_path / "rules.tsv").write_text("".join(f"{rule}\n" for rule in RULES))
        normalisation = {"normalization_rule_tsv": str(tmp_path / "rules.tsv")}
    needed = {"byte_fallback": True, "required_chars": "<0x123456789ABCDEF>"}
    compare = _same_ids if kind == "bpe" else _same_ids_but_for_ties
    compare(*_pair(tmp_path, model_type=kind, add_dummy_prefix=prefix, **needed, **normalisation))


def test_without_byte_fallback_unknown_characters_are_one_unknown_id(tmp_path):
    _same_ids(*_pair(tmp_path, **PLAIN))


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unigram")
    model = train_sentencepiece(TEXTS, folder / "tokenizer", 900, kind="unigram")
    return _both(model, sentencepiece_to_hf(model, folder))


def test_a_lossless_unigram_model_gives_the_same_ids_and_the_text_back(unigram):
    original, fast = unigram
    _same_ids_but_for_ties(original, fast, examples=400)
    for text in TEXTS:
        ids = fast.encode(text, add_special_tokens=False).ids
        assert ids == original.encode(text) and fast.decode(ids) == text


def test_entries_that_are_no_text_are_never_chosen(unigram):
    """With the score 0 that the model file states for them they would win: the planted fault."""
    original, fast = unigram
    text = "<0x41></s><unk>"
    assert fast.encode(text).ids == original.encode(text)
    definition = json.loads(fast.to_str())
    pieces = definition["model"]["vocab"]
    pieces[:] = [[piece, 0.0 if score == -1e6 else score] for piece, score in pieces]
    faulty = Tokenizer.from_str(json.dumps(definition))
    faulty.encode_special_tokens = True
    assert faulty.encode(text).ids != original.encode(text)


def test_inexact_normalisation_is_asked_for_and_differs_where_it_says(tmp_path):
    model = _raw_model(tmp_path, vocab_size=900, normalization_rule_name="nmt_nfkc", byte_fallback=True)
    folder = convert_sentencepiece(model, tmp_path / "hf", FolderSettings(), inexact_normalisation=True)
    original, fast = _both(model, folder)
    for text in (*TEXTS, "\uff21\ufb01 \u2167"):
        assert fast.encode(text).ids == original.encode(text)
    lost = "\uff21\u0301\u0302"  # the library's own reading loses what follows in the cluster
    assert fast.encode(lost).ids != original.encode(lost)


def test_pieces_of_one_score_are_refused_where_order_matters(tmp_path):
    model = load_model(_raw_model(tmp_path, **LOSSLESS))
    joined = [p for p in model.pieces if p.type == 1 and len(p.piece) > 1]
    joined[0].score = joined[1].score
    (tmp_path / "tied.model").write_bytes(model.SerializeToString())
    with pytest.raises(ConversionError, match=r"2 pieces such as .* share the score"):
        sentencepiece_to_hf(tmp_path / "tied.model", tmp_path / "hf")


def _runs(*lengths: int):
    model = proto.ModelProto()
    for length in lengths:
        model.pieces.add(piece="=" * length, score=-9)
    return list(model.pieces)


def test_runs_of_one_score_are_played_through():
    assert disagreement(_runs(2, 4, 8, 3, 5, 6, 7)) is None
    # 9: leftmost first makes 8 and 1; by id the last 4 takes the odd one before it could join the other 4
    assert "a run of 9 would be cut otherwise" in disagreement(_runs(2, 4, 3, 5, 8, 6, 7))


def test_runs_of_blanks_of_a_group_of_equal_scores(llama):
    original, fast = llama
    for length in range(1, 80):
        for text in (" " * length, "a" + " " * length + "b"):
            assert fast.encode(text).ids == original.encode(text)


def test_begin_and_end_are_put_around_a_text(llama, tmp_path):
    folder = convert_sentencepiece(LLAMA, tmp_path, FolderSettings(add_bos=True, add_eos=True))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("hi") == [1, *llama[0].encode("hi"), 2]


def test_the_quickstarts_tokenizer_comes_out_byte_for_byte(tmp_path):
    base = ROOT / "examples" / "quickstart" / "base_model"
    folder = sentencepiece_to_hf(base / "tokenizer.model", tmp_path)
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()

"""tiktoken vocabularies as Hugging Face tokenizers, against tiktoken itself; Qwen's real one where the data is."""

import base64
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer

from tests.unit.tokenizer_tools.fuzz import tangled
from tokenizer_tools.convert import FolderSettings, tiktoken_to_hf
from tokenizer_tools.errors import ConversionError
from tokenizer_tools.patterns import PATTERNS, SPECIAL_SETS, SpecialToken, demand_same_meaning
from tokenizer_tools.tiktoken_ranks import fast_tokenizer, read_ranks, recover_merges

tiktoken = pytest.importorskip("tiktoken", reason="tiktoken is the reference; vLLM brings it")

ROOT = Path(__file__).parents[3]
DATA = Path(os.environ.get("MEGATRON_SPELL_DATA", ROOT.parent / "shared" / "data"))
QWEN = DATA / "fixture_tokenizers" / "qwen" / "qwen.tiktoken"


def _learn_ranks(text: bytes, num_merges: int) -> dict[bytes, int]:
    """Byte-pair ranks over words, so that no data is needed; later tokens are put out of order on purpose."""
    words = Counter(text.split(b"\n"))
    split = {word: [word[i : i + 1] for i in range(len(word))] for word in words}
    ranks = {bytes([byte]): byte for byte in range(256)}
    for _ in range(num_merges):
        pairs = Counter(pair for word in split for pair in pairwise(split[word]))
        (left, right), _count = min(pairs.items(), key=lambda one: (-one[1], one[0]))
        ranks.setdefault(left + right, len(ranks))
        for parts in split.values():
            at = 0
            while at < len(parts) - 1:
                if (parts[at], parts[at + 1]) == (left, right):
                    parts[at : at + 2] = [left + right]
                at += 1
    return ranks


def _write(ranks: dict[bytes, int], path: Path) -> Path:
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()))
    return path


@pytest.fixture(scope="module")
def small_ranks() -> dict[bytes, int]:
    ranks = _learn_ranks((ROOT / "setup.py").read_bytes(), 300)
    # a token that no joining leads to, and a token whose rank is below those of its parts
    return ranks | {b"zqzqz": len(ranks), b"zqx": len(ranks) + 2, b"zq": len(ranks) + 3, b"qx": len(ranks) + 4}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    if not QWEN.exists():
        pytest.skip(f"{QWEN} is not there; set MEGATRON_SPELL_DATA")
    folder = tiktoken_to_hf(QWEN, tmp_path_factory.mktemp("qwen"), "qwen", SPECIAL_SETS["qwen3"])
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    original = tiktoken.Encoding("qwen", pat_str=PATTERNS["qwen"], mergeable_ranks=read_ranks(QWEN), special_tokens={})
    return original, fast, folder


@settings(max_examples=300, deadline=None)
@given(text=tangled)
def test_qwen_gives_the_ids_of_tiktoken(qwen, text):
    original, fast, _ = qwen
    composed = normalizers.NFC().normalize_str(text)  # as Qwen's tokenizers do before anything else
    ids = fast.encode(text, add_special_tokens=False).ids
    assert ids == original.encode_ordinary(composed)
    assert fast.decode(ids, skip_special_tokens=False) == composed


def test_qwen_is_whole(qwen):
    original, fast, folder = qwen
    assert fast.encode("Hello world").ids == [9707, 1879]
    assert fast.get_vocab_size(with_added_tokens=False) == 151_643
    for text in ((ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "docs/scorers.md").read_text("utf-8")):
        assert fast.encode(text).ids == original.encode_ordinary(normalizers.NFC().normalize_str(text))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 151_669
    found = {text: tokenizer.convert_tokens_to_ids(text) for text in ("<|endoftext|>", "<|im_end|>", "</think>")}
    assert found == {"<|endoftext|>": 151643, "<|im_end|>": 151645, "</think>": 151668}
    assert tokenizer.encode("<|im_start|>Hello world") == [151644, 9707, 1879]


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_cuts_as_tiktoken_does(small_ranks, name):
    original = tiktoken.Encoding(name, pat_str=PATTERNS[name], mergeable_ranks=small_ranks, special_tokens={})
    fast = fast_tokenizer(small_ranks, name)

    @settings(max_examples=100, deadline=None)
    @given(text=tangled)
    def same(text):
        assert fast.encode(text).ids == original.encode_ordinary(text)

    same()


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base", "gpt2"])
def test_tiktokens_own_way_to_write_a_pattern_gives_the_same(small_ranks, name, monkeypatch):
    public = pytest.importorskip("tiktoken_ext.openai_public")
    for loader in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks"):
        monkeypatch.setattr(public, loader, lambda *_, **__: small_ranks)
    written = getattr(public, name)()["pat_str"]
    original = tiktoken.Encoding(name, pat_str=written, mergeable_ranks=small_ranks, special_tokens={})
    fast = fast_tokenizer(small_ranks, name.removesuffix("_base"))

    @settings(max_examples=100, deadline=None)
    @given(text=tangled)
    def same(text):
        assert fast.encode(text).ids == original.encode_ordinary(text)

    same()


def test_text_that_a_pattern_passes_over_is_dropped_in_both(small_ranks):
    pattern = r"[a-z]+| ?\p{N}"
    original = tiktoken.Encoding("odd", pat_str=pattern, mergeable_ranks=small_ranks, special_tokens={})
    for text in ("ab 1-2 CD ef", "", "!!!", "zqzqz zqx zq"):
        assert fast_tokenizer(small_ranks, pattern).encode(text).ids == original.encode_ordinary(text)


def test_one_merge_a_token_is_enough_and_the_right_one(small_ranks, monkeypatch):
    merges = recover_merges(small_ranks)
    assert len({left + right for left, right in merges}) == len(merges)
    original = tiktoken.Encoding("m", pat_str=PATTERNS["qwen"], mergeable_ranks=small_ranks, special_tokens={})
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert fast_tokenizer(small_ranks, "qwen").encode(text).ids == original.encode_ordinary(text)
    # planted fault: every token is cut at the first place where both parts are tokens
    cuts = {
        token: [n for n in range(1, len(token)) if {token[:n], token[n:]} <= small_ranks.keys()]
        for token in small_ranks
    }
    first = [(t[: at[0]], t[at[0] :]) for t, at in sorted(cuts.items(), key=lambda one: small_ranks[one[0]]) if at]
    monkeypatch.setattr("tokenizer_tools.tiktoken_ranks.recover_merges", lambda _: first)
    assert fast_tokenizer(small_ranks, "qwen").encode(text).ids != original.encode_ordinary(text)


def test_special_tokens_with_ids_of_their_own(small_ranks, tmp_path):
    last = max(small_ranks.values())
    special = [SpecialToken("<|a|>", last + 8), SpecialToken("<|b|>", last + 3), SpecialToken("<|c|>")]
    file = _write(small_ranks, tmp_path / "ranks.tiktoken")
    folder = tiktoken_to_hf(file, tmp_path / "hf", "cl100k", special, FolderSettings(eos_token="<|a|>"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("<|b|><|a|><|c|>") == [last + 3, last + 8, last + 9]
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.encode_special_tokens = True
    original = tiktoken.Encoding("c", pat_str=PATTERNS["cl100k"], mergeable_ranks=small_ranks, special_tokens={})
    for text in ("<|a|>", "x<|b|> <|c|>"):  # as plain text they are characters
        assert fast.encode(text).ids == original.encode_ordinary(text)


@pytest.mark.parametrize(
    ("special", "named"),
    [
        ([SpecialToken("<|x|>", 5)], "id 5, which is another token's"),
        ([SpecialToken("<|x|>"), SpecialToken("<|x|>")], "given twice"),
        ([SpecialToken("word", 9999)], "plain text would become it"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(small_ranks, special, named):
    with pytest.raises(ConversionError, match=named):
        fast_tokenizer(small_ranks, "qwen", special)


@pytest.mark.parametrize("pattern", [r"\w+$", r"\p{N}{1,3}+", r"(?s:.)", r"a.b", r"\bx", r"[a-z&&[^b]]", r"(a)\1"])
def test_patterns_that_the_libraries_read_differently_are_refused(pattern):
    with pytest.raises(ConversionError, match="pattern holds"):
        demand_same_meaning(pattern)


def test_the_named_patterns_pass_their_own_check():
    for pattern in PATTERNS.values():
        demand_same_meaning(pattern)


def test_files_that_are_no_ranks_are_refused(small_ranks, tmp_path):
    file = tmp_path / "x.tiktoken"
    file.write_text("IQ== 0\nIg==\n")
    with pytest.raises(ConversionError, match=r"x\.tiktoken line 2 is not"):
        read_ranks(file)
    with pytest.raises(ConversionError, match="no rank for 1 single bytes, such as 0x41"):
        read_ranks(_write({token: rank for token, rank in small_ranks.items() if token != b"A"}, file))
    with pytest.raises(ConversionError, match="two tokens one rank"):
        read_ranks(_write(small_ranks | {b"A": 66}, file))

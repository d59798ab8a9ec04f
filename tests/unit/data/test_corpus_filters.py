"""Filters one by one, each with a text that only it drops."""

import json
import re

import numpy as np
import pytest

from megatron_spell.data.corpus.benchmarks import benchmark_texts, write_benchmarks
from megatron_spell.data.corpus.decontaminate import BenchmarkTable, shared_with
from megatron_spell.data.corpus.duplicates import bands, exact_duplicates, near_duplicates, signature
from megatron_spell.data.corpus.quality import SIGNS, repeated_ngram_share, sign_against, top_ngram_share
from megatron_spell.data.corpus.words import hashed_runs, ngram_hashes, word_hashes
from megatron_spell.data.corpus.work import read_arrays
from megatron_spell.data.errors import SourceError

PROSE = (
    "The harbour lay quiet in the morning, and nobody had yet come down to the boats that were drawn up on the shingle."
    " A grey cat walked along the wall with the air of one who owns it. Behind the houses the road climbed to the moor,"
    " where sheep stood about in the wind and a man with a dog was counting them for the third time that week."
)


def numbered_words(num, start=0):
    return " ".join(f"word{n}" for n in range(start, start + num))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("too_few_words", "The cat sat on the mat and that is all of it."),
        ("odd_word_length", " ".join(["a of to be"] * 20)),
        ("many_symbols", PROSE + " #" * 10),
        ("mostly_bullets", re.sub(r"((?:\S+ ){5})", r"\n- \1", PROSE)),
        ("many_ellipses", PROSE.replace(".", "...\n")),
        ("few_letters", PROSE + " 1000" * 20),
        ("few_stop_words", "Der Hafen lag still am Morgen, " * 10),
        ("lorem_ipsum", PROSE + " Lorem ipsum dolor sit amet."),
        ("repeated_lines", PROSE + "\n" + "\n".join(["Click here for the rest"] * 9)),
        ("repeated_paragraphs", f"{PROSE}\nmore\n\n" + "\n\n".join(f"the same\nparagraph {n // 4}" for n in range(8))),
        ("repeated_phrase", PROSE + " breaking-newspaper headlines" * 6),
        ("repeated_passages", f"{PROSE} In between. {PROSE[:150]}"),
    ],
)
def test_each_sign_knows_its_text(name, text):
    assert sign_against(text) in (name, "repeated_lines" if name == "repeated_paragraphs" else name)


def test_prose_passes_and_every_sign_is_named():
    assert sign_against(PROSE) is None
    assert len(SIGNS) == 12


def test_repetition_is_measured_in_characters_once():
    assert top_ngram_share(["a", "b", "a", "b", "c"], 2) == pytest.approx(4 / 5)
    assert top_ngram_share(["a", "b", "c"], 2) == 0
    assert repeated_ngram_share(["a", "b", "c", "a", "b", "c"], 2) == pytest.approx(3 / 6)
    assert repeated_ngram_share(["a", "a", "a", "a"], 2) == pytest.approx(3 / 4)


def test_ngrams_are_of_words_and_do_not_see_case_and_punctuation():
    assert np.array_equal(word_hashes("The cat, sat!"), word_hashes("the CAT sat"))
    assert len(set(ngram_hashes(word_hashes("a b c d a b"), 2).tolist())) == 4
    assert ngram_hashes(word_hashes("a b"), 2) != ngram_hashes(word_hashes("b a"), 2)
    assert len(hashed_runs("one two", 5)) == 1
    assert len(word_hashes("第三次")) == 3
    # The same on every machine and in every process:
    assert int(word_hashes("spell")[0]) == int.from_bytes(
        __import__("hashlib").blake2b(b"spell", digest_size=8).digest(), "little"
    )


def pairs_of(texts, threshold=0.8):
    rows = np.stack([signature(text) for text in texts])
    return [(p.dropped, p.kept) for p in near_duplicates([rows[:2], rows[2:]], threshold)]


def test_the_first_of_near_duplicates_stays():
    pytest.importorskip("datasketch")
    one, other = numbered_words(300), numbered_words(300, 1000)
    near = one.replace("word150", "changed")
    assert pairs_of([one, other, near, other + " more", "! ?", "?"]) == [(2, 0), (3, 1)]
    far = " ".join(f"changed{n}" if n % 10 == 0 else f"word{n}" for n in range(300))
    assert pairs_of([one, far]) == []


def test_the_estimate_is_the_share_of_common_shingles():
    pytest.importorskip("datasketch")
    for shared in (0, 100, 250, 400, 500):
        one, other = numbered_words(500), numbered_words(shared) + " " + numbered_words(500 - shared, 5000)
        a, b = set(hashed_runs(one, 5).tolist()), set(hashed_runs(other, 5).tolist())
        estimate = np.mean(signature(one) == signature(other))
        assert abs(estimate - len(a & b) / len(a | b)) < 0.12


def test_what_is_alike_is_found_and_what_is_not_stays():
    """2000 texts, 200 of them changed copies: against all pairs compared one by one."""
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2**32, (2000, 128), dtype=np.uint32)
    for place in range(1800, 2000):
        equal = rng.random(128) < rng.uniform(0.7, 1.0)
        rows[place] = np.where(equal, rows[place - 1800], rows[place])
    found = {p.dropped: p for p in near_duplicates([rows[:700], rows[700:]], 0.8)}
    alike = {place: np.mean(rows[place] == rows[place - 1800]) for place in range(1800, 2000)}
    wanted = {place for place, similarity in alike.items() if similarity >= 0.8}
    assert set(found) <= wanted
    assert len(found) >= 0.95 * len(wanted)
    assert all(found[place].kept == place - 1800 for place in found)
    assert all(found[place].similarity == pytest.approx(alike[place]) for place in found)


def test_more_bands_than_the_even_choice_miss_less():
    pytest.importorskip("datasketch")
    num_bands, num_rows = bands(0.8)
    assert num_bands * num_rows <= 128
    assert 1 - (1 - 0.8**num_rows) ** num_bands > 0.85  # of pairs at the threshold itself


def test_exact_duplicates_point_at_the_first():
    digests = np.array([[1, 2], [3, 4], [1, 2], [1, 3], [3, 4]], dtype=np.uint64)
    assert exact_duplicates(digests).tolist() == [0, 1, 0, 3, 1]


@pytest.fixture
def table(tmp_path):
    records = [
        {"question": numbered_words(20), "answer": numbered_words(9, 100), "context": numbered_words(500, 1000)},
        {"input": "who was it", "answers": ["yes"], "context": [["Title", [numbered_words(30, 3000), "b."]]]},
    ]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, records)))
    write_benchmarks((tmp_path / "bench.jsonl",), tmp_path / "table.npz")
    arrays = read_arrays(tmp_path / "table.npz")
    assert arrays["counts"].tolist() == [[2, 2]]  # "who was it" and "yes" are too short to look for
    return BenchmarkTable(arrays["asked"], arrays["asked_by"], arrays["contexts"], arrays["contexts_by"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{PROSE} {numbered_words(13, 5)} {PROSE}", "benchmark_question"),
        (f"{PROSE} {numbered_words(12, 5)} {PROSE}", ""),  # one word less
        (f"{PROSE} {numbered_words(9, 100)} {PROSE}", "benchmark_question"),  # a whole answer of nine words
        (f"{PROSE} {numbered_words(8, 100)} {PROSE}", ""),
        (f"{numbered_words(300, 7000)} {numbered_words(50, 1100)} {numbered_words(300, 8000)}", "benchmark_context"),
        (f"{numbered_words(300, 7000)} {numbered_words(49, 1100)} {numbered_words(300, 8000)}", ""),
        (f"{PROSE} {numbered_words(20, 1100)}", "benchmark_context"),  # a tenth of its own
        (f"Who was it? yes. {PROSE}", ""),
        (f"{PROSE} {numbered_words(30, 3000)}", "benchmark_context"),  # HotpotQA's nested form
        ("", ""),
    ],
)
def test_shared_text_is_found_by_the_rule(table, text, reason):
    assert shared_with(text, table)[0] == reason


@pytest.mark.parametrize(
    ("record", "asked", "contexts"),
    [
        ({"question": "q", "answer": "a", "context": [["T", ["s1", "s2"]]]}, ["q", "a"], ["T s1 s2"]),
        (
            {"question": "q", "answer": "a", "paragraphs": [{"title": "T", "paragraph_text": "p"}]},
            ["q", "a"],
            ["T p"],
        ),
        ({"Prompt": "q", "Answer": "a", "wiki_items": [{"title": "T", "text": "p", "link": "l"}]}, ["q", "a"], ["T p"]),
        (
            {"question": "q", "choice_A": "1", "choice_D": "4", "answer": "A", "context": "c"},
            ["q", "A", "1", "4"],
            ["c"],
        ),
        ({"question": "q", "ground_truth": 5, "paragraphs": ["p", "| a |"]}, ["q"], ["p", "| a |"]),
        (
            {"questions": [{"question": "q", "answer": ["a"]}], "table": {"uid": "u", "table": [["1", "2"]]}},
            ["q", "a"],
            ["1 2"],
        ),
    ],
)
def test_the_fields_of_every_benchmark_are_known(record, asked, contexts):
    assert benchmark_texts(record, "x") == (asked, contexts)


def test_a_file_that_is_no_benchmark_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"benchmark x line 3: has none of the fields question, "):
        benchmark_texts({"text": "a"}, "x line 3")
    (tmp_path / "a.jsonl").write_text("{\n")
    with pytest.raises(SourceError, match=r"benchmark .*a\.jsonl line 1: is not JSON"):
        write_benchmarks((tmp_path / "a.jsonl",), tmp_path / "out.npz")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"\.txt holds no records"):
        write_benchmarks((tmp_path / "a.txt",), tmp_path / "out.npz")

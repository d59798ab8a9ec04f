import re
import time
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from megatron_spell.data.clean import Tally, clean, normalise, one_line
from megatron_spell.data.documents import RawDocument

SPICES = ("</text>", "< \n\n\n/ think>", "\r\n", "\x00", "\u0301", "e", "  \n", "\u2028", "\ud800", "<|im_end|>", "{x}")
TEXTS = st.lists(st.text(max_size=20) | st.sampled_from(SPICES)).map("".join)


def document(text, doc_id="a"):
    return RawDocument(doc_id, doc_id, text, doc_id)


@given(TEXTS)
def test_normalising_twice_changes_nothing_more_and_leaves_clean_text(text):
    once = normalise(text)
    assert normalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]|\n{3}|[ \t]\n", once)
    assert not re.search(r"<\s*/?\s*(text|think)\b", once, re.IGNORECASE)
    once.encode("utf-8")


@given(TEXTS)
def test_a_label_is_one_line(text):
    assert one_line(one_line(text)) == one_line(text)
    assert not re.search(r"[\x00-\x1f]", one_line(text))


def test_indentation_braces_and_chat_tokens_stay():
    text = "def f():\n\treturn {0}  # <|im_start|>\n\n    end"
    assert normalise(text) == text


def test_short_and_repeated_documents_are_dropped_and_counted():
    tally = Tally()
    documents = [
        document("long enough"),
        document("short"),
        document("long enough  \r\n"),
        document("also long enough"),
    ]
    assert [d.text for d in clean(documents, 8, tally)] == ["long enough", "also long enough"]
    assert (tally.num_kept, tally.num_too_short, tally.num_duplicate) == (2, 1, 1)


def test_ids_become_unique():
    kept = clean([document(f"text {n}", "a~2" if n == 2 else "a") for n in range(4)], 1)
    assert [d.doc_id for d in kept] == ["a", "a~2", "a~2~2", "a~3"]


def test_a_million_characters_of_the_worst_kind_take_seconds():
    start = time.monotonic()
    for text in ("<" + " " * 1_000_000, "< /" * 300_000, "\n" * 1_000_000, " \n" * 500_000 + "x"):
        normalise(text)
    assert time.monotonic() - start < 20

from hypothesis import example, given
from hypothesis import strategies as st

from megatron_spell.data.sections import cut, cut_paragraph, pack

TEXTS = st.text(st.sampled_from("ab .\n!?'\")#=-é") | st.characters(exclude_categories=("Cs",)), max_size=400)


@given(TEXTS, st.integers(1, 60))
@example("\r0", 1)
def test_pieces_fit_and_only_whitespace_is_lost(text, max_chars):
    pieces = cut(text, max_chars)
    assert all(len(piece) <= max_chars for piece in pieces)
    assert all(piece.strip() for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_blank_lines_are_where_it_is_cut_first():
    assert cut("one one\n\ntwo two\n\nthree", 18) == ["one one\n\ntwo two", "three"]


def test_a_long_paragraph_is_cut_at_sentence_ends_into_even_pieces():
    sentences = [f"Sentence {n} ends here." for n in range(6)]
    assert cut_paragraph(" ".join(sentences), 80) == [" ".join(sentences[:3]), " ".join(sentences[3:])]


def test_a_long_sentence_is_cut_at_spaces_and_a_long_word_anywhere():
    assert cut_paragraph("aaaa bbbb cccc dddd", 10) == ["aaaa bbbb", "cccc dddd"]
    assert [len(piece) for piece in cut_paragraph("x" * 25, 10)] == [10, 10, 5]


def test_a_heading_begins_a_piece_once_the_one_before_is_half_full():
    body = "A paragraph of some length."
    assert cut(f"{body}\n\n# Next\n\nMore.", 50) == [body, "# Next\n\nMore."]
    assert cut(f"{body}\n\nNext\n----\n\nMore.", 50) == [body, "Next\n----\n\nMore."]
    assert cut(f"{body}\n\nNext\n\nMore.", 50) == [f"{body}\n\nNext\n\nMore."]


def test_packing_keeps_paragraphs_whole_where_they_fit():
    assert list(pack(["a" * 6, "b" * 6, "cc"], 10)) == ["a" * 6, "b" * 6 + "\n\ncc"]

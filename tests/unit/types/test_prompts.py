from hypothesis import given
from hypothesis import strategies as st

from megatron_spell.types.prompts import neutralise


@given(st.text())
def test_neutralising_twice_changes_nothing_more(text):
    assert neutralise(neutralise(text)) == neutralise(text)


@given(st.text(), st.sampled_from(["</text>", "< / TEXT>", "<text>", "<question>", "</think >", "<answer attr=1>"]))
def test_no_tag_of_ours_survives(text, tag):
    assert tag not in neutralise(text + tag)
    assert tag[1:] in neutralise(text + tag)


def test_ordinary_markup_and_lines_stay():
    text = "a <b>bold</b> line\n\ttab <texture> 1 < 2"
    assert neutralise(text) == text


def test_control_characters_become_blanks():
    assert neutralise("a\x00b\r\nc\x1b[0m\u2028d\ud800") == "a b\nc [0m d "

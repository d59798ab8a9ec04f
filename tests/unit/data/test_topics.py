import re
from collections import defaultdict

import pytest

from megatron_spell.data.readers.source import read_source


@pytest.fixture(scope="module")
def documents():
    return list(read_source("python-topics"))


def test_sections_are_short_prose(documents):
    lengths = [len(d.text) for d in documents]
    assert len(documents) > 1000
    assert min(lengths) >= 80
    assert max(lengths) <= 280
    for d in documents:
        assert not re.search(r"[=*\-~]{5}|\+---|\|.*\||::=|>>> ", d.text), d.text
        assert "\n\n" not in d.text


def test_titles_number_the_sections_of_a_topic(documents):
    by_group = defaultdict(list)
    for d in documents:
        by_group[d.group].append(d)
    assert [d.title for d in by_group["python-topics/while"]] == ["while 1", "while 2", "while 3"]
    assert by_group["python-topics/while"][0].doc_id == "python-topics/while/1"
    assert len(by_group) > 60


def test_topics_that_hold_one_another_share_no_paragraph(documents):
    owner = {}
    for d in documents:
        for paragraph in d.text.split("\n"):
            if len(paragraph) >= 80:
                assert owner.setdefault(paragraph, d.group) == d.group
    text = "\n".join(d.text for d in documents if d.group != "python-topics/while")
    assert 'The "while" statement is used for repeated execution' not in text  # it stands in "compound" too


def test_the_length_can_be_chosen():
    lengths = [len(d.text) for d in read_source("python-topics", 600)]
    assert 280 < max(lengths) <= 600

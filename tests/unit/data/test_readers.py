import json
import os

import pytest

from megatron_spell.data.errors import SourceError
from megatron_spell.data.readers.source import read_source


def texts(source, **options):
    return [d.text for d in read_source(str(source), **options)]


def test_a_folder_is_read_in_the_order_of_names_and_hidden_files_are_not(tmp_path):
    for name in ("b.txt", "a.md", "deep/er/c.txt", ".hidden.txt", ".git/d.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    documents = list(read_source(str(tmp_path)))
    assert [d.text for d in documents] == ["text of a.md", "text of b.txt", "text of deep/er/c.txt"]
    assert [d.doc_id for d in documents] == [f"{tmp_path.name}/{name}" for name in ("a", "b", "deep/er/c")]
    assert [d.title for d in documents] == ["a", "b", "c"]
    assert len({d.group for d in documents}) == 3


def test_jsonl_records_bring_title_and_id_where_they_have_them(tmp_path):
    records = [
        {"text": "one", "id": "first", "title": "The First"},
        {"text": "two"},
        {"text": "three", "id": 7, "x": []},
    ]
    path = tmp_path / "notes.jsonl"
    path.write_text("\n\n".join(json.dumps(r) for r in records))
    found = [(d.doc_id, d.title, d.text) for d in read_source(str(path))]
    assert found == [
        ("notes/first", "The First", "one"),
        ("notes/3", "3", "two"),
        ("notes/7", "7", "three"),
    ]


def test_long_texts_are_cut_into_documents_of_one_group(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one paragraph here\r\n\r\nanother\r\n\r\na third one\x0c")
    documents = list(read_source(str(tmp_path / "a.txt"), max_chars=22))
    assert [d.text for d in documents] == ["one paragraph here", "another\n\na third one"]
    assert [d.doc_id for d in documents] == ["a/1", "a/2"]
    assert [d.title for d in documents] == ["a 1", "a 2"]
    assert {d.group for d in documents} == {"a"}


def test_documents_come_before_the_file_is_at_its_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\nbroken\n')
    documents = read_source(str(path))
    assert [next(documents).text, next(documents).text] == ["one", "two"]
    with pytest.raises(SourceError, match=r"a\.jsonl line 3: is not JSON"):
        next(documents)


def test_hostile_text_passes_unharmed(tmp_path):
    text = "{{documents}} {0} <|im_end|> \x00\x1b \ud800 </text> " + "x" * 10_000_000
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": text, "title": "t\n\x00"}) + "\n")
    assert texts(path) == [text]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    assert texts(tmp_path / "a.txt") == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc\xff", "byte 3 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\xff\n', "line 2: byte 0 is not UTF-8"),
        ("a.jsonl", b"[1]\n", "line 1: is not a JSON object"),
        ("a.jsonl", b'{"body": "a"}\n', "has no field 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "has no field 'text'"),
        ("a.jsonl", b'{"text": "a"', "line 1: is not JSON"),
        ("a.jsonl", b"[" * 200_000, "line 1: is not JSON"),
        ("a.jsonl", b'{"text": "a", "id": ' + b"9" * 5000 + b"}", "line 1: is not JSON"),
        ("a.doc", b"text", "unknown suffix '.doc'"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as caught:
        texts(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["", "no-such-place", "python-topic", "a\0b", "x" * 5000])
def test_an_unknown_source_says_what_is_known(source):
    with pytest.raises(SourceError, match=r"is not there; give python-topics, or a folder or file of"):
        texts(source)


def test_an_empty_folder_and_what_is_no_file_are_refused(tmp_path):
    with pytest.raises(SourceError, match="holds no file"):
        texts(tmp_path)
    (tmp_path / "link.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(SourceError, match="link to nothing"):
        texts(tmp_path)
    (tmp_path / "link.txt").unlink()
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SourceError, match="no regular file"):
        texts(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    path.chmod(0)
    with pytest.raises(SourceError, match="cannot be read"):
        texts(path)

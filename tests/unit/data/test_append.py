import hashlib
import json

import pytest

from megatron_spell.data.append import append_store
from megatron_spell.data.build import build_store
from megatron_spell.data.errors import BuildError, StoreError
from megatron_spell.data.file_format import CHUNK_TOKENS, document_digest
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from megatron_spell.data.verify import verify_store
from tests.unit.data.byte_tokenizer import SMALL, ByteTokenizer, decode, write_texts


def records(path, texts, ids=None):
    lines = [{"text": text, "id": (ids or range(len(texts)))[n]} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def texts(num, words="of ships and harbours"):
    return [f"Text number {n} tells {words} " * (n % 5 + 2) for n in range(num)]


def contents(path):
    """Set id -> (split, [(id, title, text)])."""
    verify_store(path)
    with TokenStore.open(path) as store:
        sets = [store.document_set(set_id) for split in ("train", "heldout") for set_id in store.set_ids(split)]
    return {
        one.set_id: (one.split, [(d.doc_id, d.title, decode(d.token_ids_T)) for d in one.documents]) for one in sets
    }


@pytest.fixture
def path(tmp_path):
    build_store([records(tmp_path / "first.jsonl", texts(40))], ByteTokenizer(), tmp_path / "store.h5", SMALL)
    return tmp_path / "store.h5"


def test_new_documents_come_after_what_was_there(path, tmp_path):
    before = contents(path)
    source = records(tmp_path / "second.jsonl", [*texts(3), *texts(30, "of cats and dogs"), "short"])
    report = append_store(path, [source], ByteTokenizer())
    after = contents(path)
    assert {set_id: after[set_id] for set_id in before} == before
    assert set(after) == {f"set-{n:05}" for n in range(len(before) + sum(report.num_sets.values()))}
    added = [document for set_id in set(after) - set(before) for document in after[set_id][1]]
    assert sorted(text for _, _, text in added) == sorted(t.strip() for t in texts(30, "of cats and dogs"))
    assert (report.num_documents, report.num_known, report.num_too_short, report.num_left_over) == (30, 3, 1, 0)
    with TokenStore.open(path) as store:
        summary = store.summary()
        assert store.set_ids("heldout")[-1] not in before
    assert summary.num_builds == 2
    assert (summary.num_documents, summary.num_dropped["known"]) == (70, 3)
    assert summary.sources == (str(tmp_path / "first.jsonl"), source)
    of_second = sorted(document_digest(text) for _, _, text in added)
    assert summary.source_fingerprints[1] == hashlib.sha256(b"".join(of_second)).hexdigest()


def test_many_chunks_are_copied_and_the_last_one_is_filled_up(tmp_path):
    long = [f"{n} " * CHUNK_TOKENS for n in range(9)]
    path = tmp_path / "store.h5"
    build_store([records(tmp_path / "a.jsonl", long)], ByteTokenizer(), path, SMALL)
    before = contents(path)
    with TokenStore.open(path) as store:
        assert store.summary().num_tokens % CHUNK_TOKENS
    append_store(path, [records(tmp_path / "b.jsonl", [f"{n}." * CHUNK_TOKENS for n in range(8)])], ByteTokenizer())
    after = contents(path)
    assert {set_id: after[set_id] for set_id in before} == before
    assert sum(len(documents) for _, documents in after.values()) == 17


def test_a_group_that_is_held_out_stays_held_out(tmp_path):
    """Sections of books are groups; the books go on in the second source and must not cross over."""
    settings = BuildSettings(set_size=4, min_chars=10, heldout=0.3, max_chars=60)
    for folder, words in (("one", "begins"), ("two", "goes on")):
        (tmp_path / folder / "books").mkdir(parents=True)
        for book in range(12):
            lines = [f"Book {book} {words} with sentence {n} here." for n in range(8)]
            (tmp_path / folder / "books" / f"book_{book}.txt").write_text("\n\n".join(lines))
    path = tmp_path / "store.h5"
    build_store([str(tmp_path / "one" / "books")], ByteTokenizer(), path, settings)
    held = {d.split("/")[1] for split, ds in contents(path).values() if split == "heldout" for d, _, _ in ds}
    assert len(held) >= 2
    report = append_store(path, [str(tmp_path / "two" / "books")], ByteTokenizer())
    assert report.num_documents >= 12 * 8 // 2
    for split, documents in contents(path).values():
        for doc_id, _, _ in documents:
            assert (doc_id.split("/")[1].split("~")[0] in held) == (split == "heldout"), doc_id


def test_ids_that_are_taken_are_told_apart(path, tmp_path):
    (tmp_path / "other").mkdir()
    append_store(path, [records(tmp_path / "other" / "first.jsonl", texts(20, "of clouds"))], ByteTokenizer())
    ids = [doc_id for _, documents in contents(path).values() for doc_id, _, _ in documents]
    assert len(ids) == len(set(ids)) == 60
    assert "first/0~2" in ids


def test_adding_twice_the_same_way_gives_the_same_bytes(path, tmp_path):
    source, before, results = records(tmp_path / "b.jsonl", texts(30, "of cats")), path.read_bytes(), []
    for workers in (1, 3):
        path.write_bytes(before)
        append_store(path, [source], ByteTokenizer(), workers=workers)
        results.append(path.read_bytes())
    assert results[0] == results[1]


def test_what_a_side_has_too_few_of_is_left_out_and_counted(path, tmp_path):
    before = path.read_bytes()
    with pytest.raises(
        BuildError, match=r"give 1 new documents \(40 are in the store already\) and a set .* at least 2"
    ):
        append_store(path, [records(tmp_path / "b.jsonl", [*texts(40), "a new text of some length"])], ByteTokenizer())
    assert path.read_bytes() == before
    with TokenStore.open(path) as store:
        held = store.document_set(store.set_ids("heldout")[0]).documents[0].doc_id.split("/")[1]
    fresh = [(f"new{n}", text) for n, text in enumerate(texts(2, "of trees"))]
    (tmp_path / "c").mkdir()
    ids, wanted = zip((int(held), "one more of a held-out record"), *fresh)
    report = append_store(path, [records(tmp_path / "c" / "first.jsonl", wanted, ids)], ByteTokenizer())
    assert (report.num_documents, report.num_left_over, report.num_sets) == (2, 1, {"train": 1, "heldout": 0})
    with TokenStore.open(path) as store:
        assert "one more of a held-out record" not in str(contents(path))


def test_readers_keep_what_they_opened(path, tmp_path):
    with TokenStore.open(path) as store:
        append_store(path, [records(tmp_path / "b.jsonl", texts(30, "of cats"))], ByteTokenizer())
        assert store.summary().num_documents == 40
        assert [store.document_set(s) for s in store.set_ids("train")]
    assert len(contents(path)) > 10


def test_another_tokenizer_and_a_damaged_store_are_refused(path, tmp_path):
    class Another(ByteTokenizer):
        fingerprint = "c" * 64

    with pytest.raises(
        BuildError, match=r"built with the tokenizer bbbbbbbbbbbb and this is cccccccccccc; give the one"
    ):
        append_store(path, [str(write_texts(tmp_path / "texts"))], Another())
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="is damaged"):
        append_store(path, [str(write_texts(tmp_path / "texts"))], ByteTokenizer())
    assert path.read_bytes() == damaged


def test_sets_as_they_stand_are_added_whole_and_known_again(path, tmp_path):
    filing = {"table": {"uid": "t", "table": [["a", "b"], ["1", "2"]]}, "paragraphs": [{"text": "about ships"}]}
    (tmp_path / "filings.json").write_text(json.dumps([filing]))
    report = append_store(path, [str(tmp_path / "filings.json")], ByteTokenizer())
    assert (report.num_documents, sum(report.num_sets.values()), report.num_left_over) == (2, 1, 0)
    with TokenStore.open(path) as store:
        (added,) = [name for split in ("train", "heldout") for name in store.set_ids(split) if name.startswith("math-")]
        assert decode(store.document_set(added).documents[0].token_ids_T).startswith("| a | b |")
    with pytest.raises(BuildError, match=r"give 0 new documents \(2 are in the store already\)"):
        append_store(path, [str(tmp_path / "filings.json")], ByteTokenizer())

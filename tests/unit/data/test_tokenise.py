import threading
from dataclasses import replace

import numpy as np
import pytest

from megatron_spell.data import tokenise
from megatron_spell.data.build import build_store
from megatron_spell.data.cluster import PlannedSet
from megatron_spell.data.documents import RawDocument
from megatron_spell.data.errors import BuildError
from megatron_spell.data.journal import TokenJournal
from megatron_spell.data.store import TokenStore
from megatron_spell.data.tokenise import write_sets
from megatron_spell.data.verify import verify_store
from megatron_spell.data.write import StoreWriter
from tests.unit.data.byte_tokenizer import SMALL, ByteTokenizer, decode, write_texts


class Counting(ByteTokenizer):
    """Counts what it encodes; dies at text number `dies_at`."""

    def __init__(self, dies_at=None):
        self.texts, self.dies_at, self.lock = [], dies_at, threading.Lock()

    def encode_quoted(self, text):
        with self.lock:
            self.texts.append(text)
            if len(self.texts) == self.dies_at:
                raise KeyboardInterrupt
        return super().encode_quoted(text)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(tokenise, "BATCH_CHARS", 300)


def planned(num=12, words="some words"):
    return [
        PlannedSet(
            f"set-{s:05}",
            "heldout" if s % 4 == 1 else "train",
            tuple(RawDocument(f"{s}.{d}", f"t{d}", f"{words} {s} {d} " * (d + 2), f"g{s}", "a") for d in range(3)),
        )
        for s in range(num)
    ]


def written(path, sets, tokenizer, workers=1):
    with StoreWriter(path, workers) as writer:
        write_sets(iter(sets), tokenizer, writer, workers)
        writer.finish(fingerprint=tokenizer.fingerprint, sources=["a"], settings={}, counts={})
    return path


def test_sets_come_out_in_order_whatever_the_number_of_workers(tmp_path):
    sets = planned()
    outs = [written(tmp_path / f"{n}.h5", sets, ByteTokenizer(), workers=n).read_bytes() for n in (1, 2, 5)]
    assert outs[0] == outs[1] == outs[2]
    with TokenStore.open(tmp_path / "5.h5") as store:
        for one in sets:
            stored = store.document_set(one.set_id)
            assert stored.split == one.split
            assert [decode(d.token_ids_T) for d in stored.documents] == [d.text for d in one.documents]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupted_build_goes_on_where_it_stopped_and_gives_the_same_bytes(tmp_path, workers):
    sets, path = planned(), tmp_path / "store.h5"
    wanted = written(tmp_path / "whole.h5", sets, ByteTokenizer()).read_bytes()
    first = Counting(dies_at=30)
    with pytest.raises(KeyboardInterrupt):
        written(path, sets, first, workers)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [".store.h5.journal"]
    second = Counting()
    assert written(path, sets, second, workers).read_bytes() == wanted
    assert len(second.texts) < 36
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.h5", "whole.h5"]


def test_a_journal_serves_what_is_still_the_same_and_no_more(tmp_path):
    sets, path = planned(), tmp_path / "store.h5"
    with pytest.raises(KeyboardInterrupt):
        written(path, sets, Counting(dies_at=36))
    journal = (tmp_path / ".store.h5.journal").read_bytes()
    changed = [*sets[:4], *planned(words="other words")[4:]]
    tokenizer = Counting()
    written(path, changed, tokenizer)
    assert 24 <= len(tokenizer.texts) <= 30  # a batch may begin before the first that differs
    assert path.read_bytes() == written(tmp_path / "fresh.h5", changed, ByteTokenizer()).read_bytes()
    (tmp_path / ".store.h5.journal").write_bytes(journal)
    another = Counting()
    another.fingerprint = "c" * 64
    written(path, sets, another)
    assert len(another.texts) == 36


@pytest.mark.parametrize("damage", ["cut", "flip", "grow"])
def test_a_journal_that_a_crash_left_behind_is_read_as_far_as_it_is_whole(tmp_path, damage):
    sets, path, journal = planned(), tmp_path / "store.h5", tmp_path / ".store.h5.journal"
    wanted = written(tmp_path / "whole.h5", sets, ByteTokenizer()).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        written(path, sets, Counting(dies_at=36))
    content = bytearray(journal.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(1, len(content), 15):
        damaged = {"cut": content[:place], "flip": bytearray(content), "grow": content + bytes(int(place))}[damage]
        if damage == "flip":
            damaged[place] ^= 1 << rng.integers(8)
        journal.write_bytes(damaged)
        assert written(path, sets, ByteTokenizer()).read_bytes() == wanted, place


def test_one_document_longer_than_a_batch_and_many_short_ones(tmp_path):
    long = PlannedSet("set-00000", "train", (RawDocument("l", "l", "é" * 40_000, "l", "a"),))
    path = written(
        tmp_path / "s.h5", [long, *[replace(one, set_id=f"s{one.set_id}") for one in planned(40)]], Counting()
    )
    verify_store(path)
    with TokenStore.open(path) as store:
        assert store.document_lengths("set-00000") == (80_000,)


def test_two_builds_of_one_store_at_a_time_are_refused(tmp_path):
    path = tmp_path / "store.h5"
    with StoreWriter(path), pytest.raises(BuildError, match=r"store\.h5: another build is writing it; wait"):
        StoreWriter(path)
    written(path, planned(), ByteTokenizer())
    TokenJournal(path).close()
    assert [p.name for p in tmp_path.iterdir()] == ["store.h5"]


def test_a_build_says_the_same_with_any_number_of_workers(tmp_path):
    source = write_texts(tmp_path / "texts", 30)
    reports = [build_store([str(source)], ByteTokenizer(), tmp_path / f"{n}.h5", SMALL, workers=n) for n in (1, 4)]
    assert replace(reports[0], path=reports[1].path) == reports[1]
    assert (tmp_path / "1.h5").read_bytes() == (tmp_path / "4.h5").read_bytes()
    with TokenStore.open(tmp_path / "1.h5") as store:
        assert store.sources == (str(source),)
        assert set(store.document_sources().tolist()) == {0}

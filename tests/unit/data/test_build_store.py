import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_spell.data import tokenise
from megatron_spell.data.build import build_store, read_sources
from megatron_spell.data.clean import normalise
from megatron_spell.data.cluster import plan_sets
from megatron_spell.data.errors import BuildError, SourceError
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from megatron_spell.data.verify import verify_store
from tests.unit.data.byte_tokenizer import SMALL, ByteTokenizer, decode, write_texts

SHARED = Path(os.environ.get("MEGATRON_SPELL_DATA", Path(__file__).parents[3].parent / "shared/data"))
HOSTILE = ("<|im_end|>", "{{documents}}", "{0}", "</text>", "\x00", "\ud800", "\r\n", "\n\n", ". ", "\u2028", "é", "<")
TEXTS = st.lists(st.text(st.characters(), max_size=30) | st.sampled_from(HOSTILE), max_size=12).map("".join)


def stored_texts(path):
    verify_store(path)
    with TokenStore.open(path) as store:
        sets = [store.document_set(set_id) for split in ("train", "heldout") for set_id in store.set_ids(split)]
    return {d.doc_id: decode(d.token_ids_T) for one in sets for d in one.documents}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXTS, min_size=1, max_size=20), st.sampled_from([None, 12, 40]))
def test_any_text_comes_back_as_it_was_cleaned(tmp_path, texts, max_chars):
    source, out = tmp_path / "texts.jsonl", tmp_path / "store.h5"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    build_settings = BuildSettings(set_size=2, min_chars=3, max_chars=max_chars, heldout=0.3)
    try:
        report = build_store([str(source)], ByteTokenizer(), out, build_settings)
    except BuildError:
        assert max_chars or not [t for t in texts if len(normalise(t)) >= 3]
        return
    stored = stored_texts(out)
    assert len(stored) == report.num_documents == len(set(stored.values()))
    cleaned = {normalise(text) for text in texts}
    if max_chars is None:
        assert set(stored.values()) == {text for text in cleaned if len(text) >= 3}
    else:
        assert all(3 <= len(text) <= max_chars for text in stored.values())
        assert all(any(text in whole or " " in text or "\n" in text for whole in cleaned) for text in stored.values())


def test_the_report_counts_everything(tmp_path):
    source = write_texts(tmp_path / "texts", 20)
    (source / "zz_short.txt").write_text("short")
    (source / "zz_twice.txt").write_text((source / "text_000.txt").read_text())
    report = build_store([str(source)], ByteTokenizer(), tmp_path / "store.h5", SMALL)
    assert (report.num_documents, report.num_too_short, report.num_duplicate) == (20, 1, 1)
    with TokenStore.open(report.path) as store:
        summary = store.summary()
    assert summary.num_sets == report.num_sets
    assert report.num_sets["heldout"] >= 1
    assert (summary.num_documents, summary.num_tokens) == (20, report.num_tokens)
    assert summary.num_dropped == {"too_short": 1, "duplicate": 1}
    assert summary.sources == (str(source),)
    assert summary.settings == {"set_size": 4, "max_chars": None, "min_chars": 10, "heldout": 0.3, "seed": 0}
    assert report.notes == ()


def test_the_store_holds_the_sets_that_were_planned(tmp_path):
    sources = [str(write_texts(tmp_path / "texts")), "python-topics"]
    build_store(sources, ByteTokenizer(), tmp_path / "store.h5", SMALL)
    planned = plan_sets(read_sources(sources, SMALL), SMALL)
    with TokenStore.open(tmp_path / "store.h5") as store:
        for one in planned:
            stored = store.document_set(one.set_id)
            assert stored.split == one.split
            assert [(d.doc_id, d.title) for d in stored.documents] == [(d.doc_id, d.title) for d in one.documents]
            assert [decode(d.token_ids_T) for d in stored.documents] == [d.text for d in one.documents]


def test_one_group_alone_is_all_trained_on_and_the_report_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"Paragraph number {n} of one text." for n in range(12)))
    report = build_store([str(tmp_path / "a.txt")], ByteTokenizer(), tmp_path / "s.h5", replace(SMALL, max_chars=40))
    assert report.num_sets == {"train": 3, "heldout": 0}
    assert "no set is held out" in report.notes[0]


BUILD = """
import sys, time
from pathlib import Path
from tests.unit.data.byte_tokenizer import SMALL, ByteTokenizer
from megatron_spell.data import tokenise
from megatron_spell.data.build import build_store
tokenise.BATCH_CHARS = 300
class Tokenizer(ByteTokenizer):
    num = 0
    def encode_quoted(self, text):
        self.num += 1
        if self.num == int(sys.argv[3]):
            print("half way", flush=True)
            time.sleep(600)
        return super().encode_quoted(text)
build_store([sys.argv[1]], Tokenizer(), Path(sys.argv[2]), SMALL, workers=1)
"""


def start_build(source, out, stop_at=0, **environment):
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(source), str(out), str(stop_at)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)} | environment,
    )


def test_two_builds_are_identical_byte_for_byte(tmp_path):
    source = write_texts(tmp_path / "texts", 40)
    outs = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for number, out in enumerate(outs):
        process = start_build(source, out, PYTHONHASHSEED=str(number + 1), OMP_NUM_THREADS=str(number + 1))
        assert process.wait(120) == 0
        time.sleep(1.1)  # a time of writing would differ
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_a_killed_build_leaves_the_old_store_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    source, out = write_texts(tmp_path / "texts", 30), tmp_path / "store.h5"
    build_store([str(source)], ByteTokenizer(), out, SMALL)
    before = out.read_bytes()
    write_texts(source, 40)
    process = start_build(source, out, stop_at=25)
    try:
        assert process.stdout.readline() == b"half way\n"
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    assert out.read_bytes() == before
    assert len(stored_texts(out)) == 30
    monkeypatch.setattr(tokenise, "BATCH_CHARS", 300)
    again = []

    class Tokenizer(ByteTokenizer):
        def encode_quoted_batch(self, texts):
            again.extend(texts)
            return super().encode_quoted_batch(texts)

    assert build_store([str(source)], Tokenizer(), out, SMALL).num_documents == 40
    assert 40 - 24 <= len(again) <= 40 - 24 + 2 * 3 + 4  # finished batches were kept, of four documents each
    build_store([str(source)], ByteTokenizer(), tmp_path / "fresh.h5", SMALL)
    assert out.read_bytes() == (tmp_path / "fresh.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh.h5", "store.h5", "texts"]


def test_a_source_that_fails_leaves_the_old_store_and_no_draft(tmp_path):
    source, out = write_texts(tmp_path / "texts"), tmp_path / "out" / "store.h5"
    build_store([str(source)], ByteTokenizer(), out, SMALL)
    before = out.read_bytes()
    with pytest.raises(SourceError):
        build_store([str(source), "no-such-place"], ByteTokenizer(), out, SMALL)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_a_document_without_tokens_is_an_error(tmp_path):
    class Mute(ByteTokenizer):
        def encode_quoted(self, text):
            return super().encode_quoted("")

    with pytest.raises(BuildError, match=r"document texts/text_0.. has \d+ characters and no token"):
        build_store([str(write_texts(tmp_path / "texts"))], Mute(), tmp_path / "store.h5", SMALL)


def test_the_language_reference_gives_sets_of_16_documents_and_3000_characters(tmp_path):
    build_store(["python-topics"], ByteTokenizer(), tmp_path / "store.h5", BuildSettings())
    with TokenStore.open(tmp_path / "store.h5") as store:
        summary = store.summary()
    num_sets = sum(summary.num_sets.values())
    assert 14 <= summary.num_documents / num_sets <= 20
    assert 2500 <= summary.num_tokens / num_sets <= 4000
    assert 0.1 <= summary.num_sets["heldout"] / num_sets <= 0.2


@pytest.mark.parametrize(
    ("name", "num_at_least"), [("peps/peps.jsonl", 40), ("gutenberg_books", 8), ("factbook/countries.jsonl", 100)]
)
@pytest.mark.parametrize("max_chars", [None, 4000])
def test_real_documents_build(tmp_path, name, num_at_least, max_chars):
    if not (SHARED / name).exists():
        pytest.skip(f"{SHARED / name} is not there; set MEGATRON_SPELL_DATA")
    chosen = BuildSettings(max_chars=max_chars, set_size=16 if max_chars else 4)
    report = build_store([str(SHARED / name)], ByteTokenizer(), tmp_path / "store.h5", chosen)
    assert report.num_documents >= num_at_least
    assert min(report.num_sets.values()) >= 1
    assert len(stored_texts(tmp_path / "store.h5")) == report.num_documents

"""The steps together: what is kept, that nothing depends on workers or interruptions, and what is told."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from megatron_spell.data.build import build_store
from megatron_spell.data.cluster import plan_sets
from megatron_spell.data.corpus import portions
from megatron_spell.data.corpus.plan import CorpusPlanner
from megatron_spell.data.corpus.pool import each_part
from megatron_spell.data.corpus.report import write_report
from megatron_spell.data.corpus.settings import PRESETS, CorpusSettings
from megatron_spell.data.corpus.work import WorkFolder
from megatron_spell.data.errors import BuildError, SourceError
from megatron_spell.data.readers.source import read_source
from megatron_spell.data.settings import BuildSettings
from megatron_spell.data.store import TokenStore
from tests.unit.data.byte_tokenizer import SMALL, ByteTokenizer, decode

pytest.importorskip("datasketch")
ROOT = Path(__file__).parents[3]
PAPER = CorpusSettings(filters=PRESETS["paper"])


def passage(seed, num_words=60):
    rng = np.random.default_rng(seed)
    return " ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(num_words))


def write_corpus(folder, num=40):
    """Two files of `num` documents; a repetition, a near copy, a text too long and a poor one; a filing."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [{"id": f"d{n}", "text": passage(n)} for n in range(num)]
    near = passage(0).replace(" ", " x ", 1)
    more = [{"text": passage(1)}, {"text": near}, {"text": passage(99, 9000)}, {"text": passage(98), "quality": 0.5}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, texts)))
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, [*more, {"text": passage(97), "quality": 1.0}])))
    filing = {"table": {"uid": "t", "table": [["a", "b"]]}, "paragraphs": [{"text": passage(96), "order": 1}]}
    (folder / "c.json").write_text(json.dumps([filing]))
    return [str(folder / name) for name in ("a.jsonl", "b.jsonl", "c.json")]


def planned(sources, work, settings=SMALL, corpus=PAPER, workers=1, **options):
    with WorkFolder(work) as folder:
        return CorpusPlanner(settings, corpus, folder, workers, **options).plan(sources)


def shown(corpus):
    return [
        (s.set_id, s.split, [(d.doc_id, d.title, d.text, d.group, d.source) for d in s.documents]) for s in corpus.sets
    ]


@pytest.fixture
def sources(tmp_path):
    return write_corpus(tmp_path / "corpus")


def test_what_fails_a_filter_is_dropped_and_counted_by_reason(sources, tmp_path):
    corpus = planned(sources, tmp_path / "work")
    assert corpus.num_kept == 43  # 40, one of good quality, the filing's table and paragraph
    assert corpus.num_dropped == {"too_short": 0, "duplicate": 1, "too_long": 1, "low_quality": 1, "near_duplicate": 1}
    filing = next(one for one in corpus.sets if one.set_id.startswith("math-"))
    assert [d.text.split()[0] for d in filing.documents] == ["|", passage(96).split()[0]]
    assert {s.split for s in corpus.sets} == {"train", "heldout"}
    assert {d.source for s in corpus.sets for d in s.documents} == set(sources)


def test_without_filters_the_sets_are_those_planned_in_memory(sources, tmp_path):
    (tmp_path / "again").mkdir()
    again = tmp_path / "again" / "a.jsonl"
    again.write_text("".join(json.dumps({"id": f"d{n}", "text": passage(n + 500)}) + "\n" for n in range(9)))
    everything = [*sources, "python-topics", str(again)]  # a/d0 twice: ids are told apart
    wanted = plan_sets((d for one in everything for d in read_source(one)), SMALL)
    found = planned(everything, tmp_path / "work", corpus=CorpusSettings())
    assert [(s.set_id, s.split) for s in found.sets] == [(s.set_id, s.split) for s in wanted]
    for one, other in zip(found.sets, wanted, strict=True):
        assert [replace(d, source="", quality=None) for d in one.documents] == [
            replace(d, quality=None) for d in other.documents
        ]
    assert any(d.doc_id == "a/d0~2" for s in found.sets for d in s.documents)


def test_the_number_of_workers_and_a_second_run_change_nothing(sources, tmp_path, monkeypatch):
    one = planned(sources, tmp_path / "one")
    many = planned(sources, tmp_path / "many", workers=2)
    assert shown(one) == shown(many)

    def fail(*_):
        raise AssertionError("done already")

    monkeypatch.setattr("megatron_spell.data.corpus.plan.read_portion", fail)
    monkeypatch.setattr("megatron_spell.data.corpus.plan.filter_part", fail)
    monkeypatch.setattr("megatron_spell.data.corpus.plan.sign_part", fail)
    monkeypatch.setattr("megatron_spell.data.corpus.plan.arrange", fail)
    assert shown(planned(sources, tmp_path / "one")) == shown(one)
    with pytest.raises(AssertionError, match="done already"):  # the planted fault bites where there is work
        planned(sources, tmp_path / "one", settings=replace(SMALL, min_chars=11))


def test_a_changed_file_is_read_again_and_the_others_are_not(sources, tmp_path, monkeypatch):
    planned(sources, tmp_path / "work")
    text = Path(sources[1]).read_text()
    Path(sources[1]).write_text(text + "\n" + json.dumps({"text": passage(1234)}))
    read = []
    monkeypatch.setattr(
        "megatron_spell.data.corpus.plan.read_portion",
        lambda portion: (read.append(portion.name), portions.read_portion(portion)),
    )
    assert planned(sources, tmp_path / "work").num_kept == 44
    assert read == [sources[1]]


KILLED = """
import os, sys
from pathlib import Path
from megatron_spell.data.corpus import plan, portions
from tests.unit.data.test_corpus_pipeline import PAPER, planned
name, stop, *arguments = sys.argv[1:]
step, done = getattr(plan, name), 0
def stopping(job):
    global done
    if done == int(stop):
        os.kill(os.getpid(), 9)
    done += 1
    return step(job)
setattr(plan, name, stopping)
planned(arguments[1:], Path(arguments[0]))
"""


@pytest.mark.parametrize(("step", "stop"), [("read_portion", 2), ("filter_part", 1), ("sign_part", 1)])
def test_a_killed_run_goes_on_to_the_same_sets(sources, tmp_path, step, stop):
    command = [sys.executable, "-c", KILLED, step, str(stop), str(tmp_path / "work"), *sources]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert shown(planned(sources, tmp_path / "work")) == shown(planned(sources, tmp_path / "other"))


def test_a_store_of_a_corpus_is_the_same_from_any_number_of_workers(sources, tmp_path):
    digests = []
    for workers in (1, 2):
        corpus = planned(sources, tmp_path / f"work{workers}", workers=workers)
        out = tmp_path / f"{workers}.h5"
        report = build_store(sources, ByteTokenizer(), out, SMALL, corpus=corpus)
        digests.append(hashlib.sha256(out.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert report.num_dropped == corpus.num_dropped
    with TokenStore.open(out) as store:
        first = corpus.sets[0]
        assert [decode(d.token_ids_T) for d in store.document_set(first.set_id).documents] == [
            d.text for d in first.documents
        ]
        assert store.summary().num_dropped == corpus.num_dropped
        assert store.summary().settings["near_duplicates"] == 0.8


def test_nothing_asked_for_gives_the_bytes_of_a_plain_build(tmp_path):
    plain, piped = tmp_path / "plain.h5", tmp_path / "piped.h5"
    build_store(["python-topics"], ByteTokenizer(), plain, BuildSettings())
    corpus = planned(["python-topics"], tmp_path / "work", BuildSettings(), CorpusSettings())
    build_store(["python-topics"], ByteTokenizer(), piped, BuildSettings(), corpus=corpus)
    assert plain.read_bytes() == piped.read_bytes()


def test_bad_records_end_the_build_or_are_counted_by_file(sources, tmp_path):
    with Path(sources[0]).open("a") as file:
        file.write('\n{"broken": \n{"text": 5}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl line 41: is not JSON .*--skip-bad"):
        planned(sources, tmp_path / "work", workers=2)
    corpus = planned(sources, tmp_path / "work", corpus=replace(PAPER, skip_bad=True))
    assert corpus.num_kept == 43
    ((source, path, first, num),) = corpus.faults
    assert (source, path, num) == (0, sources[0], 2)
    assert "line 41: is not JSON" in first


def test_the_report_counts_every_document_once(sources, tmp_path):
    with Path(sources[0]).open("a") as file:
        file.write('\n{"broken": \n')
    corpus = planned(sources, tmp_path / "work", corpus=replace(PAPER, skip_bad=True))
    folder = tmp_path / "report"
    write_report(corpus, SMALL, [], "megatron-spell data build x", folder)
    figures = json.loads((folder / "report.json").read_text())
    assert figures["read"] == 47 == figures["kept"] + sum(figures["dropped"].values())
    assert [row["read"] for row in figures["sources"]] == [40, 5, 2]
    assert [row["unreadable"] for row in figures["sources"]] == [1, 0, 0]
    assert sum(figures["lengths"]["read"]) == 46  # the filing is one
    assert sum(figures["lengths"]["kept"]) == 42
    (pair,) = figures["near_duplicates"]
    assert (pair["dropped"]["id"], pair["kept"]["id"]) == ("b/2", "a/d0")
    dropped = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert [(one["id"], one["reason"], one.get("of")) for one in dropped] == [
        ("b/1", "duplicate", "a/d1"),
        ("b/2", "near_duplicate", "a/d0"),
        ("b/3", "too_long", None),
        ("b/4", "low_quality", None),
    ]
    page = (folder / "report.md").read_text()
    assert "47 documents were read and 43 kept" in page
    assert "is not JSON" in page
    before = (folder / "lengths.svg").read_bytes()
    write_report(corpus, SMALL, [], "megatron-spell data build x", folder)
    assert (folder / "lengths.svg").read_bytes() == before


def test_a_corpus_of_which_nothing_is_left_says_why(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": passage(0, 9000)}))
    with pytest.raises(BuildError, match=r"no document is left of 1 \(1 too_long\); cut long ones with --max-chars"):
        planned([str(tmp_path / "a.jsonl")], tmp_path / "work")


def test_workers_end_with_a_build_that_is_killed():
    code = "import time; from megatron_spell.data.corpus.pool import each_part\n"
    code += "if __name__ == '__main__': list(each_part(time.sleep, [60.0, 60.0], 2, str))"
    build = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        started = time.monotonic()
        while len(children := psutil.Process(build.pid).children()) < 3:  # two, and multiprocessing's own tracker
            assert time.monotonic() - started < 60
            time.sleep(0.05)
        time.sleep(1.0)
    finally:
        build.kill()
        build.wait(30)
    assert not psutil.wait_procs(children, timeout=30)[1]


def test_a_part_that_takes_too_long_and_a_process_that_is_gone_are_named():
    with pytest.raises(BuildError, match=r"^30\.0 took longer than 2 s; leave it out"):
        list(each_part(time.sleep, [30.0, 30.0], 2, str, timeout_s=2.0))
    with pytest.raises(BuildError, match=r"a process that worked on 3, or beside it, is gone .*; lower --workers"):
        list(each_part(os._exit, [3, 3], 2, str))


def test_two_builds_do_not_share_a_work_folder(tmp_path):
    with WorkFolder(tmp_path / "work"), pytest.raises(BuildError, match="another build is at work there"):
        WorkFolder(tmp_path / "work")
    assert not (tmp_path / "work").exists()  # nothing was done in it


def test_many_documents_are_grouped_from_a_sample_alike_by_any_number_of_workers(tmp_path, monkeypatch):
    source = tmp_path / "a.jsonl"
    themes = ["sails masts harbour anchor", "flour yeast oven crust", "orbit comet telescope lens"]
    texts = [f"{themes[n % 3]} {themes[n % 3]} number {n} {passage(n, 3)}" for n in range(120)]
    source.write_text("\n".join(json.dumps({"text": text, "title": str(n % 3)}) for n, text in enumerate(texts)))
    monkeypatch.setattr("megatron_spell.data.corpus.vectors.FITTED_AT_ONCE", 50)
    monkeypatch.setattr("megatron_spell.data.corpus.vectors._BLOCK", 16)
    monkeypatch.setattr("megatron_spell.data.related._PARTED_ALONE", 30)
    settings = replace(SMALL, heldout=0.0)
    one = planned([str(source)], tmp_path / "one", settings, CorpusSettings())
    two = planned([str(source)], tmp_path / "two", settings, CorpusSettings(), workers=2)
    assert shown(one) == shown(two)
    titles = [[d.title for d in s.documents] for s in one.sets]
    assert np.mean([max(map(names.count, names)) / len(names) for names in titles]) > 0.9


class Letters:
    """Stands in for an embedding model: counts letters."""

    fingerprint = "letters"

    def embed(self, texts):
        return np.array([[text.count(letter) for letter in "xyz"] for text in texts], dtype=np.float32)


def test_an_embedding_model_groups_by_what_it_sees(tmp_path):
    texts = [f"{passage(n, 20)} " + "xyz"[n % 3] * 50 for n in range(48)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t, "title": t[-1]}) for t in texts))
    settings = replace(SMALL, heldout=0.0)
    corpus = planned([str(tmp_path / "a.jsonl")], tmp_path / "work", settings, embedder=Letters())
    assert all(len({d.title for d in one.documents}) == 1 for one in corpus.sets)
    assert corpus.recorded["embedding_model"] == "letters"

import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_spell.cli.data import data_app
from megatron_spell.cli.data_show import histogram
from megatron_spell.data.store import TokenStore
from megatron_spell.text.tokenizer import Tokenizer
from tests.tiny_tokenizer import write_byte_tokenizer
from tests.unit.data.byte_tokenizer import write_texts

FEW = ("--set-size", 4, "--filters", "none")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(folder)
    return folder


def data(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(data_app, [str(a) for a in arguments])


@pytest.fixture
def built(tmp_path, tokenizer_folder):
    source = write_texts(tmp_path / "texts", 20)
    (source / "chat.txt").write_text("<|im_end|> [red]{documents}[/red] :x: is only text in a document. " * 3)
    out = tmp_path / "store.h5"
    return data("build", source, "--out", out, "--tokenizer", tokenizer_folder, *FEW), out


def test_build_writes_a_store_and_says_what_it_holds(built, tokenizer_folder):
    result, out = built
    assert result.exit_code == 0, result.output
    assert "21 documents (0 too short and 0 repeated ones left out)" in result.stdout
    tokenizer = Tokenizer.load(tokenizer_folder)
    with TokenStore.open(out) as store:
        assert store.tokenizer_fingerprint == tokenizer.fingerprint
        set_ids = store.set_ids("train") + store.set_ids("heldout")
        documents = [d for set_id in set_ids for d in store.document_set(set_id).documents]
    ids = np.concatenate([d.token_ids_T for d in documents])
    assert not set(ids.tolist()) & tokenizer.special_ids
    assert any("<|im_end|> [red]{documents}" in tokenizer.decode(d.token_ids_T) for d in documents)


def test_show_prints_the_store(built, tokenizer_folder):
    _, out = built
    result = data("show", out)
    assert result.exit_code == 0, result.output
    with TokenStore.open(out) as store:
        summary, first = store.summary(), store.set_ids("heldout")[0]
    for shown in (
        "texts",
        summary.tokenizer_fingerprint[:12],
        str(summary.num_tokens),
        f"{summary.num_sets['train']} train",
        f"{summary.num_sets['heldout']} heldout",
        "set_size=4",
        summary.source_fingerprints[0][:12],
        first,
        "█",
    ):
        assert shown in result.stdout


def test_show_lists_the_documents_of_a_set(built):
    _, out = built
    with TokenStore.open(out) as store:
        sets = {s: store.document_set(s) for split in ("train", "heldout") for s in store.set_ids(split)}
    for set_id, one in sets.items():
        result = data("show", out, "--set", set_id)
        assert result.exit_code == 0, result.output
        assert f"{set_id} ({one.split})" in result.stdout
        for d in one.documents:
            assert d.doc_id in result.stdout
            assert str(d.num_tokens) in result.stdout


def test_verify_tells_a_whole_store_a_damaged_one_and_no_store_apart(built, tmp_path):
    _, out = built
    result = data("verify", out)
    assert (result.exit_code, result.stdout[: len(str(out)) + 7]) == (0, f"{out}: whole")
    with h5py.File(out, "r+") as file:
        file["tokens"][3] += 1
    result = data("verify", out)
    assert result.exit_code == 1
    assert "store.h5 is damaged: tokens chunk 0 (tokens 0 to " in result.stderr
    assert result.stderr.count("\n") == 1
    (tmp_path / "text.h5").write_text("text " * 200)
    assert data("verify", tmp_path / "text.h5").exit_code == 2


def test_sample_prints_a_set_as_text(built, tokenizer_folder):
    _, out = built
    with TokenStore.open(out) as store:
        one = store.document_set("set-00001")
    result = data("sample", out, "--tokenizer", tokenizer_folder, "--set", "set-00001")
    assert result.exit_code == 0, result.output
    tokenizer = Tokenizer.load(tokenizer_folder)
    for document in one.documents:
        assert document.doc_id in result.stdout
        assert tokenizer.decode(document.token_ids_T) in result.stdout
    drawn = [data("sample", out, "--tokenizer", tokenizer_folder, "--seed", seed).stdout for seed in (*range(8), 0)]
    assert drawn[0] == drawn[-1]
    assert len({text.split()[0] for text in drawn}) > 2
    short = data("sample", out, "--tokenizer", tokenizer_folder, "--set", "set-00001", "--chars", 5).stdout
    assert "Text  [..." in short or "<|im [..." in short


def test_sample_refuses_another_tokenizer(built, tmp_path):
    _, out = built
    folder = tmp_path / "another"
    folder.mkdir()
    write_byte_tokenizer(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|im_begin|>"))
    result = data("sample", out, "--tokenizer", folder)
    assert result.exit_code == 2
    assert "was built with another one; give that" in result.stderr


def test_stats_are_the_same_as_table_and_json_and_counted_from_the_documents(built, tmp_path):
    _, out = built
    with TokenStore.open(out) as store:
        sets = [store.document_set(s) for split in ("train", "heldout") for s in store.set_ids(split)]
    lengths = sorted(d.num_tokens for one in sets for d in one.documents)
    plot = tmp_path / "lengths.svg"
    result = data("stats", out, "--json", "--plot", plot)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["document_tokens"]["quantiles"][2] == lengths[len(lengths) // 2 - (len(lengths) % 2 == 0)]
    assert (told["document_tokens"]["shortest"], told["document_tokens"]["longest"]) == (lengths[0], lengths[-1])
    assert told["set_tokens"]["total"] == sum(lengths) == told["sources"][0]["num_tokens"]
    for share in told["splits"]:
        mine = [one for one in sets if one.split == share["name"]]
        assert (share["num_sets"], share["num_tokens"]) == (len(mine), sum(one.num_tokens for one in mine))
    assert "tokens of a document" in plot.read_text() or plot.read_text().startswith("<?xml")
    table = data("stats", out)
    assert table.exit_code == 0
    assert f"{sum(lengths):,}" in table.stdout


def test_a_plot_that_cannot_be_written_is_a_usage_error(built, tmp_path):
    for name in ("no/such/folder/a.svg", "a.xyz"):
        result = data("stats", built[1], "--plot", tmp_path / name)
        assert result.exit_code == 2
        assert f"--plot {tmp_path / name}: cannot be written: " in result.stderr
        assert result.stderr.count("\n") == 1


def test_append_adds_and_says_what(built, tokenizer_folder, tmp_path):
    _, out = built
    for n in range(9):
        (tmp_path / "texts" / f"new_{n}.txt").write_text(f"A new text number {n} about trees and gardens. " * 3)
    result = data("append", out, tmp_path / "texts", "--tokenizer", tokenizer_folder, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "9 documents added (0 too short, 0 repeated and 21 that it held already left out)" in result.stdout
    assert "added to since: 1" in data("show", out).stdout
    result = data("append", tmp_path / "nothing.h5", tmp_path / "texts", "--tokenizer", tokenizer_folder)
    assert result.exit_code == 2
    assert "nothing.h5 is not there; build one with" in result.stderr


def test_titles_are_not_taken_for_markup(tmp_path, tokenizer_folder):
    source, out = tmp_path / "a.jsonl", tmp_path / "a.h5"
    records = [{"text": f"text number {n} " * 10, "title": "[red]a[/blue] :x:"} for n in range(4)]
    source.write_text("\n".join(map(json.dumps, records)))
    assert data("build", source, "--out", out, "--tokenizer", tokenizer_folder, *FEW).exit_code == 0
    assert "[red]a[/blue] :x:" in data("show", out, "--set", "set-00000").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "no-such-place"], "source 'no-such-place' is not there; give python-topics"),
        (["build", "python-topics", "--heldout", "1.5"], "heldout = 1.5 must be at least 0 and below 1"),
        (["build", "python-topics", "--set-size", "9999"], "the sources give"),
        (["build", "python-topics", "--tokenizer", "nowhere"], "--tokenizer nowhere: nowhere is not a folder"),
        (["build", "python-topics", "--out", "."], "out = .: is a folder"),
        (["show", "nothing.h5"], "nothing.h5 is not there; build one with `megatron-spell data build"),
    ],
)
def test_usage_errors_are_one_line_and_exit_code_2(tmp_path, tokenizer_folder, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments[0] == "build":
        for option, value in (("--out", "store.h5"), ("--tokenizer", tokenizer_folder)):
            arguments = arguments if option in arguments else [*arguments, option, value]
    result = data(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("megatron-spell: ")
    assert result.stderr.count("\n") == 1
    # What was read is kept for the next try; nothing else is left.
    assert {path.name for path in tmp_path.iterdir()} <= ({"store.h5.work"} if "--set-size" in arguments else set())


def test_a_set_that_is_not_there_is_a_usage_error(built):
    result = data("show", built[1], "--set", "set-99999")
    assert result.exit_code == 2
    assert "holds no set 'set-99999'; give one of set-00000 to " in result.stderr


def test_the_histogram_counts_every_document():
    lengths = (3, 3, 4, 50, 100)
    lines = histogram(lengths)
    assert sum(int(line.split()[-1]) for line in lines) == len(lengths)
    assert lines[0].split()[:3] == ["3", "-", "15"]
    assert lines[-1].split()[2] == "100"
    assert histogram((7,)) == [f"7 - 7  {'█' * 40} 1"]


def test_the_commands_are_there_before_anything_heavy_is_imported():
    heavy = {"h5py", "sklearn", "transformers", "numpy", "matplotlib"}
    code = f"import sys, megatron_spell.cli.data; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"


def test_a_corpus_is_filtered_reported_and_its_faults_named(tmp_path, tokenizer_folder):
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"{word:04x}" for word in rng.integers(0, 65536, 60)) for _ in range(24)]
    near, asked = texts[0].replace(" ", " another ", 1), " ".join(texts[1].split()[5:25])
    lines = [json.dumps({"body": text}) for text in (*texts, near, "x" * 40_000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": asked, "answer": "yes"}))
    command = ["build", tmp_path / "a.jsonl", "--tokenizer", tokenizer_folder, "--out", tmp_path / "s.h5"]
    command += ["--set-size", 4, "--text-field", "body", "--decontaminate", tmp_path / "bench.jsonl", "--workers", 2]
    refused = data(*command)
    assert refused.exit_code == 2
    assert "a.jsonl line 27: is not JSON" in refused.stderr
    result = data(*command, "--skip-bad")
    assert result.exit_code == 0, result.output
    kept = "23 documents (0 too short and 0 repeated ones left out, 1 too long, 1 benchmark question, 1 near duplicate)"
    assert kept in result.stdout
    assert "note: 1 bad in" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "bench.jsonl", "s.h5", "s.h5.report"}
    assert "| benchmark |" in (tmp_path / "s.h5.report" / "report.md").read_text()
    unfiltered = data(*command, "--skip-bad", "--filters", "none", "--near-duplicates", 0.8, "--keep-work")
    assert "24 documents" in unfiltered.stdout
    assert (tmp_path / "s.h5.work").is_dir()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--filters", "all"), "--filters all: unknown; give none, paper, web"),
        (("--near-duplicates", "2"), "near_duplicates = 2.0 must be at least 0 (off) and at most 1"),
        (("--decontaminate", "nowhere.jsonl"), "benchmark nowhere.jsonl: is not there; give a file of records"),
        (("--embedding-model", "nowhere"), "--embedding-model nowhere: is no folder of a model"),
    ],
)
def test_bad_options_of_a_corpus_are_one_line(tmp_path, tokenizer_folder, option, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = data("build", "python-topics", "--tokenizer", tokenizer_folder, "--out", "s.h5", *option)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not list(tmp_path.iterdir())

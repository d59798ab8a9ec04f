"""Every benchmark in every form of file; what is wrong is named with file and line, and nothing is dropped."""

import gzip
import json
from pathlib import Path

import pytest

from megatron_spell.evaluation.reading import check, check_all, read_benchmark, read_benchmarks, told
from megatron_spell.evaluation.record import BENCHMARKS, PROTOCOL_SIZES, TASKS, BenchmarkError
from tests.real_documents import DATA
from tests.unit.evaluation.made_records import (
    DOCMATH,
    FRAMES,
    HOTPOT,
    LONGBENCH,
    LONGBENCH_V2,
    MUSIQUE,
    ROWS,
    TWO_WIKI,
)


def written(folder: Path, *rows: object, name: str = "records.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, row: dict, name: str | None = None):
    (record,) = read_benchmark(written(folder, row), name)
    return record


def reasons(path: Path, name: str | None = None) -> list[str]:
    with pytest.raises(BenchmarkError) as caught:
        read_benchmark(path, name)
    return [str(bad) for bad in caught.value.bad_records]


def without(row: dict, *fields: str) -> dict:
    return {name: value for name, value in row.items() if name not in fields}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_benchmark_is_known_from_its_fields(tmp_path, benchmark):
    record = only(tmp_path, ROWS[benchmark])
    assert (record.benchmark, record.task) == (benchmark, TASKS[benchmark])
    assert record.origin == f"{tmp_path}/records.jsonl:1"
    assert check(tmp_path / "records.jsonl").complete


def test_the_protocol_asks_2727_questions():
    assert sum(PROTOCOL_SIZES.values()) == 2727
    assert set(PROTOCOL_SIZES) == set(BENCHMARKS)


def test_docmath(tmp_path):
    record = only(tmp_path, DOCMATH)
    assert record.context == "The year 2018.\n| revenue | 5.2 |"
    assert (record.golds, record.kind, record.record_id) == (("-5.2",), "complong", "complong-testmini-3")
    assert only(tmp_path, DOCMATH | {"question_id": "finqa-1", "source": "FinQA"}).kind == "FinQA"
    assert only(tmp_path, DOCMATH | {"ground_truth": "12"}).golds == ("12",)


def test_frames(tmp_path):
    record = only(tmp_path, FRAMES)
    assert record.context == "Ballou\nJane Ballou came.\nB\nSecond."
    assert record.kinds == ("Multiple constraints", "Temporal reasoning")
    assert (record.record_id, record.golds) == ("7", ("Jane Ballou",))


def test_frames_without_its_pages_is_read_and_said_to_lack_them(tmp_path):
    path = written(tmp_path, without(FRAMES, "wiki_items"), FRAMES | {"ID": 8})
    assert [record.context == "" for record in read_benchmark(path)] == [True, False]
    found = check(path)
    assert (found.num_records, found.complete, len(found.gaps)) == (2, False, 1)
    assert (found.gaps[0].num_records, found.gaps[0].first) == (1, f"{path}:1")
    assert "wiki_items" in found.gaps[0].what


def test_longbench(tmp_path):
    record = only(tmp_path, LONGBENCH)
    assert (record.benchmark, record.question, record.context) == ("2wikimqa", LONGBENCH["input"], LONGBENCH["context"])
    assert record.golds == ("no", "neither")
    assert only(tmp_path, LONGBENCH | {"dataset": "hotpotqa_e"}).benchmark == "hotpotqa"
    assert only(tmp_path, without(LONGBENCH, "dataset"), "musique").benchmark == "musique"


def test_a_record_without_an_id_gets_one_of_its_text(tmp_path):
    row = LONGBENCH | {"_id": None}
    first = only(tmp_path, row).record_id
    later = read_benchmark(written(tmp_path, LONGBENCH, row))[1].record_id
    assert first == later == "sha256-" + first[-16:]
    assert only(tmp_path, row | {"context": "other"}).record_id != first


def test_original_multi_hop_files_get_longbench_contexts(tmp_path):
    hotpot, two_wiki, musique = (only(tmp_path, row) for row in (HOTPOT, TWO_WIKI, MUSIQUE))
    assert hotpot.context == "Passage 1:\nTom\nHe won.  A prize.\nPassage 2:\nSea\nDeep."
    assert (two_wiki.context, two_wiki.kind) == ("Passage 1:\nAnn\nShe died in 1950.", "comparison")
    assert (musique.context, musique.kind) == ("Passage 1:\nAnn\nShe studied.", "2 hops")
    assert musique.golds == ("University of Toronto", "UT")


def test_longbench_v2_shows_its_choices(tmp_path):
    record = only(tmp_path, LONGBENCH_V2)
    assert record.question == "Which player?\nChoices:\n(A) player_1\n(B) player_3\n(C) player_5\n(D) player_7"
    assert record.kinds == ("Single-Document QA", "hard", "short")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("suffix", [".json", ".json.gz", ".jsonl.gz", ".parquet"])
def test_every_form_of_file_gives_the_same_records(tmp_path, benchmark, suffix):
    rows = [ROWS[benchmark], ROWS[benchmark] | dict.fromkeys(("_id", "id", "ID", "question_id"), "other")]
    rows = [{name: row[name] for name in ROWS[benchmark]} for row in rows]
    wanted = read_benchmark(written(tmp_path, *rows))
    path = tmp_path / f"records{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(_as_parquet(rows)), path)
    else:
        text = json.dumps(rows, indent=1) if suffix.startswith(".json.") or suffix == ".json" else None
        body = (text or "".join(json.dumps(row) + "\n" for row in rows)).encode()
        path.write_bytes(gzip.compress(body) if suffix.endswith(".gz") else body)
    found = read_benchmark(path)
    assert [r.origin.rpartition(":")[0] for r in found] == [str(path)] * 2
    assert [_same(r) for r in found] == [_same(r) for r in wanted]


def _as_parquet(rows: list[dict]) -> list[dict]:
    """HotpotQA's pairs as two columns, as in the copies that are on the Hugging Face hub."""

    def columns(row):
        pairs = row.get("context")
        if not isinstance(pairs, list):
            return row
        return row | {"context": {"title": [p[0] for p in pairs], "sentences": [p[1] for p in pairs]}}

    return [without(columns(row), "supporting_facts", "evidences") | _kept(row) for row in rows]


def _kept(row: dict) -> dict:
    return {"evidences": json.dumps(row["evidences"])} if "evidences" in row else {}


def _same(record):
    return record.record_id, record.question, record.context, record.golds, record.kind


def test_an_array_tells_the_line_that_a_record_begins_in(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(json.dumps([HOTPOT, HOTPOT | {"_id": "h2"}, 5], indent=2), encoding="utf-8")
    lines = path.read_text().splitlines()
    (bad,) = reasons(path)
    assert lines[int(bad.split(":")[1]) - 1].strip() == "5"
    path.write_text(json.dumps([HOTPOT, HOTPOT | {"_id": "h2"}], indent=2), encoding="utf-8")
    starts = [number for number, line in enumerate(lines, start=1) if line == "  {"]
    assert [record.origin for record in read_benchmark(path)] == [f"{path}:{number}" for number in starts]


def test_a_tsv_of_frames_as_google_has_it(tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text(
        '\tPrompt\tAnswer\treasoning_types\n0\t"Who\ncame?"\tAnn\tTabular\n1\tWho?\tBob\n', encoding="utf-8"
    )
    (bad,) = reasons(path)
    assert bad.startswith(f"{path}:4: has not the 4 fields")
    path.write_text("\tPrompt\tAnswer\treasoning_types\n0\tWho?\tAnn\tTabular\n", encoding="utf-8")
    (record,) = read_benchmark(path)
    assert (record.record_id, record.golds, record.kind) == ("0", ("Ann",), "Tabular")


def test_all_bad_records_are_counted_and_the_first_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    bad = [b"{", b"[1]", b'{"x": 1}', b"\xff", b'{"question": "", "answer": "a", "paragraphs": []}']
    bad += [json.dumps(without(MUSIQUE, "answer")).encode(), json.dumps(MUSIQUE | {"answerable": False}).encode()]
    path.write_bytes(b"\n".join([json.dumps(MUSIQUE).encode(), *bad]))
    with pytest.raises(BenchmarkError) as caught:
        read_benchmark(path)
    found = [str(each) for each in caught.value.bad_records]
    assert [each.split(": ")[0] for each in found] == [f"{path}:{line}" for line in range(2, 9)]
    assert "is not JSON" in found[0] and "is [1]" in found[1] and "has 'x'" in found[2] and "UTF-8" in found[3]
    assert "question = '': says nothing" in found[4] and "MuSiQue-Ans" in found[6]
    assert caught.value.lines[-1] == "2 more records are bad"
    assert check(path).num_records == 1


@pytest.mark.parametrize(
    ("row", "name", "wanted"),
    [
        (LONGBENCH | {"dataset": "gov_report"}, None, "dataset = 'gov_report'"),
        (LONGBENCH, "musique", "the file was said to be musique"),
        (without(LONGBENCH, "dataset"), None, "as in hotpotqa=FILE"),
        (LONGBENCH | {"answers": []}, None, "answers = []"),
        (LONGBENCH | {"answers": [" "]}, None, "says nothing"),
        (without(HOTPOT, "level", "type"), None, "say which it is"),
        (HOTPOT | {"context": [["only a title"]]}, None, "context.0"),
        (HOTPOT | {"context": {"title": ["a"], "sentences": []}}, None, "not as many titles"),
        (LONGBENCH_V2 | {"answer": "E"}, None, "answer = 'E'"),
        (LONGBENCH_V2 | {"choice_C": ""}, None, "choice_C"),
        (without(LONGBENCH_V2, "choice_D"), None, "choice_D: is missing"),
        (DOCMATH | {"ground_truth": None}, None, "ground_truth = None"),
        (DOCMATH | {"paragraphs": "text"}, None, "paragraphs"),
        (FRAMES | {"wiki_items": [{"title": "a"}]}, None, "wiki_items.0.text: is missing"),
        (FRAMES, "docmath", "a record of docmath has at least"),
        (FRAMES, "freebase", "'freebase' is no benchmark"),
    ],
)
def test_a_record_that_is_none_is_told(tmp_path, row, name, wanted):
    (bad,) = reasons(written(tmp_path, row), name)
    assert wanted in bad and "\n" not in bad


def test_ids_that_stand_twice_are_bad(tmp_path):
    path = written(tmp_path, HOTPOT, TWO_WIKI, HOTPOT)
    assert reasons(path) == [f"{path}:3: the id 'h1' is that of {path}:1 already; leave one of the two out"]
    one, other = written(tmp_path, HOTPOT, name="one.jsonl"), written(tmp_path, TWO_WIKI, HOTPOT, name="other.jsonl")
    with pytest.raises(BenchmarkError, match=r"other\.jsonl:2: the id 'h1'"):
        read_benchmarks([(None, one), (None, other)])
    assert [len(found.bad_records) for found in check_all([(None, one), (None, other)])] == [0, 1]


@pytest.mark.parametrize("name", ["records.txt", "nothing.jsonl", "nothing.parquet", "cut.jsonl.gz", "empty.json"])
def test_files_that_cannot_be_read(tmp_path, name):
    path = tmp_path / name
    if name == "cut.jsonl.gz":
        path.write_bytes(gzip.compress(json.dumps(HOTPOT).encode() * 50)[:60])
    elif name.startswith(("records", "empty")):
        path.write_text("[]" if name.startswith("empty") else "x")
    assert str(path) in reasons(path)[0]


def test_a_broken_array_says_where_it_breaks(tmp_path):
    path = tmp_path / "records.json"
    path.write_text(f"[\n{json.dumps(HOTPOT)},\n{json.dumps(TWO_WIKI)}\n{{")
    assert check(path).num_records == 2
    assert reasons(path)[0].startswith(f"{path}:3: is not followed by a comma")


def test_a_boolean_truth_is_for_the_judge_alone(tmp_path):
    found = check(written(tmp_path, DOCMATH | {"ground_truth": True}))
    assert found.num_records == 1 and "ground_truth" in found.gaps[0].what


def test_a_file_may_be_told_by_name():
    assert told("musique=a=b.jsonl") == ("musique", Path("a=b.jsonl"))
    assert told("x=a.jsonl") == (None, Path("x=a.jsonl"))


# (file, benchmark); the counts are of lines, so that a record that were dropped would be missed.
SAMPLES = [
    ("docmath_schema/records.jsonl.gz", "docmath"),
    ("frames/test_824.jsonl", "frames"),
    ("hotpotqa/dev_200.jsonl", "hotpotqa"),
    ("2wikimultihopqa/dev_164.jsonl", "2wikimqa"),
    ("musique/dev_200.jsonl", "musique"),
    ("musique/train_100.jsonl", "musique"),
    ("longbench_v1/hotpotqa.jsonl", "hotpotqa"),
    ("longbench_v1/2wikimqa.jsonl", "2wikimqa"),
    ("longbench_v1/musique.jsonl", "musique"),
    ("longbench_v2/records.jsonl.gz", "longbench_v2"),
]


@pytest.mark.parametrize(("name", "benchmark"), SAMPLES)
def test_real_records_load_every_one(name, benchmark):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set MEGATRON_SPELL_DATA")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        num_lines = sum(bool(line.strip()) for line in file)
    records = read_benchmark(path)
    assert (len(records), {record.benchmark for record in records}) == (num_lines, {benchmark})
    assert all((record.context == "") == (benchmark == "frames") for record in records)
    found = check(path)
    assert [gap.num_records for gap in found.gaps] == ([num_lines] if benchmark == "frames" else [])

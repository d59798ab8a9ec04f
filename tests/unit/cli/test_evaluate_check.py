"""`megatron-spell evaluate --check FILE...`: a line for each file, a line for each thing that is missing."""

import json

import pytest
from typer.testing import CliRunner

from megatron_spell.cli.main import app
from tests.unit.evaluation.made_records import FRAMES, HOTPOT, LONGBENCH, MUSIQUE


def checked(*files: object) -> tuple[int, list[str]]:
    result = CliRunner().invoke(app, ["evaluate", "--check", *map(str, files)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout.splitlines()


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_whole_files(tmp_path):
    one, two = written(tmp_path / "a.jsonl", HOTPOT, LONGBENCH), written(tmp_path / "b.jsonl", FRAMES)
    code, lines = checked(one, two)
    assert code == 0
    assert lines == [
        f"{one}: hotpotqa, 1 record (the protocol's set has 200); 2wikimqa, 1 record (the protocol's set has 200)",
        f"{two}: frames, 1 record (the protocol's set has 824)",
    ]


def test_what_is_missing_is_said_and_the_exit_code_is_2(tmp_path):
    blind = {name: value for name, value in FRAMES.items() if name != "wiki_items"}
    frames = written(tmp_path / "a.jsonl", blind, blind | {"ID": "8"}, FRAMES | {"ID": "9"})
    bad = [MUSIQUE | {"id": str(number), "answer": ""} for number in range(3)]
    musique = written(tmp_path / "b.jsonl", MUSIQUE, *bad, 5)
    code, lines = checked(frames, musique, tmp_path / "none.jsonl")
    assert code == 2
    assert lines[1].startswith(f"  missing in 2 records, first {frames}:1: documents; without the page texts")
    assert lines[2] == f"{musique}: musique, 1 record (the protocol's set has 200)"
    assert lines[3].startswith(f"  bad: {musique}:2 (and 2 records more): answer = ''")
    assert lines[4].startswith(f"  bad: {musique}:5: is 5;")
    assert lines[5].endswith("none.jsonl: no record of a benchmark") and "No such file" in lines[6]


def test_a_thousand_different_faults_do_not_fill_the_screen(tmp_path):
    path = written(tmp_path / "a.jsonl", *({f"x{number}": 1} for number in range(1000)))
    code, lines = checked(path)
    assert code == 2 and len(lines) == 7
    assert lines[-1] == f"  bad: {path}:6 (and 994 records more): for other reasons"


@pytest.mark.parametrize("name", ["hotpotqa", "2wikimqa"])
def test_a_file_is_told_by_name(tmp_path, name):
    path = written(tmp_path / "a.jsonl", {each: HOTPOT[each] for each in ("_id", "question", "answer", "context")})
    assert checked(path)[0] == 2
    code, lines = checked(f"{name}={path}")
    assert code == 0 and lines[0].startswith(f"{path}: {name}, 1 record")

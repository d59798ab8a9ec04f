"""`megatron-spell score` as a user has it: objects in, the same objects with their score out."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from megatron_spell.cli.main import app

OBJECTS = [
    ({"id": 7, "task": "math_qa", "prediction": "$5.2m", "gold": "5.2 million"}, 1.0),
    ({"task": "math_qa", "prediction": -5.2, "gold": 5.2, "more": {"kept": [1, None, "\u00e9"]}}, 0.0),
    ({"task": "math_qa", "prediction": 114, "gold": 114.0}, 1.0),
    ({"gold": "July 20, 1969", "prediction": "20 July 1969", "task": "general_qa"}, 1.0),
    ({"task": "general_qa", "prediction": "Paris or London", "gold": "Paris"}, 0.0),
    ({"task": "multiple_choice", "prediction": "B", "gold": "B"}, 1.0),
    ({"task": "multiple_choice", "prediction": None, "gold": "B", "half": "\ud800"}, 0.0),
]


def run(*arguments: object, standard_input: str | None = None) -> tuple[int, list[dict], str]:
    """Exit code, the objects printed, standard error."""
    result = CliRunner().invoke(app, ["score", *map(str, arguments)], input=standard_input)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def written(path, objects):
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    return path


def test_every_object_comes_back_in_order_with_its_score(tmp_path):
    file = written(tmp_path / "a.jsonl", [given for given, _ in OBJECTS])
    code, printed, error = run(file)
    assert (code, error) == (0, "")
    assert printed == [given | {"score": score} for given, score in OBJECTS]
    assert [list(each)[-1] for each in printed] == ["score"] * len(OBJECTS)


def test_standard_input_is_read_blank_lines_and_a_byte_order_mark_do_not_matter():
    given = OBJECTS[0][0]
    code, printed, _ = run("-", standard_input="\ufeff" + json.dumps(given) + "\r\n\n")
    assert (code, printed) == (0, [given | {"score": 1.0}])


def test_a_score_that_is_there_is_replaced():
    given = OBJECTS[0][0] | {"score": 0.5}
    assert run("-", standard_input=json.dumps(given))[1] == [given | {"score": 1.0}]


RESPONSES = [
    ({"task": "math_qa", "prediction": "Add. Therefore, the answer is $5.2m.", "gold": "5.2"}, "5.2 million", 0.0),
    ({"task": "math_qa", "prediction": "Therefore, the answer is 5.2.", "gold": 5.2}, "5.2", 1.0),
    ({"task": "math_qa", "prediction": "5.2", "gold": "5.2"}, None, 0.0),
    ({"task": "math_qa", "prediction": None, "gold": "5.2"}, None, 0.0),
    ({"task": "general_qa", "prediction": "THE ANSWER IS\n**Paris**.", "gold": "Paris"}, "Paris", 1.0),
    ({"task": "multiple_choice", "prediction": "The correct answer is (C) x", "gold": "C"}, "C", 1.0),
    ({"task": "multiple_choice", "prediction": "The answer is C", "gold": "C", "finished": False}, None, 0.0),
]


def test_whole_responses_are_read_as_in_play(tmp_path):
    file = written(tmp_path / "a.jsonl", [given for given, *_ in RESPONSES])
    code, printed, _ = run(file, "--responses")
    assert code == 0
    assert printed == [given | {"parsed": parsed, "score": score} for given, parsed, score in RESPONSES]


def test_without_that_a_response_is_scored_as_it_stands():
    given = {"task": "math_qa", "prediction": "Therefore, the answer is 5.2.", "gold": "5.2"}
    assert run("-", standard_input=json.dumps(given))[1] == [given | {"score": 0.0}]


def test_the_tolerance_is_the_one_given():
    given = json.dumps({"task": "math_qa", "prediction": 101, "gold": 100})
    assert [run("-", *how, standard_input=given)[1][0]["score"] for how in ((), ("--tolerance", "0.01"))] == [0.0, 1.0]


def test_the_summary_has_the_mean_of_each_task(tmp_path):
    file = written(tmp_path / "a.jsonl", [given for given, *_ in RESPONSES])
    _, printed, error = run(file, "--responses", "--summary")
    assert len(printed) == len(RESPONSES)
    cells = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in error.splitlines() if "\u2502" in line]
    assert cells == [
        ["general_qa", "1", "100.0%", "100.0%"],
        ["math_qa", "4", "25.0%", "50.0%"],
        ["multiple_choice", "2", "50.0%", "50.0%"],
    ]


GOOD = '{"task": "math_qa", "prediction": 1, "gold": 1}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON ("),
        ("[1]", "is [1]; write an object with task, prediction and gold"),
        ("[" * 100_000, "is not JSON ("),
        ('{"task": "math_qa", "prediction": 1}', "gold: is missing; each object needs task, prediction and gold"),
        ('{"task": "math_qa", "gold": 1}', "prediction: is missing"),
        ('{"prediction": 1, "gold": 1}', "task: is missing"),
        ('{"task": "maths", "prediction": 1, "gold": 1}', 'task = "maths": is none; use general_qa, math_qa, multiple'),
        ('{"task": ["math_qa"], "prediction": 1, "gold": 1}', 'task = ["math_qa"]: is none'),
        ('{"task": "math_qa", "prediction": [1], "gold": 1}', "prediction = [1]: must be a text or a number"),
        ('{"task": "math_qa", "prediction": true, "gold": 1}', "prediction = true: must be a text or a number"),
        ('{"task": "math_qa", "prediction": 1, "gold": null}', "gold = null: must be a text or a number"),
        (
            '{"task": "math_qa", "prediction": 1, "gold": "five"}',
            'gold = "five": no prediction could match it in math_qa',
        ),
        ('{"task": "math_qa", "prediction": 1, "gold": "5 or 6"}', "write it as one number"),
        ('{"task": "multiple_choice", "prediction": "A", "gold": "(A)"}', "write A, B, C or D"),
        ('{"task": "general_qa", "prediction": "A", "gold": " "}', "write a short text"),
        ('{"task": "math_qa", "prediction": NaN, "gold": 1}', "NaN is not JSON"),
        ('{"task": "math_qa", "prediction": 1e999, "gold": 1}', "1e999 is too large a number; write it as text"),
        ('{"task": "math_qa", "prediction": 1, "gold": 1, "finished": 1}', "finished = 1: must be true or false"),
    ],
)
def test_a_bad_line_is_named_and_nothing_of_the_file_is_printed(tmp_path, line, said):
    file = tmp_path / "a.jsonl"
    file.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    code, printed, error = run(file, "--responses")
    assert (code, printed) == (2, [])
    assert error.startswith(f"megatron-spell: {file}:3: {said}") or said in error
    assert f"{file}:3: " in error
    assert error.count("\n") == 1
    assert len(error) < 400


def test_of_standard_input_what_came_before_a_bad_line_is_printed():
    code, printed, error = run("-", standard_input=f"{GOOD}\n{{\n")
    assert (code, len(printed)) == (2, 1)
    assert error.startswith("megatron-spell: standard input:2: is not JSON")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no object"),
        (b"\n \n", "holds no object"),
        (b"\xff\n", ":1: is not UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_a_file_without_objects_is_refused(tmp_path, content, said):
    file = tmp_path / "a.jsonl"
    if content is not None:
        file.write_bytes(content)
    code, printed, error = run(file)
    assert (code, printed) == (2, [])
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("tolerance", ["nan", "-0.1", "1", "inf"])
def test_a_tolerance_that_makes_no_sense_is_refused(tolerance):
    code, _, error = run("-", f"--tolerance={tolerance}", standard_input=GOOD)
    assert code == 2
    assert "must be at least 0 and below 1" in error


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f"{GOOD}\n" * 3_000)
    command = [sys.executable, "-c", "from megatron_spell.cli.main import main; main()", "score", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as scoring:
        assert scoring.stdout is not None
        assert json.loads(scoring.stdout.readline())["score"] == 1.0
        scoring.stdout.close()
        assert scoring.stderr is not None
        assert scoring.stderr.read() == b""
        assert scoring.wait(60) == 0

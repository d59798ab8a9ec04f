import json

import pytest

from megatron_spell.evaluation.record import BENCHMARKS
from megatron_spell.evaluation.results import ResultsError, SampleResult, read_results
from tests.unit.evaluation.made_results import result, results


def written(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_lines_come_back_as_they_were(tmp_path):
    lines = [*results("docmath", ["10", "11"], kind="complong"), result("frames", "é", 0, 0.0, judge_score=1.0)]
    read = read_results(written(tmp_path / "results.jsonl", *(line.line() for line in lines)))
    assert read == lines
    assert read[-1].score == 1.0 and read[-1].question == ("frames", True, "é")
    assert '"a?"' in result("frames", "a\ud800", 0, 0.0).line()


def test_every_benchmark_may_have_results():
    for benchmark in BENCHMARKS:
        assert SampleResult.model_validate_json(result(benchmark, "a", 0, 1.0).line()).benchmark == benchmark


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"score": 0.0}, "is not the larger"),
        ({"rule_score": 0.5, "score": 0.5}, "is neither 0 nor 1"),
        ({"benchmark": "squad"}, "benchmark = 'squad'"),
        ({"more": 1}, "more = 1"),
        ({"prompt_tokens": -1}, "prompt_tokens = -1"),
        ({"sample": "0"}, "sample = '0'"),
    ],
)
def test_a_line_that_is_no_result_is_named(tmp_path, change, wanted):
    good = json.loads(result("docmath", "a", 0, 1.0).line())
    path = written(tmp_path / "r.jsonl", json.dumps(good | {"record_id": "b"}), json.dumps(good | change))
    with pytest.raises(ResultsError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path}:2: ") and wanted in str(caught.value)


def test_a_sample_that_stands_twice_would_count_twice(tmp_path):
    line = result("docmath", "a", 0, 1.0).line()
    path = written(tmp_path / "r.jsonl", line, "", line)
    with pytest.raises(ResultsError, match="sample 0 of docmath 'a' stands in line 1 already"):
        read_results(path)
    other = result("docmath", "a", 0, 1.0, documents=False).line()
    assert len(read_results(written(path, line, other))) == 2


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_files_without_results(tmp_path, text):
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"r\.jsonl"):
        read_results(path)
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(tmp_path / "none.jsonl")

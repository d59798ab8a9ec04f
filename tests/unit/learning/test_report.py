"""From run folders to tables: known answers, what is missing, what the paper says."""

import json
from itertools import product

import numpy as np
import pytest
from collecting import CURVES, collect, gain_beside, gains_by_question, mean_gain
from intervals import Estimate
from plan import PlanError, planned_runs
from report import ablation_table, directions, fill, learning_table, page, same_direction, shortfalls

from tests.unit.learning.folders import evaluation, write_run

SEEDS, NAMES = (0, 1, 2), ("full", "no_memory")
BEFORE = [4, 4, 0, 8]  # of 8: half of them right
BETTER, WORSE = [6, 6, 4, 8], [5, 4, 0, 8]


@pytest.fixture
def results(finished):
    """The base gains 25 points in every seed, the variant 3.1."""
    answers = {("full", seed): (BEFORE, BETTER) for seed in SEEDS}
    return finished(answers | {("no_memory", seed): (BEFORE, WORSE) for seed in SEEDS})


def cells(table: str, row: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {row} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_result_is_what_the_folder_says(results):
    one = results[0]
    assert (one.variant, one.seed, one.steps, one.minutes) == ("full", 0, 2, 1.5)
    assert one.signs == {"always_yes": 3}
    assert one.gain == 0.25 and one.pass_change == 0.25
    assert one.curves["accuracy"] == one.curves["accuracy to tokens/256"] == [(0, 0.5), (2, 0.75)]
    assert one.curves["pass_at_all"] == [(0, 0.75), (2, 1.0)] and one.curves["longest_usable_tokens"][0] == (0, 300.0)
    assert one.curves["curriculum/document_tokens"] == [(1, 256.0), (2, 512.0)] and one.curves[CURVES[-1]] == []
    record = json.loads(json.dumps(one.record()))
    assert record["gain"] == 0.25 and record["after"]["num_right"] == BETTER and record["before"]["by_length"]


def test_gains_are_paired_by_seed_and_question(results):
    full, other = ([r for r in results if r.variant == name] for name in ("full", "no_memory"))
    assert np.array_equal(gains_by_question(full), [[0.25, 0.25, 0.5, 0]] * 3)
    assert mean_gain(full).mean == pytest.approx(0.25)
    beside = gain_beside(other, full)
    assert beside.mean == pytest.approx(0.03125 - 0.25)
    assert gain_beside(other[1:], full[:2]).mean == pytest.approx(beside.mean)  # the one seed that both have
    assert gain_beside(other[:1], full[1:]) is None


def test_pairing_takes_out_what_questions_have_in_common(finished):
    """Both variants gain on the same questions: the gain is uncertain, the difference is not."""
    rng = np.random.default_rng(0)
    easy = rng.integers(0, 8, size=40)
    answers = {}
    for seed in SEEDS:
        answers["full", seed] = ([0] * 40, (easy + 1).tolist())
        answers["no_memory", seed] = ([0] * 40, easy.tolist())
    results = finished(answers)
    full, other = ([r for r in results if r.variant == name] for name in ("full", "no_memory"))
    gain, beside = mean_gain(full), gain_beside(other, full)
    assert gain.high - gain.low > 0.1
    assert (beside.low, beside.high) == pytest.approx((-0.125, -0.125))


def test_without_counts_of_each_question_the_interval_is_over_seeds(finished):
    answers = {("full", seed): (BEFORE, [6, 6, 4, 8 - seed]) for seed in SEEDS}
    results = finished(answers, asked=None)
    assert gains_by_question(results) is None
    found = mean_gain(results)
    assert found.mean == pytest.approx(np.mean([r.gain for r in results])) and found.low < found.mean
    table = learning_table(results)
    assert "Student's t over seeds" in table and "to 256 tokens" not in table
    assert cells(table, "0")[5] == "- → -"


def test_runs_that_did_not_ask_the_same_are_not_paired(experiment, tmp_path):
    runs = planned_runs(experiment, tmp_path)[:2]
    for run, asked in zip(runs, ("these", "those")):
        write_run(run.folder, [evaluation("before", 0, BEFORE, asked), evaluation("after", 2, BETTER, asked)])
    assert gains_by_question(collect(runs)) is None


def test_what_is_not_finished_has_no_result(experiment, tmp_path):
    runs = planned_runs(experiment, tmp_path)
    write_run(runs[0].folder, [evaluation("before", 0, BEFORE)])
    write_run(runs[1].folder, [evaluation("before", 0, BEFORE), evaluation("after", 2, BETTER)])
    (runs[1].folder / "summary.json").unlink()
    assert collect(runs) == []


@pytest.mark.parametrize(("seconds", "minutes"), [((60.0, 30.0), 1.5), ((60.0, None), None), ((), None)])
def test_minutes_are_of_all_attempts_or_unknown(experiment, tmp_path, seconds, minutes):
    run = planned_runs(experiment, tmp_path)[0]
    write_run(run.folder, [evaluation("before", 0, BEFORE), evaluation("after", 2, BETTER)], seconds)
    assert collect([run])[0].minutes == minutes


def test_the_base_must_gain_in_each_seed(experiment, finished):
    flat, fewer = (BEFORE, BEFORE), ([8, 8, 0, 0], [0, 0, 0, 0])
    results = finished({("full", 0): (BEFORE, BETTER), ("full", 1): flat, ("no_memory", 0): fewer})
    assert shortfalls(experiment, results) == [
        "full, seed 1: accuracy rose by +0.0 points, not +10.0",
        "full, seed 2: no result",
    ]
    assert shortfalls(experiment.only(["no_memory"], []), results) == []
    assert len(shortfalls(experiment, finished({("full", 2): fewer}))) == 3


def test_ten_points_to_the_digit_are_enough_and_time_counts(experiment, tmp_path):
    run = planned_runs(experiment, tmp_path)[0]
    ten = [evaluation("before", 0, [4] * 10), evaluation("after", 2, [5] * 8 + [4] * 2)]
    write_run(run.folder, ten, seconds=(1900.0,))
    assert shortfalls(experiment.only([], [0]), collect([run])) == ["full, seed 0: took 31.7 minutes, not 30"]


def test_the_ablations_table(experiment, results):
    table = ablation_table(experiment, results)
    full, other = cells(table, "all of it"), cells(table, "no memory")
    assert full[:2] == ["all of it", "3 of 3"] and full[2].startswith("+25.0 (") and full[3] == "-"
    assert other[2].startswith("+3.1 (") and other[3].startswith("-21.9 (") and other[4] == "-2.9"
    assert other[6:] == ["+0.0", "always_yes (3 of 3)", "1.5"] and full[6] == "+25.0"
    assert "Table 0" in table


def test_a_variant_without_runs_has_a_row_of_dashes(experiment, finished):
    results = finished({("full", seed): (BEFORE, BETTER) for seed in SEEDS})
    assert cells(ablation_table(experiment, results), "no memory") == [
        *("no memory", "0 of 3", "-", "-", "-2.9", "-", "-", "-", "-")
    ]
    assert ablation_table(experiment, []) == learning_table([]) == "Not measured yet."


@pytest.mark.parametrize(
    ("low", "high", "papers", "said"),
    [
        (-3, -1, -2.9, "yes"),
        (1, 3, -2.9, "no"),
        (-1, 3, -2.9, "not resolved"),
        (None, None, -2.9, "not resolved"),
        (-3, -1, None, "not in the paper"),
    ],
)
def test_directions(low, high, papers, said):
    assert same_direction(Estimate(0.0, low, high), papers) == said


def test_directions_are_summed_up(experiment, finished, results):
    said, _ = directions(experiment, results)
    assert said == "Same direction as in the paper? Not resolved: no memory." and said in ablation_table(
        experiment, results
    )
    assert directions(experiment, [r for r in results if r.variant == "full"]) == []
    clear = finished(
        {(name, seed): ([0] * 9, [5 if name == "full" else 4] * 9) for name, seed in product(NAMES, SEEDS)}
    )
    assert directions(experiment, clear)[0].endswith("Yes: no memory.")


def test_the_learning_table(results):
    table = learning_table([r for r in results if r.variant == "full"])
    assert cells(table, "0") == [
        *("0", "50.0% → 75.0%", "+25.0", "75.0% → 100.0%", "50.0% → 75.0%", "50.0% → 75.0%"),
        *("300 → 300", "2", "1.5"),
    ]
    assert cells(table, "mean")[2].startswith("**+25.0** (")
    widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_page_says_what_failed(experiment, results):
    text = page(experiment, results, ["no_memory, seed 9: exit code 1: out of luck"])
    assert "Every seed of full gained +10.0 points or more" in text and "out of luck" in text
    assert "- full, seed 0: no result" in page(experiment, [], [])


def test_a_page_is_filled_between_its_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "learning.md"
    path.write_text("one\n<!-- filled: learning -->\nold\n<!-- end: learning -->\ntwo\n")
    for part in (r"a \1 table", "a new one"):
        fill(path, {"learning": part})
        assert path.read_text() == f"one\n<!-- filled: learning -->\n{part}\n<!-- end: learning -->\ntwo\n"
    with pytest.raises(PlanError, match="lacks <!-- filled: ablations -->"):
        fill(path, {"ablations": ""})
    with pytest.raises(PlanError, match="cannot be read"):
        fill(tmp_path / "absent.md", {})

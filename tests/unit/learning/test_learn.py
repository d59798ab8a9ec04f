"""The command: exit codes, what it writes, and what it refuses before anything is started."""

import json
import sys

import pytest

from tests.unit.learning.folders import ROOT, evaluation, write_run

BEFORE, BETTER = [4, 4, 0, 8], [6, 6, 4, 8]


@pytest.fixture
def learn(monkeypatch, tmp_path, capsys):
    """Calls the command with `--out` there; gives (exit code, stdout, stderr)."""
    import learn

    monkeypatch.chdir(ROOT)

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["learn.py", "--out", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit) as ended:
            learn.main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return call


def finish(folder, after=BETTER, variants=("quickstart",), seeds=(0, 1, 2)):
    for variant in variants:
        for seed in seeds:
            lines = [evaluation("before", 0, BEFORE), evaluation("after", 2, after)]
            write_run(folder / variant / f"seed_{seed}", lines)


def test_tables_of_what_is_there(learn, tmp_path):
    finish(tmp_path / "out")
    code, said, _ = learn("--tables", "--variants", "quickstart")
    assert code == 0 and "Every seed of quickstart gained" in said
    records = [json.loads(line) for line in (tmp_path / "out/results.jsonl").read_text().splitlines()]
    assert [(r["variant"], r["seed"], r["gain"]) for r in records] == [("quickstart", seed, 0.25) for seed in (0, 1, 2)]
    assert (tmp_path / "out/results.md").read_text() == said[: said.index("written:")].rstrip("\n") + "\n"
    assert (tmp_path / "out/learning.svg").is_file() and not (tmp_path / "out/ablations.svg").exists()


def test_finished_runs_are_not_run_again(learn, tmp_path):
    finish(tmp_path / "out")
    code, _, told = learn("--variants", "quickstart", "--set", "data.store=nowhere.h5")  # could not be run
    assert code == 0 and told.count("was finished before") == 3


def test_too_little_learned_and_a_missing_run_are_exit_code_1(learn, tmp_path):
    finish(tmp_path / "out", after=BEFORE, seeds=(0, 1))
    code, said, _ = learn("--tables", "--variants", "quickstart")
    assert code == 1
    assert (
        "quickstart, seed 0: accuracy rose by +0.0 points, not +10.0" in said
        and "quickstart, seed 2: not run yet" in said
    )


def test_a_page_gets_tables_and_plots(learn, tmp_path):
    finish(tmp_path / "out", variants=("quickstart", "full", "no_memory"))
    page = tmp_path / "learning.md"
    page.write_text((ROOT / "docs/learning.md").read_text(encoding="utf-8"))
    assert learn("--tables", "--variants", "quickstart", "full", "no_memory", "--page", str(page))[0] == 0
    text = page.read_text()
    assert "![learning](learning/learning.svg)" in text and "![ablations](learning/ablations.svg)" in text
    assert "| frozen questioner | 0 of 3 | - |" in text and text.count("## ") == 4
    assert (tmp_path / "learning/ablations.svg").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--variants", "fool"], "--variants fool: is not one of full, "),
        (["--set", "data.store=nowhere.h5"], "full, seed 0: data.store = nowhere.h5: there is no such file"),
        (["--set", "stepps=3"], "stepps: unknown field; did you mean steps?"),
        (["--plan", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["--tables", "--page", "nowhere.md"], "--page nowhere.md: cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(learn, tmp_path, words, said):
    code, _, told = learn(*words)
    assert code == 2 and said in told and told.count("\n") == 1
    assert not list(tmp_path.rglob("console.log"))


def test_a_folder_of_other_settings_is_refused_for_tables_too(learn, tmp_path):
    finish(tmp_path / "out")
    (tmp_path / "out/quickstart/seed_1/config.json").write_text(json.dumps({"steps": 100000}))
    code, _, told = learn("--tables")
    assert code == 2 and "quickstart/seed_1: was made with other steps" in told

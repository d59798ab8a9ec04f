import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from megatron_spell.observe.errors import ObserveError
from megatron_spell.observe.sinks import ConsoleSink, Sinks

NAN = float("nan")


def steps(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_steps(folder, numbers, next_step=0, value=1.0, names=("jsonl",)) -> None:
    with Sinks.open(names, folder, next_step) as sinks:
        for step in numbers:
            sinks.write(step, {"policy/loss": value + step})


def test_jsonl_holds_a_line_a_step_at_once(tmp_path):
    sinks = Sinks.open(["jsonl"], tmp_path / "run")
    sinks.write(0, {"a": 1.5, "b": NAN, "c": float("inf")})
    assert steps(tmp_path / "run") == [{"step": 0, "a": 1.5, "b": None, "c": None}]
    sinks.write(1, {"a": 2})
    assert [record["step"] for record in steps(tmp_path / "run")] == [0, 1]
    sinks.close()


def test_a_resumed_run_replaces_the_steps_it_plays_again(tmp_path):
    write_steps(tmp_path, range(5))
    write_steps(tmp_path, range(3, 6), next_step=3, value=100.0)
    assert [(record["step"], record["policy/loss"]) for record in steps(tmp_path)] == [
        (0, 1.0),
        (1, 2.0),
        (2, 3.0),
        (3, 103.0),
        (4, 104.0),
        (5, 105.0),
    ]


def test_a_line_cut_off_by_a_crash_goes(tmp_path):
    write_steps(tmp_path, range(2))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "policy/lo')
    write_steps(tmp_path, [2], next_step=2)
    assert [record["step"] for record in steps(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize("foreign", ["not metrics\n", '{"epoch": 1}\n', "[1]\n", '{"step": null}\n'])
def test_a_foreign_file_is_left_as_it_is(tmp_path, foreign):
    text = '{"step": 0}\n' + foreign + '{"step": 1}\n'
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(ObserveError, match=r"metrics.jsonl: line 2 is not a step's metrics"):
        Sinks.open(["jsonl"], tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_a_step_is_never_written_twice(tmp_path):
    with Sinks.open(["jsonl"], tmp_path, next_step=3) as sinks:
        with pytest.raises(ObserveError, match="step 2: its metrics are already written; the next step is 3"):
            sinks.write(2, {})
        sinks.write(3, {})
        with pytest.raises(ObserveError, match="step 3"):
            sinks.write(3, {})
    assert [record["step"] for record in steps(tmp_path)] == [3]


def test_an_unknown_sink_is_refused(tmp_path):
    with pytest.raises(ObserveError, match=r"observe\.sinks: 'paper' is not a sink; use console, jsonl, tensorboard"):
        Sinks.open(["jsonl", "paper"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_back_what_was_written(tmp_path):
    with Sinks.open(["tensorboard"], tmp_path) as sinks:
        sinks.write(0, {"a/b": 1.5, "c": NAN})
        sinks.write(1, {"a/b": 2.5, "c": 3.0})
    assert scalars(tmp_path) == {"a/b": [(0, 1.5), (1, 2.5)], "c": [(1, 3.0)]}


@pytest.mark.parametrize("first", [0, 2])
def test_tensorboard_forgets_the_steps_that_are_played_again(tmp_path, first):
    write_steps(tmp_path, range(4), names=("tensorboard",))
    write_steps(tmp_path, range(first, 5), next_step=first, value=100.0, names=("tensorboard",))
    expected = [(step, 1.0 + step) for step in range(first)] + [(step, 100.0 + step) for step in range(first, 5)]
    assert scalars(tmp_path) == {"policy/loss": expected}


def test_figures_written_aside_are_in_tensorboard_alone(tmp_path, capsys):
    with Sinks.open(["console", "jsonl", "tensorboard"], tmp_path, next_step=1) as sinks:
        sinks.write_aside(0, {"evaluation/accuracy": 0.5})
        sinks.write(1, {"a/b": 1.5})
        sinks.write_aside(1, {"evaluation/accuracy": 0.75})
    assert scalars(tmp_path) == {"evaluation/accuracy": [(0, 0.5), (1, 0.75)], "a/b": [(1, 1.5)]}
    assert [step["step"] for step in steps(tmp_path)] == [1]
    assert "evaluation" not in capsys.readouterr().out


def test_the_console_shows_one_line_a_step(tmp_path):
    shown = io.StringIO()
    sink = ConsoleSink(tmp_path, 0, Console(file=shown, soft_wrap=True, width=40))
    sink.write(3, {"responder/solve_rate/mean": 0.51234, "policy/loss": NAN, "rounds/count": 12.0, "other": 1.0})
    sink.write(4, {})
    first, second = shown.getvalue().splitlines()
    assert first.split() == ["step", "3", "rounds", "12", "solved", "0.512", "loss", "+nan"]
    assert second.split() == ["step", "4"]


def test_all_sinks_together(tmp_path, capsys):
    write_steps(tmp_path, range(2), names=("console", "jsonl", "tensorboard"))
    assert len(steps(tmp_path)) == 2
    assert len(scalars(tmp_path)["policy/loss"]) == 2
    assert "step 1" in capsys.readouterr().out


def test_tensorboard_loads_neither_torch_nor_tensorflow(tmp_path):
    code = (
        "import sys, pathlib; from megatron_spell.observe.sinks import Sinks\n"
        "assert 'tensorboard' not in sys.modules\n"
        f"with Sinks.open(['tensorboard'], pathlib.Path({str(tmp_path)!r})) as sinks: sinks.write(0, {{'a': 1.0}})\n"
        "sys.exit(bool({'torch', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

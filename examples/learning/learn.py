"""Does self-play learn, and what does each part of the method give? Runs the base and its ablations, and tabulates.

    python examples/learning/learn.py

Finished runs are skipped and begun ones gone on from, so an interrupted command is simply given again. Exit code 0:
every run is there, and each seed of the variant that must learn did so; 1: not so, told in a line
each; 2: the settings cannot work. Run it from the repository's root.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import report
from collecting import RunResult, collect
from plan import Experiment, PlanError, PlannedRun, load_experiment, planned_runs
from progress import LearningProgress
from rich.console import Console
from running import Ended, Runner

from megatron_spell.cluster.guard import start_guard
from megatron_spell.config.check import violations
from megatron_spell.config.load import ConfigError
from megatron_spell.observe.files import json_line, write_whole

HERE = Path(__file__).parent
FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130


def main() -> None:
    options = _options()
    try:
        whole = load_experiment(options.plan).only([], options.seeds)
        asked = whole.only(options.variants, [])
        runs = planned_runs(whole, options.out, options.set)
        for run in runs:
            run.check()
        chosen = [run for run in runs if run.variant in asked.variants]
        ended = [] if options.tables else play(chosen, whole.limit_minutes, options.parallel, options.pin)
        results = collect(runs)
        failures = failed(chosen, ended, results)
        publish(whole, results, failures, options.out, options.page)
        sys.exit(FAILED if failures or report.shortfalls(asked, results) else 0)
    except (PlanError, ConfigError) as error:
        print(f"learn: {error}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        print("learn: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--plan", type=Path, default=HERE / "variants.yaml", help="what is run")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"), help="folder of the runs and tables")
    parser.add_argument("--variants", nargs="*", default=[], metavar="NAME", help="only these")
    parser.add_argument("--seeds", nargs="*", type=int, default=[], help="these in place of the plan's")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, each on one core")
    parser.add_argument("--no-pin", dest="pin", action="store_false", help="leave the cores to the system")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a setting of every run")
    parser.add_argument("--tables", action="store_true", help="run nothing; tables and plots of what is there")
    parser.add_argument("--page", type=Path, help="page to fill with tables and plots, such as docs/learning.md")
    options = parser.parse_args()
    if options.parallel < 1:
        parser.error(f"--parallel {options.parallel}: at least 1")
    return options


def play(runs: Sequence[PlannedRun], limit_minutes: float, parallel: int, pin: bool) -> list[Ended]:
    """Run what is not finished. Raises PlanError, before anything is started, for one that cannot be run."""
    for run in runs:
        faults = [] if run.finished else violations(run.config())
        if faults:
            raise PlanError(f"{run.name}: {faults[0]}")
    if not all(run.finished for run in runs):
        start_guard()  # whatever ends this program, no run stays behind
    progress = LearningProgress(runs, Console(stderr=True, highlight=False, soft_wrap=True))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with progress.shown():
            return Runner(parallel, limit_minutes * 60, progress.tell, pin=pin).all(runs)
    finally:
        signal.signal(signal.SIGTERM, before)


def failed(runs: Sequence[PlannedRun], ended: Sequence[Ended], results: Sequence[RunResult]) -> list[str]:
    """One line for each of the runs that has no result."""
    faults = {one.run: one.fault for one in ended if one.fault}
    found = {(result.variant, result.seed) for result in results}
    return [f"{run.name}: {faults.get(run, 'not run yet')}" for run in runs if (run.variant, run.seed) not in found]


def publish(
    experiment: Experiment, results: Sequence[RunResult], failures: Sequence[str], out: Path, page: Path | None
) -> None:
    """Write tables and plots."""
    write_whole(out / "results.jsonl", [json_line(result.record()) for result in results])
    text = report.page(experiment, results, failures)
    write_whole(out / "results.md", [text.rstrip("\n")])
    draw(experiment, results, out)
    if page is not None:
        fill(experiment, results, page)
    print(text)
    print(f"written: {out / 'results.jsonl'}, {out / 'results.md'} and plots beside them")


def draw(experiment: Experiment, results: Sequence[RunResult], folder: Path) -> None:
    import curves

    shown = [result for result in results if result.variant == experiment.required.variant]
    if shown:
        curves.learning_figure(folder / "learning.svg", shown)
    if len({result.variant for result in results}) > 1:
        curves.ablation_figure(folder / "ablations.svg", experiment, results)


def fill(experiment: Experiment, results: Sequence[RunResult], page: Path) -> None:
    """Bring tables and plots into `page`; the plots lie in a folder of its name beside it."""
    learner = report.by_variant(results).get(experiment.required.variant, ())
    folder = page.with_suffix("")
    draw(experiment, results, folder)
    plots = {name: folder / f"{name}.svg" for name in ("learning", "ablations")}
    shown = {n: f"![{n}]({folder.name}/{p.name})\n\n" if p.is_file() else "" for n, p in plots.items()}
    parts = {
        "learning": shown["learning"] + report.learning_table(learner),
        "ablations": shown["ablations"] + report.ablation_table(experiment, results),
    }
    report.fill(page, parts)


if __name__ == "__main__":
    main()

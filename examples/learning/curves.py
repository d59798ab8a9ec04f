"""Plots of accuracy over steps: a thin line for each seed, a thick one for their mean."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from collecting import TO_LENGTH, RunResult
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plan import Experiment

FULL, OTHER = "tab:blue", "tab:orange"
PANEL_INCHES = (3.2, 2.4)
COLUMNS = 4
# Text stays text, and the same results give the same file.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "learning", "font.size": 8, "axes.spines.top": False}
STYLE |= {"axes.spines.right": False, "legend.frameon": False, "axes.titlesize": 9}
PANELS = {
    "accuracy": "held-out accuracy",
    "pass_at_all": "held-out pass@k",
    "longest_usable_tokens": "longest usable length, tokens",
    "responder/solve_rate/mean": "solve rate in play",
    "curriculum/document_tokens": "document tokens in play",
    "policy/entropy/mean": "entropy, nats",
}


def learning_figure(path: Path, results: Sequence[RunResult]) -> None:
    """One variant over steps: what PANELS names, and accuracy by document tokens, as SVG."""
    lengths = sorted({int(name.removeprefix(TO_LENGTH)) for r in results for name in r.curves if TO_LENGTH in name})

    def draw(panels: Sequence[Axes]) -> None:
        for axes, (name, title) in zip(panels, PANELS.items()):
            _lines(axes, results, name, FULL)
            axes.set_title(title)
        panels[0].legend(loc="lower right")
        for tokens in lengths:
            axes = panels[len(PANELS)]
            axes.plot(*_columns(mean_curve(results, f"{TO_LENGTH}{tokens}")), label=f"to {tokens} tokens")
            axes.set_title("held-out accuracy by length")
            axes.legend(loc="best")

    _save(path, len(PANELS) + bool(lengths), draw)


def ablation_figure(path: Path, experiment: Experiment, results: Sequence[RunResult]) -> None:
    """Accuracy over steps of every variant, each beside the base, as SVG."""
    base = [r for r in results if r.variant == experiment.base]
    names = [name for name in experiment.variants if name != experiment.base]

    def draw(panels: Sequence[Axes]) -> None:
        for axes, name in zip(panels, names):
            _lines(axes, base, "accuracy", FULL, experiment.base)
            _lines(axes, [r for r in results if r.variant == name], "accuracy", OTHER, name)
            axes.set_title(experiment.variants[name].title)
            axes.legend(loc="lower right")
        for axes in panels[1:]:
            axes.sharey(panels[0])

    if names:
        _save(path, len(names), draw)


def mean_curve(results: Sequence[RunResult], name: str) -> list[tuple[int, float]]:
    """The mean over seeds at the steps that all of them have."""
    found = [dict(result.curves.get(name, ())) for result in results]
    shared = sorted(set.intersection(*(set(curve) for curve in found))) if found else []
    return [(step, float(np.mean([curve[step] for curve in found]))) for step in shared]


def _lines(axes: Axes, results: Sequence[RunResult], name: str, colour: str, label: str | None = None) -> None:
    for result in results:
        axes.plot(*_columns(result.curves.get(name, ())), color=colour, linewidth=0.6, alpha=0.6)
    shown = label or f"mean of {len(results)} seeds"
    axes.plot(*_columns(mean_curve(results, name)), color=colour, linewidth=1.8, label=shown)
    axes.set_xlabel("step")


def _columns(curve: Sequence[tuple[int, float]]) -> tuple[list[Any], list[Any]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _save(path: Path, num_panels: int, draw: Callable[[Sequence[Axes]], None]) -> None:
    columns = min(COLUMNS, num_panels)
    rows = -(-num_panels // columns)
    with mpl.rc_context(STYLE):
        figure = Figure((columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
        for axes in panels[num_panels:]:
            axes.set_axis_off()
        draw(panels[:num_panels])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})

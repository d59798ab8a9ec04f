"""Bars of tokens a word, two for each kind of document."""

from pathlib import Path

from tokenizer_tools.errors import ToolError
from tokenizer_tools.fertility import Comparison


def plot_comparison(comparison: Comparison, out: Path) -> Path:
    """Write the plot; the ending of `out` chooses the format. Raises ToolError where matplotlib is absent."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ToolError("--plot needs matplotlib; install it with `pip install matplotlib`") from None
    kinds = list(comparison.counts)
    figure = Figure(figsize=(max(4.0, 1.1 * len(kinds) + 2), 3.6), layout="constrained")
    axes = figure.subplots()
    for side, (name, shift) in enumerate(zip(comparison.names, (-0.2, 0.2))):
        heights = [comparison.counts[kind][side].rates()["tokens_per_word"] for kind in kinds]
        bars = axes.bar([at + shift for at in range(len(kinds))], heights, width=0.4, label=Path(name).name)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.set_xticks(range(len(kinds)), kinds, rotation=20, ha="right")
    axes.set_ylabel("tokens a word")
    axes.legend(frameon=False)
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:  # a format that matplotlib does not know
        raise ToolError(f"{out}: {error}") from None
    return out

"""What `check-bridge` found, as tables for people."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from megatron_spell.train.bridge_forecast import Forecast, Layout, Spread
from megatron_spell.train.bridge_timing import Bound

if TYPE_CHECKING:  # needs torch, a dry run does not
    from megatron_spell.train.bridge_check import Report

NUMBERS = ("bytes", "share", "min", "mean", "max", "max / mean", "seconds", "bound", "times bound", "boxes", "elements")
WIDTH_OF_FILES = 160  # characters, where no terminal says how many


def console_for_tables() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH_OF_FILES)


def forecast_tables(layout: Layout, found: Forecast, peak_memory_bytes: int) -> Iterator[Table]:
    yield _plan(layout, found, peak_memory_bytes)
    yield _paths(found)
    yield _ranks(found)
    yield _hardware(found)


def comparison_table(report: "Report") -> Table:
    """A line for each group of tensors, N standing for every layer and * for every expert."""
    table = _table("trainers, engines and the folder", "tensors", "boxes", "elements", "holders", "verdict")
    for row in report.rows:
        holders = ", ".join(_holders(side, count) for side, count in row.num_holders.items())
        verdict = f"{len(row.differences)} DIFFER" if row.differences else "equal"
        table.add_row(row.group, f"{row.num_boxes:,}", f"{row.num_elements:,}", holders, verdict)
    return table


def summary(report: "Report") -> str:
    share = report.num_elements / report.num_model_elements
    what = "all elements" if report.full else f"sampled boxes (seed {report.seed}, {share:.1%} of the elements)"
    verdict = f"{len(report.differences)} boxes differ" if report.differences else "all are equal"
    return f"{report.num_tensors:,} tensors, {report.num_elements:,} elements compared, {what}: {verdict}"


def _holders(side: str, count: int) -> str:
    if side == "folder":
        return side if count else "no folder"
    return f"{count} of {side}"


def _plan(layout: Layout, found: Forecast, peak_memory_bytes: int) -> Table:
    shape = layout.shape
    table = _table("a refresh, planned", None, None)
    verdict = "each element exactly once, counted anew" if not found.faults else f"{len(found.faults)} FAULTS, below"
    where = "colocated with the trainers" if layout.colocated else "on GPUs of their own"
    limit = f"2 buckets of bridge.bucket_mib = {layout.bucket_bytes / 2**20:g}"
    for name, value in (
        ("model", f"{shape.family}, {shape.num_parameters / 1e9:.2f} billion parameters, {layout.dtype} on the wire"),
        ("trainers", f"{layout.mesh.world_size} ranks ({layout.mesh})"),
        ("engines", f"{layout.num_engines} x {layout.engine_mesh.num_workers} ({layout.engine_mesh}), {where}"),
        ("nodes", f"of {layout.gpus_per_node} GPUs"),
        ("tensors covered", f"{found.num_tensors:,} of {found.num_model_tensors:,}; {verdict}"),
        ("moved", f"{shown(found.num_bytes)} in {found.num_moves:,} moves"),
        ("messages", f"{found.num_messages:,} of {shown(layout.engine_bucket_bytes)} at most"),
        (
            "extra memory, a trainer",
            f"{shown(found.trainer_peak_extra_bytes)} at most ({limit}, shared by the engines)",
        ),
        ("extra memory, a worker", f"{shown(found.worker_peak_extra_bytes)} at most (2 of its engine's buckets)"),
        ("planning", f"{found.planning_s:.2f} s, {shown(peak_memory_bytes)} of memory at most"),
        ("plan, serialised", shown(found.plan_json_bytes)),
    ):
        table.add_row(name, value)
    return table


def _paths(found: Forecast) -> Table:
    table = _table("by link", "link", "bytes", "share")
    for path, num_bytes in found.num_bytes_by_path.items():
        table.add_row(str(path), shown(num_bytes), f"{num_bytes / found.num_bytes:.1%}")
    return table


def _ranks(found: Forecast) -> Table:
    table = _table("by rank", "", "min", "mean", "max", "max / mean")
    for name, spread, form in (
        ("a trainer sends", found.sent_bytes, shown),
        ("a worker receives", found.received_bytes, shown),
        ("messages of a trainer", found.messages_of_trainers, _count),
        ("messages of a worker", found.messages_of_workers, _count),
    ):
        table.add_row(name, *_row(spread, form))
    return table


def _row(spread: Spread, form) -> Iterator[str]:
    yield from (form(value) for value in (spread.min, spread.mean, spread.max))
    yield f"{spread.imbalance:.3f}"


def _hardware(found: Forecast) -> Table:
    table = _table("predicted, not measured", "hardware", "seconds", "bound", "times bound", "the bound is what")
    for each in found.predictions:
        ratio = f"{each.seconds / each.bound.seconds:.2f}"
        table.add_row(each.hardware, f"{each.seconds:.3f}", f"{each.bound.seconds:.3f}", ratio, _described(each.bound))
    return table


def _described(bound: Bound) -> str:
    return f"GPU {bound.gpu} {'sends' if bound.sends else 'receives'}: {shown(bound.num_bytes)}, {bound.path}"


def shown(num_bytes: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.2f} {name}"
    return f"{num_bytes / 1e3:.1f} kB" if num_bytes >= 1e3 else f"{num_bytes:g} bytes"


def _count(number: float) -> str:
    return f"{number:,.1f}".removesuffix(".0")


def _table(title: str, *columns: str | None) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column or "", overflow="fold", justify="right" if column in NUMBERS else "left")
    return table

"""The report of a build as a Markdown page."""

from collections.abc import Iterable, Sequence
from typing import Any


def page(figures: dict[str, Any], command: str, plot: str) -> str:
    """`figures` of report.py as a page; `plot` is the name of the picture beside it."""
    sections = [
        f"# Corpus report\n\n    {_over_lines(command)}\n\n{_sentence(figures)}",
        _sources(figures["sources"]),
        _benchmarks(figures["benchmarks"]),
        _faults(figures["faults"]),
        f"## Lengths\n![Characters of a document, read and kept]({plot})",
        _near_duplicates(figures["near_duplicates"]),
        _settings(figures["settings"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _over_lines(command: str) -> str:
    """A line for every option, as a shell takes it."""
    return command.replace(" --", " \\\n        --")


def _sentence(figures: dict[str, Any]) -> str:
    sets = figures["sets"]
    dropped = figures["dropped"]
    reasons = ", ".join(f"{num:,} {_words(reason)}" for reason, num in dropped.items()) or "nothing"
    return (
        f"{figures['read']:,} documents were read and {figures['kept']:,} kept, in {sets['train']:,} training and"
        f" {sets['heldout']:,} held-out sets. Dropped: {reasons}. A set that stands as it is counts with each of its"
        " documents, and is kept or dropped as a whole. `dropped.jsonl` has a line for each that was dropped."
    )


def _sources(rows: list[dict[str, Any]]) -> str:
    reasons = list(dict.fromkeys(reason for row in rows for reason in row["dropped"]))
    head = ["source", "read", "kept", "characters kept", "sets as they stand", *map(_words, reasons), "unreadable"]
    lines = (
        [
            f"`{row['source']}`",
            *(row[name] for name in ("read", "kept", "kept_chars", "kept_sets_as_they_stand")),
            *(row["dropped"].get(reason, 0) for reason in reasons),
            row["unreadable"],
        ]
        for row in rows
    )
    return "## By source\n" + _table(head, lines)


def _benchmarks(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    rule = (
        "A document or set is dropped when it holds 13 consecutive words of a benchmark's question or answer (all of"
        " one of 8 to 12 words), or when a tenth of its own 13-word sequences, or as many as a passage of 50 words has,"
        " stand in benchmarks' contexts. Each counts for the benchmark that most of the shared text is from."
    )
    lines = ([f"`{row['benchmark']}`", row["benchmark_question"], row["benchmark_context"]] for row in rows)
    return f"## Shared with benchmarks\n{rule}\n\n" + _table(
        ["benchmark", "by question or answer", "by context"], lines
    )


def _faults(rows: list[dict[str, Any]]) -> str:
    lines = ([f"`{row['file']}`", row["records"], row["first"]] for row in rows)
    return "## Could not be read\n" + _table(["file", "records", "first"], lines) if rows else ""


def _near_duplicates(examples: list[dict[str, Any]]) -> str:
    if not examples:
        return ""
    lines = (
        [f"{one['similarity']:.2f}", *(f"`{one[side]['id']}` {one[side]['begins']}" for side in ("dropped", "kept"))]
        for one in examples
    )
    return "## Near duplicates, some of them\n" + _table(["similarity", "dropped", "kept"], lines)


def _settings(settings: dict[str, Any]) -> str:
    return "## Settings\n" + _table(["setting", "value"], ([f"`{name}`", value] for name, value in settings.items()))


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return " ".join(str(value).split()).replace("|", "\\|")


def _words(reason: str) -> str:
    return reason.replace("_", " ")

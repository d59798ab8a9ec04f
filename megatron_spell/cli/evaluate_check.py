"""`megatron-spell evaluate --check`: what benchmark files hold, before anything is asked. Imports happen inside."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from megatron_spell.cli.refusal import USAGE_ERROR

if TYPE_CHECKING:
    from megatron_spell.evaluation.reading import FileCheck
    from megatron_spell.evaluation.record import BadRecord

_SHOWN_REASONS = 5


def check_files(files: Sequence[str]) -> int:
    """Print what each of `files` (FILE or NAME=FILE) holds and lacks; the exit code, 2 when any lacks anything."""
    from megatron_spell.evaluation.reading import check_all, told

    checks = check_all(told(text) for text in files)
    for found in checks:
        print(*_lines(found), sep="\n")
    return 0 if all(found.complete for found in checks) else USAGE_ERROR


def _lines(found: "FileCheck") -> Iterator[str]:
    yield f"{found.path}: {_holds(found)}"
    for gap in found.gaps:
        which = "all records" if gap.num_records == found.num_records else _counted(gap.num_records, "record")
        yield f"  missing in {which}, first {gap.first}: {gap.what}"
    for reason, origins in _by_reason(found.bad_records).items():
        more = f" (and {_counted(len(origins) - 1, 'record')} more)" if len(origins) > 1 else ""
        yield f"  bad: {origins[0]}{more}: {reason}"


def _by_reason(bad_records: "Iterable[BadRecord]") -> dict[str, list[str]]:
    origins: dict[str, list[str]] = {}
    for bad in bad_records:
        origins.setdefault(bad.reason, []).append(bad.origin)
    if len(origins) <= _SHOWN_REASONS:
        return origins
    shown = dict(list(origins.items())[:_SHOWN_REASONS])
    rest = [origin for reason, each in origins.items() if reason not in shown for origin in each]
    return shown | {"for other reasons": rest}


def _holds(found: "FileCheck") -> str:
    from megatron_spell.evaluation.record import PROTOCOL_SIZES

    counts = [
        f"{name}, {_counted(count, 'record')} (the protocol's set has {PROTOCOL_SIZES[name]})"
        for name, count in found.benchmarks.items()
    ]
    return "; ".join(counts) or "no record of a benchmark"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

"""What a build kept and dropped and why: report.json, report.md, lengths.svg and dropped.jsonl in one folder."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_spell.data.corpus.decontaminate import NO_BENCHMARK
from megatron_spell.data.corpus.filters import REASONS
from megatron_spell.data.corpus.parts import NOT_STANDING
from megatron_spell.data.corpus.plan import Corpus
from megatron_spell.data.corpus.report_page import page
from megatron_spell.data.corpus.units import Texts
from megatron_spell.data.corpus.work import write_whole
from megatron_spell.data.documents import documents_of
from megatron_spell.data.settings import BuildSettings

NUM_EXAMPLES = 8
_EXCERPT_CHARS = 160
_STEP = 2**0.5  # between the edges of the histogram
PLOT = "lengths.svg"


def write_report(
    corpus: Corpus, settings: BuildSettings, benchmarks: Sequence[str], command: str, folder: Path
) -> None:
    """Write the report of `corpus`; `command` is shown as what made it."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = report_figures(corpus, settings, benchmarks)
    _plot(figures["lengths"], folder / PLOT)
    text = json.dumps(figures | {"command": command}, ensure_ascii=False, indent=2)
    write_whole(folder / "report.json", lambda file: file.write(text.encode("utf-8")))
    shown = page(figures, command, PLOT)
    write_whole(folder / "report.md", lambda file: file.write(shown.encode("utf-8")))
    write_whole(folder / "dropped.jsonl", lambda file: file.writelines(_dropped_lines(corpus, benchmarks)))


def report_figures(corpus: Corpus, settings: BuildSettings, benchmarks: Sequence[str]) -> dict[str, Any]:
    """All figures of a report, in JSON's own types. Counts are of documents unless they are named otherwise."""
    splits = [one.split for one in corpus.sets]
    return {
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__} | corpus.recorded,
        "read": int(corpus.num_by_reason()[""] + sum(n for reason, n in corpus.num_by_reason().items() if reason)),
        "kept": corpus.num_kept,
        "dropped": {reason: num for reason, num in corpus.num_by_reason().items() if reason and num},
        "sources": _by_source(corpus),
        "benchmarks": _by_benchmark(corpus, benchmarks),
        "sets": {split: splits.count(split) for split in ("train", "heldout")},
        "faults": [{"file": path, "records": num, "first": first} for _, path, first, num in corpus.faults],
        "lengths": _lengths(corpus),
        "near_duplicates": list(_examples(corpus)),
    }


def _by_source(corpus: Corpus) -> list[dict[str, Any]]:
    units, rows = corpus.units, []
    weights = np.maximum(1, units.num_documents)
    for number, name in enumerate(corpus.sources):
        mine = units.sources == number
        counts = np.bincount(corpus.verdicts[mine], weights[mine], minlength=len(REASONS)).astype(int).tolist()
        kept = mine & (corpus.verdicts == 0)
        rows.append(
            {
                "source": name,
                "read": sum(counts),
                "kept": counts[0],
                "kept_chars": int(units.num_chars[kept].sum()),
                "kept_sets_as_they_stand": int((units.standing[kept] != NOT_STANDING).sum()),
                "dropped": {reason: num for reason, num in zip(REASONS, counts, strict=True) if reason and num},
                "unreadable": sum(num for source, _, _, num in corpus.faults if source == number),
            }
        )
    return rows


def _by_benchmark(corpus: Corpus, benchmarks: Sequence[str]) -> list[dict[str, Any]]:
    weights = np.maximum(1, corpus.units.num_documents)
    rows = []
    for number, name in enumerate(benchmarks):
        mine = corpus.benchmarks == number
        counts = np.bincount(corpus.verdicts[mine], weights[mine], minlength=len(REASONS)).astype(int)
        reasons = ("benchmark_question", "benchmark_context")
        rows.append({"benchmark": name} | {reason: int(counts[REASONS.index(reason)]) for reason in reasons})
    return rows


def _lengths(corpus: Corpus) -> dict[str, list]:
    """Histogram of characters, over edges that grow by the same factor: of what was read, and of what was kept."""
    chars = corpus.units.num_chars
    most = max(int(chars.max(initial=1)), 2)
    edges = np.unique(np.ceil(_STEP ** np.arange(0, np.log(most) / np.log(_STEP) + 2)).astype(np.int64))
    counts = {name: np.histogram(values, edges)[0].tolist() for name, values in _read_and_kept(corpus)}
    return {"edges": edges.tolist()} | counts


def _read_and_kept(corpus: Corpus) -> tuple[tuple[str, np.ndarray], ...]:
    return ("read", corpus.units.num_chars), ("kept", corpus.units.num_chars[corpus.verdicts == 0])


def _examples(corpus: Corpus) -> Iterator[dict[str, Any]]:
    """Near duplicates, from the least alike to the most."""
    places = np.flatnonzero(corpus.verdicts == REASONS.index("near_duplicate"))
    by_likeness = places[np.argsort(corpus.similarities[places], kind="stable")]
    chosen = np.unique(np.linspace(0, max(0, len(places) - 1), NUM_EXAMPLES).astype(int))
    with Texts() as texts:
        for place in by_likeness[chosen].tolist() if len(places) else ():
            yield {
                "similarity": round(float(corpus.similarities[place]), 3),
                "dropped": _shown(corpus, texts, place),
                "kept": _shown(corpus, texts, int(corpus.repeats[place])),
            }


def _shown(corpus: Corpus, texts: Texts, place: int) -> dict[str, str]:
    unit = texts.at(corpus.units.where(place))
    return {"id": documents_of(unit)[0].doc_id, "begins": " ".join(unit.text[:_EXCERPT_CHARS].split())}


def _dropped_lines(corpus: Corpus, benchmarks: Sequence[str]) -> Iterator[bytes]:
    with Texts() as texts:
        for place in np.flatnonzero(corpus.verdicts).tolist():
            line = {
                "source": corpus.sources[corpus.units.sources[place]],
                "id": _id(corpus, texts, place),
                "reason": REASONS[corpus.verdicts[place]],
                "chars": int(corpus.units.num_chars[place]),
            }
            if corpus.repeats[place] >= 0:
                line |= {"of": _id(corpus, texts, int(corpus.repeats[place]))}
                line |= {"similarity": round(float(corpus.similarities[place]), 3)}
            if corpus.benchmarks[place] != NO_BENCHMARK:
                line |= {"benchmark": benchmarks[corpus.benchmarks[place]]}
            yield json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n"


def _id(corpus: Corpus, texts: Texts, place: int) -> str:
    unit = texts.at(corpus.units.where(place))
    return unit.group if corpus.units.standing[place] != NOT_STANDING else documents_of(unit)[0].doc_id


def _plot(lengths: dict[str, list], path: Path) -> None:
    """Draw the histogram. Equal figures give equal bytes."""
    import matplotlib  # takes a second, which no other command needs to wait
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "lengths", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.add_subplot()
        for name, colour in (("read", "0.8"), ("kept", "tab:blue")):
            axes.stairs(lengths[name], lengths["edges"], fill=True, color=colour, label=name)
        axes.set(xscale="log", xlabel="characters of a document (or set as it stands)", ylabel="documents")
        axes.legend(frameon=False)
        write_whole(path, lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))

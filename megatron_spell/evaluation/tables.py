"""The tables of an evaluation: rows of text, which pages.py writes as Markdown and HTML. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_spell.evaluation.figures import Estimate
from megatron_spell.evaluation.paper import AVERAGE, LIMITS, PASS_AT_LIMIT, VARIANTS, PaperModel
from megatron_spell.evaluation.record import PROTOCOL_SIZES
from megatron_spell.evaluation.summary import COLUMNS, Asked, Figures, Summary

NONE = "-"
SIX_TASKS = "Avg (6 tasks)"
FOUR_COLUMNS = "Avg (4 columns)"


@dataclass(frozen=True, slots=True)
class Measured:
    """One evaluation: what it is called ("base", "after 70 steps"), its input limit in tokens, and its figures."""

    label: str
    max_input_tokens: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    notes: tuple[str, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(measured: Sequence[Measured], paper: PaperModel | None) -> list[Table]:
    """All tables, those without a row left out."""
    made = [compared(measured, paper), by_benchmark(measured), by_samples(measured, paper), verdicts(measured)]
    made += [by_length(measured), by_kind(measured)]
    return [table for table in made if table.rows]


def compared(measured: Sequence[Measured], paper: PaperModel | None) -> Table:
    """The paper's rows for the model at both limits, each with our own of that limit below it."""
    limits = sorted({*(LIMITS if paper else ()), *(each.max_input_tokens for each in measured)})
    rows = [
        row
        for limit in limits
        for row in (
            *(_paper_row(paper, limit) if paper else ()),
            *(_own_row(each) for each in measured if each.max_input_tokens == limit and each.summary.documents),
        )
    ]
    notes = [
        "Percent right, pass@1, with the 95 % interval over questions where it was measured here. The average of 4"
        " columns is the paper's; 6 tasks count each multi-hop set by itself.",
        *_unlike_the_protocol(measured),
    ]
    header = ("", "Input tokens", *COLUMNS, FOUR_COLUMNS, SIX_TASKS)
    return Table(f"Beside the paper's {paper.name}" if paper else "Scores", tuple(notes), header, tuple(rows))


def _paper_row(paper: PaperModel, limit: int) -> Iterator[tuple[str, ...]]:
    for variant in VARIANTS:
        row = paper.scores.get((variant, limit))
        if row:
            label = "paper" if variant == "base" else f"paper + {variant}"
            columns = (f"{row[name]:.1f}" for name in (*COLUMNS, AVERAGE))
            yield (label, f"{limit:,}", *columns, NONE)


def _own_row(each: Measured) -> tuple[str, ...]:
    asked = each.summary.documents
    assert asked is not None
    columns = [asked.columns.get(name, {}) for name in COLUMNS]
    shown = (_estimate(by_k.get(1)) for by_k in (*columns, asked.four_columns, asked.six_tasks))
    return (each.label, f"{each.max_input_tokens:,}", *shown)


def _unlike_the_protocol(measured: Sequence[Measured]) -> Iterator[str]:
    for each in measured:
        asked = each.summary.documents
        partial = [
            f"{figures.num_questions} of {PROTOCOL_SIZES[name]} questions of {name}"
            for name, figures in (asked.benchmarks.items() if asked else ())
            if figures.num_questions != PROTOCOL_SIZES[name]
        ]
        if partial:
            yield f"{each.label}: {', '.join(partial)}. Such scores are not comparable with the paper's."
        if asked and asked.missing:
            yield f"{each.label}: not asked: {', '.join(asked.missing)}."


def by_benchmark(measured: Sequence[Measured]) -> Table:
    notes = (
        "Score: larger of rule and judge. Shares are of samples: truncated lost the middle of the prompt, unfinished"
        " ran into the output limit, no answer ended without stating one. Withheld: the same questions without"
        " documents; gain: what the documents give, on the questions asked both ways.",
    )
    header = ("", "Benchmark", "Questions", "Samples", "Score", "Rule alone", "Withheld", "Gain")
    header += ("Truncated", "Unfinished", "No answer", "Prompt tokens", "Output tokens")
    rows = [_benchmark_row(each, name) for each in measured for name in _names(each)]
    return Table("By benchmark", notes, header, tuple(rows))


def _names(each: Measured) -> list[str]:
    every = [asked.benchmarks for asked in (each.summary.documents, each.summary.withheld) if asked]
    return [name for name in PROTOCOL_SIZES if any(name in benchmarks for benchmarks in every)]


def _benchmark_row(each: Measured, name: str) -> tuple[str, ...]:
    told, withheld = (_figures_of(asked, name) for asked in (each.summary.documents, each.summary.withheld))
    counted = told or withheld
    assert counted is not None
    head = (each.label, name, f"{counted.num_questions} of {PROTOCOL_SIZES[name]}", str(counted.num_samples))
    scores = (_estimate(told and told.score), _estimate(told and told.rule), _estimate(withheld and withheld.score))
    shares = (told.truncated, told.unfinished, told.unread) if told else ()
    lengths = (f"{told.prompt_tokens:,.0f}", f"{told.num_tokens:,.0f}") if told else (NONE, NONE)
    return (
        *head,
        *scores,
        _estimate(each.summary.gain.get(name), signed=True),
        *(tuple(f"{share:.1%}" for share in shares) or (NONE,) * 3),
        *lengths,
    )


def _figures_of(asked: Asked | None, name: str) -> Figures | None:
    return asked.benchmarks.get(name) if asked else None


def by_samples(measured: Sequence[Measured], paper: PaperModel | None) -> Table:
    """pass@k by column, beside the paper's where it published them and the limit is its own."""
    most = sorted({k for each in measured for by_k in _by_column(each).values() for k in by_k})
    rows = [row for each in measured for row in _pass_rows(each.label, each.max_input_tokens, _by_column(each), most)]
    if paper and rows and any(each.max_input_tokens == PASS_AT_LIMIT for each in measured):
        for variant, columns in paper.pass_at.items():
            label = "paper" if variant == "base" else f"paper + {variant}"
            for name, by_k in columns.items():
                shown = (f"{by_k[k]:.1f}" if k in by_k else NONE for k in most)
                rows.append((label, f"{PASS_AT_LIMIT:,}", FOUR_COLUMNS if name == AVERAGE else name, *shown))
    notes = ("Percent of questions that at least one of k samples gets right: the unbiased estimate, 95 % interval.",)
    header = ("", "Input tokens", "Column", *(f"pass@{k}" for k in most))
    return Table("pass@k", notes, header, tuple(rows))


def _by_column(each: Measured) -> dict[str, dict[int, Estimate]]:
    asked = each.summary.documents
    return {} if asked is None else {**asked.columns, FOUR_COLUMNS: asked.four_columns, SIX_TASKS: asked.six_tasks}


def _pass_rows(
    label: str, limit: int, columns: Mapping[str, Mapping[int, Estimate]], most: Sequence[int]
) -> Iterator[tuple[str, ...]]:
    for name, by_k in columns.items():
        if by_k:
            yield (label, f"{limit:,}", name, *(_estimate(by_k.get(k)) for k in most))


def verdicts(measured: Sequence[Measured]) -> Table:
    notes = (
        "Samples by the verdicts of rule and judge. The judge is not asked about an answer that the rule passes, unless"
        " told to; an answer without a verdict counts as the rule has it.",
    )
    header = ("", "Benchmark", "Both pass", "Rule alone", "Judge alone", "Both refuse")
    header += ("Rule passes, judge not asked", "No answer", "Refused, no verdict")
    rows = [
        (each.label, name, *(str(getattr(counts, field)) for field in counts.__dataclass_fields__))
        for each in measured
        if each.summary.documents
        for name, counts in each.summary.documents.agreement.items()
    ]
    return Table("Rule and judge", notes, header, tuple(rows))


def by_length(measured: Sequence[Measured]) -> Table:
    notes = ("Score by the length of the prompt before truncation: up to so many tokens.",)
    rows = []
    for each in measured:
        benchmarks = each.summary.documents.benchmarks if each.summary.documents else {}
        lengths = sorted({length for figures in benchmarks.values() for length in figures.by_length})
        for length in lengths:
            found = (benchmarks[name].by_length.get(length) if name in benchmarks else None for name in PROTOCOL_SIZES)
            rows.append((each.label, f"{length:,}", *(_counted(estimate) for estimate in found)))
    return Table("By length", notes, ("", "Prompt tokens", *PROTOCOL_SIZES), tuple(rows))


def by_kind(measured: Sequence[Measured]) -> Table:
    notes = ("Score by the classes that the benchmarks name; a question of several counts in each.",)
    rows = [
        (each.label, name, kind, str(estimate.num_questions), _estimate(estimate))
        for each in measured
        if each.summary.documents
        for name, figures in each.summary.documents.benchmarks.items()
        for kind, estimate in figures.by_kind.items()
    ]
    return Table("By kind", notes, ("", "Benchmark", "Kind", "Questions", "Score"), tuple(rows))


def _counted(estimate: Estimate | None) -> str:
    return NONE if estimate is None else f"{estimate.mean * 100:.1f} (of {estimate.num_questions})"


def _estimate(estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return NONE
    form = "+.1f" if signed else ".1f"
    mean, low, high = (f"{value * 100:{form}}" for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"

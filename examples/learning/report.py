"""Tables of what the runs came to, in Markdown, and whether the variant that must learn did."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from collecting import Evaluated, RunResult, gain_beside, gains_by_question, mean_gain
from intervals import Estimate
from plan import Experiment, PlanError

Results = Mapping[str, Sequence[RunResult]]  # by variant


def by_variant(results: Sequence[RunResult]) -> Results:
    grouped: dict[str, list[RunResult]] = defaultdict(list)
    for result in results:
        grouped[result.variant].append(result)
    return grouped


def shortfalls(experiment: Experiment, results: Sequence[RunResult]) -> list[str]:
    """One line for each seed of the variant that must learn, if it is missing or does not come up to `required`.

    None when that is not among the experiment's variants.
    """
    required = experiment.required
    if required.variant not in experiment.variants:
        return []
    of_variant = {result.seed: result for result in results if result.variant == required.variant}
    lines = []
    for seed in experiment.seeds:
        name = f"{required.variant}, seed {seed}"
        result = of_variant.get(seed)
        if result is None:
            lines.append(f"{name}: no result")
            continue
        if result.gain < required.gain - 1e-9:
            lines.append(f"{name}: accuracy rose by {points(result.gain)} points, not {points(required.gain)}")
        if result.pass_change < required.pass_at_all_change - 1e-9:
            k, least = result.after.num_samples, points(required.pass_at_all_change)
            lines.append(f"{name}: pass@{k} changed by {points(result.pass_change)} points, not by {least} or more")
        if result.minutes is not None and result.minutes > required.minutes:
            lines.append(f"{name}: took {result.minutes:.1f} minutes, not {required.minutes:g}")
    return lines


def learning_table(results: Sequence[RunResult]) -> str:
    """Before and after of every run of one variant, and the mean with its interval."""
    if not results:
        return "Not measured yet."
    parts = list(_parts(results))
    k = results[0].after.num_samples
    head = ["seed", "accuracy", "gain, points", f"pass@{k}", *parts, "longest usable tokens", "steps", "minutes"]
    rows = [_learning_row(result, parts) for result in sorted(results, key=lambda r: r.seed)]
    gain = mean_gain(results)
    mean = ["mean", "", f"**{points(gain.mean)}** {interval(gain)}", *[""] * (len(head) - 3)]
    note = (
        f"Intervals of 95 %, {_over(results)}. Cells are before → after, in per cent right unless the head says else."
    )
    return "\n".join([*_markdown(head, [*rows, mean]), "", note])


def _parts(results: Sequence[RunResult]) -> Iterator[str]:
    yield from results[0].before.by_task
    for tokens in results[0].before.by_length:
        yield f"to {tokens} tokens"


def _learning_row(result: RunResult, parts: Sequence[str]) -> list[str]:
    before, after = _parts_of(result.before), _parts_of(result.after)
    lengths = [_or_dash(e.longest_usable_tokens, ".0f") for e in (result.before, result.after)]
    return [
        str(result.seed),
        f"{result.before.accuracy:.1%} → {result.after.accuracy:.1%}",
        points(result.gain),
        f"{result.before.pass_at_all:.1%} → {result.after.pass_at_all:.1%}",
        *(f"{before.get(part, np.nan):.1%} → {after.get(part, np.nan):.1%}" for part in parts),
        " → ".join(lengths),
        str(result.steps),
        _or_dash(result.minutes, ".1f"),
    ]


def _parts_of(evaluated: Evaluated) -> dict[str, float]:
    return evaluated.by_task | {f"to {tokens} tokens": mean for tokens, mean in evaluated.by_length.items()}


def ablation_table(experiment: Experiment, results: Sequence[RunResult]) -> str:
    """Every variant beside the base and beside the paper."""
    grouped = by_variant(results)
    base = grouped.get(experiment.base, ())
    if not base:
        return "Not measured yet."
    k = base[0].after.num_samples
    head = [
        *("variant", "seeds", "gain, points", "beside full", "the paper's", "same direction?"),
        *(f"pass@{k}, points", "signs of collapse", "minutes a run"),
    ]
    rows = [_ablation_row(experiment, name, grouped.get(name, ()), base) for name in experiment.variants]
    note = (
        f"Intervals of 95 %, {_over(results)}; the difference is paired by seed and question. The paper's figures are"
        f" differences in points too ({experiment.paper}). Same direction: *yes* or *no* where the interval of the"
        " difference lies on one side of zero, else *not resolved*."
    )
    return "\n".join([*_markdown(head, rows), "", *directions(experiment, results), note])


def directions(experiment: Experiment, results: Sequence[RunResult]) -> list[str]:
    """Where the paper's directions are found again, and where not, as one paragraph; empty without any to compare."""
    grouped, said = by_variant(results), defaultdict(list)
    for name, variant in experiment.variants.items():
        beside = gain_beside(grouped.get(name, ()), grouped.get(experiment.base, ()))
        if name != experiment.base and variant.paper is not None and beside is not None:
            said[same_direction(beside, variant.paper)].append(variant.title)
    found = [
        f"{verdict.capitalize()}: {'; '.join(said[verdict])}."
        for verdict in ("yes", "no", "not resolved")
        if said[verdict]
    ]
    return [f"Same direction as in the paper? {' '.join(found)}", ""] if found else []


def _ablation_row(experiment: Experiment, name: str, mine: Sequence[RunResult], base: Sequence[RunResult]) -> list[str]:
    variant = experiment.variants[name]
    papers = "-" if variant.paper is None else f"{variant.paper:+.1f}"
    if not mine:
        return [variant.title, f"0 of {len(experiment.seeds)}", *["-"] * 2, papers, *["-"] * 4]
    gain, beside = mean_gain(mine), None if name == experiment.base else gain_beside(mine, base)
    spent = [result.minutes for result in mine if result.minutes is not None]
    return [
        variant.title,
        f"{len(mine)} of {len(experiment.seeds)}",
        f"{points(gain.mean)} {interval(gain)}",
        "-" if beside is None else f"{points(beside.mean)} {interval(beside)}",
        papers,
        "-" if beside is None else same_direction(beside, variant.paper),
        points(float(np.mean([result.pass_change for result in mine]))),
        _signs(mine),
        _or_dash(float(np.mean(spent)) if spent else None, ".1f"),
    ]


def _signs(results: Sequence[RunResult]) -> str:
    """Which were told, and in how many of the runs."""
    told = Counter(sign for result in results for sign in result.signs)
    return ", ".join(f"{sign} ({count} of {len(results)})" for sign, count in sorted(told.items())) or "none"


def same_direction(beside: Estimate, papers: float | None) -> str:
    """Whether the difference has the sign of the paper's; "not resolved" where its interval holds zero."""
    if papers is None:
        return "not in the paper"
    if beside.sign is None:
        return "not resolved"
    return "yes" if beside.sign == np.sign(papers) else "no"


def _over(results: Sequence[RunResult]) -> str:
    if gains_by_question(results) is None:
        return "Student's t over seeds"
    return "over seeds and questions as crossed random effects"


def points(share: float) -> str:
    return f"{100 * share:+.1f}"


def interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return "(no interval)"
    return f"({points(estimate.low)} to {points(estimate.high)})"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def page(experiment: Experiment, results: Sequence[RunResult], failures: Sequence[str]) -> str:
    """results.md."""
    short = shortfalls(experiment, results)
    required = experiment.required
    verdict = (
        f"Every seed of {required.variant} gained {points(required.gain)} points or more within {required.minutes:g}"
        f" minutes, and pass@k changed by {points(required.pass_at_all_change)} points or more."
    )
    lines = ["# Learning", "", f"## {required.variant}", ""]
    lines += [learning_table(by_variant(results).get(required.variant, ())), ""]
    lines += [*(f"- {line}" for line in short)] if short else [verdict]
    lines += ["", "## Ablations", "", ablation_table(experiment, results)]
    if failures:
        lines += ["", "## Failed", "", *(f"- {line}" for line in failures)]
    return "\n".join(lines) + "\n"


def fill(path: Path, parts: Mapping[str, str]) -> None:
    """Replace what stands between `<!-- filled: NAME -->` and `<!-- end: NAME -->`. Raises PlanError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError(f"--page {path}: cannot be read: {error.strerror}") from None
    for name, part in parts.items():
        begin, end = f"<!-- filled: {name} -->", f"<!-- end: {name} -->"
        between = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(between.findall(text)) != 1:
            raise PlanError(f"--page {path}: lacks {begin} and {end}, once each; put them where the {name} goes")
        text = between.sub(lambda _, part=part, begin=begin, end=end: f"{begin}\n{part}\n{end}", text)
    path.write_text(text, encoding="utf-8")

"""What an evaluation leaves for people and programs: a Markdown table, an HTML page and a summary as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megatron_spell.evaluation.benchmark_folder import BenchmarkFolder, FolderError, Key
from megatron_spell.evaluation.pages import markdown, page
from megatron_spell.evaluation.paper import PaperModel
from megatron_spell.evaluation.results import SampleResult
from megatron_spell.evaluation.summary import summarise
from megatron_spell.evaluation.tables import Measured, Table, tables
from megatron_spell.observe.files import json_line, write_whole


def write_report(
    folder: BenchmarkFolder, beside: Sequence[Path], paper: PaperModel | None, num_missing: int = 0
) -> list[Table]:
    """Write report.md, report.html and summary.json into `folder`; the tables that stand in them.

    Evaluations in the folders `beside` are shown too. Those of the same label and input limit are taken together, so
    that one with documents withheld tells what documents give, unless both hold the same samples. Raises FolderError.
    """
    groups: dict[tuple[str, int], dict[Key, SampleResult]] = {}
    for each in (folder, *map(BenchmarkFolder, beside)):
        (label, limit), found = _known_as(each), each.read_results()
        if found.keys() & groups.get((label, limit), {}).keys():
            label = f"{label} in {each.root}"  # the same questions once more, so another evaluation
        groups.setdefault((label, limit), {}).update(found)
    measured = [Measured(label, limit, summarise(found.values())) for (label, limit), found in groups.items() if found]
    if not measured:
        return []
    made = tables(measured, paper)
    title = f"Evaluation of {measured[0].label}"
    if num_missing:
        title += f", incomplete: {num_missing} samples are missing"
    write_whole(folder.root / "report.md", [markdown(title, made).rstrip("\n")])
    write_whole(folder.root / "report.html", [page(title, made).rstrip("\n")])
    figures = [{**asdict(each), "num_missing": num_missing if not n else 0} for n, each in enumerate(measured)]
    write_whole(folder.root / "summary.json", [json_line(figures)])
    return made


def beside_faults(beside: Sequence[Path]) -> list[str]:
    """A line for each folder that cannot be shown beside an evaluation."""
    faults = []
    for path in beside:
        folder = BenchmarkFolder(path)
        try:
            _known_as(folder)
            if not folder.read_results():
                faults.append(f"beside = {path}: holds no result; leave it out")
        except FolderError as error:
            faults += [f"beside = {path}: {line}" for line in error.lines]
    return faults


def _known_as(folder: BenchmarkFolder) -> tuple[str, int]:
    """Label and input limit of an evaluation."""
    try:
        read = json.loads(folder.settings.read_text(encoding="utf-8"))
        return str(read["label"]), int(read["identity"]["max_input_tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        raise FolderError(f"{folder.settings}: is not of an evaluation; give the --out of one") from None

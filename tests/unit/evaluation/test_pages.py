import re
from html.parser import HTMLParser

import pytest

from megatron_spell.evaluation.pages import markdown, page
from megatron_spell.evaluation.paper import find_model
from megatron_spell.evaluation.record import PROTOCOL_SIZES
from megatron_spell.evaluation.summary import summarise
from megatron_spell.evaluation.tables import Measured, Table, tables
from tests.unit.evaluation.made_results import results


def measured(label="after 70 steps", limit=16_384, **more) -> Measured:
    lines = [line for name in PROTOCOL_SIZES for line in results(name, ["1100", "0000"], kind="hard", **more)]
    lines += results("docmath", ["1000", "0000"], documents=False)
    return Measured(label, limit, summarise(lines))


class Cells(HTMLParser):
    """Rows of cells, and every tag and attribute that would fetch or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.foreign: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "link", "img", "iframe", "a") or {name for name, _ in attrs} & {"src", "href", "onload"}:
            self.foreign.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_own_rows_stand_below_the_papers_of_the_same_limit():
    made = tables([measured("base"), measured("+ SPELL", 100_000)], find_model("Qwen/Qwen2.5-7B-Instruct"))
    rows = [row[:2] for row in made[0].rows]
    assert rows == [
        ("paper", "16,384"),
        ("paper + RLVR", "16,384"),
        ("paper + SPELL", "16,384"),
        ("base", "16,384"),
        ("paper", "100,000"),
        ("paper + RLVR", "100,000"),
        ("paper + SPELL", "100,000"),
        ("+ SPELL", "100,000"),
    ]
    assert made[0].rows[2][2:] == ("45.8", "46.7", "63.1", "33.2", "47.2", "-")
    assert made[0].rows[3][2].startswith("25.0 [") and made[0].rows[3][-1].startswith("25.0 [")
    assert made[0].title == "Beside the paper's Qwen2.5-7B-Instruct"


def test_a_part_of_a_benchmark_is_never_passed_off_as_the_whole():
    notes = " ".join(tables([measured()], None)[0].notes)
    assert "2 of 800 questions of docmath" in notes and "not comparable" in notes
    notes = tables([Measured("m", 5, summarise(results("docmath", ["1"])))], None)[0].notes
    assert notes[-1] == "m: not asked: frames, hotpotqa, 2wikimqa, musique, longbench_v2."


def test_every_figure_has_its_table():
    made = {table.title: table for table in tables([measured()], None)}
    assert list(made) == ["Scores", "By benchmark", "pass@k", "Rule and judge", "By length", "By kind"]
    docmath = dict(zip(made["By benchmark"].header, made["By benchmark"].rows[0]))
    assert docmath["Withheld"].startswith("12.5 [") and docmath["Gain"].startswith("+12.5 [")
    assert docmath["Questions"] == "2 of 800" and docmath["Unfinished"] == "0.0%"
    assert made["pass@k"].header[-3:] == ("pass@1", "pass@2", "pass@4")
    assert all(len(row) == len(table.header) for table in made.values() for row in table.rows)


def test_the_papers_pass_at_k_stands_only_beside_its_own_limit():
    model = find_model("Qwen3-30B-A3B-Thinking-2507")
    at = {limit: tables([measured(limit=limit)], model)[2].rows for limit in (16_384, 100_000)}
    assert not any(row[0] == "paper" for row in at[16_384])
    assert ("paper", "100,000", "Avg (4 columns)", "63.6", "65.0", "66.2") in at[100_000]


def test_only_without_documents():
    made = tables([Measured("blind", 100, summarise(results("musique", ["10"], documents=False)))], None)
    assert [table.title for table in made] == ["By benchmark"]
    assert made[0].rows[0][:8] == ("blind", "musique", "1 of 200", "2", "-", "-", made[0].rows[0][6], "-")
    assert made[0].rows[0][6].startswith("50.0 [")


@pytest.mark.parametrize(
    "nasty", ["<script>alert(1)</script>", "a | b\n# c", "[x](http://y)", '"><img src=x>', "`a` *b*"]
)
def test_what_stands_in_a_cell_is_only_shown(nasty):
    table = Table(nasty, (nasty,), ("h", nasty), ((nasty, "1.0"), ("x", nasty)))
    found = Cells(page(nasty, [table]))
    assert found.foreign == [] and found.open == []
    assert found.rows == [["h", nasty], [nasty, "1.0"], ["x", nasty]]
    text = markdown(nasty, [table])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3, 3, 3]
    assert not re.search(r"(?<!\\)<|(?<!\\)\]\(", text) and text.count("\n#") == 1


def test_a_whole_page_is_well_formed_and_needs_nothing_else():
    made = tables([measured("base"), measured("trained", 100_000)], find_model("Qwen2.5-7B"))
    found = Cells(page("Evaluation", made))
    assert found.foreign == [] and found.open == [] and "http" not in page("Evaluation", made)
    assert found.rows[0] == list(made[0].header)
    assert len(found.rows) == sum(len(table.rows) + 1 for table in made)

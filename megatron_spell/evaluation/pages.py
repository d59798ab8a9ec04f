"""Tables of an evaluation as Markdown and as one HTML page that needs nothing else. Pure."""

import html
import re
from collections.abc import Iterable, Sequence

from megatron_spell.evaluation.tables import Table

_NUMBER = re.compile(r"[-+]?[\d,.]+(?:%|\s.*)?|-")
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #8886; }
td.number { text-align: right; white-space: nowrap; }
tr.paper { color: color-mix(in srgb, currentColor 65%, transparent); }
p { max-width: 60rem; }
"""


def markdown(title: str, tables: Sequence[Table]) -> str:
    """What stands in a cell or title is only shown: pipes, newlines and what Markdown would read are escaped."""
    blocks = [f"# {_plain(title)}"]
    for table in tables:
        lines = [_markdown_row(table.header), _markdown_row(["---"] * len(table.header), escape=False)]
        blocks += [f"## {_plain(table.title)}", *map(_plain, table.notes)]
        blocks.append("\n".join([*lines, *map(_markdown_row, table.rows)]))
    return "\n\n".join(blocks) + "\n"


def _markdown_row(cells: Iterable[str], escape: bool = True) -> str:
    return "| " + " | ".join(_plain(cell) if escape else cell for cell in cells) + " |"


def _plain(text: str) -> str:
    return re.sub(r"[\\`*_|<>&#~]|\](?=\()", lambda mark: f"\\{mark[0]}", " ".join(text.split()))


def page(title: str, tables: Sequence[Table]) -> str:
    """One HTML document without scripts and without anything from elsewhere."""
    name = html.escape(title)
    body = "\n".join(_section(table) for table in tables)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{name}</h1>
{body}
</body>
</html>
"""


def _section(table: Table) -> str:
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    rows = "\n".join(_row(row) for row in table.rows)
    return (
        f"<h2>{html.escape(table.title)}</h2>\n{notes}\n<div><table>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    of_paper = ' class="paper"' if cells[0].startswith("paper") else ""
    return f"<tr{of_paper}>{''.join(map(_cell, cells))}</tr>"


def _cell(text: str) -> str:
    number = ' class="number"' if _NUMBER.fullmatch(text) else ""
    return f"<td{number}>{html.escape(text)}</td>"

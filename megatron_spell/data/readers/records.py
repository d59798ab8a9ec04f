"""One record (a JSON object, a row of a table) -> a document, or a set as it stands."""

from collections.abc import Iterable, Sequence
from typing import Any

from megatron_spell.data.clean import one_line
from megatron_spell.data.documents import Fault, RawDocument, RawSet, Unit
from megatron_spell.data.readers.slices import ReadOptions, Slice

# The reference's training columns: what their data_source begins with, and the tasks it is used for.
_HINTS = {"docmath": "math", "ultrafineweb": "text"}
_PARAGRAPH_TEXTS = ("text", "paragraph_text")


def unit_of(record: Any, where: str, number: int, piece: Slice, options: ReadOptions) -> Unit | Fault:
    """What `record` holds: paragraphs make a set as it stands, with their table first; a text makes a document.

    `where` names the place in messages, `number` is the record's id where it has none of its own.
    """
    if not isinstance(record, dict):
        return Fault(piece.path, f'{where}: is not a JSON object; write one like {{"text": "..."}}')
    text = next((record[field] for field in options.text_fields if isinstance(record.get(field), str)), None)
    if text is not None:
        own_id = label(record.get("id")) or str(number)
        name = f"{piece.name}/{own_id}"
        return RawDocument(name, label(record.get("title")) or own_id, text, name, quality=_quality(record, options))
    if isinstance(record.get("paragraphs"), list):
        return _standing(record, where, number, piece, options)
    fields = " or ".join(map(repr, options.text_fields))
    return Fault(piece.path, f"{where}: has no field {fields} with a string; every line needs one, or 'paragraphs'")


def _standing(record: dict, where: str, number: int, piece: Slice, options: ReadOptions) -> RawSet | Fault:
    """`paragraphs` are strings (the reference's columns), or objects beside a `table` (a financial filing)."""
    table = record.get("table")
    own_id = label(record.get("question_id")) or label(record.get("id")) or _table_id(table) or str(number)
    name = f"{piece.name}/{own_id}"
    texts = [_paragraph(one) for one in sorted(record["paragraphs"], key=_order)]
    if any(text is None for text in texts):
        which = texts.index(None) + 1
        return Fault(piece.path, f"{where}: paragraph {which} is neither a string nor an object with 'text'")
    if table is not None:
        rows = table.get("table") if isinstance(table, dict) else table
        if not _is_table(rows):
            return Fault(piece.path, f"{where}: 'table' is no list of rows; write one list of cells a row")
        texts.insert(0, markdown_table(rows))
    documents = (RawDocument(f"{name}/{n}", f"{own_id} {n}", str(text), name) for n, text in enumerate(texts, start=1))
    return RawSet(name, tuple(documents), _hint(record, table), _quality(record, options))


def _hint(record: dict, table: object) -> str:
    source = record.get("data_source")
    known = (hint for start, hint in _HINTS.items() if isinstance(source, str) and source.startswith(start))
    return next(known, "math" if table is not None else "")


def _table_id(table: object) -> str:
    return label(table.get("uid")) if isinstance(table, dict) else ""


def _order(paragraph: object) -> int:
    order = paragraph.get("order") if isinstance(paragraph, dict) else None
    return order if isinstance(order, int) else 0


def _paragraph(paragraph: object) -> str | None:
    if isinstance(paragraph, dict):
        return next((paragraph[f] for f in _PARAGRAPH_TEXTS if isinstance(paragraph.get(f), str)), None)
    return paragraph if isinstance(paragraph, str) else None


def _is_table(rows: object) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, list) for row in rows)


def markdown_table(rows: Sequence[Iterable[object]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    width = max(len(list(row)) for row in rows)
    return "\n".join([lines[0], "|" + " --- |" * max(1, width), *lines[1:]])


def _cell(cell: object) -> str:
    return "" if cell is None else " ".join(str(cell).split()).replace("|", "\\|")


def _quality(record: dict, options: ReadOptions) -> float | None:
    value = record.get(options.quality_field)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def label(value: object) -> str:
    """A record's id or title as one line; empty when there is none of use."""
    return one_line(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""

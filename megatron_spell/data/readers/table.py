"""Which reader reads which kind of file, told by its ending."""

from megatron_spell.data.readers.columns import cut_arrow, cut_parquet, read_columns
from megatron_spell.data.readers.lines import cut_json, cut_lines, read_json
from megatron_spell.data.readers.pages import read_html, read_pdf, read_text
from megatron_spell.data.readers.slices import Reader, whole_file

# The longest ending that fits counts.
READERS: dict[str, Reader] = {
    ".txt": Reader(whole_file, read_text),
    ".md": Reader(whole_file, read_text),
    ".html": Reader(whole_file, read_html),
    ".htm": Reader(whole_file, read_html),
    ".pdf": Reader(whole_file, read_pdf),
    ".jsonl": Reader(cut_lines, read_json),
    ".json": Reader(cut_json, read_json),
    ".jsonl.gz": Reader(whole_file, read_json),  # gzip cannot be entered in the middle
    ".json.gz": Reader(whole_file, read_json),
    ".parquet": Reader(cut_parquet, read_columns),
    ".arrow": Reader(cut_arrow, read_columns),
}
_BY_LENGTH = sorted(READERS, key=len, reverse=True)
KNOWN = ", ".join(READERS)


def ending(name: str) -> str:
    """The known ending of a file's name, empty where there is none."""
    return next((known for known in _BY_LENGTH if name.lower().endswith(known)), "")

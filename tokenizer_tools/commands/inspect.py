"""`tokenizer-tools inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizer_tools.commands.refusal import refusing

if TYPE_CHECKING:
    from tokenizer_tools.inspection import TokenizerFacts

_MAX_TOKENS_SHOWN = 12


@refusing
def inspect(
    path: Annotated[Path, typer.Argument(help="A model or tokenizer folder, tokenizer.json, .model or .tiktoken file")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table")] = False,
) -> None:
    """Say what a tokenizer is: kind, special tokens, stages, digits, unused ids, padding."""
    from tokenizer_tools.inspection import inspect_tokenizer

    facts = inspect_tokenizer(path)
    if as_json:
        typer.echo(json.dumps(facts.as_dict(), ensure_ascii=False, indent=2))
    else:
        _show(facts)


def _show(facts: "TokenizerFacts") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, value in _rows(facts):
        table.add_row(Text(name), Text(value))
    sizes = Table("tensor parallel", *(name for name in facts.padding["1"]), title="rows of the embedding", box=None)
    for tp, rows in facts.padding.items():
        sizes.add_row(tp, *(f"{count:,}" for count in rows.values()))
    console = Console()
    console.print(table)
    console.print(sizes)


def _rows(facts: "TokenizerFacts") -> list[tuple[str, str]]:
    rows = "" if facts.model_vocab_size is None else f"; the model has {facts.model_vocab_size:,} rows"
    return [
        ("source", facts.source),
        ("kind", facts.kind),
        ("tokens", f"{facts.vocab_size:,}, ids up to {facts.num_ids - 1:,}{rows}"),
        ("unused ids", f"{facts.num_unused_ids:,}" + (f" ({facts.unused_ids})" if facts.num_unused_ids else "")),
        ("special tokens", _listed(facts.special_tokens)),
        ("plain added tokens", _listed(facts.plain_added_tokens)),
        ("roles", ", ".join(f"{role} {text}" for role, text in facts.roles.items()) or "none"),
        ("normaliser", facts.normalizer),
        ("pre-tokeniser", facts.pre_tokenizer),
        ("bytes", facts.byte_fallback),
        ("digits", facts.digits),
        ("longest tokens", ", ".join(_short(text) for text in facts.longest_tokens)),
        ("chat template", "yes" if facts.has_chat_template else "no"),
    ]


def _listed(tokens: dict[str, int]) -> str:
    shown = [f"{text!r} {number}" for text, number in list(tokens.items())[:_MAX_TOKENS_SHOWN]]
    more = len(tokens) - len(shown)
    return ", ".join(shown + ([f"and {more} more"] if more else [])) or "none"


def _short(text: str) -> str:
    """Long runs of one character are common among the longest."""
    return f"{text[0]!r} x {len(text)}" if len(set(text)) == 1 else repr(text if len(text) <= 40 else text[:37] + "...")

"""`tokenizer-tools convert`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenizer_tools.commands.refusal import refusing
from tokenizer_tools.errors import ConversionError

if TYPE_CHECKING:
    from tokenizer_tools.patterns import SpecialToken


@refusing
def convert(
    model: Annotated[Path, typer.Argument(help="A sentencepiece model (bpe, unigram) or a tiktoken rank file")],
    out: Annotated[Path, typer.Argument(help="Folder for tokenizer.json and tokenizer_config.json")],
    pattern: Annotated[
        str | None, typer.Option(help="tiktoken: qwen, cl100k, o200k, gpt2, or a regular expression")
    ] = None,
    special_set: Annotated[
        str | None,
        typer.Option(help="tiktoken: none, qwen, qwen2.5, qwen3, cl100k, o200k, gpt2; default: the pattern's"),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option(help="tiktoken: one more special token, TEXT or TEXT=ID; may be given many times"),
    ] = None,
    nfc: Annotated[
        bool | None, typer.Option(help="tiktoken: Unicode NFC before anything else; default: with qwen only")
    ] = None,
    chat_template: Annotated[Path | None, typer.Option(help="File with a jinja chat template")] = None,
    eos: Annotated[str | None, typer.Option(help="Token that ends a turn; default: the model's own")] = None,
    bos: Annotated[str | None, typer.Option(help="Token that begins a text; default: the model's own")] = None,
    pad: Annotated[str | None, typer.Option(help="Token for padding; default: the model's own")] = None,
    add_bos: Annotated[bool, typer.Option(help="Put bos before a text that is encoded with special tokens")] = False,
    add_eos: Annotated[bool, typer.Option(help="Put eos behind such a text")] = False,
    max_length: Annotated[int, typer.Option(help="Longest text the model is for, as stated in the files")] = 4096,
    inexact_normalisation: Annotated[
        bool, typer.Option(help="sentencepiece: take normalisation rules that have no exact equal; ids may differ")
    ] = False,
) -> None:
    """Write the Hugging Face form of a sentencepiece or tiktoken vocabulary; the ids are the same."""
    from tokenizer_tools.convert import FolderSettings, convert_sentencepiece, is_tiktoken_file, tiktoken_to_hf

    template = None if chat_template is None else chat_template.read_text(encoding="utf-8").rstrip("\n")
    settings = FolderSettings(template, eos, bos, pad, max_length, add_bos, add_eos)
    if is_tiktoken_file(model):
        if pattern is None:
            raise ConversionError(f"{model} is a tiktoken file, which does not say how text is cut; give --pattern")
        tiktoken_to_hf(model, out, pattern, _special(pattern, special_set, special or []), settings, nfc=nfc)
    else:
        if pattern or special_set or special or nfc is not None:
            raise ConversionError(
                f"{model} is no tiktoken file; --pattern, --special-set, --special and --nfc are for those"
            )
        _convert_sentencepiece(model, out, settings, inexact_normalisation, convert_sentencepiece)
    typer.echo(f"{out}: written")


def _convert_sentencepiece(model: Path, out: Path, settings, inexact: bool, convert_sentencepiece) -> None:
    from tokenizer_tools.sentencepiece_model import load_model, model_kind

    convert_sentencepiece(model, out, settings, inexact_normalisation=inexact)
    parsed = load_model(model)
    if inexact and parsed.normalizer_spec.precompiled_charsmap:
        typer.echo(
            "not exact: where a combining mark follows a character that is normalised, the mark is lost "
            "(U+FF21 U+0301 becomes A)",
            err=True,
        )
    if model_kind(parsed) == "unigram":
        typer.echo(
            "unigram: sentencepiece adds scores in float32, a fast tokenizer in float64; two ways to cut a text whose "
            "scores are as good as equal may be told apart differently, the more so the longer the text",
            err=True,
        )


def _special(pattern: str, special_set: str | None, given: list[str]) -> list["SpecialToken"]:
    from tokenizer_tools.patterns import SPECIAL_SETS, SpecialToken

    name = special_set or (pattern if pattern in SPECIAL_SETS else "none")
    if name not in SPECIAL_SETS:
        raise ConversionError(f"--special-set {name!r} is unknown; known are {', '.join(SPECIAL_SETS)}")
    more = []
    for one in given:
        text, equals, number = one.rpartition("=")
        numbered = bool(equals) and number.isdecimal() and bool(text)
        more.append(SpecialToken(text, int(number)) if numbered else SpecialToken(one))
    return [*SPECIAL_SETS[name], *more]

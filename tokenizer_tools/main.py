"""`tokenizer-tools`: train a sentencepiece model, turn one into a Hugging Face tokenizer."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tokenizer_tools.convert import ConversionError, sentencepiece_to_hf
from tokenizer_tools.train import TrainingError, train_sentencepiece

app = typer.Typer(
    help="Tokenizers for megatron_spell: sentencepiece BPE models and their Hugging Face form.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

USAGE_ERROR = 2


@app.command()
def train(
    texts: Annotated[list[Path], typer.Argument(help="UTF-8 text files, read in this order")],
    out: Annotated[Path, typer.Option(help="Path of the model without its ending; .model is added")],
    vocab_size: Annotated[int, typer.Option(min=300, help="Pieces in all, 256 bytes among them")],
    symbol: Annotated[
        list[str] | None, typer.Option(help="Text that is always one piece; may be given many times")
    ] = None,
    control: Annotated[list[str] | None, typer.Option(help="Piece that no text encodes to, such as <|user|>")] = None,
    eos: Annotated[str, typer.Option(help="The control piece that ends a text")] = "</s>",
    pad: Annotated[str | None, typer.Option(help="The control piece for padding")] = None,
) -> None:
    """Train a lossless sentencepiece BPE model."""
    try:
        contents = [path.read_text(encoding="utf-8") for path in texts]
        path = train_sentencepiece(contents, out, vocab_size, symbol or (), control or (), eos_piece=eos, pad_piece=pad)
    except (TrainingError, OSError, UnicodeDecodeError) as error:
        _refuse(str(error))
    typer.echo(f"{path}: {vocab_size} pieces")


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="tokenizer.model of a sentencepiece BPE tokenizer")],
    out: Annotated[Path, typer.Argument(help="Folder for tokenizer.json and tokenizer_config.json")],
    chat_template: Annotated[Path | None, typer.Option(help="File with a jinja chat template")] = None,
    eos: Annotated[str | None, typer.Option(help="Token that ends a turn; default: the model's own")] = None,
    bos: Annotated[str | None, typer.Option(help="Token that begins a text; default: the model's own")] = None,
    pad: Annotated[str | None, typer.Option(help="Token for padding; default: the model's own")] = None,
    max_length: Annotated[int, typer.Option(help="Longest text the model is for, as stated in the files")] = 4096,
) -> None:
    """Write the Hugging Face form of a sentencepiece model; the ids are the same."""
    try:
        template = None if chat_template is None else chat_template.read_text(encoding="utf-8").rstrip("\n")
        folder = sentencepiece_to_hf(
            model, out, chat_template=template, eos_token=eos, bos_token=bos, pad_token=pad, max_length=max_length
        )
    except (ConversionError, OSError, UnicodeDecodeError) as error:
        _refuse(str(error))
    typer.echo(f"{folder}: written")


def _refuse(line: str) -> None:
    typer.echo(line, err=True)
    sys.exit(USAGE_ERROR)


if __name__ == "__main__":
    app()

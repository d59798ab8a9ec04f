"""`tokenizer-tools train`."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenizer_tools.commands.refusal import refusing
from tokenizer_tools.errors import TextError


class Kind(StrEnum):
    bpe = "bpe"
    unigram = "unigram"


@refusing
def train(
    texts: Annotated[
        list[Path], typer.Argument(help="Text files, .jsonl files, folders of them, or token stores (.h5)")
    ],
    out: Annotated[Path, typer.Option(help="Path of the model without its ending; .model is added")],
    vocab_size: Annotated[int, typer.Option(min=300, help="Pieces in all, 256 bytes among them")],
    kind: Annotated[Kind, typer.Option(help="Byte-pair encoding, or a unigram language model")] = Kind.bpe,
    symbol: Annotated[
        list[str] | None, typer.Option(help="Text that is always one piece; may be given many times")
    ] = None,
    control: Annotated[list[str] | None, typer.Option(help="Piece that no text encodes to, such as <|user|>")] = None,
    eos: Annotated[str, typer.Option(help="The control piece that ends a text")] = "</s>",
    pad: Annotated[str | None, typer.Option(help="The control piece for padding")] = None,
    split_digits: Annotated[bool, typer.Option(help="Every digit is a piece of its own")] = True,
    store_tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the tokenizer that the token stores were built with")
    ] = None,
    field: Annotated[str, typer.Option(help="Field of a .jsonl file that holds the text")] = "text",
) -> None:
    """Train a lossless sentencepiece model: what it encodes it decodes byte for byte."""
    from rich.console import Console

    from tokenizer_tools.train import train_sentencepiece

    with Console(stderr=True).status("training"):
        path = train_sentencepiece(
            _contents(texts, store_tokenizer, field),
            out,
            vocab_size,
            symbol or (),
            control or (),
            eos_piece=eos,
            pad_piece=pad,
            split_digits=split_digits,
            kind=kind.value,
        )
    typer.echo(f"{path}: {vocab_size} pieces")


def _contents(sources: list[Path], store_tokenizer: Path | None, field: str) -> Iterator[str]:
    from tokenizer_tools.texts import STORE_SUFFIXES, read_texts, store_texts

    for source in sources:
        if source.suffix not in STORE_SUFFIXES:
            yield from (one.text for one in read_texts([source], field))
        elif store_tokenizer is None:
            raise TextError(f"{source} holds token ids; name the tokenizer it was built with: --store-tokenizer FOLDER")
        else:
            yield from store_texts(source, store_tokenizer)

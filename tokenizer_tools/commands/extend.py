"""`tokenizer-tools extend` and `tokenizer-tools pad-vocab`: a model folder with other rows."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tokenizer_tools.commands.refusal import refusing


class Init(StrEnum):
    mean = "mean"
    zeros = "zeros"
    normal = "normal"


class PaddingInit(StrEnum):
    mean = "mean"
    zeros = "zeros"


@refusing
def extend(
    folder: Annotated[Path, typer.Argument(help="Model or tokenizer folder; it is not changed")],
    out: Annotated[Path, typer.Option(help="New folder")],
    token: Annotated[list[str] | None, typer.Option(help="Special token to add; may be given many times")] = None,
    plain: Annotated[list[str] | None, typer.Option(help="Token that decoding keeps; may be given many times")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Make the rows of the new ids in the weights")] = False,
    init: Annotated[Init, typer.Option(help="New rows: the mean of the earlier ones, zeros, or normal")] = Init.mean,
    seed: Annotated[int, typer.Option(help="Of --init normal")] = 0,
) -> None:
    """Add tokens to a folder's tokenizer, and rows to its embedding and output layer."""
    from tokenizer_tools.extend import extend_folder

    done = extend_folder(folder, out, token or (), plain or (), resize=resize, init=init.value, seed=seed)
    for text, number in done.ids.items():
        typer.echo(f"{text!r} {number}")
    if done.vocab_size is None:
        typer.echo(f"{out}: written; there are no weights in it")
    elif not done.rows_written:
        typer.echo(
            f"{out}: written; the new ids have rows in the weights already, left as they are (--resize makes them)"
        )
    else:
        before, after = done.vocab_size
        grown = f"{before:,} -> {after:,} rows" if after > before else f"{before:,} rows as before"
        typer.echo(f"{out}: written; {grown}, those of the new ids by {init.value}")


@refusing
def pad_vocab(
    folder: Annotated[Path, typer.Argument(help="Model folder; it is not changed")],
    out: Annotated[Path, typer.Option(help="New folder")],
    multiple_of: Annotated[int, typer.Option(min=1, help="Rows of one tensor-parallel rank are a multiple of this")],
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks")] = 1,
    init: Annotated[PaddingInit, typer.Option(help="Padding rows: the mean of all rows, or zeros")] = PaddingInit.mean,
) -> None:
    """Pad embedding and output layer to a multiple; megatron_spell itself never needs it."""
    from tokenizer_tools.pad_vocab import pad_folder

    done = pad_folder(folder, out, multiple_of, tensor_parallel, init=init.value)
    typer.echo(f"{out}: {done.before:,} -> {done.after:,} rows, a multiple of {done.multiple:,}")
    if init is PaddingInit.mean:
        share = (done.after - done.before) / done.after
        typer.echo(f"padding ids: at most {share:.3%} of the probability together, 0 in transformers' generate")
    else:
        typer.echo("padding ids: logit 0, so no bound on their probability; 0 in transformers' generate")

"""`megatron-spell convert`: a Hugging Face folder from a checkpoint, at any time. Heavy imports happen inside."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from megatron_spell.cli.refusal import refuse

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Dtype(StrEnum):
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


From = Annotated[
    Path,
    typer.Argument(
        metavar="RUN_OR_CHECKPOINT",
        help="Run folder (its newest whole checkpoint is taken), one checkpoint of it, or any model folder",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write; must not exist")]
OutDtype = Annotated[Dtype | None, typer.Option("--dtype", help="Of the new weights; as they are without it")]
ShardSize = Annotated[str, typer.Option("--max-shard-size", help="Largest weight file, for instance 5GB or 500MiB")]
Step = Annotated[int | None, typer.Option("--step", help="Take the run's checkpoint of this step")]


def convert(
    source: From, out: Out, dtype: OutDtype = None, max_shard_size: ShardSize = "5GB", step: Step = None
) -> None:
    """Write a Hugging Face folder (weights, config, tokenizer) from a checkpoint of a run."""
    max_shard_bytes = parse_size(max_shard_size)
    from rich.console import Console

    from megatron_spell.bridge.boxes import BridgeError
    from megatron_spell.train import convert as conversion

    try:
        with Console(stderr=True).status(f"comparing checksums of {source}"):
            found = conversion.find_source(source, step)
        for note in found.notes:
            typer.echo(f"note: {note}", err=True)
        chosen = conversion.choose(found, dtype.value if dtype else None)
        with _bar(chosen.num_bytes) as written:
            files = conversion.convert(chosen, out, max_shard_bytes=max_shard_bytes, written=written)
    except (conversion.ConvertError, BridgeError) as error:
        refuse(str(error))
    typer.echo(
        f"{out}: {len(chosen.tensors)} tensors from {next(iter(chosen.tensors.values())).file.parent} as"
        f" {chosen.dtype_name}, {_shown(chosen.num_bytes)} in {len(files)} file(s)"
    )


def parse_size(text: str) -> int:
    """Bytes in "5GB", "0.5 GiB" or "1000000"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B?)", text.strip().upper())
    num_bytes = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if num_bytes < 1:
        refuse(f"--max-shard-size = {text}: is no size; give a number with a unit, for instance 5GB or 500MiB")
    return num_bytes


@contextmanager
def _bar(num_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("writing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("writing", total=num_bytes)
        yield lambda count: progress.advance(task, count)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"

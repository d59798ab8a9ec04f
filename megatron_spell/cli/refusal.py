"""How a command says that it cannot work with what it was given: one line a fault, exit code 2."""

import sys
from typing import NoReturn

import typer

USAGE_ERROR = 2


def refuse(*lines: str) -> NoReturn:
    for line in lines:
        print(f"megatron-spell: {line}", file=sys.stderr)
    raise typer.Exit(USAGE_ERROR)

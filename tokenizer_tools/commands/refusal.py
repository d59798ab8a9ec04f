"""How a command says that it cannot work with what it was given: one line, exit code 2."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer

from tokenizer_tools.errors import ToolError

USAGE_ERROR = 2
FOUND_FAULTS = 1
P = ParamSpec("P")
R = TypeVar("R")


def refusing(command: Callable[P, R]) -> Callable[P, R]:
    """The command, with errors that a user can cause as one line."""

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except ToolError as error:
            line = str(error)
        except OSError as error:
            line = f"{error.filename or 'a file'}: {error.strerror or error}"
        except UnicodeDecodeError as error:
            line = f"a file is not UTF-8 text: byte {error.start} cannot be decoded"
        print(" ".join(line.split()), file=sys.stderr)
        raise typer.Exit(USAGE_ERROR)

    return guarded

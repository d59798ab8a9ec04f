"""The run's YAML as commands take it, and what else commands that start one need to know."""

import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_spell.cli.refusal import refuse
from megatron_spell.config.load import ConfigError, load_config
from megatron_spell.config.schema import RunConfig

RunFile = Annotated[Path, typer.Argument(help="YAML of the run, for instance examples/quickstart/run.yaml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.field=value; may be given many times")]


def load_run(run: Path, overrides: list[str] | None) -> RunConfig:
    """The run's settings; ends the command where they cannot be used."""
    try:
        return load_config(run, overrides or ())
    except ConfigError as error:
        refuse(*error.lines)


def rank_under_torchrun() -> int | None:
    """This process's rank when torchrun started it, else None: then the ranks are started here."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None

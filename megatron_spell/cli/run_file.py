"""The run's YAML as commands take it."""

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

"""`megatron-spell data`: build a token store, add to one and look into it. Heavy imports happen inside the commands."""

import typer

from megatron_spell.cli.data_append import append
from megatron_spell.cli.data_build import build
from megatron_spell.cli.data_show import sample, show, stats, verify

data_app = typer.Typer(no_args_is_help=True)
for command in (build, append, show, verify, sample, stats):
    data_app.command()(command)

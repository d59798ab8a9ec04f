"""`megatron-spell`: train, evaluate, check-bridge, convert, data, score, config. Heavy imports happen inside."""

import sys
from typing import Annotated

import typer

from megatron_spell.cli.check_bridge import check_bridge
from megatron_spell.cli.convert import convert
from megatron_spell.cli.data import data_app
from megatron_spell.cli.evaluate import evaluate
from megatron_spell.cli.refusal import USAGE_ERROR, refuse
from megatron_spell.cli.run_file import Overrides, RunFile, load_run, rank_under_torchrun
from megatron_spell.cli.score import score

app = typer.Typer(
    help="SPELL self-play training of long-context language models on Megatron-Core and vLLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(check_bridge)
app.command()(convert)
app.command()(evaluate)
app.command()(score)
app.add_typer(data_app, name="data", help="Build and look into token stores.")

INTERRUPTED = 130
# All that can be wrong with arguments; typer, which carries a click of its own, shows it only as this parent.
UsageError = typer.BadParameter.__mro__[1]


@app.command()
def train(
    run: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Fail unless there is a checkpoint to go on from")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say whether the run could start")] = False,
) -> None:
    """Train by self-play. A run folder that holds a whole checkpoint is gone on from."""
    config = load_run(run, overrides)
    from megatron_spell.train.launch import check, launch

    faults = check(config, resume=resume)
    if faults:
        refuse(*faults)
    if dry_run:
        typer.echo(f"{run}: nothing stands in the way of this run")
        return
    raise typer.Exit(launch(config, rank=rank_under_torchrun()))


@app.command(name="config")
def show_config(run: RunFile, overrides: Overrides = None) -> None:
    """Print the resolved settings of a run as JSON."""
    typer.echo(load_run(run, overrides).model_dump_json(indent=2))


def main() -> None:
    """Run the command line. What the arguments themselves get wrong is told in one line as well."""
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except UsageError as error:
        command = error.ctx.command_path if error.ctx else "megatron-spell"
        message = " ".join(error.format_message().split())
        print(f"megatron-spell: {message.rstrip('.')}; see `{command} --help`", file=sys.stderr)
        code = USAGE_ERROR
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()

"""`tokenizer-tools`: train, convert, inspect, compare, extend and pad tokenizers, check chat templates."""

import typer

from tokenizer_tools.commands.chat import chat
from tokenizer_tools.commands.compare import compare
from tokenizer_tools.commands.convert import convert
from tokenizer_tools.commands.extend import extend, pad_vocab
from tokenizer_tools.commands.inspect import inspect
from tokenizer_tools.commands.train import train

app = typer.Typer(
    help="Tokenizers: train, convert to Hugging Face's form, inspect, compare, extend, pad, check chat templates.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (train, convert, inspect, compare, extend, pad_vocab, chat):
    app.command()(command)

if __name__ == "__main__":
    app()

"""The quickstart's scripts import each other by name, as they do when run."""

import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))


@pytest.fixture(scope="session")
def scribe():
    """The committed tokenizer and templates, through the prompts of play."""
    from lookup import Spans
    from transcripts import Scribe

    from megatron_spell.roles.templates import Templates
    from megatron_spell.text.chat import ChatFormat
    from megatron_spell.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(QUICKSTART / "base_model")
    return Scribe(tokenizer, ChatFormat(tokenizer), Templates.load(QUICKSTART / "templates"), Spans(tokenizer))


@pytest.fixture(scope="session")
def texts():
    """(training sets, held-out sets) of the quickstart's split, as lists of texts."""
    from make_base_model import split_texts

    return split_texts()

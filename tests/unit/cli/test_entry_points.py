"""The commands that setup.py names exist."""

import ast
import importlib
from pathlib import Path

SETUP = Path(__file__).parents[3] / "setup.py"


def test_every_command_can_be_imported():
    strings = [node.value for node in ast.walk(ast.parse(SETUP.read_text())) if isinstance(node, ast.Constant)]
    entries = [text for text in strings if isinstance(text, str) and "=" in text and ":" in text and " " not in text]
    assert len(entries) == 2
    for entry in entries:
        module, _, attribute = entry.split("=")[1].partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))

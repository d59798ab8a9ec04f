"""Files and functions stay small enough to read in one go."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [p for folder in ("megatron_spell", "tokenizer_tools") for p in sorted((ROOT / folder).rglob("*.py"))]
MAX_FILE_LINES, MAX_FUNCTION_LINES, USUAL_FUNCTION_LINES = 400, 60, 30


def function_lengths() -> dict[str, int]:
    lengths = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    return lengths


def test_files_are_short():
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > MAX_FILE_LINES}
    assert not long


def test_functions_are_short():
    lengths = function_lengths()
    assert not {name: n for name, n in lengths.items() if n > MAX_FUNCTION_LINES}
    assert sum(n <= USUAL_FUNCTION_LINES for n in lengths.values()) >= 0.9 * len(lengths)


def test_no_module_hides_behind_a_vague_name():
    assert not [p for p in SOURCES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_package_markers_hold_no_logic():
    for path in SOURCES:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert all(isinstance(node, ast.Expr | ast.Assign) for node in body), path


def test_the_one_file_stays_short():
    assert len((ROOT / "examples/spell_in_one_file.py").read_text().splitlines()) < 300


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150

"""The package works without megatron_spell, torch and h5py."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "tokenizer_tools"
MODULES = sorted(".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in PACKAGE.rglob("*.py"))
ABSENT = ("megatron_spell", "torch", "h5py", "tiktoken", "matplotlib")
# None in sys.modules makes an import fail, as if nothing of that name were installed
FORBID = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}));"


def _run(code: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", FORBID + code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    return done


def test_every_module_is_imported_without_them():
    _run("import importlib; [importlib.import_module(name) for name in " + repr(MODULES) + "]")


def test_the_block_bites():
    with pytest.raises(AssertionError, match="import of h5py halted"):
        _run("import h5py")


def test_a_model_is_converted_inspected_and_padded_without_them(tmp_path):
    base = PACKAGE.parent / "examples" / "quickstart" / "base_model"
    calls = (
        ("convert", base / "tokenizer.model", tmp_path / "hf"),
        ("inspect", tmp_path / "hf"),
        ("pad-vocab", base, "--out", tmp_path / "padded", "--multiple-of", 128, "--tensor-parallel", 4),
        ("extend", base, "--out", tmp_path / "more", "--token", "<|x|>", "--resize"),
        ("chat", base),
    )
    code = "from tokenizer_tools.main import app\n"
    code += "".join(f"app({[str(part) for part in call]}, standalone_mode=False)\n" for call in calls)
    said = _run("\n" + code).stdout
    for wanted in ("ids up to 1,279", "1,280 -> 1,536 rows", "1,280 -> 1,281 rows", "generation begins here"):
        assert wanted in said


def test_a_store_names_what_it_needs(tmp_path):
    (tmp_path / "store.h5").write_bytes(b"")
    arguments = ["train", str(tmp_path / "store.h5"), "--out", str(tmp_path / "t"), "--vocab-size", "300"]
    call = f"from tokenizer_tools.main import app; app({[*arguments, '--store-tokenizer', str(tmp_path)]})"
    done = _run(call)
    assert done.returncode == 2
    assert "reading a token store needs megatron_spell and h5py" in done.stderr and done.stderr.count("\n") == 1


def test_only_the_store_reader_is_imported_and_only_inside_a_function():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        names |= {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert {name for name in names if name.startswith("megatron_spell")} <= {"megatron_spell.data.store"}, path
        top = {n.module for n in tree.body if isinstance(n, ast.ImportFrom)}
        assert "megatron_spell.data.store" not in top

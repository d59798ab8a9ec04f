"""Checking a run must not load what only training needs."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "megatron", "vllm", "ray", "transformers", "sklearn", "h5py")


@pytest.mark.parametrize(
    "module",
    [
        "config.check",
        "config.load",
        "layout.mesh",
        "types.play",
        "roles.questioner",
        "rewards.assign",
        "cli.main",
        "train.bridge_forecast",
    ],
)
def test_a_pure_module_loads_nothing_heavy(module):
    code = f"import sys, megatron_spell.{module}; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []

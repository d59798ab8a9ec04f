"""The adaptation reaches Megatron's modules and leaves everybody else's torch alone."""

import subprocess
import sys

import torch

from megatron_spell.policy import platform


def test_megatron_sees_a_cpu(alone):
    import megatron.core.optimizer.clip_grads as clip_grads

    assert clip_grads.torch.zeros(1, device="cuda").device.type == "cpu"
    assert clip_grads.torch.nn is torch.nn


def test_torch_keeps_its_factories(alone):
    assert torch.zeros is not platform.torch_on_cpu().zeros
    with torch.device("meta"):
        assert torch.arange(3).device.type == "meta"


def test_importing_the_policy_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", "import megatron_spell.policy.worker"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

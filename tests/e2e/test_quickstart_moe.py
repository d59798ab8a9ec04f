"""The quickstart with 8 experts: expert-parallel ranks and real vLLM through the whole loop."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.quickstart import LIMIT_S, ROOT, as_arguments, cli, metrics, overrides

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples/quickstart_moe"
STEPS = 3
# Router losses and larger steps than the example's: what goes stale in the engine must show.
SETTINGS = {
    "policy.moe.balance_loss_coef": 0.01,
    "policy.moe.z_loss_coef": 0.001,
    "policy.optimizer.lr": "5e-4",
}


@pytest.fixture(scope="module")
def base_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moe") / "base_model"
    subprocess.run(
        [sys.executable, str(EXAMPLE / "make_base_model.py"), "--out", str(folder)], check=True, timeout=LIMIT_S
    )
    return folder


def train_command(store: Path, base_model: Path, run_folder: Path, **more) -> list[str]:
    settings = overrides(store, run_folder, steps=STEPS, **{"model.path": base_model, **SETTINGS, **more})
    return ["train", str(EXAMPLE / "run.yaml"), *as_arguments(settings)]


def test_experts_train_and_the_engine_follows(store, base_model, tmp_path):
    done = cli(train_command(store, base_model, tmp_path / "run"), expect=0)
    assert "2 trainer ranks (tp=1 pp=1 dp=2 ep=2)" in done.stdout
    steps = metrics(tmp_path / "run")
    assert [entry["step"] for entry in steps] == [1, 2, 3]
    for entry in steps:
        # Before each step, on tokens that the engine sampled with what the refresh had brought it.
        assert entry["mismatch/log_prob_diff/mean"] < 2e-5
        assert entry["policy/grad_norm"] > 0
        assert entry["bridge/bytes"] > 8e6
        for layer in range(4):
            assert 1 <= entry[f"moe/load_max_ratio/layer_{layer:02d}"] <= 4
            assert 0 < entry[f"moe/load_entropy/layer_{layer:02d}"] <= 1
        assert entry["moe/balance_loss"] >= 0.9
        assert "moe/routing_differs" not in entry
    assert steps[0]["moe/z_loss"] != steps[1]["moe/z_loss"]


def test_replay_is_refused_where_the_engine_cannot_return_choices(store, base_model, tmp_path):
    command = train_command(store, base_model, tmp_path / "run", **{"policy.moe.routing_replay": "always"})
    done = cli(command, expect=2)
    assert (
        "policy.moe.routing_replay = always: vLLM on a CPU does not return expert choices" in done.stderr + done.stdout
    )

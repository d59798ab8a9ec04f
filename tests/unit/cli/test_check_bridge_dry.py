"""`megatron-spell check-bridge --dry-run` on a made model; the real ones are in unit/train/test_bridge_forecast.py."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_spell.bridge.planner import Plan
from megatron_spell.cli.check_bridge import layout_overrides
from megatron_spell.cli.main import app
from megatron_spell.config.hardware import TABLE
from megatron_spell.train import bridge_forecast

CONFIG = {
    "model_type": "qwen3_moe",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 65536,
    "rope_theta": 1e4,
}


@pytest.fixture
def run_yaml(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: dry\nrun_folder: {tmp_path}/run\nmodel: {{path: {tmp_path}}}\ndata: {{store: {tmp_path}/none.h5}}\n"
        "policy: {mesh: {dp: 2, ep: 2}, sequence_parallel: false}\n"
    )
    return path


def run(*arguments: object) -> tuple[int, list[str], str]:
    """Exit code, lines of standard error, standard output."""
    result = CliRunner().invoke(app, ["check-bridge", *map(str, arguments)], env={"COLUMNS": "160"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stderr.splitlines(), result.stdout


def test_tables_for_people(run_yaml, tmp_path):
    code, said, out = run(run_yaml, "--dry-run")
    assert (code, said) == (0, [])
    num_tensors = 4 * (9 + 4 * 3) + 3
    assert f"{num_tensors} of {num_tensors}; each element exactly once" in out
    for word in ("2 ranks (tp=1 pp=1 dp=2 ep=2)", "same node (NVLink)", "max / mean", "h100", "GPU 2 receives"):
        assert word in out
    assert not (tmp_path / "run").exists(), "a dry run writes nothing"


def test_figures_for_programs(run_yaml):
    code, _, out = run(run_yaml, "--dry-run", "--json", "--gpus-per-node", 2, "--engines", 2)
    found = json.loads(out)
    assert code == 0
    assert found["num_bytes_by_path"]["between nodes (InfiniBand)"] == found["num_bytes"] == 4 * found["num_parameters"]
    assert found["received_bytes"]["imbalance"] == 1
    assert {each["hardware"] for each in found["predictions"]} == {"a100", "h100", "h200"}
    assert found["peak_memory_bytes"] > 1e7


def test_layouts_and_hardware_from_the_command_line(run_yaml, tmp_path):
    table = tmp_path / "hardware.yaml"
    table.write_text(TABLE.read_text().replace("a100:", "mine:"))
    options = ("--mesh", "pp=2,dp=2,ep=2", "--engine-mesh", "tp=2,ep", "--hardware", table)
    code, _, out = run(run_yaml, "--dry-run", "--json", *options)
    found = json.loads(out)
    assert code == 0
    assert found["trainers"] == {"num_ranks": 4, "mesh": "tp=1 pp=2 dp=2 ep=2"}
    assert found["engines"] == {"count": 1, "num_workers": 2, "mesh": "tp=2 ep", "colocated": False}
    assert {each["hardware"] for each in found["predictions"]} == {"mine", "h100", "h200"}


def test_a_mesh_replaces_the_files_own_whole():
    named = layout_overrides("tp=4", None, "tp=8,ep")
    assert "policy.mesh.ep=1" in named
    assert "policy.mesh.etp=null" in named
    assert {"rollout.tensor_parallel=8", "rollout.pipeline_parallel=1", "rollout.expert_parallel=true"} <= {*named}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--mesh", "tp=2,tp=2"), "--mesh tp=2,tp=2: 'tp=2' does not belong there"),
        (("--mesh", "tp=x"), "--mesh tp=x: "),
        (("--mesh", "tp=0"), "policy.mesh.tp = 0: "),
        (("--mesh", "ep"), "give some of tp=N, pp=N, dp=N, cp=N, ep=N, etp=N, vpp=N, each once"),
        (("--engine-mesh", "tp=2,ep=2"), "give some of tp=N, pp=N, dp=N, ep, each once"),
        (("--mesh", "pp=3"), "policy.mesh.pp = 3: the model's 4 layers do not divide by it"),
        (("--engine-mesh", "tp=3"), "rollout.tensor_parallel = 3: "),
        (("--hardware", "none.yaml"), "--hardware none.yaml: no such file"),
        (("--set", "model.path=none"), "model.path = none: none holds no config.json"),
        (("--set", "bridge.bucket_mib=1e-6"), "bucket_bytes = 1: cannot hold one element of 2 bytes; raise it"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line_each(run_yaml, options, said):
    code, lines, out = run(run_yaml, "--dry-run", *options)
    assert (code, out) == (2, "")
    assert said in lines[0]
    assert all(line.startswith("megatron-spell: ") for line in lines)


def test_a_plan_with_a_hole_is_told_and_ends_in_1(run_yaml, monkeypatch):
    whole = bridge_forecast.plan
    monkeypatch.setattr(bridge_forecast, "plan", lambda *of: Plan(whole(*of).moves[1:]))
    code, _, out = run(run_yaml, "--dry-run")
    assert code == 1
    assert "model.embed_tokens.weight: " in out
    assert "elements are brought" in out

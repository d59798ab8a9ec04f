"""The check's trainer side on real ranks: what they hold, the folder, and an engine that leaves a tensor out."""

import json
from pathlib import Path

import pytest

from megatron_spell.config.load import load_config
from megatron_spell.train.bridge_check import Report, read_report
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RANK = Path(__file__).with_name("bridge_check_rank.py")
STALE = "model.layers.1.self_attn.o_proj.weight"


def checked(folder: Path, stale: str, *options: str) -> Report:
    example = ROOT / "examples/quickstart"
    config = load_config(
        example / "run.yaml", [f"model.path={example / 'base_model'}", "rollout.tensor_parallel=2", *options]
    )
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    num_ranks = config.policy.mesh.mesh().world_size
    run_ranks(RANK, num_ranks, str(folder / "config.json"), str(folder / "report.json"), stale, timeout_s=200)
    return read_report(folder / "report.json")


@pytest.mark.parametrize(
    "options",
    [
        ("policy.mesh.tp=2",),
        ("policy.mesh.tp=1", "policy.mesh.pp=2", "policy.dtype=bfloat16", "rollout.dtype=bfloat16"),
    ],
    ids=["tp2", "pp2-bfloat16"],
)
def test_what_a_refresh_leaves_out_is_named(tmp_path, options):
    report = checked(tmp_path, STALE, *options)
    assert {difference.tensor for difference in report.differences} == {STALE}
    assert all("trainer rank" in d.views and "engine 0 worker" in d.views for d in report.differences)
    assert report.num_elements == report.num_model_elements


def test_equal_weights_are_equal(tmp_path):
    report = checked(tmp_path, "none", "policy.mesh.tp=2", "rollout.dtype=bfloat16")
    assert report.differences == ()

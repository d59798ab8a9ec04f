"""`megatron-spell check-bridge` with real trainers and real vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_spell.config.model_shape import ModelShape
from tests.e2e.quickstart import EXAMPLE, LIMIT_S, ROOT, as_arguments, cli, overrides

pytestmark = pytest.mark.slow


def command(store: Path, run_folder: Path, *options: str, **more) -> list[str]:
    settings = overrides(store, run_folder, **more)
    return ["check-bridge", str(EXAMPLE / "run.yaml"), *as_arguments(settings), *options]


@pytest.mark.nightly
def test_every_element_of_trainers_engine_and_folder_is_equal(store, tmp_path):
    done = cli(command(store, tmp_path / "run", "--full", "--json"), expect=0)
    found = json.loads(done.stdout)
    assert found["equal"]
    assert found["num_elements"] == ModelShape.load(EXAMPLE / "base_model").num_parameters
    for row in found["rows"]:
        assert row["num_holders"] == {"trainers": 2, "folder": 1, "engine 0": 1}
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.nightly
def test_experts_spread_over_ranks_and_workers_are_equal(store, tmp_path):
    example, model = ROOT / "examples/quickstart_moe", tmp_path / "base_model"
    make = [sys.executable, str(example / "make_base_model.py"), "--out", str(model)]
    subprocess.run(make, check=True, timeout=LIMIT_S)
    settings = as_arguments(overrides(store, tmp_path / "run", **{"model.path": model}))
    options = ["--full", "--json", "--engine-mesh", "tp=2,ep"]
    done = cli(["check-bridge", str(example / "run.yaml"), *settings, *options], expect=0)
    rows = {row["group"]: row for row in json.loads(done.stdout)["rows"]}
    experts = rows["model.layers.N.mlp.experts.*.up_proj.weight"]
    assert experts["num_holders"] == {"trainers": 2, "folder": 1, "engine 0": 2}
    assert experts["differences"] == []


@pytest.mark.nightly
def test_samples_are_shown_to_people(store, tmp_path):
    done = cli(command(store, tmp_path / "run", "--seed", "3"), expect=0)
    assert "model.layers.N.self_attn.q_proj.weight" in done.stdout
    assert "elements compared, sampled boxes (seed 3" in done.stdout
    assert done.stdout.rstrip().endswith("all are equal")


def test_what_keeps_a_run_from_starting_keeps_a_check_from_it(tmp_path):
    done = cli(command(tmp_path / "none.h5", tmp_path / "run"), expect=2)
    assert "data.store = " in done.stderr
    assert not (tmp_path / "run").exists()

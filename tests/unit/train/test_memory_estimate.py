import json
from pathlib import Path

import pytest

from megatron_spell.config.load import load_config
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.train.preflight import memory_needed_gib

EXAMPLE = Path(__file__).parents[3] / "examples/quickstart"


@pytest.mark.parametrize(("dtype", "num_bytes"), [("float32", 12), ("bfloat16", 14)])
def test_a_snapshot_takes_one_copy_of_the_state_over_all_ranks(tmp_path, dtype, num_bytes):
    model = json.loads((EXAMPLE / "base_model/config.json").read_text()) | {"intermediate_size": 2**20}
    (tmp_path / "config.json").write_text(json.dumps(model))

    def needed(asynchronous: str) -> float:
        settings = {"model.path": tmp_path, "policy.dtype": dtype, "policy.mesh.dp": 4}
        settings["checkpoint.asynchronous"] = asynchronous
        return memory_needed_gib(load_config(EXAMPLE / "run.yaml", [f"{k}={v}" for k, v in settings.items()]))

    state_gib = num_bytes * ModelShape.load(tmp_path).num_parameters / 2**30
    assert needed("true") - needed("false") == pytest.approx(state_gib)

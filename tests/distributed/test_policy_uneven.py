"""Pipeline stages of unequal numbers of layers against Hugging Face and plain AdamW, rows run one by one."""

import pytest

from tests.distributed.layout_lab import (
    SEEDS,
    Lab,
    assert_trained_like_plain_torch,
    assert_went_on_like_plain_torch,
    plain_torch,
)
from tests.distributed.policy_lab import write_tiny

pytestmark = pytest.mark.slow

# Six layers; interleaved, neither the stages nor the chunks of one stage have equal numbers of them.
STAGES = {"pp": 2, "stage_layers": [1, 5]}
CHUNKS = {"pp": 2, "vpp": 2, "stage_layers": [1, 1, 3, 1]}
EVEN, EP = {"pp": 2}, {"dp": 2, "ep": 2}
KINDS = {"tied": "qwen3", "moe": "moe"}
SPLIT_ADAM, LATER = {"distributed_optimizer": True}, {"seeds": SEEDS[2:]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("uneven")
    models = {name: write_tiny(folder / name, kind, name == "tied", num_layers=6) for name, kind in KINDS.items()}
    return Lab(folder, {name: plain_torch(model) for name, model in models.items()})


@pytest.fixture(scope="module")
def two(lab) -> Lab:
    lab.run(
        [
            lab.case("tied-stages", STAGES, save_after=2),
            lab.case("tied-chunks", CHUNKS, save_after=2),
            lab.case("moe-stages", STAGES),
            lab.case("moe-chunks", CHUNKS, save_after=2),
            lab.case("tied-stages then pp", EVEN, load="tied-stages", **LATER),
            lab.case("tied-chunks then stages", STAGES, load="tied-chunks", **LATER),
            lab.case("moe-chunks then ep split adam", EP, **SPLIT_ADAM, load="moe-chunks", **LATER),
        ]
    )
    return lab


@pytest.fixture(scope="module")
def four(two) -> Lab:
    two.run(
        [
            two.case("tied-four stages", {"pp": 4, "stage_layers": [2, 1, 1, 2]}),
            two.case("moe-chunks ep split adam", CHUNKS | EP, **SPLIT_ADAM),
            two.case("moe-chunks then chunks ep", CHUNKS | EP, load="moe-chunks", **LATER),
        ]
    )
    return two


@pytest.mark.parametrize("name", ["tied-stages", "tied-chunks", "moe-stages", "moe-chunks"])
def test_uneven_stages_train_like_one_process_with_adamw(name, two):
    assert_trained_like_plain_torch(two, name)


@pytest.mark.parametrize("name", ["tied-four stages", "moe-chunks ep split adam"])
def test_uneven_stages_of_four_ranks_train_like_one_process_with_adamw(name, four):
    assert_trained_like_plain_torch(four, name)


@pytest.mark.parametrize("name", ["tied-stages then pp", "tied-chunks then stages", "moe-chunks then ep split adam"])
def test_training_goes_on_in_another_split(name, two):
    assert_went_on_like_plain_torch(two, name)


def test_two_uneven_stages_go_on_with_experts_spread(four):
    assert_went_on_like_plain_torch(four, "moe-chunks then chunks ep")

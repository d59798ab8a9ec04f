"""The policy in every layout against Hugging Face and plain AdamW, rows run one by one; real gloo processes."""

import numpy as np
import pytest

from tests.distributed.layout_lab import (
    SEEDS,
    Lab,
    assert_trained_like_plain_torch,
    assert_went_on_like_plain_torch,
    plain_torch,
)
from tests.distributed.policy_lab import write_tiny, write_tiny_qwen3

pytestmark = pytest.mark.slow

TP, PP, DP, CP, VPP = {"tp": 2}, {"pp": 2}, {"dp": 2}, {"cp": 2}, {"vpp": 2}
SP, SPLIT_ADAM = {"sequence_parallel": True}, {"distributed_optimizer": True}
OTHERS = ["qwen2", "llama", "yarn"]  # "tied" and "untied" are Qwen3; test_policy_experts.py has the experts


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("policy")
    models = {name: write_tiny_qwen3(folder / name, name == "tied") for name in ("tied", "untied")}
    models |= {name: write_tiny(folder / name, name) for name in OTHERS}
    return Lab(folder, {name: plain_torch(model) for name, model in models.items()})


@pytest.fixture(scope="module")
def two(lab) -> Lab:
    """All that two processes are asked to do."""
    later, bf16 = {"seeds": SEEDS[2:]}, {"mesh": TP, "dtype": "bfloat16"}
    lab.run(
        [
            lab.case("untied-tp", TP, save_after=2),
            lab.case("untied-pp", PP),
            lab.case("untied-tp sp", TP, **SP),
            lab.case("tied-tp sp", TP, **SP, save_after=2),
            lab.case("untied-cp", CP),
            lab.case("tied-cp split adam", CP, **SPLIT_ADAM, save_after=2),
            lab.case("tied-tp", TP),
            lab.case("tied-pp", PP, save_after=2),
            lab.case("tied-dp", DP),
            lab.case("tied-dp split adam", DP, **SPLIT_ADAM, save_after=2),
            lab.case("tied-dp split adam then dp", DP, load="tied-dp split adam", **later),
            lab.case("tied-pp then dp split adam", DP, **SPLIT_ADAM, load="tied-pp", **later),
            lab.case("tied-tp sp then dp split adam", DP, **SPLIT_ADAM, load="tied-tp sp", **later),
            lab.case("tied-dp split adam then tp sp", TP, **SP, load="tied-dp split adam", **later),
            lab.case("tied-dp split adam, own moments only", DP, **SPLIT_ADAM, fault="no gather", save_after=2),
            lab.case("tied-misread", DP, load="tied-dp split adam, own moments only", **later),
            lab.case("untied-bf16 split adam", DP, **SPLIT_ADAM, dtype="bfloat16", save_after=2),
            lab.case(
                "untied-bf16 split adam again",
                DP,
                **SPLIT_ADAM,
                dtype="bfloat16",
                load="untied-bf16 split adam",
                **later,
            ),
            *(lab.case(f"{name}-tp", TP) for name in OTHERS),
            lab.case("qwen2-pp", PP),
            lab.case("untied-pp vpp", PP | VPP),
            lab.case("tied-pp vpp", PP | VPP, save_after=2),
            lab.case("tied-pp vpp then tp", TP, load="tied-pp vpp", **later),
            lab.case("untied-tp then pp", PP, load="untied-tp", **later),
            lab.case("tied-pp then tp", TP, load="tied-pp", **later),
            lab.case("tied-pp then dp", DP, load="tied-pp", **later),
            lab.case("untied-dropped in tp", TP, fault="no all-reduce"),
            lab.case("untied-dropped in tp sp", TP, **SP, fault="no all-reduce"),
            lab.case("untied-dropped in dp", DP, fault="no all-reduce"),
            lab.case("tied-cp split adam then pp", PP, load="tied-cp split adam", **later),
            lab.case("tied-pp then cp split adam", CP, **SPLIT_ADAM, load="tied-pp", **later),
            lab.case("untied-dropped in cp", CP, fault="no all-reduce"),
            lab.case("untied-rank order in cp", CP, fault="rank order"),
            lab.case("untied-bf16", **bf16, save_after=2),
            lab.case("untied-bf16 again", **bf16, load="untied-bf16", **later),
            lab.case("untied-distrust in dp", DP, do="distrust"),
            lab.case("untied-distrust in pp", PP, do="distrust"),
            lab.case("untied-distrust in cp", CP, do="distrust"),
        ]
    )
    return lab


@pytest.fixture(scope="module")
def four(lab) -> Lab:
    """All that four processes are asked to do."""
    later = {"seeds": SEEDS[2:]}
    lab.run(
        [
            lab.case("tied-tp pp", TP | PP),
            lab.case("tied-tp dp", TP | DP),
            lab.case("tied-tp sp pp", TP | PP, **SP),
            lab.case("tied-tp sp cp", TP | CP, **SP, save_after=2),
            lab.case("tied-cp dp split adam", CP | DP, **SPLIT_ADAM),
            lab.case("tied-cp 4", {"cp": 4}),
            lab.case("tied-tp sp cp then dp split adam", {"dp": 4}, **SPLIT_ADAM, load="tied-tp sp cp", **later),
        ]
    )
    return lab


def test_one_process_trains_like_plain_torch(lab):
    names = [f"{model}-one" for model in ("tied", "untied", *OTHERS)]
    lab.run([lab.case(name, {"tp": 1}) for name in names])
    for name in names:
        assert_trained_like_plain_torch(lab, name)


@pytest.mark.parametrize(
    "name",
    [
        "untied-tp",
        "untied-tp sp",
        "untied-pp",
        "untied-cp",
        "tied-tp",
        "tied-tp sp",
        "tied-pp",
        "tied-dp",
        "tied-dp split adam",
        "tied-cp split adam",
        "qwen2-pp",
        "untied-pp vpp",
        "tied-pp vpp",
        *(f"{kind}-tp" for kind in OTHERS),
    ],
)
def test_one_axis_trains_like_one_process_with_adamw(name, two):
    assert_trained_like_plain_torch(two, name)


@pytest.mark.parametrize(
    "name", ["tied-tp pp", "tied-tp dp", "tied-tp sp pp", "tied-tp sp cp", "tied-cp dp split adam", "tied-cp 4"]
)
def test_four_ranks_train_like_one_process_with_adamw(name, four):
    assert_trained_like_plain_torch(four, name)


def test_losses_and_entropies_do_not_depend_on_the_layout(two):
    for figure in ("losses", "entropies"):
        for name in ("tied-tp sp", "tied-pp", "tied-dp", "tied-dp split adam", "tied-cp split adam"):
            np.testing.assert_allclose(two.seen(name)[figure], two.seen("tied-tp")[figure], rtol=1e-5)


@pytest.mark.parametrize("axes", ["tp", "tp sp", "dp", "cp"])
def test_a_dropped_all_reduce_would_be_seen(axes, two):
    """Planted: replicas (dp, cp), copies of the head norms (tp) or of all norms (tp sp) keep their own gradients."""
    assert two.distance(f"untied-dropped in {axes}") > 1e-5


def test_keys_in_the_order_of_the_ranks_would_be_seen(two):
    """Planted: context-parallel ranks take gathered keys and values for those of the bin in its own order."""
    name = "untied-rank order in cp"
    assert two.distance(name) > 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "untied-tp then pp",
        "tied-pp then tp",
        "tied-pp then dp",
        "tied-pp then dp split adam",
        "tied-tp sp then dp split adam",
        "tied-dp split adam then dp",
        "tied-dp split adam then tp sp",
        "tied-pp vpp then tp",
        "tied-cp split adam then pp",
        "tied-pp then cp split adam",
    ],
)
def test_training_goes_on_in_another_layout(name, two):
    assert_went_on_like_plain_torch(two, name)


def test_training_on_four_ranks_goes_on_in_another_layout(four):
    assert_went_on_like_plain_torch(four, "tied-tp sp cp then dp split adam")


def test_moments_that_are_not_gathered_would_be_seen(two):
    """Planted: every rank saves its own stretch of the distributed optimizer's moments, and zeros for the rest."""
    assert two.distance("tied-misread") > 1e-5


@pytest.mark.parametrize("name", ["untied-bf16", "untied-bf16 split adam"])
def test_a_bfloat16_run_goes_on_bit_for_bit(name, two):
    """Float32 main weights and moments return exactly in the same layout."""
    assert two.seen(f"{name} again")["grad_norms"] == two.seen(name)["grad_norms"][2:]
    assert two.weights(f"{name} again/weights") == two.weights(f"{name}/weights")


@pytest.mark.parametrize("name", ["untied-distrust in dp", "untied-distrust in pp", "untied-distrust in cp"])
def test_every_rank_distrusts_a_wrong_engine_and_no_weight_moves(name, two):
    seen = two.seen(name)
    assert seen["honest_diff"] < 1e-4
    assert seen["num_updates"] == 1
    assert len(set(seen["messages"])) == 1
    assert "trust.max_log_prob_diff = 0.5" in seen["messages"][0]
    assert two.weights(f"{name}/before") == two.weights(f"{name}/after")

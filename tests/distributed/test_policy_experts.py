"""Mixtures of experts in every layout, as test_policy_layouts.py does dense models; and layouts of eight ranks."""

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

TP, PP, DP, CP, VPP, EP = {"tp": 2}, {"pp": 2}, {"dp": 2}, {"cp": 2}, {"vpp": 2}, {"ep": 2}
ETP1, ETP2 = {"etp": 1}, {"etp": 2}
SP, SPLIT_ADAM, GATHER = {"sequence_parallel": True}, {"distributed_optimizer": True}, {"dispatcher": "allgather"}
BF16 = SPLIT_ADAM | {"dtype": "bfloat16"}
LATER = {"seeds": SEEDS[2:]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("experts")
    models = {"moe": write_tiny(folder / "moe", "moe"), "dense": write_tiny(folder / "dense", "qwen3", tied=True)}
    return Lab(folder, {name: plain_torch(model) for name, model in models.items()})


@pytest.fixture(scope="module")
def two(lab) -> Lab:
    lab.run(
        [
            lab.case("moe-tp sp", TP, **SP),
            lab.case("moe-pp", PP, save_after=2),
            lab.case("moe-pp vpp", PP | VPP),
            lab.case("moe-cp", CP),
            lab.case("moe-dp split adam", DP, **SPLIT_ADAM),
            lab.case("moe-ep", DP | EP, save_after=2),
            lab.case("moe-ep allgather", DP | EP, **GATHER),
            lab.case("moe-ep split adam", DP | EP, **SPLIT_ADAM, save_after=2),
            lab.case("moe-tp sp ep", TP | EP | ETP1, **SP),
            lab.case("moe-tp sp ep allgather", TP | EP | ETP1, **SP, **GATHER),
            lab.case("moe-cp ep", CP | EP),
            lab.case("moe-pp then ep split adam", DP | EP, **SPLIT_ADAM, load="moe-pp", **LATER),
            lab.case("moe-ep split adam then tp sp", TP, **SP, load="moe-ep split adam", **LATER),
            lab.case("moe-bf16 ep split adam", DP | EP, **BF16, save_after=2),
            lab.case("moe-bf16 ep split adam again", DP | EP, **BF16, load="moe-bf16 ep split adam", **LATER),
            lab.case("moe-experts as dense", DP | EP, fault="experts as dense"),
        ]
    )
    return lab


@pytest.fixture(scope="module")
def four(two) -> Lab:
    two.run(
        [
            two.case("moe-ep 4", {"dp": 4, "ep": 4}),
            two.case("moe-tp sp ep etp 1", TP | DP | EP | ETP1, **SP),
            two.case("moe-tp sp ep etp 2", TP | DP | EP | ETP2, **SP, **SPLIT_ADAM),
            two.case("moe-pp ep", PP | DP | EP),
            two.case("moe-cp ep dp", CP | DP | EP),
            two.case("moe-ep then ep 4", {"dp": 4, "ep": 4}, load="moe-ep", **LATER),
        ]
    )
    return two


@pytest.fixture(scope="module")
def eight(lab) -> Lab:
    lab.run(
        [
            lab.case("dense-tp pp cp split adam", TP | PP | CP, **SPLIT_ADAM),
            lab.case("moe-tp pp vpp ep split adam", TP | PP | VPP | DP | EP | ETP1, **SP, **SPLIT_ADAM, save_after=2),
        ]
    )
    lab.run([lab.case("moe-eight then two", DP | EP, load="moe-tp pp vpp ep split adam", **LATER)])
    return lab


def test_one_process_trains_experts_like_plain_torch(lab):
    lab.run([lab.case("moe-one", {"tp": 1})])
    assert_trained_like_plain_torch(lab, "moe-one")


@pytest.mark.parametrize(
    "name",
    [
        "moe-tp sp",
        "moe-pp",
        "moe-pp vpp",
        "moe-cp",
        "moe-dp split adam",
        "moe-ep",
        "moe-ep allgather",
        "moe-ep split adam",
        "moe-tp sp ep",
        "moe-tp sp ep allgather",
        "moe-cp ep",
    ],
)
def test_two_ranks_train_experts_like_plain_torch(name, two):
    assert_trained_like_plain_torch(two, name)


@pytest.mark.parametrize("name", ["moe-ep 4", "moe-tp sp ep etp 1", "moe-tp sp ep etp 2", "moe-pp ep", "moe-cp ep dp"])
def test_four_ranks_train_experts_like_plain_torch(name, four):
    assert_trained_like_plain_torch(four, name)


@pytest.mark.parametrize("name", ["dense-tp pp cp split adam", "moe-tp pp vpp ep split adam"])
def test_eight_ranks_train_like_plain_torch(name, eight):
    assert_trained_like_plain_torch(eight, name)


@pytest.mark.parametrize("name", ["moe-pp then ep split adam", "moe-ep split adam then tp sp"])
def test_training_of_experts_goes_on_in_another_layout(name, two):
    assert_went_on_like_plain_torch(two, name)


def test_two_expert_parallel_ranks_go_on_as_four(four):
    assert_went_on_like_plain_torch(four, "moe-ep then ep 4")


def test_eight_ranks_go_on_as_two(eight):
    assert_went_on_like_plain_torch(eight, "moe-eight then two")


def test_a_bfloat16_run_of_experts_goes_on_bit_for_bit(two):
    """Float32 main weights and moments of both optimizers, the dense layers' and the experts', return exactly."""
    name = "moe-bf16 ep split adam"
    assert two.seen(f"{name} again")["grad_norms"] == two.seen(name)["grad_norms"][2:]
    assert two.weights(f"{name} again/weights") == two.weights(f"{name}/weights")


def test_experts_reduced_like_dense_layers_would_be_seen(two):
    """Planted: gradients of different experts are summed over the data-parallel ranks."""
    assert two.gradients_off_by("moe-experts as dense") > 1e-2
    assert two.distance("moe-experts as dense") > 1e-5

"""The policy in every layout against Hugging Face and plain AdamW, rows run one by one; real gloo processes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.policy_lab import KINDS, Reference, difference, make_rows, write_tiny, write_tiny_qwen3
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.slow

RANK = Path(__file__).with_name("policy_rank.py")
SEEDS = [0, 1, 2, 3]
TP, PP, DP, CP = {"tp": 2}, {"pp": 2}, {"dp": 2}, {"cp": 2}
SP, SPLIT_ADAM = {"sequence_parallel": True}, {"distributed_optimizer": True}
OTHERS = [kind for kind in KINDS if kind != "qwen3"]  # "tied" and "untied" are Qwen3


@dataclass(frozen=True)
class Lab:
    """The models, with what plain torch makes of them, and a folder for each case."""

    folder: Path
    truth: dict[str, dict]

    def case(self, name: str, mesh: dict, do: str = "train", seeds: list[int] = SEEDS, **more) -> dict:
        out = self.folder / name
        out.mkdir()
        if "load" in more:
            more["load"] = str(self.folder / more["load"] / "checkpoint")
        model = str(self.folder / name.split("-")[0])
        return {"do": do, "model": model, "out": str(out), "mesh": mesh, "seeds": seeds, **more}

    def run(self, cases: list[dict]) -> None:
        listing = self.folder / f"{len(cases)} cases.json"
        listing.write_text(json.dumps(cases))
        run_ranks(RANK, int(np.prod(list(cases[0]["mesh"].values()))), str(listing), timeout_s=300)

    def seen(self, name: str) -> dict:
        return json.loads((self.folder / name / "seen.json").read_text())

    def tensors_of(self, name: str) -> dict[str, torch.Tensor]:
        return self.truth[name.split("-")[0]]["tensors"]

    def distance(self, name: str) -> float:
        """From the weights that the case ended with to plain torch's."""
        return difference(self.folder / name / "weights", self.tensors_of(name))

    def came_back_unchanged(self, name: str) -> bool:
        """Whether the export before any update equals the folder that was loaded, bit for bit."""
        before, after = (
            load_file(self.folder / folder / "model.safetensors") for folder in (name.split("-")[0], f"{name}/imported")
        )
        return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    folder = tmp_path_factory.mktemp("policy")
    models = {name: write_tiny_qwen3(folder / name, name == "tied") for name in ("tied", "untied")}
    models |= {name: write_tiny(folder / name, name) for name in OTHERS}
    return Lab(folder, {name: plain_torch(model) for name, model in models.items()})


def plain_torch(model: Path) -> dict:
    """Log-probs before, gradient norms during and weights after an update on each seed's rows."""
    reference = Reference(model)
    with torch.no_grad():
        log_probs = [reference.log_probs(row).numpy() for row in make_rows(SEEDS[0])]
        logits = reference.logits(make_rows(SEEDS[0])[0]).numpy()
    return {
        "logits": logits,
        "log_probs": log_probs,
        "grad_norms": [reference.update(make_rows(seed)) for seed in SEEDS],
        "tensors": reference.tensors(),
    }


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


def assert_trained_like_plain_torch(lab: Lab, name: str) -> None:
    seen, truth = lab.seen(name), lab.truth[name.split("-")[0]]
    assert seen["reports_agree"]
    np.testing.assert_allclose(np.load(lab.folder / name / "logits.npy"), truth["logits"], atol=1e-4, rtol=0)
    for found, expected in zip(seen["log_probs"], truth["log_probs"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    np.testing.assert_allclose(seen["grad_norms"], truth["grad_norms"], rtol=1e-5)
    assert lab.came_back_unchanged(name)
    assert lab.distance(name) < 1e-6


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
        "tied-cp split adam then pp",
        "tied-pp then cp split adam",
    ],
)
def test_training_goes_on_in_another_layout(name, two):
    """Saved after two updates; the two after loading equal an unbroken run's."""
    np.testing.assert_allclose(two.seen(name)["grad_norms"], two.truth[name.split("-")[0]]["grad_norms"][2:], rtol=1e-5)
    assert two.distance(name) < 1e-6


def test_training_on_four_ranks_goes_on_in_another_layout(four):
    test_training_goes_on_in_another_layout("tied-tp sp cp then dp split adam", four)


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

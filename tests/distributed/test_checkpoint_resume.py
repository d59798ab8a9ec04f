"""What one layout saves in the background while it trains on, another goes on from as if nothing had happened."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.checkpoints import Checkpoints, find_fault
from tests.distributed.policy_lab import write_tiny
from tests.distributed.processes import run_ranks

pytestmark = pytest.mark.slow

RANK = Path(__file__).with_name("checkpoint_rank.py")
SPLIT_ADAM, SP = {"distributed_optimizer": True}, {"sequence_parallel": True}
UNEVEN = {"pp": 2, "stage_layers": [1, 3]}
LATER = {"hold": True}  # the checkpoint is written after the updates that follow it


@dataclass(frozen=True)
class Lab:
    folder: Path

    def case(self, name: str, mesh: dict, **more) -> dict:
        out = self.folder / name
        out.mkdir()
        if "load" in more:
            more["load"] = str(self.folder / more["load"])
        model = "experts" if name.startswith("experts") else "model"
        return {"model": str(self.folder / model), "out": str(out), "mesh": mesh, **more}

    def run(self, cases: list[dict]) -> None:
        num_ranks = Mesh(**cases[0]["mesh"]).world_size
        listing = self.folder / f"{num_ranks} ranks.json"
        listing.write_text(json.dumps(cases))
        run_ranks(RANK, num_ranks, str(listing), timeout_s=200)

    def seen(self, name: str) -> dict:
        return json.loads((self.folder / name / "seen.json").read_text())

    def distance(self, one: str, other: str) -> float:
        """The largest difference between the weights that two cases ended with."""
        a, b = (load_file(self.folder / name / "weights/model.safetensors") for name in (one, other))
        assert a.keys() == b.keys()
        return max((a[name] - b[name]).abs().max().item() for name in a)

    def same_step(self, one: str, other: str) -> bool:
        a, b = (self.seen(name)["updates"] for name in (one, other))
        return all(abs(x["surrogate"] - y["surrogate"]) < 1e-6 for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Lab:
    """Four ranks save, then two, then one goes on; every launch does all that its number of ranks is asked to."""
    lab = Lab(tmp_path_factory.mktemp("checkpoints"))
    write_tiny(lab.folder / "model", "qwen3", tied=True)
    write_tiny(lab.folder / "experts", "moe")
    dp_split = {"mesh": {"dp": 2}, **SPLIT_ADAM}
    lab.run(
        [
            lab.case("tp sp cp split", {"tp": 2, "cp": 2}, **SP, **SPLIT_ADAM),
            lab.case("experts tp sp ep split", {"tp": 2, "dp": 2, "ep": 2, "etp": 1}, **SP, **SPLIT_ADAM),
        ]
    )
    lab.run(
        [
            lab.case("tp", {"tp": 2}),
            lab.case("tp then pp", {"pp": 2}, load="tp"),
            lab.case("tp then tp", {"tp": 2}, load="tp"),
            lab.case("dp split", **dp_split, **LATER),
            lab.case("dp split then dp split", **dp_split, load="dp split"),
            lab.case("tp sp cp split then tp sp", {"tp": 2}, **SP, load="tp sp cp split"),
            lab.case("experts tp sp ep split then pp vpp", {"pp": 2, "vpp": 2}, load="experts tp sp ep split"),
            lab.case("experts uneven pp", UNEVEN, **LATER),
            lab.case("experts uneven pp then pp vpp", {"pp": 2, "vpp": 2}, load="experts uneven pp"),
            lab.case("experts uneven pp then uneven pp", UNEVEN, load="experts uneven pp"),
            lab.case("pp held up", {"pp": 2}, asynchronous=False),
            lab.case("pp held up then dp split", **dp_split, load="pp held up"),
            lab.case("bf16", **dp_split, dtype="bfloat16", **LATER),
            lab.case("bf16 then bf16", **dp_split, dtype="bfloat16", load="bf16"),
            lab.case("uncopied", {"tp": 2}, fault="uncopied", **LATER),
            lab.case("uncopied then pp", {"pp": 2}, load="uncopied"),
            lab.case("full", {"pp": 2}, do="full disk"),
            lab.case("alone", {"pp": 2}, do="alone", timeout_s=3),
        ]
    )
    lab.run([lab.case("dp split then one", {"dp": 1}, load="dp split")])
    return lab


@pytest.mark.parametrize(
    "name",
    [
        "tp then pp",
        "dp split then one",
        "dp split then dp split",
        "tp sp cp split then tp sp",
        "pp held up then dp split",
        "experts tp sp ep split then pp vpp",
        "experts uneven pp then pp vpp",
    ],
)
def test_the_next_two_updates_equal_those_of_the_run_that_went_on(lab, name):
    began = name.split(" then ")[0]
    for found, expected in zip(lab.seen(name)["updates"], lab.seen(began)["updates"], strict=True):
        for figure in ("loss", "surrogate", "log_prob_mean", "entropy"):
            assert found[figure] == pytest.approx(expected[figure], rel=1e-6, abs=1e-6), figure
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-6)
        assert found["lr"] == expected["lr"]
        np.testing.assert_allclose(found["log_probs"], expected["log_probs"], atol=4e-6, rtol=0)
    assert lab.distance(name, began) < 1e-6


@pytest.mark.parametrize(
    "name", ["tp then tp", "dp split then dp split", "bf16 then bf16", "experts uneven pp then uneven pp"]
)
def test_the_same_layout_goes_on_bit_for_bit(lab, name):
    began = name.split(" then ")[0]
    assert lab.seen(name)["updates"] == lab.seen(began)["updates"]
    assert lab.distance(name, began) == 0
    assert lab.seen(name)["draws"] == lab.seen(began)["draws"]
    assert lab.seen(name)["draws"] != lab.seen(name)["seeded"]


def test_another_layout_keeps_the_random_states_of_its_seed(lab):
    seen = lab.seen("tp then pp")
    assert seen["draws"] == seen["seeded"]


def test_updates_that_follow_a_snapshot_would_be_seen(lab):
    """Planted: what is written later are the live tensors, so the checkpoint holds two updates too many."""
    assert not lab.same_step("uncopied then pp", "tp")
    assert lab.distance("uncopied then pp", "tp") > 1e-5


def test_a_checkpoint_is_whole_and_holds_no_more_than_announced(lab):
    for name in ("tp", "dp split", "pp held up", "bf16"):
        step = lab.folder / name / "checkpoints/step_000002"
        assert find_fault(step) is None
        parts = {"weights", "adam_first_moment", "adam_second_moment", "policy.json"}
        parts |= {"main_weights"} if name == "bf16" else set()
        assert {path.name for path in (step / "policy").iterdir()} == parts
        for moment in load_file(step / "policy/adam_second_moment/model.safetensors").values():
            assert moment.dtype == torch.float32
            assert (moment > 0).any()


def test_a_full_disk_is_told_on_every_rank_and_leaves_the_checkpoint_before(lab):
    first, second, third = lab.seen("full")["told"]
    assert first == third == ["", ""]
    assert second[0] == second[1]
    assert "step_000002: cannot be written: [Errno 28] No space left on device" in second[0]
    assert lab.seen("full")["kept"].endswith("step_000001")


def test_a_rank_that_does_not_take_part_is_named(lab):
    """Both wait for the other; whose limit ends first closes the connection, which is what the other one sees then."""
    zero, one = lab.seen("alone")["told"]
    assert "trainer rank 0 waited 3 s for" in zero or "trainer rank 0 lost trainer rank 1 waiting for" in zero
    assert "from trainer rank 1" in zero
    assert "trainer rank 1 lost trainer rank 0" in one
    assert "waited 3 s" in zero or "waiting 3000ms" in one
    assert lab.seen("alone")["steps"] == []


def test_kill_9_in_the_middle_of_a_save_leaves_the_checkpoint_before(lab):
    """Whatever the save was at; then another start goes on with the update that the killed one had taken."""
    places = ("tensors", "the commit")
    for place in places:
        died = lab.case(f"killed in {place}", {"tp": 2}, do="die", kill=place)
        with pytest.raises(AssertionError, match="rank 0 of 2 ended with -9"):
            lab.run([died])
        checkpoints = Checkpoints(lab.folder / f"killed in {place}/checkpoints", keep=2)
        assert checkpoints.latest() == (checkpoints.of_step(2), [])
        assert checkpoints.aside(3).is_dir(), "the save had not begun"
    lab.run([lab.case(f"after {place}", {"tp": 2}, load=f"killed in {place}") for place in places])
    for place in places:
        taken = json.loads((lab.folder / f"killed in {place}/updates.json").read_text())
        assert lab.seen(f"after {place}")["updates"][0] == taken[2]

"""What the layout tests share: folders for their cases, and plain torch's results to hold them against."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from megatron_spell.algo.losses import row_weights
from megatron_spell.config.policy_sections import MeshSection
from tests.distributed.policy_lab import Reference, difference, make_rows
from tests.distributed.processes import run_ranks

RANK = Path(__file__).with_name("policy_rank.py")
SEEDS = [0, 1, 2, 3]


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
        run_ranks(RANK, MeshSection(**cases[0]["mesh"]).mesh().world_size, str(listing), timeout_s=400)

    def seen(self, name: str) -> dict:
        return json.loads((self.folder / name / "seen.json").read_text())

    def tensors_of(self, name: str) -> dict[str, torch.Tensor]:
        return self.truth[name.split("-")[0]]["tensors"]

    def distance(self, name: str) -> float:
        """From the weights that the case ended with to plain torch's."""
        return difference(self.folder / name / "weights", self.tensors_of(name))

    def gradients_off_by(self, name: str) -> float:
        """The largest difference of a gradient to plain torch's, as a share of its tensor's largest element."""
        found = load_file(self.folder / name / "gradients" / "model.safetensors")
        expected = self.truth[name.split("-")[0]]["gradients"]
        assert found.keys() == expected.keys()
        return max(((found[key] - g).abs().max() / g.abs().max()).item() for key, g in expected.items())

    def came_back_unchanged(self, name: str) -> bool:
        """Whether the export before any update equals the folder that was loaded, bit for bit."""
        before, after = (
            load_file(self.folder / folder / "model.safetensors") for folder in (name.split("-")[0], f"{name}/imported")
        )
        return before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "model.safetensors").read_bytes()


def plain_torch(model: Path) -> dict:
    """Log-probs and gradients before, figures of, and weights after an update on each seed's rows."""
    reference, rows = Reference(model), make_rows(SEEDS[0])
    reference.backward(rows)
    truth = {"gradients": reference.gradients(), "log_prob_means": [], "losses": [], "grad_norms": []}
    with torch.no_grad():
        truth |= {"logits": reference.logits(rows[0]).numpy(), "log_probs": reference.all_log_probs(rows)}
    for seed in SEEDS:
        rows = make_rows(seed)
        with torch.no_grad():
            truth["log_prob_means"].append(np.concatenate(reference.all_log_probs(rows)).mean())
        # At ratio one the loss is what the advantages and weights make it.
        weights = row_weights(rows, "per_role")
        truth["losses"].append(-sum(w * row.advantage * row.response_ids_A.size for w, row in zip(weights, rows)))
        truth["grad_norms"].append(reference.update(rows))
    return truth | {"tensors": reference.tensors()}


def assert_trained_like_plain_torch(lab: Lab, name: str) -> None:
    seen, truth = lab.seen(name), lab.truth[name.split("-")[0]]
    assert seen["reports_agree"]
    np.testing.assert_allclose(np.load(lab.folder / name / "logits.npy"), truth["logits"], atol=1e-4, rtol=0)
    for found, expected in zip(seen["log_probs"], truth["log_probs"], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert lab.gradients_off_by(name) < 2e-5
    for figure in ("losses", "log_prob_means", "grad_norms"):
        np.testing.assert_allclose(seen[figure], truth[figure], rtol=1e-5, err_msg=figure)
    assert lab.came_back_unchanged(name)
    assert lab.distance(name) < 1e-6


def assert_went_on_like_plain_torch(lab: Lab, name: str) -> None:
    """Saved after two updates in another layout; the two after loading equal an unbroken run's."""
    seen, truth = lab.seen(name), lab.truth[name.split("-")[0]]
    np.testing.assert_allclose(seen["losses"], truth["losses"][2:], atol=1e-6, rtol=0)
    for figure in ("log_prob_means", "grad_norms"):  # at ratio one the loss alone says little of the weights
        np.testing.assert_allclose(seen[figure], truth[figure][2:], rtol=2e-6, err_msg=figure)
    assert lab.distance(name) < 1e-6

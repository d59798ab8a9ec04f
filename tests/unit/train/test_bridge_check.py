"""`check-bridge --full` names what is wrong, wherever it is planted; trainers, engines and folder are made by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_spell.bridge.engine_inventory import engine_inventory, engine_places, engine_shapes
from megatron_spell.bridge.hf_folders import write_hf_folder
from megatron_spell.bridge.inventory import checkpoint_shapes, trainer_inventory
from megatron_spell.bridge.verify import digests
from megatron_spell.layout.engine_mesh import EngineMesh
from megatron_spell.layout.mesh import Mesh
from megatron_spell.train.bridge_check import Report, batches, check, choose_probes, folder_digests
from megatron_spell.train.bridge_forecast import Layout
from tests.unit.bridge.folder_lab import whole_boxes
from tests.unit.bridge.made_weights import laid_out, made_shape, made_weights

SHAPE = made_shape(
    family="qwen3_moe", tied=False, groups=4
)  # queries and keys of one shape, so that they can be swapped
LAYOUT = Layout(SHAPE, Mesh(tp=2, dp=2, ep=2, etp=2), EngineMesh(tp=2, expert_parallel=True), 1, "bfloat16", 2**20)
EXPERTS = "model.layers.1.mlp.experts."
W13, W2 = f"{EXPERTS}routed_experts.w13_weight", f"{EXPERTS}routed_experts.w2_weight"
LAST_BIT = 1 << 16  # of those of a float32 that bfloat16 keeps

Weights = dict[str, np.ndarray]


class Sides:
    """All holders with the same weights; tests change one of them."""

    def __init__(self, folder: Path, layout: Layout = LAYOUT):
        self.layout, self.folder, self.truth = layout, folder, made_weights(layout.shape)
        self.trainers = [self._trainer(self.truth, rank) for rank in range(layout.mesh.world_size)]
        self.places = engine_places(layout.shape, layout.engine_mesh)
        self.workers = [self.worker(self.truth, n) for n in range(len(self.places))]
        tensors = {name: torch.from_numpy(value) for name, value in self.truth.items()}
        write_hf_folder(folder, whole_boxes(tensors), checkpoint_shapes(layout.shape), torch.float32)

    def _trainer(self, weights: Weights, rank: int) -> dict[str, torch.Tensor]:
        found = laid_out(self.layout.shape, weights, self.layout.mesh, rank)
        return {name: torch.from_numpy(value.copy()) for name, value in found.items()}

    def worker(self, weights: Weights, number: int) -> dict[str, torch.Tensor]:
        """A worker's tensors, each expert put where it belongs."""
        place = self.places[number]
        shapes = engine_shapes(self.layout.shape, place)
        own = {name: torch.full(shape, torch.nan) for name, shape in shapes.items()}
        for segment in engine_inventory(self.layout.shape, place):
            box, at = segment.hf_box, segment.local_box
            if "*" not in segment.hf_name:
                own[segment.local_name][at.index] = torch.from_numpy(weights[segment.hf_name][box.index])
                continue
            for i, expert in enumerate(range(box.start[0], box.stop[0])):
                one = weights[segment.hf_name.replace("*", str(expert))][box.index[1:]]
                own[segment.local_name][(at.start[0] + i, *at.index[1:])] = torch.from_numpy(one)
        return own

    def with_engine_of(self, weights: Weights) -> None:
        self.workers = [self.worker(weights, n) for n in range(len(self.places))]

    def ask(self, probes):
        shape, mesh = self.layout.shape, self.layout.mesh
        wire = torch.bfloat16
        return {
            "trainers": {
                f"trainer rank {r}": digests(probes, trainer_inventory(shape, mesh, r), own, wire)
                for r, own in enumerate(self.trainers)
            },
            "folder": {"the folder": folder_digests(self.folder, probes, shape, torch.float32, wire)},
            "engine 0": {
                f"engine 0 worker {n}": digests(probes, engine_inventory(shape, self.places[n]), own, wire)
                for n, own in enumerate(self.workers)
            },
        }

    def checked(self, *, full: bool = True, seed: int = 0) -> Report:
        probes = choose_probes(self.layout, seed, full=full)
        return check(probes, self.ask, self.layout.shape, seed, full=full)


@pytest.fixture
def sides(tmp_path) -> Sides:
    return Sides(tmp_path / "folder")


def named(report: Report) -> set[str]:
    return {difference.tensor for difference in report.differences}


def exchanged(weights: Weights, a: str, b: str) -> Weights:
    return weights | {a: weights[b], b: weights[a]}


def test_equal_weights_are_told_in_a_line_for_each_group(sides):
    report = sides.checked()
    assert report.differences == ()
    assert report.num_tensors == len(checkpoint_shapes(SHAPE))
    assert report.num_elements == report.num_model_elements == SHAPE.num_parameters
    rows = {row.group: row for row in report.rows}
    assert len(rows) == 12 + 3
    experts = rows["model.layers.N.mlp.experts.*.down_proj.weight"]
    assert experts.num_holders == {"trainers": 4, "folder": 1, "engine 0": 2}
    assert experts.num_elements == 2 * 4 * 12 * 8
    assert Report.from_json(report.as_json()) == report


def test_samples_are_a_part_and_agree_too(tmp_path):
    shape = made_shape(family="llama", tied=True, hidden=256, ffn=512, vocab=512)
    sides = Sides(tmp_path / "folder", Layout(shape, Mesh(tp=2), EngineMesh(tp=2), 1, "bfloat16", 2**20))
    report = sides.checked(full=False)
    assert report.differences == ()
    assert report.num_tensors == len(checkpoint_shapes(shape))
    assert report.num_elements < report.num_model_elements / 4


@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_is_named_with_its_expert_and_box(sides, seed):
    rng = np.random.default_rng(seed)
    expert, row, column = rng.integers(2), rng.integers(8), rng.integers(12)
    sides.workers[1][W13].view(torch.int32)[expert, 8 + row, column] ^= LAST_BIT  # worker 1 has experts 2 and 3
    (difference,) = sides.checked().differences
    assert difference.tensor == f"{EXPERTS}{2 + expert}.up_proj.weight"
    (start, stop), _ = ([int(n) for n in part.split(":")] for part in difference.box.strip("[]").split(", "))
    assert start <= row < stop
    assert "engine 0 worker 1: " in difference.views
    assert "the folder" in difference.views


@pytest.mark.parametrize(
    "pair",
    [
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"),
        (f"{EXPERTS}3.gate_proj.weight", f"{EXPERTS}3.up_proj.weight"),
        ("model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
    ],
)
@pytest.mark.parametrize("full", [True, False])
def test_swapped_tensors_are_named(sides, pair, full):
    sides.with_engine_of(exchanged(sides.truth, *pair))
    assert named(sides.checked(full=full)) == {*pair}


@pytest.mark.parametrize("full", [True, False])
def test_a_swapped_expert_index_is_named(sides, full):
    for name in (W13, W2):
        sides.workers[0][name][:] = sides.workers[0][name].flip(0)  # experts 0 and 1
    wanted = {f"{EXPERTS}{expert}.{x}_proj.weight" for expert in (0, 1) for x in ("gate", "up", "down")}
    assert named(sides.checked(full=full)) == wanted


def test_a_stale_tensor_is_named(sides):
    before = sides.worker(made_weights(SHAPE, seed=9), 0)
    name = "model.layers.1.self_attn.o_proj.weight"
    sides.workers[0][name] = before[name]
    report = sides.checked()
    assert named(report) == {name}
    assert all("engine 0 worker 0: " in d.views and "worker 1" not in d.views for d in report.differences)


def test_a_replica_among_the_trainers_that_went_astray_is_named(sides):
    sides.trainers[3]["decoder.final_layernorm.weight"][0] += 1
    (difference,) = sides.checked().differences
    assert difference.tensor == "model.norm.weight"
    assert "trainer rank 3: " in difference.views


def test_a_mistake_that_trainers_and_engine_share_shows_against_the_folder(sides):
    pair = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    wrong = exchanged(sides.truth, *pair)
    sides.trainers = [sides._trainer(wrong, rank) for rank in range(4)]
    sides.with_engine_of(wrong)
    report = sides.checked()
    assert named(report) == {*pair}
    assert all(d.views.count(": ") >= 2 and "the folder: " in d.views for d in report.differences)


def test_what_an_engine_does_not_hold_is_named(sides):
    for worker in sides.workers:
        del worker["lm_head.weight"]
    report = sides.checked()
    assert named(report) == {"lm_head.weight"}
    assert all("held by none of engine 0 worker 0, engine 0 worker 1" in d.views for d in report.differences)


def test_the_folder_is_rounded_as_the_trainers_were(sides):
    probes = choose_probes(LAYOUT, 0, full=True)
    rounded = folder_digests(sides.folder, probes, SHAPE, torch.bfloat16, torch.float32)
    exact = folder_digests(sides.folder, probes, SHAPE, torch.float32, torch.float32)
    again = folder_digests(sides.folder, probes, SHAPE, torch.bfloat16, torch.bfloat16)
    assert rounded != exact
    assert again == folder_digests(sides.folder, probes, SHAPE, torch.float32, torch.bfloat16)


def test_questions_are_of_a_bounded_size():
    probes = choose_probes(LAYOUT, 0, full=True)
    found = list(batches(probes, max_elements=500))
    assert [probe for batch in found for probe in batch] == list(probes)
    assert all(len(batch) == 1 or sum(p.hf_box.num_elements for p in batch) <= 500 for batch in found)
    assert len(found) > 3

"""Stale rows on two ranks, and gradients that are not finite on one rank only; gloo processes."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.policy_lab import Reference, difference, make_rows, write_tiny_qwen3
from tests.distributed.processes import run_ranks
from tests.distributed.stale_rows import FORMS, make_stale_rows, plain_figures, plain_rows, plain_update, stale_algo

pytestmark = pytest.mark.slow

RANK = Path(__file__).with_name("off_policy_rank.py")
STALE = {**{form: ("cp", form) for form in FORMS}, **{f"{axis} stale": (axis, FORMS[1]) for axis in ("tp", "pp", "dp")}}
MESHES = {"dp": {"dp": 2}, "split adam": {"dp": 2}, "pp": {"pp": 2}}


@dataclass(frozen=True)
class Seen:
    folder: Path
    model: Path
    rows: list

    def of(self, name: str) -> dict:
        return json.loads((self.folder / name / "seen.json").read_text())

    def weights(self, name: str) -> Path:
        return self.folder / name / "weights"


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Seen:
    """All cases in one launch of two ranks."""
    folder = tmp_path_factory.mktemp("off_policy")
    model = write_tiny_qwen3(folder / "model", tied=False)
    rows = make_stale_rows(Reference(model), 0)
    stale = {"do": "stale", "engine_log_probs": [row.engine_log_probs_A.tolist() for row in rows]}
    cases = {name: stale | {"mesh": {axis: 2}, "form": form} for name, (axis, form) in STALE.items()}
    cases["alone"] = cases["sequence_mean"] | {"fault": "no sum over ranks"}
    for name, mesh in MESHES.items():
        cases[name] = {"do": "broken", "mesh": mesh, "distributed_optimizer": name == "split adam"}
    for name in cases:
        (folder / name).mkdir()
    listing = folder / "cases.json"
    places = ({"model": str(model), "out": str(folder / name)} for name in cases)
    listing.write_text(json.dumps([case | place for case, place in zip(cases.values(), places)]))
    run_ranks(RANK, 2, str(listing), timeout_s=300)
    return Seen(folder, model, rows)


@pytest.mark.parametrize("name", STALE)
def test_rows_count_on_two_ranks_as_they_do_on_one(seen, name):
    """Loss, gradient norm, weights after an AdamW step and every figure are Hugging Face's on separate rows."""
    reference, algo = Reference(seen.model), stale_algo(STALE[name][1])
    figures = plain_figures(plain_rows(reference, seen.rows), algo)
    loss, norm = plain_update(reference, seen.rows, algo)
    found = seen.of(name)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["metrics"]["policy/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert {name: found["metrics"][name] for name in figures} == pytest.approx(figures, rel=1e-4)
    assert difference(seen.weights(name), reference.tensors()) < 1e-6


def test_a_dropped_sum_over_ranks_would_be_seen(seen):
    """Planted: every context-parallel rank weighs a row by those of its tokens that it has."""
    reference, algo = Reference(seen.model), stale_algo("sequence_mean")
    loss, _ = plain_update(reference, seen.rows, algo)
    assert abs(seen.of("alone")["loss"] - loss) > 1e-3
    assert difference(seen.weights("alone"), reference.tensors()) > 1e-5


@pytest.mark.parametrize("name", MESHES)
def test_an_infinite_advantage_on_one_rank_skips_the_update_on_all(seen, name):
    found = seen.of(name)
    assert found["ranks_with_it"].count(True) == 1
    assert found["finite_norms"] == [True, False, False, True]
    assert found["everyone_kept"] == [[False, True, True, False]] * 2
    assert found["counts"] == [[[0, 0], [1, 1], [2, 2], [2, 0]]] * 2
    assert found["num_updates"] == [2, 2]


@pytest.mark.parametrize("name", MESHES)
def test_skipped_updates_leave_no_trace(seen, name):
    """The weights are those of the two good updates alone: moments, their bias correction and the rate stood still."""
    reference = Reference(seen.model)
    for _ in range(2):
        assert math.isfinite(reference.update(make_rows(0)))
    assert difference(seen.weights(name), reference.tensors()) < 1e-6


@pytest.mark.parametrize("name", MESHES)
def test_all_ranks_give_up_together_after_so_many_in_a_row(seen, name):
    ((number, message), other) = seen.of(name)["messages"]
    assert [number, message] == other
    assert number == 3
    assert "policy.optimizer.max_skipped_in_a_row = 3" in message
    assert "\n" not in message

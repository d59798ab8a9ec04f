"""The learning experiment's scripts import each other by name, as they do when run."""

import sys
from pathlib import Path

import pytest

from tests.unit.learning.folders import evaluation, write_run

ROOT = Path(__file__).parents[3]
for folder in ("quickstart", "learning"):
    sys.path.insert(0, str(ROOT / "examples" / folder))

FULL, OTHER = "full", "no_memory"


@pytest.fixture
def experiment():
    """Two variants with three seeds; the base must gain ten points."""
    from plan import Experiment

    return Experiment.model_validate(
        {
            "run": ROOT / "examples/learning/run.yaml",
            "base": FULL,
            "seeds": [0, 1, 2],
            "limit_minutes": 1,
            "required": {"variant": "full", "gain": 0.1, "pass_at_all_change": 0.0, "minutes": 30},
            "paper": "Table 0",
            "variants": {
                FULL: {"title": "all of it"},
                OTHER: {"title": "no memory", "set": ["curriculum.memory_size=0"], "paper": -2.9},
            },
        }
    )


@pytest.fixture
def finished(experiment, tmp_path):
    """Makes every run of the experiment, with num_right before and after by (variant, seed), and collects them."""
    from collecting import collect
    from plan import planned_runs

    def make(answers, asked="these"):
        runs = planned_runs(experiment, tmp_path)
        for run in runs:
            if (run.variant, run.seed) in answers:
                before, after = answers[run.variant, run.seed]
                write_run(run.folder, [evaluation("before", 0, before, asked), evaluation("after", 2, after, asked)])
        return collect(runs)

    return make

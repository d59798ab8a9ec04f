"""The order of a step's last verbs when the watch stops the run."""

from types import SimpleNamespace

import pytest

from megatron_spell.train.loop import train
from megatron_spell.train.watch import Collapsed


class SpokenRun:
    """A run whose verbs only note that they were called; the watch stops it after `collapses_at`."""

    def __init__(self, collapses_at: int | None) -> None:
        self.step, self.config, self.said = 0, SimpleNamespace(steps=3), []
        self.collapses_at = collapses_at
        self.watch = SimpleNamespace(stop_if_collapsed=self.stop_if_collapsed)

    def stop_if_collapsed(self) -> None:
        if self.step == self.collapses_at:
            raise Collapsed("always_yes")

    def publish(self, version: int) -> None:
        self.step = version

    def __getattr__(self, verb: str):
        return lambda *_: self.said.append((verb, self.step))


def test_a_collapsed_run_keeps_its_step_and_its_checkpoint_and_is_not_evaluated():
    run = SpokenRun(collapses_at=2)
    with pytest.raises(Collapsed):
        train(run)
    assert run.said[-2:] == [("record", 2), ("save_if_due", 2)]
    assert ("evaluate_if_due", 1) in run.said


def test_a_healthy_run_ends_with_its_summary():
    run = SpokenRun(collapses_at=None)
    train(run)
    assert run.said[-3:] == [("evaluate_once", 3), ("settle_save", 3), ("summarise", 3)]

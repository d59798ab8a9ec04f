"""Plots: every seed has its line, and the same results give the same file."""

import xml.etree.ElementTree as ElementTree

import pytest

SEEDS = (0, 1, 2)


@pytest.fixture
def results(finished):
    answers = {("full", seed): ([4, 4], [6, 6 + seed]) for seed in SEEDS}
    return finished(answers | {("no_memory", 0): ([4, 4], [4, 5])})


def test_the_mean_curve_is_of_the_steps_that_all_seeds_have(results):
    from curves import mean_curve

    assert mean_curve(results[:1], "accuracy") == [(0, 0.5), (2, 0.75)]
    full = [r for r in results if r.variant == "full"]
    assert mean_curve(full, "accuracy") == [(0, 0.5), (2, pytest.approx(0.8125))]
    full[0].curves["accuracy"].insert(1, (1, 0.6))
    assert [step for step, _ in mean_curve(full, "accuracy")] == [0, 2]
    assert mean_curve([], "accuracy") == mean_curve(full, "absent") == []


def test_figures_are_whole_and_the_same_again(experiment, results, tmp_path):
    from curves import ablation_figure, learning_figure

    full = [r for r in results if r.variant == "full"]
    for name in ("first", "second"):
        learning_figure(tmp_path / name / "learning.svg", full)
        ablation_figure(tmp_path / name / "ablations.svg", experiment, results)
    for file in ("learning.svg", "ablations.svg"):
        text = (tmp_path / "first" / file).read_text()
        assert text == (tmp_path / "second" / file).read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg") and len(text) < 60_000
    assert "held-out accuracy" in (tmp_path / "first/learning.svg").read_text()
    assert "no memory" in (tmp_path / "first/ablations.svg").read_text()


def test_each_seed_has_a_line(results, monkeypatch, tmp_path):
    import curves

    seen = []
    monkeypatch.setattr(
        curves.Axes, "plot", lambda self, x, y, **style: seen.append((list(x), style.get("linewidth", 9)))
    )
    monkeypatch.setattr(curves.Axes, "legend", lambda self, **_: None)
    curves.learning_figure(tmp_path / "learning.svg", [r for r in results if r.variant == "full"])
    thin = [x for x, width in seen if width < 1]
    assert len(thin) == len(SEEDS) * len(curves.PANELS) and thin[0] == [0, 2]

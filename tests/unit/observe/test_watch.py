"""Each collapse is simulated on the figures of a healthy run; exactly its sign must show."""

import json
import math

import pytest

from megatron_spell.config.schema import WatchSection
from megatron_spell.observe.errors import ObserveError
from megatron_spell.observe.watch import RULES, Watch
from megatron_spell.types.play import Role
from megatron_spell.types.signs import Sign

HEALTHY = {
    **{f"{role}/surprisal/mean": 0.6 for role in Role},
    **{f"{role}/output_tokens/mean": 20.0 for role in Role},
    **{f"{role}/unfinished/share": 0.05 for role in Role},
    **{f"{role}/rows": 32.0 for role in Role},
    "verifier/yes/share": 0.4,
    "verifier/yes_on_accepted/share": 0.7,
    "verifier/yes_on_refused/share": 0.1,
    "questioner/repeated/share": 0.02,
    "questioner/repeated_elsewhere/share": 0.0,
    "responder/reward_against_rule/share": 0.05,
    "rounds/usable_share": 0.2,
}
COLLAPSES = {
    "entropy_low/responder entropy_fell/responder": {"responder/surprisal/mean": 0.001},
    "entropy_fell/questioner": {"questioner/surprisal/mean": 0.1},
    "entropy_high/verifier": {"verifier/surprisal/mean": 5.0},
    "output_short/responder": {"responder/output_tokens/mean": 4.0},
    "output_unfinished/questioner": {"questioner/unfinished/share": 0.8},
    "always_yes": {"verifier/yes/share": 0.99},
    "always_no": {"verifier/yes_on_accepted/share": 0.02},
    "yes_against_rule": {"verifier/yes_on_refused/share": 0.7},
    "repeated_questions": {"questioner/repeated/share": 0.6},
    "same_question_everywhere": {"questioner/repeated_elsewhere/share": 0.6},
    "reward_against_rule": {"responder/reward_against_rule/share": 0.8},
    "usable_fell": {"rounds/usable_share": 0.03},
    "no_signal/verifier": {"verifier/rows": 0.0},
}


def begun(**settings) -> Watch:
    """A watch that has seen its first steps, all healthy."""
    watch = Watch(WatchSection(**settings), tuple(Role))
    for _ in range(WatchSection(**settings).first_steps):
        assert watch.look(HEALTHY) == []
    return watch


def told(watch: Watch, figures: dict) -> list[str]:
    return [warned.key for warned in watch.look(HEALTHY | figures)]


@pytest.mark.parametrize("expected", COLLAPSES)
def test_a_collapse_shows_its_own_sign_alone(expected):
    watch, figures = begun(), COLLAPSES[expected]
    assert told(watch, figures) == told(watch, figures) == []
    assert told(watch, figures) == expected.split()
    assert {name for name, value in watch.metrics().items() if value} == {f"watch/{key}" for key in expected.split()}
    assert told(watch, {}) == []
    assert not any(watch.metrics().values())


def test_every_sign_has_a_collapse_here_and_a_rule():
    tried = {key.split("/")[0] for keys in COLLAPSES for key in keys.split()}
    assert tried == {rule.sign for rule in RULES} == set(Sign)


def test_a_step_within_the_limit_begins_the_count_anew():
    watch, figures = begun(), COLLAPSES["always_yes"]
    for step in ({}, figures, figures, {}, figures, figures):
        assert told(watch, step) == []
    assert told(watch, figures) == ["always_yes"]


def test_a_step_without_the_figure_changes_nothing():
    watch, figures = begun(), COLLAPSES["always_yes"]
    told(watch, figures)
    told(watch, figures)
    silent = {name: value for name, value in HEALTHY.items() if not name.startswith("verifier")}
    assert watch.look(silent) == []
    assert told(watch, figures) == ["always_yes"]


def test_a_figure_that_is_not_a_number_is_beyond_every_limit():
    watch = begun(patience=1)
    keys = told(watch, {"responder/surprisal/mean": math.nan, "rounds/usable_share": math.nan})
    assert keys == ["entropy_low/responder", "entropy_fell/responder", "entropy_high/responder", "usable_fell"]


def test_a_ratio_is_to_the_first_steps_which_do_not_move_with_a_slow_fall():
    watch = begun(patience=1)
    lengths = [20 * 0.9**step for step in range(1, 15)]
    fired = [told(watch, {"responder/output_tokens/mean": length}) for length in lengths]
    assert fired == [["output_short/responder"] if length < 5 else [] for length in lengths]
    assert sum(map(bool, fired)) == 1


def test_nothing_is_said_of_a_ratio_before_its_first_steps_are_over():
    watch = Watch(WatchSection(patience=1, first_steps=2), tuple(Role))
    assert told(watch, {"rounds/usable_share": 0.4}) == told(watch, {"rounds/usable_share": 0.2}) == []
    assert told(watch, {"rounds/usable_share": 0.07}) == ["usable_fell"]
    assert told(watch, {"rounds/usable_share": 0.08}) == []


def test_the_line_names_figure_limit_and_what_to_do():
    watch = begun(patience=1)
    (absolute,) = watch.look(HEALTHY | COLLAPSES["yes_against_rule"])
    assert absolute.line == (
        "yes_against_rule: verifier/yes_on_refused/share = 0.7 is above watch.max_yes_on_refused = 0.5, for 1 step;"
        " wrong answers are voted right: read rounds/ for who is mistaken, verifier or rule"
    )
    watch.look(HEALTHY | COLLAPSES["usable_fell"])
    (ratio,) = watch.look(HEALTHY | COLLAPSES["usable_fell"])
    assert ratio.line.startswith(
        "usable_fell: rounds/usable_share = 0.03 is under 0.05, watch.min_usable_ratio = 0.25 of its first 5 steps,"
        " for 2 steps in a row; "
    )


def test_a_sign_that_is_off_is_neither_told_nor_written():
    watch = begun(patience=1, actions={"always_yes": "off"})
    assert told(watch, COLLAPSES["always_yes"]) == []
    assert "watch/always_yes" not in watch.metrics()


def test_a_role_that_is_not_trained_needs_no_rows():
    watch = Watch(WatchSection(patience=1), (Role.RESPONDER,))
    assert told(watch, COLLAPSES["no_signal/verifier"]) == []
    assert told(watch, {"responder/rows": 0.0}) == ["no_signal/responder"]


def test_a_resumed_watch_goes_on_counting():
    whole, cut = begun(), begun()
    figures = [
        HEALTHY | COLLAPSES["usable_fell"] | {"verifier/yes/share": share} for share in (1.0, 0.3, 1.0, 1.0, 1.0)
    ]
    for number, step in enumerate(figures):
        state = json.loads(json.dumps(cut.state()))
        cut = Watch(WatchSection(), tuple(Role))
        cut.load_state(state)
        assert cut.look(step) == whole.look(step)
        assert bool(cut.metrics()["watch/usable_fell"]) == (number >= 2)
    assert cut.metrics()["watch/always_yes"]


def test_a_run_resumed_within_its_first_steps_learns_the_rest():
    watch = Watch(WatchSection(patience=1, first_steps=2), tuple(Role))
    watch.look(HEALTHY)
    resumed = Watch(WatchSection(patience=1, first_steps=2), tuple(Role))
    resumed.load_state(watch.state())
    assert told(resumed, {}) == []
    assert told(resumed, COLLAPSES["usable_fell"]) == ["usable_fell"]


@pytest.mark.parametrize("state", [{"in_a_row": 3}, {"in_a_row": {"always_yes": "x"}}, {"first": {"a": 1}}])
def test_a_broken_state_is_refused(state):
    with pytest.raises(ObserveError, match="saved watch: is malformed"):
        Watch(WatchSection(), tuple(Role)).load_state(state)

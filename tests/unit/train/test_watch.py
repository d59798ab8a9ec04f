import json

import pytest

from megatron_spell.config.schema import RunConfig
from megatron_spell.train.watch import Collapsed, CollapseWatch
from tests.unit.curriculum.test_repeats import WHO, asked

HEALTHY = {"verifier/yes/share": 0.4}
YES = {"verifier/yes/share": 1.0}


def make_watch(told: list[str], **settings) -> CollapseWatch:
    base = {"name": "t", "run_folder": "r", "model": {"path": "m"}, "data": {"store": "s"}}
    return CollapseWatch(RunConfig.model_validate(base | {"watch": {"patience": 2} | settings}), told.append)


def test_a_sign_is_told_once_and_so_is_its_end():
    told: list[str] = []
    watch = make_watch(told)
    steps = enumerate((YES, YES, YES, HEALTHY, HEALTHY), start=1)
    figures = [watch.observe(step, (), metrics)["watch/always_yes"] for step, metrics in steps]
    assert figures == [0, 1, 1, 0, 0]
    assert told == [
        "warning after step 2: always_yes: verifier/yes/share = 1 is above watch.max_yes_share = 0.95, for 2 steps"
        " in a row; the verifier says yes always: do not train it (algo.train_roles), or go on from an earlier"
        " checkpoint (docs/debugging.md, Signs of collapse)",
        "after step 4: always_yes is back within its limit",
    ]
    watch.stop_if_collapsed()


def test_repeated_questions_are_measured_and_told():
    told: list[str] = []
    watch = make_watch(told)
    first = watch.observe(1, [asked("a", WHO)], HEALTHY)
    assert first["questioner/repeated/share"] == 0
    watch.observe(1, [asked("a", WHO), asked("a", WHO)], HEALTHY)
    third = watch.observe(1, [asked("a", WHO), asked("b", WHO)], HEALTHY)
    assert third["questioner/repeated/share"] == third["questioner/repeated_elsewhere/share"] == 0.5
    assert third["watch/repeated_questions"] == 1
    assert third["watch/same_question_everywhere"] == 0
    assert [line.split(": ")[1] for line in told] == ["repeated_questions"]


def test_a_sign_set_to_stop_ends_the_run_while_it_stands():
    watch = make_watch([], actions={"always_yes": "stop"})
    watch.observe(1, (), YES)
    watch.stop_if_collapsed()
    watch.observe(1, (), YES)
    with pytest.raises(
        Collapsed, match=r"always_yes: .* 2 steps in a row; .* watch.actions.always_yes = stop"
    ) as caught:
        watch.stop_if_collapsed()
    assert "\n" not in str(caught.value)
    watch.observe(1, (), HEALTHY)
    watch.stop_if_collapsed()


def test_a_resumed_watch_has_its_patience_and_its_questions():
    watch = make_watch([], actions={"always_yes": "stop"})
    watch.observe(1, [asked("a", WHO)], YES)
    told: list[str] = []
    resumed = make_watch(told, actions={"always_yes": "stop"})
    resumed.load_state(json.loads(json.dumps(watch.state())))
    assert resumed.observe(1, [asked("a", WHO)], YES)["questioner/repeated/share"] == 1
    assert len(told) == 1
    with pytest.raises(Collapsed):
        resumed.stop_if_collapsed()


def test_what_was_told_is_not_told_again_after_a_resume():
    told: list[str] = []
    watch, resumed = make_watch(told), make_watch(told)
    watch.observe(1, (), YES)
    watch.observe(1, (), YES)
    resumed.load_state(watch.state())
    assert resumed.observe(1, (), YES)["watch/always_yes"] == 1
    assert len(told) == 1


def test_a_checkpoint_of_a_run_without_a_watch_begins_anew():
    watch = make_watch([])
    watch.load_state({})
    assert watch.observe(1, (), YES)["watch/always_yes"] == 0

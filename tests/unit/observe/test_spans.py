import asyncio
import json
import threading
import time

import pytest

from megatron_spell.observe import spans as module
from megatron_spell.observe.spans import Spans


def trace(spans: Spans, path) -> dict[str, dict]:
    spans.write_trace(path)
    return {event["name"]: event for event in json.loads(path.read_text())["traceEvents"]}


def inside(inner: dict, outer: dict) -> bool:
    return outer["ts"] <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def overlap(a: dict, b: dict) -> bool:
    return a["ts"] < b["ts"] + b["dur"] and b["ts"] < a["ts"] + a["dur"]


def test_nested_spans_share_a_lane_and_lie_inside_each_other(tmp_path):
    spans = Spans()
    with spans.span("step", step=3), spans.span("collect"):
        time.sleep(0.01)
    events = trace(spans, tmp_path / "trace.json")
    assert inside(events["collect"], events["step"])
    assert events["collect"]["tid"] == events["step"]["tid"]
    assert events["step"]["args"] == {"step": 3}
    assert events["collect"]["dur"] >= 0.01 * 1e6
    assert {event["ph"] for event in events.values()} == {"X"}


def test_seconds_add_up_by_name_and_start_anew():
    spans = Spans()
    for _ in range(2):
        with spans.span("ask"):
            time.sleep(0.01)
    kept = spans.seconds(reset=False)
    assert set(kept) == {"time/ask"} and kept["time/ask"] >= 0.02
    assert spans.seconds() == kept
    assert spans.seconds() == {}


def test_a_span_left_by_an_exception_is_recorded(tmp_path):
    spans = Spans()
    with pytest.raises(KeyError), spans.span("update", rank="0"):
        raise KeyError("x")
    assert trace(spans, tmp_path / "trace.json")["update"]["args"] == {"rank": "0", "error": "KeyError"}


def test_tasks_that_overlap_have_lanes_of_their_own(tmp_path):
    spans = Spans()

    async def play(name: str) -> None:
        with spans.span(name):
            await asyncio.sleep(0.01)
            with spans.span(name + "-inner"):
                await asyncio.sleep(0.01)

    async def collect() -> None:
        with spans.span("collect"):
            await asyncio.gather(play("a"), play("b"))

    asyncio.run(collect())
    events = trace(spans, tmp_path / "trace.json")
    assert len({events[name]["tid"] for name in ("collect", "a", "b")}) == 3
    for name in "ab":
        assert events[name]["tid"] == events[name + "-inner"]["tid"]
        assert inside(events[name], events["collect"])


def test_no_two_spans_of_a_lane_overlap_unless_one_holds_the_other(tmp_path):
    spans = Spans()

    def work(number: int) -> None:
        for turn in range(5):
            with spans.span(f"{number}-{turn}"), spans.span(f"{number}-{turn}-inner"):
                time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    events = list(trace(spans, tmp_path / "trace.json").values())
    assert len(events) == 40
    for i, a in enumerate(events):
        for b in events[:i]:
            assert a["tid"] != b["tid"] or not overlap(a, b) or inside(a, b) or inside(b, a)


def test_lanes_are_used_again(tmp_path):
    spans = Spans()
    for name in ("one", "two"):
        with spans.span(name):
            pass
    assert {event["tid"] for event in trace(spans, tmp_path / "trace.json").values()} == {0}


def test_old_events_go_and_the_trace_says_so(tmp_path):
    spans = Spans(max_events=2)
    for number in range(5):
        with spans.span(f"span-{number}"):
            pass
    spans.write_trace(tmp_path / "trace.json")
    record = json.loads((tmp_path / "trace.json").read_text())
    assert [event["name"] for event in record["traceEvents"]] == ["span-3", "span-4"]
    assert record["dropped_events"] == 3
    assert len(spans.seconds()) == 5


def test_the_module_has_a_recorder_of_its_own(tmp_path):
    module.seconds()
    with module.span("only-here"):
        pass
    assert list(module.seconds()) == ["time/only-here"]
    module.write_trace(tmp_path / "trace.json")
    assert "only-here" in (tmp_path / "trace.json").read_text()

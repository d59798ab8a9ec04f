"""The order of a publish, and what becomes of engines that fail it; engines and trainers are scripted."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.receipts import WrongWeights
from megatron_spell.config.schema import RunConfig
from megatron_spell.rollout.engine import EngineDied, EngineError, SamplingSpec
from megatron_spell.train.links import ENGINE_MARGIN_S, Sent
from tests.unit.train import fleet_lab
from tests.unit.train.fleet_lab import Lab

PROMPT = np.arange(3, dtype=np.int32)
MODEL = {
    "model_type": "qwen3",
    "vocab_size": 65,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 48,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


@pytest.fixture
def make(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    labs = []

    def make_lab(rollout: dict | None = None, bridge: dict | None = None, **more) -> Lab:
        labs.append(fleet_lab.make_lab(config_of(tmp_path, rollout or {}, bridge or {}), **more))
        return labs[-1]

    yield make_lab
    for lab in labs:
        lab.background.close()


def config_of(folder: Path, rollout: dict, bridge: dict) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "refresh",
            "run_folder": folder / "run",
            "model": {"path": folder},
            "data": {"store": "none"},
            "policy": {"mesh": {"tp": 2}},
            "rollout": {"engines": 2, "start_timeout_s": 5} | rollout,
            "bridge": {"timeout_s": 0.5, "bucket_mib": 8.0} | bridge,
        }
    )


def of_engine(lab: Lab, name: str) -> list[str]:
    return [step for who, step in lab.journal if who == name]


ONE_UPDATE = ["begin_update", "receive_weights", "finish_update"]


def test_links_are_made_once_and_every_publish_goes_through_the_same_steps(make):
    lab = make()
    for version in (0, 1, 2):
        refreshed = lab.refresh.publish(version)
        assert [engine.version for engine in lab.live().values()] == [version, version]
        assert refreshed.num_engines == 2
    for name in ("engine 0", "engine 1"):
        assert of_engine(lab, name) == ["connect", *ONE_UPDATE, *ONE_UPDATE, *ONE_UPDATE]
    assert of_engine(lab, "trainers") == ["connect", "send", "send", "send"]
    assert lab.trainers.checks == [0, 1, 2]
    assert [engine.requests for engine in lab.engines] == [[{"check": v} for v in (0, 1, 2)]] * 2
    last_of = {step: max(i for i, (_, s) in enumerate(lab.journal) if s == step) for step in ("send", *ONE_UPDATE)}
    first_finish = min(i for i, (_, s) in enumerate(lab.journal) if s == "finish_update")
    assert last_of["begin_update"] < last_of["send"] < last_of["finish_update"]
    assert [step for who, step in lab.journal[:first_finish] if who == "trainers"] == ["connect", "send"]


def test_the_engines_are_told_their_own_part_of_one_plan(make):
    lab = make(bridge={"timeout_s": 3.0})
    refreshed = lab.refresh.publish(0)
    channels = [engine.channels[0] for engine in lab.engines]
    for meeting, channel in zip(lab.trainers.meetings, channels, strict=True):
        assert {channel[field] for field in ("rank", "num_trainers")} == {2}
        assert channel["size"] == 3
        assert channel["bucket_bytes"] == meeting.bucket_bytes == 4 * 2**20  # the two links share 8 MiB
        assert channel["timeout_s"] == meeting.timeout_s + ENGINE_MARGIN_S == 3.0 + ENGINE_MARGIN_S
        assert channel["plan"] == meeting.plan
        assert {move.dst_rank for move in Plan.from_json(channel["plan"]).moves} == {2}
    assert len({channel["session"] for channel in channels}) == len({channel["port"] for channel in channels}) == 2
    assert lab.trainers.meetings[1].names == {0: "trainer rank 0", 1: "trainer rank 1", 2: "engine 1"}
    sent = [sum(Plan.from_json(channel["plan"]).bytes_between(2).values()) for channel in channels]
    assert refreshed.num_bytes == sum(sent)


def test_the_metrics_are_bytes_seconds_of_each_step_and_engines(make):
    found = make().refresh.publish(0).metrics()
    assert found["bridge/engines"] == 2
    steps = [found[f"bridge/{step}_seconds"] for step in ("pause", "transfer", "finish")]
    assert all(seconds >= 0 for seconds in steps)
    assert sum(steps) == pytest.approx(found["bridge/seconds"], abs=1e-3)
    assert found["bridge/gb_per_second"] == pytest.approx(found["bridge/bytes"] / 1e9 / steps[1])


@pytest.mark.parametrize("step", ["connect", *ONE_UPDATE])
def test_an_engine_that_fails_a_step_is_lost_and_comes_back_with_a_later_publish(make, step):
    lab = make()
    lab.engines[1].update_failures = {step: EngineError(f"engine 1: {step} went wrong")}
    refreshed = lab.refresh.publish(0)
    assert refreshed.num_engines == 1
    assert lab.live() == {0: lab.engines[0]}
    assert lab.engines[0].version == 0
    lab.settle()
    assert f"engine 1 is lost: engine 1: {step} went wrong" in lab.told
    assert lab.engines[1].closed
    assert lab.live() == {0: lab.engines[0]}, "it serves before it has the weights"
    assert lab.refresh.publish(1).num_engines == 2
    assert lab.live() == {0: lab.engines[0], 1: lab.engines[2]}
    assert [engine.version for engine in lab.live().values()] == [1, 1]
    assert lab.told[-1] == "engine 1 serves again, with the weights of version 1"
    assert [m.engine for m in lab.trainers.meetings][-1] == 1
    assert len({m.session for m in lab.trainers.meetings}) == len(lab.trainers.meetings)


@pytest.mark.parametrize("step", ["connect", *ONE_UPDATE])
def test_an_engine_that_hangs_costs_no_more_than_the_limit(make, step):
    lab = make()
    lab.engines[0].hangs = {step}
    started = time.monotonic()
    assert lab.refresh.publish(3).num_engines == 1
    assert time.monotonic() - started < 2.0
    assert lab.live() == {1: lab.engines[1]}
    assert lab.engines[1].version == 3
    assert f"engine 0 is lost: engine 0: waited 0.5 s for {step}" in lab.told


@pytest.mark.parametrize("where", ["absent", "sent"])
def test_what_the_trainers_lose_is_lost(make, where):
    lab = make()
    why = "trainer rank 1 lost engine 1 waiting for it to take message 3"
    setattr(lab.trainers, where, {1: why} if where == "absent" else Sent({1: why}))
    assert lab.refresh.publish(0).num_engines == 1
    lab.settle()
    assert any(line.startswith(f"engine 1 is lost: {why}") for line in lab.told)
    assert "finish_update" not in of_engine(lab, "engine 1")
    assert lab.refresh.publish(1).num_engines == 2


def test_a_lost_engine_is_planned_for_no_second_time(make, monkeypatch):
    lab = make()
    lab.refresh.publish(0)
    first = lab.trainers.meetings[1].plan
    monkeypatch.setattr("megatron_spell.train.routes.plan", lambda *_: pytest.fail("planned again"))
    lab.engines[1].update_failures = {"receive_weights": EngineError("engine 1: gone")}
    lab.refresh.publish(1)
    lab.settle()
    lab.refresh.publish(2)
    assert lab.trainers.meetings[2].engine == 1
    assert lab.trainers.meetings[2].plan == first
    assert [1] in lab.trainers.dropped


def test_an_engine_that_came_back_with_another_layout_is_refused(make):
    lab = make()
    lab.refresh.publish(0)
    lab.engines[1].update_failures = {"receive_weights": EngineError("engine 1: gone")}
    lab.refresh.publish(1)
    lab.settle()

    lab.engines[2].reports = [replace(lab.engines[2].reports[0], landing="in_place")]
    assert lab.refresh.publish(2).num_engines == 1
    assert any("engine 1 lays the model out in another way" in line for line in lab.told)


def test_wrong_weights_stop_everything_and_are_put_in_force_nowhere(make):
    lab = make()
    lab.refresh.publish(0)
    lab.trainers.sent = Sent({1: "x"}, wrong="engine 1: what landed on rank 2 is not what rank 0 sent: norm[0:8]")
    with pytest.raises(WrongWeights, match="engine 1: what landed on rank 2 is not what rank 0 sent"):
        lab.refresh.publish(1)
    assert [engine.version for engine in lab.engines] == [0, 0]
    assert len(lab.engines) == 2


def test_when_none_is_left_the_publish_waits_for_one(make):
    lab = make(rollout={"engines": 1})
    lab.refresh.publish(0)
    lab.engines[0].update_failures = {"receive_weights": EngineError("engine 0: gone")}
    assert lab.refresh.publish(1).num_engines == 1
    assert lab.live() == {0: lab.engines[1]}
    assert lab.engines[1].version == 1


def test_restarts_are_counted_and_the_end_names_every_reason(make):
    tries = []

    def refuse(number):
        tries.append(number)
        return EngineError(f"engine {number} did not start: no room {len(tries)}")

    lab = make(rollout={"max_restarts": 2}, restart=refuse)
    for engine in lab.engines:
        engine.update_failures = {"begin_update": EngineDied(f"{engine.name} died")}
    with pytest.raises(EngineError, match=r"no engine is left, .*: engine 0 did not start: .*; engine 1 did not"):
        lab.refresh.publish(0)
    assert sorted(tries) == [0, 0, 1, 1]
    assert "engine 1 is given up: rollout.max_restarts = 2 are used up" in lab.told


def test_restarts_are_counted_over_the_run(make):
    lab = make(rollout={"max_restarts": 1})
    serving = []
    for version in range(5):
        if version in (1, 3):
            lab.live()[1].update_failures = {"finish_update": EngineError("engine 1: gone")}
        serving.append(lab.refresh.publish(version).num_engines)
        lab.settle()
    assert serving == [2, 1, 2, 1, 1]


def test_an_engine_lost_while_it_played_comes_back_too(make):
    lab = make()
    lab.refresh.publish(0)
    lab.background.run(lab.fleet.lose(1, lab.engines[1], "engine 1 died during a completion"))
    lab.settle()
    assert lab.refresh.publish(1).num_engines == 2
    assert lab.trainers.dropped == [[1]]
    assert lab.live()[1] is lab.engines[2]


def test_colocated_engines_sleep_and_wake_weights_first(make):
    lab = make(rollout={"placement": "colocated"})
    lab.refresh.publish(0)
    lab.refresh.rest()
    assert of_engine(lab, "engine 0")[-1] == "sleep"
    del lab.journal[:]
    lab.refresh.publish(1)
    assert of_engine(lab, "engine 0") == ["wake weights", *ONE_UPDATE, "wake cache"]


def test_split_engines_never_sleep(make):
    lab = make()
    lab.refresh.publish(0)
    lab.refresh.rest()
    assert not {"sleep", "wake weights", "wake cache"} & {step for _, step in lab.journal}


def test_planning_counts_an_engine_of_several_workers_as_that_many_ranks(make):
    lab = make(rollout={"tensor_parallel": 2})
    for engine in lab.engines:
        engine.reports = [replace(report, landing="in_place") for report in engine.reports]
    lab.refresh.publish(0)
    channels = [engine.channels[0] for engine in lab.engines]
    assert [(c["rank"], c["size"]) for c in channels] == [(2, 4), (2, 4)]
    assert lab.trainers.meetings[0].names[3] == "engine 0 worker 1"
    assert {move.dst_rank for move in Plan.from_json(channels[1]["plan"]).moves} == {2, 3}


def test_play_goes_on_when_the_last_engine_dies_and_is_started_again(make):
    """The engine that comes back is given the weights of the step that is being played."""
    lab = make(rollout={"engines": 1})
    lab.refresh.publish(6)
    lab.engines[0].failures = {1: EngineDied("engine 0 died in a completion")}
    spec = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=2)

    async def play():
        return [(await lab.fleet.pool.generate(PROMPT, spec))[0].version for _ in range(3)]

    assert lab.refresh.while_playing(play(), version=6) == [6, 6, 6]
    assert lab.live() == {0: lab.engines[1]}
    assert lab.trainers.checks == [6, 6]


def test_play_that_fails_fails_as_it_would(make):
    lab = make(rollout={"engines": 1, "max_restarts": 0})
    lab.refresh.publish(0)
    lab.engines[0].failures = {0: EngineDied("engine 0 died in a completion")}
    spec = SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=2)
    with pytest.raises(EngineDied, match="no engine is left of engines: engine 0 died in a completion"):
        lab.refresh.while_playing(lab.fleet.pool.generate(PROMPT, spec), version=0)

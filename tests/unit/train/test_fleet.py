import asyncio

import numpy as np
import pytest

from megatron_spell.rollout.engine import EngineDied, EngineError, SamplingSpec
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.train.fleet import Fleet

PROMPT, SPEC = np.arange(3, dtype=np.int32), SamplingSpec(temperature=0.0, top_p=1.0, max_tokens=2)


def engine(number: int = 0) -> ScriptedEngine:
    return ScriptedEngine(lambda *_: [number], name=f"engine {number}")


def make(start, num_engines: int = 1, **settings) -> tuple[Fleet, list[ScriptedEngine], list[str]]:
    engines, told = [engine(number) for number in range(num_engines)], []
    settings = {"max_restarts": 2, "start_timeout_s": 5.0} | settings
    return Fleet(engines, start, tell=told.append, **settings), engines, told


async def at_once(number: int) -> ScriptedEngine:
    return engine(number)


async def never(number: int) -> ScriptedEngine:
    await asyncio.sleep(3600)
    raise AssertionError


def test_requests_wait_for_the_last_engine_to_be_given_weights_again():
    async def play():
        fleet, (first,), told = make(at_once)
        first.failures = {0: EngineDied("engine 0 died")}
        asked = asyncio.create_task(fleet.pool.generate(PROMPT, SPEC))
        await asyncio.sleep(0.05)
        assert await fleet.awaits_weights()
        assert not asked.done()
        assert first.closed
        present = await fleet.present()
        await fleet.admit(present, version=4)
        assert not await fleet.awaits_weights()
        [completion] = await asked
        assert completion.token_ids_T.tolist() == [0]
        assert fleet.pool.live == present
        return told

    assert asyncio.run(play()) == [
        "engine 0 is lost: engine 0 died",
        "engine 0 is started again (1 of 2 times)",
        "engine 0 is back; it serves from the next weights on",
        "engine 0 serves again, with the weights of version 4",
    ]


def test_requests_wait_no_longer_when_nobody_is_started_any_more():
    async def refuse(number):
        raise EngineError("engine 0 did not start: no room")

    async def play():
        fleet, (first,), _ = make(refuse)
        first.failures = {0: EngineDied("engine 0 died")}
        with pytest.raises(EngineDied, match="no engine is left of engines: engine 0 died"):
            await asyncio.wait_for(fleet.pool.generate(PROMPT, SPEC), 5)
        with pytest.raises(EngineDied, match="none is started again: engine 0 did not start: no room"):
            await fleet.wait_for_one()

    asyncio.run(play())


def test_waiting_for_a_start_has_a_limit(monkeypatch):
    monkeypatch.setattr("megatron_spell.train.fleet.CLOSE_S", 0.05)

    async def play():
        fleet, (first,), _ = make(never, start_timeout_s=0.05)
        await fleet.lose(0, first, "engine 0 hangs")
        with pytest.raises(EngineDied, match=r"left, and waited 0\.1 s for one to start again: engine 0 hangs"):
            await fleet.wait_for_one()
        with pytest.raises(EngineDied, match=r"engine 0 hangs; waited 0\.15 s for one to be started again"):
            await fleet.pool.generate(PROMPT, SPEC)
        await fleet.close()

    asyncio.run(play())


def test_an_engine_that_comes_back_while_others_are_given_weights_waits_for_its_own():
    async def play():
        fleet, engines, _ = make(at_once, num_engines=2)
        await fleet.lose(1, engines[1], "planted")
        taking = await fleet.present()
        await asyncio.sleep(0.05)
        await fleet.admit(taking, version=1)
        assert fleet.pool.live == {0: engines[0]}
        assert sorted(await fleet.present()) == [0, 1]

    asyncio.run(play())


def test_an_engine_is_lost_once():
    async def play():
        fleet, engines, told = make(at_once)
        for _ in range(2):
            await fleet.lose(0, engines[0], "planted")
        await asyncio.sleep(0.05)
        await fleet.lose(0, engines[0], "planted")
        assert told.count("engine 0 is lost: planted") == 1
        assert len(await fleet.present()) == 1

    asyncio.run(play())


def test_closing_ends_starts_and_every_engine():
    async def play():
        fleet, engines, _ = make(lambda number: at_once(number) if number else never(number), num_engines=3)
        await fleet.lose(0, engines[0], "planted")
        await fleet.lose(1, engines[1], "planted")
        await asyncio.sleep(0.05)
        back = (await fleet.present())[1]
        await fleet.close()
        assert not fleet._starting
        assert all(each.closed for each in [*engines, back])

    asyncio.run(play())


class Silent(ScriptedEngine):
    """Hangs from the start: neither pings nor requests are answered, and it does not mind."""

    async def ping(self) -> None:
        await asyncio.sleep(3600)

    async def generate(self, *_, **__):
        await asyncio.sleep(3600)


def test_an_engine_that_hangs_is_lost_and_its_requests_go_elsewhere():
    async def play():
        told, silent = [], Silent(lambda *_: [0], name="engine 1")
        limits = {"max_restarts": 1, "start_timeout_s": 5.0, "stall_timeout_s": 0.1}
        fleet = Fleet([engine(0), silent], at_once, **limits, tell=told.append)
        found = await asyncio.wait_for(asyncio.gather(*(fleet.pool.generate(PROMPT, SPEC) for _ in range(6))), 5)
        assert [completion.token_ids_T.tolist() for [completion] in found] == [[0]] * 6
        assert silent.closed and fleet.pool.loads == {0: 0}
        await asyncio.sleep(0.05)
        assert sorted(await fleet.present()) == [0, 1]
        await fleet.close()
        assert all(task.done() for task in asyncio.all_tasks() - {asyncio.current_task()})
        return told

    lost, *later = asyncio.run(play())
    assert lost == "engine 1 is lost: engine 1 hangs: no sign of life for rollout.stall_timeout_s = 0.1 s"
    assert later == ["engine 1 is started again (1 of 1 times)", "engine 1 is back; it serves from the next weights on"]


def test_who_is_back_is_watched_too():
    async def start_silent(number: int) -> ScriptedEngine:
        return Silent(lambda *_: [0], name=f"engine {number}")

    async def play():
        fleet, (first,), told = make(start_silent, stall_timeout_s=0.05)
        await fleet.lose(0, first, "planted")
        with pytest.raises(EngineDied, match=r"none is started again: engine 0 hangs: no sign of life"):
            for _ in range(9):
                await fleet.wait_for_one()
                await asyncio.sleep(0.1)
        return told

    told = asyncio.run(play())
    assert told[-1] == "engine 0 is given up: rollout.max_restarts = 2 are used up"
    assert sum("engine 0 hangs" in line for line in told) == 2


def test_requests_wait_for_weights_as_long_as_the_policy_trains(monkeypatch):
    monkeypatch.setattr("megatron_spell.train.fleet.CLOSE_S", 0.02)

    async def play():
        fleet, (first,), _ = make(at_once, start_timeout_s=0.05)
        await fleet.lose(0, first, "planted")
        asked = asyncio.create_task(fleet.pool.generate(PROMPT, SPEC))
        await asyncio.sleep(0.3)  # longer than a start may take
        assert not asked.done()
        await fleet.admit(await fleet.present(), version=1)
        await asyncio.wait_for(asked, 5)

    asyncio.run(play())


def test_each_start_of_several_has_its_own_time(monkeypatch):
    monkeypatch.setattr("megatron_spell.train.fleet.CLOSE_S", 0.02)
    starts = []

    async def third_time_lucky(number: int) -> ScriptedEngine:
        starts.append(number)
        await asyncio.sleep(0.08)
        if len(starts) < 3:
            raise EngineError("engine 0 did not start: no room")
        return engine(number)

    async def play():
        fleet, (first,), _ = make(third_time_lucky, start_timeout_s=0.1, max_restarts=3)
        await fleet.lose(0, first, "planted")
        asked = asyncio.create_task(fleet.pool.generate(PROMPT, SPEC))
        await asyncio.sleep(0.35)
        await fleet.admit(await fleet.present(), version=1)
        await asyncio.wait_for(asked, 5)

    asyncio.run(play())

import asyncio

import pytest

from megatron_spell.rollout.engine import EngineError, EngineTimeout, EngineUnusable
from megatron_spell.rollout.turnstile import Turnstile


def test_an_update_waits_for_requests_inside_and_holds_later_ones_back():
    async def play():
        order, turnstile = [], Turnstile("engine 0")

        async def request(name, seconds):
            async with turnstile.request(5):
                order.append(f"{name} in at version {turnstile.version}")
                await asyncio.sleep(seconds)
            order.append(f"{name} out")

        first = asyncio.create_task(request("first", 0.02))
        await asyncio.sleep(0)
        closing = asyncio.create_task(turnstile.close(5))
        await asyncio.sleep(0)
        second = asyncio.create_task(request("second", 0))
        await closing
        order.append("updating")
        turnstile.expect_update()
        turnstile.reopen(7)
        await asyncio.gather(first, second)
        return order

    expected = ["first in at version 0", "first out", "updating", "second in at version 7", "second out"]
    assert asyncio.run(play()) == expected


def test_whoever_wakes_late_finds_the_next_update_in_its_way():
    async def play():
        inside, turnstile = [], Turnstile("engine 0")

        async def request():
            async with turnstile.request(5):
                inside.append(turnstile.version)

        await turnstile.close(5)
        waiting = asyncio.create_task(request())
        await asyncio.sleep(0)
        turnstile.reopen(1)
        await turnstile.close(5)  # before the waiter has run again
        await asyncio.sleep(0.01)
        assert inside == []
        turnstile.reopen(2)
        await waiting
        return inside

    assert asyncio.run(play()) == [2]


def test_waits_have_a_limit_and_leave_the_turnstile_open():
    async def play():
        turnstile = Turnstile("engine 3")
        async with turnstile.request(1):
            with pytest.raises(EngineTimeout, match=r"engine 3: waited 0.01 s for 1 request\(s\) in flight"):
                await turnstile.close(0.01)
        await turnstile.close(1)
        with pytest.raises(EngineTimeout, match=r"engine 3: waited 0.01 s for its weight update to finish"):
            async with turnstile.request(0.01):
                pass
        with pytest.raises(EngineError, match="already under way"):
            await turnstile.close(1)

    asyncio.run(play())


def test_a_breakdown_wakes_and_refuses_everybody():
    async def play():
        turnstile = Turnstile("engine 1")
        await turnstile.close(1)

        async def request():
            async with turnstile.request(5):
                pytest.fail("let in")

        waiting = asyncio.create_task(request())
        await asyncio.sleep(0)
        turnstile.break_down("receive_weights failed")
        turnstile.break_down("a later reason")
        with pytest.raises(EngineUnusable, match="engine 1 is unusable: receive_weights failed"):
            await waiting
        for step in (turnstile.expect_update, turnstile.check):
            with pytest.raises(EngineUnusable):
                step()

    asyncio.run(play())


def test_a_step_without_begin_is_refused():
    with pytest.raises(EngineError, match="no weight update was begun"):
        Turnstile("engine 0").expect_update()


def test_an_update_in_flight_holds_later_requests_back_and_leaves_those_inside():
    async def play():
        turnstile, leave = Turnstile("engine 0"), asyncio.Event()

        async def request():
            async with turnstile.request(5):
                await leave.wait()

        inside = asyncio.create_task(request())
        await asyncio.sleep(0)
        await turnstile.close(5, drain=False)
        assert turnstile.updating and turnstile.num_inside == 1
        later = asyncio.create_task(request())
        await asyncio.sleep(0)
        assert turnstile.num_inside == 1
        turnstile.reopen(1)
        leave.set()
        await asyncio.gather(inside, later)

    asyncio.run(play())


def test_who_is_inside_learns_that_the_engine_broke():
    async def play():
        turnstile = Turnstile("engine 0")
        waiting = asyncio.create_task(turnstile.until_broken())
        await asyncio.sleep(0)
        assert not waiting.done()
        turnstile.break_down("weights were lost")
        with pytest.raises(EngineUnusable, match="engine 0 is unusable: weights were lost"):
            await waiting

    asyncio.run(play())


def test_time_in_which_requests_are_held_does_not_count():
    async def play():
        turnstile = Turnstile("engine 2")
        await turnstile.close(5, drain=False)
        held = asyncio.create_task(turnstile.while_open(0.1, asyncio.sleep(0.3, "words"), "a completion"))
        await asyncio.sleep(0.25)
        assert not held.done()
        turnstile.reopen(1)
        assert await held == "words"
        with pytest.raises(EngineTimeout, match=r"engine 2: waited 0.1 s for a completion"):
            await turnstile.while_open(0.1, asyncio.sleep(5), "a completion")
        open_s = turnstile.open_s
        await turnstile.close(5)
        await asyncio.sleep(0.05)
        assert open_s <= turnstile.open_s < open_s + 0.05

    asyncio.run(play())

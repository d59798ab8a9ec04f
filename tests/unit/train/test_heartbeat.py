"""Which engines are held for lost, and after how long."""

import asyncio
import time

import pytest

from megatron_spell.rollout.engine import EngineDied
from megatron_spell.train.heartbeat import until_silent


class Patient:
    """Answers after each of `delays_s`, and never again after the last."""

    name = "engine 4"

    def __init__(self, *delays_s: float, error: Exception | None = None) -> None:
        self.delays_s, self.error, self.num_pings = list(delays_s), error, 0

    async def ping(self) -> None:
        self.num_pings += 1
        await asyncio.sleep(self.delays_s.pop(0) if self.delays_s else 3600)
        if self.error is not None:
            raise self.error


def waited(patient: Patient, limit_s: float) -> tuple[str, float]:
    begun = time.monotonic()
    why = asyncio.run(asyncio.wait_for(until_silent(patient, limit_s), 10))
    return why, time.monotonic() - begun


def test_an_engine_that_gives_no_answer_is_named_after_the_limit():
    patient = Patient(0.0, 0.05, 0.0)
    why, seconds = waited(patient, 0.2)
    assert why == "engine 4 hangs: no sign of life for rollout.stall_timeout_s = 0.2 s"
    assert patient.num_pings == 4
    assert 0.2 < seconds < 2


def test_a_ping_that_fails_says_why():
    assert (
        waited(Patient(0.0, error=EngineDied("engine 4 died: out of memory")), 5)[0] == "engine 4 died: out of memory"
    )


def test_slow_answers_within_the_limit_are_answers():
    async def play():
        watch = asyncio.create_task(until_silent(Patient(*[0.1] * 50), 0.3))
        await asyncio.sleep(0.8)
        assert not watch.done()
        watch.cancel()

    asyncio.run(play())


@pytest.mark.parametrize("looks_away_s", [0.5])
def test_time_in_which_nobody_could_look_does_not_count(looks_away_s):
    async def play():
        watch = asyncio.create_task(until_silent(Patient(*[0.03] * 50), 0.2))
        await asyncio.sleep(0.01)
        time.sleep(looks_away_s)  # the whole process stands still
        await asyncio.sleep(0.1)
        assert not watch.done()
        watch.cancel()

    asyncio.run(play())

import asyncio
import time

import pytest

from megatron_spell.train.background import Background


@pytest.fixture
def background():
    made = Background()
    yield made
    made.close()


async def later(value, seconds: float = 0.0):
    await asyncio.sleep(seconds)
    return value


def test_results_and_errors_come_back(background):
    async def fail():
        raise KeyError("x")

    assert background.run(later(3)) == 3
    with pytest.raises(KeyError):
        background.run(fail())


def test_work_goes_on_while_the_caller_does_something_else(background):
    future = background.start(later("done", 0.05))
    time.sleep(0.01)
    assert background.run(later("first")) == "first"
    assert future.result(5) == "done"


def test_a_limit_cancels_the_work(background):
    stopped = []

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            stopped.append(True)

    with pytest.raises(TimeoutError):
        background.run(endless(), 0.05)
    background.run(later(None, 0.05))
    assert stopped


def test_closing_cancels_what_is_left():
    made = Background()
    future = made.start(later(None, 60))
    made.close()
    assert future.cancelled() or future.done()

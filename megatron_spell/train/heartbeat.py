"""Whether an engine still lives: a process that hangs keeps its connections and says nothing, for ever."""

import asyncio

from megatron_spell.rollout.engine import Engine

NUM_LOOKS = 10  # at an answer that does not come, within the time limit


async def until_silent(engine: Engine, limit_s: float) -> str:
    """Ping the engine again and again; return, once it fails or gives no answer for `limit_s`, why it is lost.

    Looks are counted, not seconds: where this process itself stood still, the answer has come when it looks again.
    """
    look_s = limit_s / NUM_LOOKS
    while True:
        answer = asyncio.ensure_future(engine.ping())
        try:
            for _ in range(NUM_LOOKS):
                await asyncio.wait({answer}, timeout=look_s)
                if answer.done():
                    break
            else:
                return f"{engine.name} hangs: no sign of life for rollout.stall_timeout_s = {limit_s:g} s"
            answer.result()
        except Exception as error:  # whatever it is, an engine that cannot be asked is of no use
            return str(error) or type(error).__name__
        finally:
            answer.cancel()
        await asyncio.sleep(look_s)

"""Engines die, fail, hang, leave and join at drawn times under load: nothing is lost, doubled or left behind."""

import asyncio
from collections import Counter

import numpy as np
import pytest

from megatron_spell.rollout import router
from megatron_spell.rollout.engine import EngineDied, EngineTimeout, EngineUnusable, SamplingSpec
from megatron_spell.rollout.router import EnginePool
from megatron_spell.rollout.scripted import ScriptedEngine

NUM_REQUESTS, NUM_KEYS, NUM_ENGINES, NUM_EVENTS = 1000, 40, 4, 60
PROMPT = np.arange(5, dtype=np.int32)
KINDS = [EngineDied, EngineUnusable, EngineTimeout]


def reply(prompt_ids_T, spec, sample):
    """What the weights would write: the same on every engine."""
    return np.random.default_rng([spec.seed, sample]).integers(0, 100, 4)


class Storm:
    """A pool with engines that a drawn event strikes every other millisecond."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.made: list[ScriptedEngine] = []
        self.losses: list[str] = []
        self.struck: Counter[str] = Counter()
        self.pool = EnginePool(
            [self.engine(number) for number in range(NUM_ENGINES)],
            on_loss=lambda number, engine, why: self.losses.append(why),
            hope_s=lambda: 5.0,
        )

    def engine(self, number: int) -> ScriptedEngine:
        delays_s = np.random.default_rng([number, len(self.made)]).uniform(0, 0.01, 4096)
        self.made.append(ScriptedEngine(reply, name=f"engine {number}", delay_s=lambda call: delays_s[call % 4096]))
        return self.made[-1]

    async def rage(self) -> None:
        for _ in range(NUM_EVENTS):
            await asyncio.sleep(self.rng.uniform(0, 0.004))
            gone = sorted(set(range(NUM_ENGINES)) - set(self.pool.live))
            if gone and self.rng.random() < 0.5:
                number = int(self.rng.choice(gone))
                self.pool.join(number, self.engine(number))
                self.struck["join"] += 1
            elif self.pool.live:
                self.strike(int(self.rng.choice(sorted(self.pool.live))))
        for number in set(range(NUM_ENGINES)) - set(self.pool.live):
            self.pool.join(number, self.engine(number))

    def strike(self, number: int) -> None:
        engine, how = self.pool.live[number], str(self.rng.choice(["leave", "hang", "die", "close"]))
        self.struck[how] += 1
        if how == "leave":
            self.pool.lose(number, "it left")
        elif how == "close":
            engine._turnstile.break_down("struck")  # later requests fail; those inside end well
        elif how == "die":  # its next request fails, then everything it is asked
            error = KINDS[int(self.rng.integers(3))]("struck")
            engine.failures = dict.fromkeys(range(engine.counts.calls, engine.counts.calls + 4096), error)
        else:  # whatever it is asked from now on stays open until somebody notices
            engine.delay_s = lambda call: 3600.0
            asyncio.get_running_loop().call_later(0.004, self.pool.lose, number, "it hung")


async def ride(seed: int) -> tuple[Storm, list[tuple[int, list[int]]]]:
    """The storm, and (request, tokens) in the order in which requests came back."""
    storm, came = Storm(seed), []
    order = storm.rng.permutation(NUM_REQUESTS)

    async def ask(request: int) -> None:
        spec = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=4, n=1 + request % 3, seed=request)
        found = await storm.pool.generate(PROMPT, spec, key=f"set {request % NUM_KEYS}")
        came.append((request, [int(t) for completion in found for t in completion.token_ids_T]))

    raging = asyncio.create_task(storm.rage())
    async with asyncio.TaskGroup() as group:
        for request in order:
            group.create_task(ask(int(request)))
            if storm.rng.random() < 0.1:
                await asyncio.sleep(0.001)
    await raging
    return storm, came


@pytest.mark.parametrize("seed", range(5))
def test_every_request_comes_back_once_with_the_words_of_its_seed(seed, monkeypatch):
    monkeypatch.setattr(router, "MAX_TRIES", NUM_EVENTS)  # the engines die of the storm and not of a request
    storm, came = asyncio.run(asyncio.wait_for(ride(seed), 30))
    assert sorted(request for request, _ in came) == list(range(NUM_REQUESTS))
    for request, tokens in came:
        expected = [reply(PROMPT, SamplingSpec(1.0, 1.0, 4, seed=request), i) for i in range(1 + request % 3)]
        assert tokens == np.concatenate(expected).tolist()
    assert set(storm.pool.loads.values()) == {0}
    assert len(storm.losses) >= 10 and {"join", "leave", "hang", "die", "close"} <= set(storm.struck)
    asked = sum(engine.counts.calls for engine in storm.made)
    assert asked > NUM_REQUESTS, "no request had to be asked twice, so the storm shows nothing"


def test_keys_stay_together_while_engines_come_and_go(monkeypatch):
    """Most requests of a key go to the engine that the key's last one went to: what moves are keys of lost engines."""
    monkeypatch.setattr(router, "MAX_TRIES", NUM_EVENTS)
    storm, _ = asyncio.run(asyncio.wait_for(ride(7), 30))
    homes = {key: {i for i, engine in enumerate(storm.made) if key in engine.keys} for key in storm.made[0].keys}
    engines_of_a_key = np.mean([len(engines) for engines in homes.values()])
    assert engines_of_a_key < 0.42 * len(storm.made)  # without keys: more than half

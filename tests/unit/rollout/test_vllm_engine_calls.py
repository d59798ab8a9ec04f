"""Calls to vLLM that stay open: its engine process is looked at meanwhile (no vLLM here)."""

import asyncio
from types import SimpleNamespace

import pytest

from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout import vllm_engine
from megatron_spell.rollout.engine import EngineDied
from megatron_spell.rollout.vllm_engine import VllmEngine


def engine_whose_process(errored: bool, monkeypatch) -> VllmEngine:
    monkeypatch.setattr(vllm_engine, "LOOK_S", 0.01)
    engine = VllmEngine("nowhere", RolloutSection(), name="engine 3")
    engine._llm = SimpleNamespace(errored=errored)
    return engine


def test_the_death_of_vllms_process_ends_a_call_that_it_was_to_answer(monkeypatch):
    engine = engine_whose_process(True, monkeypatch)
    with pytest.raises(EngineDied, match="engine 3: vLLM's engine process died during finish_update"):
        asyncio.run(asyncio.wait_for(engine._unless_dead(asyncio.sleep(60), "finish_update"), 5))


def test_a_call_of_a_living_process_is_waited_for(monkeypatch):
    engine = engine_whose_process(False, monkeypatch)
    assert asyncio.run(engine._unless_dead(asyncio.sleep(0.1, "done"), "finish_update")) == "done"

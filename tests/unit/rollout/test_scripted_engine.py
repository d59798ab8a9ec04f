import asyncio

import numpy as np
import pytest

from megatron_spell.rollout.engine import Engine, EngineError, EngineUnusable, PromptTooLong, SamplingSpec
from megatron_spell.rollout.scripted import ScriptedEngine
from megatron_spell.types.play import ExpertChoices

PROMPT = np.arange(5, dtype=np.int32)
SPEC = SamplingSpec(temperature=1.0, top_p=1.0, max_tokens=6, n=2, stop_ids=(9,))


def generate(engine, spec=SPEC, prompt=PROMPT):
    return asyncio.run(engine.generate(prompt, spec, key="set"))


def test_it_is_an_engine_and_says_what_it_is_told_per_sample():
    engine = ScriptedEngine(lambda prompt, spec, sample: [len(prompt), sample, 9], version=3)
    assert isinstance(engine, Engine)
    completions = generate(engine)
    assert [c.token_ids_T.tolist() for c in completions] == [[5, 0, 9], [5, 1, 9]]
    assert {(c.finish_reason, c.version) for c in completions} == {("stop", 3)}
    assert completions[0].log_probs_T.tolist() == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("reply", "kept", "reason"),
    [
        ([1, 9, 2, 9], [1, 9], "stop"),
        ([1, 2, 3, 4, 5, 9], [1, 2, 3, 4, 5, 9], "stop"),
        ([1, 2, 3, 4, 5, 6, 9], [1, 2, 3, 4, 5, 6], "length"),
        ([1, 2], [1, 2], "stop"),
    ],
)
def test_replies_are_cut_as_an_engine_would(reply, kept, reason):
    completion = generate(ScriptedEngine(lambda *_: reply))[0]
    assert (completion.token_ids_T.tolist(), completion.finish_reason) == (kept, reason)


def test_the_context_bounds_prompt_and_reply():
    engine = ScriptedEngine(lambda *_: [1] * 20, max_model_len=7)
    completion = generate(engine)[0]
    assert (len(completion.token_ids_T), completion.finish_reason) == (2, "length")
    with pytest.raises(PromptTooLong, match="7 tokens leaves no room in 7"):
        generate(engine, prompt=np.zeros(7, np.int32))


def test_counts_keys_and_planted_failures():
    engine = ScriptedEngine(lambda *_: [1, 9], failures={1: EngineError("planted")})
    generate(engine)
    with pytest.raises(EngineError, match="planted"):
        generate(engine)
    assert (engine.counts.calls, engine.counts.completions) == (2, 2)
    assert (engine.counts.prompt_tokens, engine.counts.completion_tokens) == (5, 4)
    assert engine.keys == ["set", "set"]


def test_recorded_expert_choices_come_with_their_completion():
    def recorded(prompt_ids_T, token_ids_T):
        return ExpertChoices(np.zeros((len(prompt_ids_T), 2, 1)), np.ones((len(token_ids_T) - 1, 2, 1)))

    completion = generate(ScriptedEngine(lambda *_: [3, 4, 9], experts=recorded))[0]
    assert (len(completion.experts.prompt_T_L_K), len(completion.experts.response_T_L_K)) == (5, 2)
    assert generate(ScriptedEngine(lambda *_: [9]))[0].experts is None


def test_an_update_brings_a_version_and_a_failed_one_ends_the_engine():
    async def play():
        engine = ScriptedEngine(lambda *_: [9], update_failures={"receive_weights": EngineError("lost the trainer")})
        await engine.begin_update()
        await engine.finish_update(4)
        assert (await engine.generate(PROMPT, SPEC))[0].version == 4
        await engine.begin_update()
        with pytest.raises(EngineError, match="lost the trainer"):
            await engine.receive_weights({})
        with pytest.raises(EngineUnusable, match="receive_weights failed: lost the trainer"):
            await engine.generate(PROMPT, SPEC)

    asyncio.run(play())


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"max_tokens": 0}, {"n": 0}])
def test_senseless_sampling_is_refused(wrong):
    with pytest.raises(EngineError, match=next(iter(wrong))):
        SamplingSpec(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 1, **wrong})

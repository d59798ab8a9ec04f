import json

import pytest

from megatron_spell.config.check import violations
from megatron_spell.config.schema import RunConfig

QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 1024,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
QWEN3_MOE = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
FITTING = {
    "curriculum": {"length": {"start_tokens": 256, "max_tokens": 1024}},
    "sampling": {"max_tokens": {"questioner": 64, "responder": 64, "verifier": 8}},
    "rollout": {"max_model_len": 2048},
}


@pytest.fixture
def check(tmp_path):
    def check_(shape: dict | None = None, on_cpu: bool = True, **sections) -> list[str]:
        (tmp_path / "config.json").write_text(json.dumps(QWEN3 | (shape or {})))
        (tmp_path / "store.h5").touch()
        place = {"run_folder": tmp_path / "run", "model": {"path": tmp_path}, "data": {"store": tmp_path / "store.h5"}}
        config = RunConfig.model_validate({"name": "t"} | place | FITTING | sections)
        return violations(config, on_cpu=on_cpu)

    return check_


def test_a_fitting_run_has_no_fault(check):
    assert check(policy={"mesh": {"tp": 2, "pp": 2, "dp": 3, "cp": 2}, "sequence_parallel": True}) == []


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"policy": {"mesh": {"tp": 3}}},
            "policy.mesh.tp = 3: the model's 4 attention heads and 2 key-value heads do not divide by it; use a",
        ),
        ({"policy": {"mesh": {"tp": 4}}}, "policy.mesh.tp = 4: the model's 2 key-value heads do not divide by it"),
        (
            {"watch": {"min_surprisal": 3.0}},
            "watch.min_surprisal = 3.0: is not under watch.max_surprisal = 3.0; lower it",
        ),
        ({"policy": {"mesh": {"pp": 3}}}, "policy.mesh.pp = 3: the model's 4 layers do not divide by it"),
        ({"policy": {"sequence_parallel": True}}, "policy.sequence_parallel = True: there is one tensor-parallel rank"),
        ({"policy": {"mesh": {"ep": 2}}}, "policy.mesh.ep = 2: the model has no experts; leave it out"),
        ({"rollout": {"max_model_len": 8192}}, "rollout.max_model_len = 8192: the model has 4096 positions"),
        ({"rollout": {"max_model_len": 1024}}, "rollout.max_model_len = 1024: documents of"),
        ({"play": {"votes_per_answer": 0}}, "play.votes_per_answer = 0: nobody votes; take verifier out of"),
        ({"play": {"full_votes_share": 0}}, "play.full_votes_share = 0.0: no group would have all the votes that"),
        ({"play": {"questions": "/nowhere"}}, "play.questions = /nowhere: nothing is asked; take questioner out of"),
        ({"play": {"questions": "/nowhere"}}, "play.questions = /nowhere: there is no such file; leave it out"),
        ({"algo": {"train_roles": []}}, "algo.train_roles = (): no role is trained"),
        ({"play": {"questions_per_step": 4}}, "play.min_questions = 16: is more than play.questions_per_step = 4"),
        ({"play": {"max_draws_per_step": 9}}, "play.max_draws_per_step = 9: a step of 128 questions"),
        ({"play": {"templates": "/nowhere"}}, "play.templates = /nowhere: there is no such folder"),
        ({"evaluation": {"questions": "/nowhere"}}, "evaluation.questions = /nowhere: there is no such file"),
        ({"data": {"store": "/nowhere.h5"}}, "data.store = /nowhere.h5: there is no such file; make it with"),
        ({"model": {"path": "/nowhere"}}, "model.path = /nowhere: /nowhere holds no config.json"),
    ],
)
def test_each_rule_names_field_value_and_way_out(check, sections, expected):
    lines = check(**sections)
    assert any(line.startswith(expected) for line in lines), lines
    assert all("; " in line and "\n" not in line for line in lines)


def test_lengths_that_swing_or_cross_are_refused(check):
    length = {"start_tokens": 2048, "max_tokens": 1024, "raise_above": 0.2, "lower_below": 0.5}
    lines = check(curriculum={"length": length})
    assert [line.split(" = ")[0] for line in lines] == [
        "curriculum.length.start_tokens",
        "curriculum.length.lower_below",
    ]


def test_tasks_without_any_weight_are_refused(check, tmp_path):
    weights = dict.fromkeys(("general_qa", "math_qa", "multiple_choice"), 0)
    (line,) = check(data={"store": tmp_path / "store.h5", "task_weights": weights})
    assert line.startswith("data.task_weights: every task has weight 0")


def test_ffn_and_head_dim_of_the_model_are_checked(check):
    assert any(
        "385 feed-forward columns" in line for line in check({"intermediate_size": 385}, policy={"mesh": {"tp": 2}})
    )
    assert any("cannot serve its head_dim 24" in line for line in check({"head_dim": 24}))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; known are llama, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope_type 'longrope'"),
        ({"rope_parameters": None}, "has no rope_theta"),
    ],
)
def test_a_model_that_no_family_describes_is_refused(check, model, expected):
    (line,) = check(model)
    assert expected in line


def test_replaying_expert_choices_needs_experts_and_an_engine_that_returns_them(check):
    replay = {"policy": {"moe": {"routing_replay": "always"}}}
    (line,) = check(**replay)
    assert line == "policy.moe.routing_replay = always: the model has no experts; set it to never"
    (line,) = check(QWEN3_MOE, **replay)
    assert "routing_replay = always: vLLM on a CPU does not return expert choices" in line
    assert check(QWEN3_MOE, on_cpu=False, **replay) == []


def test_several_faults_are_found_at_once(check):
    lines = check(policy={"mesh": {"tp": 3, "pp": 3, "ep": 2}}, play={"votes_per_answer": 0})
    assert len(lines) >= 4

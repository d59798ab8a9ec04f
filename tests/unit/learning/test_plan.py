"""What is run, where, and when a folder is refused."""

import json
from pathlib import Path

import pytest
import yaml
from plan import PlanError, differences, load_experiment, planned_runs

from megatron_spell.config.load import load_config
from megatron_spell.types.play import Role

LEARNING = Path(__file__).parents[3] / "examples/learning"


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(LEARNING.parents[1])


def committed():
    return load_experiment(LEARNING / "variants.yaml")


def test_every_committed_variant_is_a_legal_run(in_root, tmp_path):
    experiment = committed()
    assert experiment.base == "full" and len(experiment.seeds) == 3
    configs = {run.variant: run.config() for run in planned_runs(experiment, tmp_path)}
    assert len(configs) == 9
    full = configs["full"]
    whole = load_config(LEARNING.parent / "quickstart/run.yaml")
    assert configs["quickstart"].steps == whole.steps > full.steps
    assert full.policy.mesh.mesh().world_size == 1 and full.rollout.engines == 1 and full.policy.threads_per_rank == 1
    assert set(full.algo.train_roles) == set(Role) and full.play.questions is None
    for name, config in configs.items():
        untrained = set(Role) - set(config.algo.train_roles)
        assert (config.play.votes_per_answer == 0) <= (Role.VERIFIER in untrained), name
        assert (config.play.questions is not None) <= (Role.QUESTIONER in untrained), name


def test_each_variant_differs_from_the_base_in_what_it_is_about(in_root, tmp_path):
    runs = {run.variant: run for run in planned_runs(committed().only([], [0]), tmp_path)}
    base = runs["full"].config().model_dump(mode="json")
    changed = {name: set(differences(base, run.config().model_dump(mode="json"))) for name, run in runs.items()}
    assert changed == {
        "full": set(),
        "quickstart": {"steps"},
        "frozen_questioner": {"algo.train_roles"},
        "no_memory": {"curriculum.memory_size"},
        "no_verifier": {"algo.train_roles", "play.votes_per_answer"},
        "no_verifier_update": {"algo.train_roles"},
        "no_rule_consistency": {"algo.verifier_needs_rule"},
        "token_mean": {"algo.loss"},
        "given_questions": {"algo.train_roles", "play.votes_per_answer", "play.questions"},
    }


def test_the_papers_differences_are_those_of_its_tables():
    scores = {"frozen_questioner": 42.6, "no_memory": 44.3, "no_verifier": 44.0, "no_verifier_update": 46.8}
    scores |= {"no_rule_consistency": 45.7, "given_questions": 45.9}
    for name, variant in committed().variants.items():
        papers = None if name not in scores else round(scores[name] - 47.2, 1)
        assert variant.paper == papers, name


def test_seeds_of_all_variants_come_before_the_next_seed(experiment, tmp_path):
    runs = planned_runs(experiment, tmp_path, ["steps=3"])
    assert [(r.variant, r.seed) for r in runs][:3] == [("full", 0), ("no_memory", 0), ("full", 1)]
    assert len({r.folder for r in runs}) == 6
    assert runs[1].arguments()[-6:] == ["--set", "seed=0", "--set", "steps=3", "--set", "curriculum.memory_size=0"]


def test_some_variants_and_other_seeds(experiment):
    chosen = experiment.only(["no_memory"], [7])
    assert list(chosen.variants) == ["no_memory"] and chosen.seeds == (7,)
    assert experiment.only([], []) == experiment
    with pytest.raises(PlanError, match="--variants no_memmory: is not one of full, no_memory"):
        experiment.only(["no_memmory"], [])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"base": "fool"}, "base = fool: is not one of "),
        (
            {"required": {"variant": "fool", "gain": 0, "pass_at_all_change": 0, "minutes": 1}},
            "required.variant = fool: is not one of ",
        ),
        ({"seeds": []}, "seeds: "),
        ({"limit_minutes": 0}, "limit_minutes: "),
        ({"sedes": [1]}, "sedes: Extra inputs"),
    ],
)
def test_a_plan_that_cannot_be_is_told_in_one_line(tmp_path, change, fault):
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((LEARNING / "variants.yaml").read_text()) | change))
    with pytest.raises(PlanError, match=fault) as told:
        load_experiment(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["variants: [", None])
def test_a_plan_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "plan.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PlanError, match="cannot be read"):
        load_experiment(path)


def test_a_folder_of_other_settings_is_refused(experiment, tmp_path, in_root):
    run = planned_runs(experiment, tmp_path, ["steps=3"])[0]
    run.check()  # nothing is there
    run.claim()
    (run.folder / "config.json").write_text(json.dumps(run.config().model_dump(mode="json")))
    run.check()
    longer = planned_runs(experiment, tmp_path, ["steps=4", "algo.loss=token_mean"])[0]
    with pytest.raises(PlanError, match=r"was made with other (steps, algo.loss|algo.loss, steps); move it"):
        longer.check()


def test_a_folder_of_other_questions_is_refused_and_an_older_setting_is_no_difference(experiment, tmp_path, in_root):
    asked = tmp_path / "questions.jsonl"
    asked.write_text("one\n")
    run = planned_runs(experiment, tmp_path / "runs", [f"evaluation.questions={asked}"])[0]
    run.claim()
    noted = json.loads((run.folder / "inputs.json").read_text())
    assert noted.keys() >= {"evaluation.questions", "model.path/model.safetensors", "play.templates/verifier.md"}
    config = run.config().model_dump(mode="json")
    del config["algo"]["verifier_needs_rule"]
    (run.folder / "config.json").write_text(json.dumps(config))
    run.check()
    (run.folder / "inputs.json").write_text(json.dumps(noted | {"evaluation.questions": "0" * 64}))
    with pytest.raises(PlanError, match=r"was made with other evaluation\.questions"):
        run.check()


def test_only_a_run_with_a_summary_is_finished(experiment, tmp_path):
    run = planned_runs(experiment, tmp_path)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.jsonl").write_text("{}\n")
    assert not run.finished
    (run.folder / "summary.json").write_text("{}")
    assert run.finished

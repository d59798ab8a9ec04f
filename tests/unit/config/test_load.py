import pytest

from megatron_spell.config.load import ConfigError, load_config

BASE = """
name: trial
run_folder: runs/trial
model: {path: somewhere}
data: {store: store.h5}
"""


@pytest.fixture
def write(tmp_path):
    def write_(text: str, name: str = "run.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write_


def faults(path, overrides=()) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return caught.value.lines


def test_defaults_are_the_papers(write):
    config = load_config(write(BASE))
    assert (config.play.questions_per_step, config.play.answers_per_question, config.play.votes_per_answer) == (
        128,
        8,
        8,
    )
    assert (config.policy.optimizer.lr, config.sampling.temperature, config.sampling.top_p) == (2e-6, 0.7, 0.95)
    assert config.rewards.frontier_sigma == pytest.approx(0.5 / 3)


def test_overrides_win_over_the_file_and_the_file_over_what_it_extends(write):
    write(BASE + "steps: 5\nplay: {questions_per_step: 4, min_questions: 2}\n", "base.yaml")
    path = write("extends: base.yaml\nplay: {questions_per_step: 8}\n")
    config = load_config(path, ["play.min_questions=3", "policy.mesh.tp=2"])
    assert config.steps == 5
    assert (config.play.questions_per_step, config.play.min_questions, config.policy.mesh.tp) == (8, 3, 2)


def test_an_unknown_field_is_named_with_its_nearest(write):
    assert faults(write(BASE + "play: {question_per_step: 4}\n")) == (
        "play.question_per_step: unknown field; did you mean questions_per_step?",
    )
    assert faults(write(BASE), ["polcy.mesh.tp=2"]) == ("polcy: unknown field; did you mean policy?",)
    assert "known here: tp, pp, dp" in faults(write(BASE), ["policy.mesh.zzzzzz=2"])[0]


def test_all_faults_are_reported_together(write):
    lines = faults(write("name: x\nsteps: -1\nsampling: {temperature: hot}\nmodel: {path: m}\n"))
    assert len(lines) == 4
    assert any(line == "run_folder: is missing; add it to the file or give --set run_folder=..." for line in lines)
    assert any(line.startswith("steps = -1: input should be greater") for line in lines)
    assert any(line.startswith("sampling.temperature = 'hot': ") for line in lines)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_numbers_must_be_finite(write, value):
    assert "sampling.temperature" in faults(write(BASE + f"sampling: {{temperature: {value}}}\n"))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list"),
        ("a: b: c", "not readable as YAML"),
        ("a: [", "not readable as YAML"),
        ("name: ${nothing.here}", "nothing"),
        ("extends: run.yaml", "extend each other"),
        ("extends: elsewhere.yaml", "no such file"),
    ],
)
def test_broken_files_give_one_line(write, text, message):
    (line,) = faults(write(text))
    assert message in line
    assert "\n" not in line


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "not readable as YAML" in faults(path)[0]


def test_overrides_must_assign(write):
    assert faults(write(BASE), ["play.questions_per_step"]) == (
        "--set play.questions_per_step: is not of the form section.field=value",
    )
    assert "--set" in faults(write(BASE), ["a=[1"])[0]


def test_a_long_value_is_shortened(write):
    (line,) = faults(write(BASE), [f"steps={'x' * 500}"])
    assert len(line) < 200


def test_a_fault_below_a_mapping_of_tasks_is_named(write):
    (line,) = faults(write(BASE + "play: {max_answer_tokens: {a: 1}}\n"))
    assert line.startswith("play.max_answer_tokens = {'a': 1}")
    assert "unknown field" in faults(write(BASE), ["sampling.max_tokens.judge=3"])[0]

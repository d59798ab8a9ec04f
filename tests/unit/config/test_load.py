import pytest

from megatron_spell.config.load import ConfigError, load_config
from megatron_spell.layout.mesh import Mesh

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
    config = load_config(path, ["play.min_questions=3", "policy.mesh.tp=2", "policy.mesh.stage_layers=[4]"])
    assert config.policy.mesh.mesh() == Mesh(tp=2, stage_layers=(4,))
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


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{schedule: cosine}", "decay_steps = None: schedule = cosine needs more than warmup_steps = 0 of them; give"),
        (
            "{schedule: linear, warmup_steps: 5, decay_steps: 5}",
            "decay_steps = 5: schedule = linear needs more than warmup_steps = 5 of them; give the run's steps",
        ),
        ("{decay_steps: 9}", "decay_steps = 9: a constant rate does not decay; set schedule to linear or cosine"),
        ("{min_lr: 0.1}", "min_lr = 0.1: is above policy.optimizer.lr = 2e-06; lower it"),
        ("{clip_grad: -1}", "clip_grad = -1: input should be greater than or equal to 0"),
        ("{max_skipped_in_a_row: 0}", "max_skipped_in_a_row = 0: input should be greater than or equal to 1"),
        ("{schedule: exponential}", "schedule = 'exponential': input should be 'constant', 'linear' or 'cosine'"),
    ],
)
def test_a_schedule_that_cannot_be_is_told_in_one_line(write, settings, expected):
    (line,) = faults(write(BASE + f"policy: {{optimizer: {settings}}}\n"))
    assert line.startswith(f"policy.optimizer.{expected}")


def test_the_paper_rate_is_the_default(write):
    optimizer = load_config(write(BASE)).policy.optimizer
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_steps) == (2e-6, "constant", 0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{form: row}", "form = 'row': input should be 'token', 'sequence_mean' or 'sequence_product'"),
        ("{cap: 0}", "cap = 0: input should be greater than 0"),
        ("{mask_token_low: 1.5}", "mask_token_low = 1.5: input should be less than 1"),
        ("{mask_row_high: 0.5}", "mask_row_high = 0.5: input should be greater than 1"),
        ("{mask_row_high: .inf}", "mask_row_high = inf: input should be a finite number"),
    ],
)
def test_importance_settings_that_cannot_be_are_told_in_one_line(write, settings, expected):
    (line,) = faults(write(BASE + f"algo: {{importance: {settings}}}\n"))
    assert line.startswith(f"algo.importance.{expected}")


def test_bounds_and_clip_may_be_left_out(write):
    algo = load_config(write(BASE + "algo: {clip_low: null, importance: {mask_token_high: null}}\n")).algo
    assert (algo.clip_low, algo.importance.mask_token_high) == (None, None)

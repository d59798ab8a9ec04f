"""The shipped rows hold together: every average is that of its columns."""

import pytest

from megatron_spell.evaluation.paper import AVERAGE, LIMITS, PASS_AT, VARIANTS, find_model, nearest_models, paper_models
from megatron_spell.evaluation.summary import COLUMNS

ROWS = [(model, variant, limit) for model in paper_models() for variant in VARIANTS for limit in LIMITS]
ROUNDING = 0.05 + 1e-9  # of a figure printed with one decimal
READ_OFF = 0.3  # of a figure read off a plot


def misfits(rows) -> list[str]:
    """The rows, by name, whose average is not the mean of their columns as printed."""
    found = []
    for name, row in rows:
        mean = sum(row[column] for column in COLUMNS) / len(COLUMNS)
        if abs(mean - row[AVERAGE]) > ROUNDING:
            found.append(f"{name}: {row[AVERAGE]} is printed, {mean:.3f} is the mean")
    return found


def test_all_rows_are_there():
    assert len(paper_models()) == 12
    assert all(set(model.scores[variant, limit]) == {*COLUMNS, AVERAGE} for model, variant, limit in ROWS)


def test_every_average_is_that_of_its_four_columns():
    assert misfits((f"{m.name} {variant} {limit}", m.scores[variant, limit]) for m, variant, limit in ROWS) == []


def test_a_digit_out_of_place_is_found_by_name():
    (model, *_) = paper_models()
    row = model.scores["SPELL", LIMITS[0]]
    for column in row:
        wrong = row | {column: row[column] + (0.3 if column != AVERAGE else 0.1)}
        assert misfits([("this row", wrong)]) and "this row" in misfits([("this row", wrong)])[0]


def test_the_gains_that_the_paper_prints():
    # A sample of Table 1's brackets, one for each model at one of the limits.
    gains = {
        "Qwen2.5-7B": (13.9, 16.2),
        "Qwen2.5-14B": (14.4, 15.0),
        "Qwen2.5-32B": (9.1, 12.0),
        "Qwen2.5-7B-Instruct": (9.0, 8.1),
        "Qwen2.5-14B-Instruct": (7.0, 7.2),
        "Qwen2.5-32B-Instruct": (7.7, 7.6),
        "Qwen3-30B-A3B-Instruct-2507": (4.4, 4.2),
        "Llama-3.1-8B-Instruct": (4.4, 3.7),
        "R1-Distill-Llama-8B": (3.4, 3.2),
        "R1-Distill-Qwen-14B": (3.4, 2.7),
        "Qwen3-4B-Thinking-2507": (2.2, 2.1),
        "Qwen3-30B-A3B-Thinking-2507": (2.0, 2.3),
    }
    for model in paper_models():
        for limit, gain in zip(LIMITS, gains[model.name]):
            trained, base = (model.scores[variant, limit][AVERAGE] for variant in ("SPELL", "base"))
            assert trained - base == pytest.approx(gain, abs=1e-6), (model.name, limit)


def test_pass_at_one_is_the_tables_score_and_averages_fit_the_plot():
    (model,) = (model for model in paper_models() if model.pass_at)
    for variant, columns in model.pass_at.items():
        assert {name: by_k[1] for name, by_k in columns.items()} == pytest.approx(model.scores[variant, LIMITS[1]])
        for k in PASS_AT:
            mean = sum(columns[name][k] for name in COLUMNS) / len(COLUMNS)
            assert abs(mean - columns[AVERAGE][k]) <= READ_OFF, (variant, k)
        assert all(list(by_k.values()) == sorted(by_k.values()) for by_k in columns.values())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("/models/qwen2.5_7b_instruct/", "Qwen2.5-7B-Instruct"),
        ("/hub/models--Qwen--Qwen2.5-14B-Instruct/snapshots/0ab1", "Qwen2.5-14B-Instruct"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "R1-Distill-Qwen-14B"),
        ("Qwen/Qwen3-4B-Thinking-2507", "Qwen3-4B-Thinking-2507"),
        ("Qwen3-4B-Thinking", "Qwen3-4B-Thinking-2507"),
        ("Qwen/Qwen2.5-7B-Instruct-1M", None),
        ("Qwen/Qwen3-4B-Instruct-2507", None),
        ("runs/step-70", None),
        ("", None),
    ],
)
def test_models_are_found_by_the_names_that_people_give_them(name, wanted):
    found = find_model(name)
    assert (found and found.name) == wanted


def test_a_near_miss_is_told():
    assert nearest_models("Qwen/Qwen2.5-7B-Instruct-1M")[0] == "Qwen2.5-7B-Instruct"

"""The paper's scores, to stand beside one's own (paper.yaml)."""

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from megatron_spell.evaluation.summary import COLUMNS

AVERAGE = "Avg"
VARIANTS = ("base", "RLVR", "SPELL")
LIMITS = (16_384, 100_000)  # input tokens
PASS_AT = (1, 2, 4, 8)
PASS_AT_LIMIT = 100_000

_FILE = Path(__file__).with_name("paper.yaml")
# In the names that hubs give these models, and in none of the paper's.
_FAMILY = re.compile(r"^(?:meta-|deepseek-)(?=llama|r1)")
_DATE = re.compile(r"-?2507$")


@dataclass(frozen=True, slots=True)
class PaperModel:
    """Percent. `scores[variant, limit][column]`, `pass_at[variant][column]` by k of PASS_AT (empty where unpublished).

    Columns are COLUMNS and AVERAGE, limits LIMITS; `pass_at` is at PASS_AT_LIMIT.
    """

    name: str
    scores: dict[tuple[str, int], dict[str, float]]
    pass_at: dict[str, dict[str, dict[int, float]]]


@cache
def paper_models() -> tuple[PaperModel, ...]:
    shipped = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(_model(name, rows, shipped["pass_at"].get(name, {})) for name, rows in shipped["scores"].items())


def _model(name: str, rows: dict, pass_at: dict) -> PaperModel:
    columns = (*COLUMNS, AVERAGE)
    return PaperModel(
        name,
        {
            (variant, limit): dict(zip(columns, row, strict=True))
            for variant, by_limit in rows.items()
            for limit, row in by_limit.items()
        },
        {
            variant: {column: dict(zip(PASS_AT, row, strict=True)) for column, row in by_column.items()}
            for variant, by_column in pass_at.items()
        },
    )


def find_model(name: str) -> PaperModel | None:
    """The paper's model of that name, path or hub id ("Qwen/Qwen2.5-7B-Instruct", a cache's snapshot folder).

    Case, punctuation, the owner and a date at the end do not count. A longer name is another model: scores of
    Qwen2.5-7B-Instruct are none of Qwen2.5-7B-Instruct-1M.
    """
    known = {_key(model.name): model for model in paper_models()}
    parts = [part for component in reversed(name.split("/")) for part in reversed(component.split("--"))]
    return next((known[_key(part)] for part in parts if _key(part) in known), None)


def nearest_models(name: str) -> list[str]:
    """The paper's names that look most like `name`, for a reader who meant one of them."""
    names = [model.name for model in paper_models()]
    return difflib.get_close_matches(name.rstrip("/").rpartition("/")[2], names, n=3, cutoff=0.5)


def _key(name: str) -> str:
    plain = _DATE.sub("", _FAMILY.sub("", _FAMILY.sub("", name.strip().casefold())))
    return re.sub(r"[^a-z0-9]", "", plain)

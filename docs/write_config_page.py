"""Write docs/config.md from the schema: `python docs/write_config_page.py`. Meanings are the schema's own comments."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from megatron_spell.config import benchmark_run, policy_sections, schema

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """# Settings

A run is one YAML file. `extends: other.yaml` takes another file (relative to this one) as its base, and
`--set section.field=value` wins over both. Unknown fields are errors that name the nearest known one, and all faults
are reported together. `megatron-spell config RUN.yaml` prints what will be used. Relative paths are taken from the
working directory. Defaults are the paper's where it has one.

This page is written by `python docs/write_config_page.py` from the sections in `megatron_spell/config`.
"""
OF_EVALUATE = """# Settings of evaluate

`megatron-spell evaluate --config FILE.yaml` reads these (docs/evaluation.md); arguments and `--set` win over the file.
The fields of `rollout` are those above.
"""


def page() -> str:
    of_run = _section(schema.RunConfig, "", _meanings())
    of_evaluate = _section(benchmark_run.BenchmarkRunConfig, "", _meanings(), known=schema.RolloutSection)
    return "\n".join([INTRODUCTION, *of_run, OF_EVALUATE, *of_evaluate])


def _section(
    model: type[BaseModel], prefix: str, meanings: dict[tuple[str, str], str], known: type[BaseModel] | None = None
) -> Iterator[str]:
    """`known` is a section that stands on the page already."""
    fields = {name: field for name, field in model.model_fields.items() if not _is_section(field.annotation)}
    if fields:
        yield from (f"## {prefix.rstrip('.') or 'the run'}", "", "| field | default | meaning |", "|---|---|---|")
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{_shown(field.default)}`"
        yield f"| `{prefix}{name}` | {default} | {_meaning(model, name, meanings)} |"
    yield ""
    for name, field in model.model_fields.items():
        if _is_section(field.annotation) and field.annotation is not known:
            yield from _section(field.annotation, f"{prefix}{name}.", meanings, known)


def _meaning(model: type[BaseModel], name: str, meanings: dict[tuple[str, str], str]) -> str:
    """A field's comment stands in the class that brings it."""
    return next(meanings[parent.__name__, name] for parent in model.__mro__ if (parent.__name__, name) in meanings)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _meanings() -> dict[tuple[str, str], str]:
    """(class, field) -> the comment behind the field, or on the line closing it."""
    found, model, field = {}, "", ""
    sources = [Path(module.__file__ or "") for module in (schema, policy_sections, benchmark_run)]
    for line in "\n".join(source.read_text(encoding="utf-8") for source in sources).splitlines():
        if named := re.match(r"class (\w+)\(", line):
            model = named[1]
        if named := re.match(r"    (\w+): ", line):
            field = named[1]
        if (comment := re.search(r"  # (.*)$", line)) and field:
            found[model, field] = comment[1]
    return found


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_shown(k)}: {_shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

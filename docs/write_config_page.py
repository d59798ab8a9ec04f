"""Write docs/config.md from the schema: `python docs/write_config_page.py`. Meanings are the schema's own comments."""

import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from megatron_spell.config import schema

PAGE = Path(__file__).with_name("config.md")
INTRODUCTION = """# Settings

A run is one YAML file. `extends: other.yaml` takes another file (relative to this one) as its base, and
`--set section.field=value` wins over both. Unknown fields are errors that name the nearest known one, and all faults
are reported together. `megatron-spell config RUN.yaml` prints what will be used. Relative paths are taken from the
working directory. Defaults are the paper's where it has one.

This page is written by `python docs/write_config_page.py` from `megatron_spell/config/schema.py`.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *_section(schema.RunConfig, "", _meanings())])


def _section(model: type[BaseModel], prefix: str, meanings: dict[tuple[str, str], str]) -> Iterator[str]:
    fields = {name: field for name, field in model.model_fields.items() if not _is_section(field.annotation)}
    if fields:
        yield from (f"## {prefix.rstrip('.') or 'the run'}", "", "| field | default | meaning |", "|---|---|---|")
    for name, field in fields.items():
        default = "required" if field.is_required() else f"`{_shown(field.default)}`"
        yield f"| `{prefix}{name}` | {default} | {meanings[model.__name__, name]} |"
    yield ""
    for name, field in model.model_fields.items():
        if _is_section(field.annotation):
            yield from _section(field.annotation, f"{prefix}{name}.", meanings)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _meanings() -> dict[tuple[str, str], str]:
    """(class, field) -> the comment behind the field, or on the line closing it."""
    found, model, field = {}, "", ""
    for line in Path(schema.__file__).read_text(encoding="utf-8").splitlines():
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

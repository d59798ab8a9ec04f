"""Read a run's YAML: `extends`, `a.b=c` overrides, then the schema. All errors are reported together, a line each."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from yaml import YAMLError

from megatron_spell.config.schema import RunConfig

_MAX_EXTENDS = 16
Settings = TypeVar("Settings", bound=BaseModel)


class ConfigError(ValueError):
    """What is wrong with a run's settings; `lines` holds one line for each fault, naming field, value and way out."""

    def __init__(self, lines: Sequence[str]):
        self.lines = tuple(lines)
        super().__init__("\n".join(self.lines))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The validated settings of `path` with `a.b=c` overrides applied last.

    A relative path in the file is taken from the working directory, as on the command line. Raises ConfigError.
    """
    return load_settings(RunConfig, path, overrides)


def load_settings(
    schema: type[Settings], path: Path | None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> Settings:
    """Settings of any schema: `path` (None: no file), `given` over it, then the overrides. Raises ConfigError."""
    read = _read_with_parents(path, depth=0) if path else OmegaConf.create()
    try:
        merged = OmegaConf.merge(read, OmegaConf.create(dict(given or {})), _read_overrides(overrides))
        plain = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError([f"{path or 'the command line'}: {_first_line(error)}"]) from None
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        raise ConfigError([_describe(fault, schema) for fault in error.errors()]) from None


def _read_with_parents(path: Path, depth: int) -> DictConfig:
    if depth > _MAX_EXTENDS:
        raise ConfigError([f"extends = {path}: more than {_MAX_EXTENDS} files extend each other; break the circle"])
    own = _read_yaml(path)
    parent = own.pop("extends", None)
    if parent is None:
        return own
    base = _read_with_parents(path.parent / str(parent), depth + 1)
    return OmegaConf.merge(base, own)  # type: ignore[return-value]


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(
            [f"{path}: no such file; give the path of a run's YAML, for instance examples/quickstart/run.yaml"]
        )
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: not readable as YAML: {_first_line(error)}"]) from None
    if not isinstance(loaded, DictConfig):
        raise ConfigError([f"{path}: holds a list or a single value; a run's YAML is a mapping of sections"])
    return loaded


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    faults = [f"--set {text}: is not of the form section.field=value" for text in overrides if "=" not in text]
    if faults:
        raise ConfigError(faults)
    try:
        return OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        raise ConfigError([f"--set {' '.join(overrides)}: {_first_line(error)}"]) from None


def _describe(fault: Any, schema: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown field{_nearest(fault['loc'], schema)}"
    if fault["type"] == "missing":
        return f"{where}: is missing; add it to the file or give --set {where}=..."
    return f"{where} = {_shorten(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}"


def _nearest(location: tuple, schema: type[BaseModel]) -> str:
    """'; did you mean ...' for an unknown field, from the fields of the section it stands in."""
    section = _section_at(location[:-1], schema)
    if section is None:
        return ""
    names = list(section.model_fields)
    close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(names)}"


def _section_at(location: tuple, schema: type[BaseModel]) -> type[BaseModel] | None:
    section = schema
    for name in location:
        field = section.model_fields.get(str(name))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        section = field.annotation
    return section


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""Named hardware: rates of links and copies, from a table that a user can replace."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from megatron_spell.config.section import NonNegativeFloat, PositiveFloat

TABLE = Path(__file__).with_name("hardware.yaml")


class HardwareError(ValueError):
    """A table that cannot be used; one line naming file, field and value."""


@dataclass(frozen=True, slots=True, config=ConfigDict(extra="forbid"))
class Hardware:
    """Rates of one GPU in one direction, in GB/s (10^9 bytes); see hardware.yaml for what each means."""

    nvlink_gb_per_s: PositiveFloat
    infiniband_gb_per_s: PositiveFloat
    hbm_copy_gb_per_s: PositiveFloat
    message_latency_us: NonNegativeFloat


def load_hardware(path: Path | None = None) -> dict[str, Hardware]:
    """The table of `path`, the package's own without it. Raises HardwareError."""
    path = path or TABLE
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HardwareError(f"{path}: no such file; copy {TABLE} and edit the copy") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise HardwareError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(raw, dict) or not raw:
        raise HardwareError(f"{path}: holds no hardware; copy {TABLE} and edit the copy")
    try:
        return TypeAdapter(dict[str, Hardware]).validate_python(raw)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise HardwareError(f"{path}: {where} = {fault['input']!r}: {fault['msg'].lower()}; see {TABLE}") from None

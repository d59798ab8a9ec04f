"""JSON that any reader accepts, in files that are whole or absent."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def json_line(record: Any) -> str:
    """One line of strict JSON; NaN and infinities become null, numpy scalars and arrays plain numbers and lists."""
    return json.dumps(plain(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def plain(value: Any) -> Any:
    """`value` in JSON's own types, without NaN or infinity. Raises TypeError for what is none of a record's kinds."""
    if value is None or isinstance(value, (bool, str, int)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def encode_line(line: str) -> bytes:
    """UTF-8 with the newline. A lone surrogate, which UTF-8 cannot hold, becomes its JSON escape."""
    return (line + "\n").encode("utf-8", "backslashreplace")


def write_whole(path: Path, lines: Iterable[str]) -> None:
    """Write `lines` to `path` at once: a reader, or a run that was killed, finds the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            for line in lines:
                file.write(encode_line(line))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)

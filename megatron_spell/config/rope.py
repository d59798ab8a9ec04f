"""The rotary angles of a model, read from config.json: their base, and their scaling beyond the original length."""

from dataclasses import dataclass
from math import log
from typing import Any

# What transformers accepts for each rope_type; True: must be there.
_KEYS = {
    "default": {},
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), True
    ),
    "yarn": dict.fromkeys(("factor", "original_max_position_embeddings"), True)
    | dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"), False),
}


class UnknownRope(ValueError):
    """A rope that is not described here; the message is the reason, without the file."""


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1: slow frequencies are divided by `factor`, fast ones kept, those between blended.

    `original_positions` over `low_freq_factor` and over `high_freq_factor` are the wavelengths, in positions, where
    the slow end and the fast begin.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN: a ramp over the head's dims from kept to divided by `factor`; cos and sin times `attention_factor`.

    `beta_fast` and `beta_slow` are the rotations within the original length where the ramp begins and ends;
    `truncate` rounds its ends outwards to whole dims.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


RopeScaling = Llama3Scaling | YarnScaling


def read_rope(raw: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """The base of the angles and their scaling, from all of a config.json.

    transformers 5 writes `rope_parameters`, 4 wrote `rope_theta` and `rope_scaling`. Raises UnknownRope, also for a
    key that transformers would pass over in silence.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _KEYS:
        raise UnknownRope(f"has rope_type {kind!r}; known are {', '.join(_KEYS)}")
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is None:
        raise UnknownRope("has no rope_theta")
    if rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise UnknownRope("has a partial_rotary_factor; only heads that rotate as a whole are known")
    _check_keys(kind, rope)
    return float(theta), _scaling(kind, rope)


def _check_keys(kind: str, rope: dict[str, Any]) -> None:
    keys = _KEYS[kind]
    for key in sorted(rope.keys() - keys.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}):
        raise UnknownRope(f"has rope_type {kind!r} with the unknown key {key!r}")
    for key, required in keys.items():
        if required and rope.get(key) is None:
            raise UnknownRope(f"has rope_type {kind!r} without {key}")


def _scaling(kind: str, rope: dict[str, Any]) -> RopeScaling | None:
    if kind == "llama3":
        return Llama3Scaling(
            factor=float(rope["factor"]),
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
            original_positions=rope["original_max_position_embeddings"],
        )
    if kind == "yarn":
        return YarnScaling(
            factor=float(rope["factor"]),
            original_positions=rope["original_max_position_embeddings"],
            attention_factor=_attention_factor(rope),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=rope.get("truncate", True),
        )
    return None


def _attention_factor(rope: dict[str, Any]) -> float:
    """As transformers infers it where it is not given."""
    given, factor = rope.get("attention_factor"), rope["factor"]
    if given is not None:
        return float(given)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _concentration(factor, rope["mscale"]) / _concentration(factor, rope["mscale_all_dim"])
    return _concentration(factor, 1.0)


def _concentration(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * log(factor) + 1.0

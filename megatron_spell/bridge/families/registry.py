"""The tables by the family's name in `ModelShape.family`."""

from collections.abc import Sequence

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.families import llama, qwen2, qwen3, qwen3_moe
from megatron_spell.bridge.families.entry import Entry
from megatron_spell.config.model_shape import FAMILIES, Traits

TABLES: dict[str, tuple[Entry, ...]] = {
    "llama": llama.TABLE,
    "qwen2": qwen2.TABLE,
    "qwen3": qwen3.TABLE,
    "qwen3_moe": qwen3_moe.TABLE,
}


def register_family(name: str, table: Sequence[Entry], traits: Traits) -> None:
    """Make a family known by its `model_type` in config.json, in this process. Raises BridgeError for a known one."""
    if name in TABLES or name in FAMILIES:
        raise BridgeError(f"family = {name!r} is known already")
    TABLES[name], FAMILIES[name] = tuple(table), traits


def family_table(family: str) -> tuple[Entry, ...]:
    """The table of `family`. Raises BridgeError."""
    if family not in TABLES:
        raise BridgeError(f"family = {family!r}: the bridge knows {', '.join(sorted(TABLES))}")
    return TABLES[family]

"""The tables by the family's name in `ModelShape.family`."""

from megatron_spell.bridge.boxes import BridgeError
from megatron_spell.bridge.families import llama, qwen2, qwen3, qwen3_moe
from megatron_spell.bridge.families.entry import Entry

TABLES: dict[str, tuple[Entry, ...]] = {
    "llama": llama.TABLE,
    "qwen2": qwen2.TABLE,
    "qwen3": qwen3.TABLE,
    "qwen3_moe": qwen3_moe.TABLE,
}


def family_table(family: str) -> tuple[Entry, ...]:
    """The table of `family`. Raises BridgeError."""
    if family not in TABLES:
        raise BridgeError(f"family = {family!r}: the bridge knows {', '.join(sorted(TABLES))}")
    return TABLES[family]

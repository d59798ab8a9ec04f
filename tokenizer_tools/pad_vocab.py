"""Pad the tables of a model folder to a multiple, so that they divide over tensor-parallel ranks.

No row of weights can promise that its id is never sampled: its logit is the row times a hidden state that may point
anywhere. What is done instead:
- New rows of the output layer are the mean of all old ones, so their logit is the mean of the old logits, and by
  Jensen's inequality exp(mean of logits) <= mean of exp(logits): each padding id has at most 1/V of what the V old ids
  have together, whatever the hidden state. (Rows of zeros have logit 0, which is everything where old logits are low.)
- generation_config.json lists the padding ids under suppress_tokens, with which transformers' `generate` gives them
  probability 0. Logits of the old ids stay what they were.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer_tools.errors import CheckpointError
from tokenizer_tools.extend import make_rows
from tokenizer_tools.hf_tokenizer import read_json
from tokenizer_tools.model_folder import ModelFolder, read_model_folder, write_model_folder
from tokenizer_tools.safetensors_rows import NewRows

INITS = ("mean", "zeros")


@dataclass(frozen=True, slots=True)
class Padding:
    """Rows before and after; `multiple` is that of all ranks together."""

    before: int
    after: int
    multiple: int


def pad_folder(folder: Path, out: Path, multiple_of: int, tensor_parallel: int = 1, *, init: str = "mean") -> Padding:
    """Write `folder` to `out` with tables padded to a multiple of `multiple_of` x `tensor_parallel`. Raises ToolError.

    Refuses a vocabulary that is such a multiple already.
    """
    if multiple_of < 1 or tensor_parallel < 1:
        raise CheckpointError("--multiple-of and --tensor-parallel must be 1 or more")
    if init not in INITS:
        raise CheckpointError(f"init {init!r} is unknown; known are {', '.join(INITS)}")
    model = read_model_folder(folder)
    multiple = multiple_of * tensor_parallel
    after = -(-model.vocab_size // multiple) * multiple
    if after == model.vocab_size:
        raise CheckpointError(f"{folder}: {after} rows are a multiple of {multiple} already; nothing to pad")
    edits = {
        table.name: NewRows(model.vocab_size, make_rows(table, after - model.vocab_size, model.vocab_size, init))
        for table in model.tables
    }
    write_model_folder(model, out, edits, after, {"generation_config.json": _suppressing(model, after)})
    return Padding(model.vocab_size, after, multiple)


def _suppressing(model: ModelFolder, after: int) -> dict[str, Any]:
    """generation_config.json with the padding ids suppressed; a new one says what config.json says of generation."""
    file = model.folder / "generation_config.json"
    roles = ("bos_token_id", "eos_token_id", "pad_token_id")
    settings = read_json(file) or {role: model.config[role] for role in roles if model.config.get(role) is not None}
    earlier = [number for number in settings.get("suppress_tokens") or [] if number < model.vocab_size]
    return settings | {"suppress_tokens": [*earlier, *range(model.vocab_size, after)]}

"""Add tokens to a model folder's tokenizer and, if wished, the rows that they need to its weights."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from tokenizer_tools.errors import CheckpointError, TokenizerFileError, first_line
from tokenizer_tools.hf_tokenizer import read_json
from tokenizer_tools.model_folder import ModelFolder, has_weights, read_model_folder, write_folder, write_model_folder
from tokenizer_tools.safetensors_rows import NewRows, StoredTensor, mean_row

INITS = ("mean", "zeros", "normal")
_DEFAULT_STD = 0.02  # initializer_range of configs that state none


@dataclass(frozen=True, slots=True)
class Extension:
    """Ids of the added tokens; `vocab_size` is the rows before and after, None where the folder has no weights.

    `rows_written` is False where the new ids have rows already and those were left as they were.
    """

    ids: dict[str, int]
    vocab_size: tuple[int, int] | None
    rows_written: bool


def extend_folder(
    folder: Path,
    out: Path,
    special: Sequence[str],
    plain: Sequence[str] = (),
    *,
    resize: bool = False,
    init: str = "mean",
    seed: int = 0,
) -> Extension:
    """Write `folder` with the tokens to `out`. Raises ToolError.

    The tokens get the next ids of the tokenizer, which in many models have rows already (padding). With `resize` the
    rows of the new ids are made by `init`: the mean of the rows of all earlier ids, zeros, or normal with the
    config's initializer_range; tables grow where they must. Without it a folder whose tables are too short is refused.
    """
    if init not in INITS:
        raise CheckpointError(f"init {init!r} is unknown; known are {', '.join(INITS)}")
    tokenizer, num_ids = _read_tokenizer(folder)
    ids = _add(tokenizer, special, plain, folder)
    jsons = _tokenizer_files(folder, tokenizer, ids, set(special))
    if not has_weights(folder):
        if resize:
            raise CheckpointError(f"{folder} holds no safetensors weights to resize; leave --resize out")
        write_folder(folder, out, jsons)
        return Extension(ids, None, False)
    model = read_model_folder(folder)
    after = max(model.vocab_size, 1 + max(ids.values()))
    if not resize and after > model.vocab_size:
        raise CheckpointError(
            f"{folder}: the model has {model.vocab_size} rows, the tokens need {after}; give --resize"
        )
    edits = _new_rows(model, min(ids.values()), 1 + max(ids.values()), num_ids, init, seed) if resize else {}
    write_model_folder(model, out, edits, after, jsons)
    return Extension(ids, (model.vocab_size, after), resize)


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer, and one more than its highest id."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerFileError(f"{folder} holds no tokenizer.json; `tokenizer-tools convert` makes one")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerFileError(f"{file} cannot be read: {first_line(error)}") from None
    return tokenizer, 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def _add(tokenizer: Tokenizer, special: Sequence[str], plain: Sequence[str], folder: Path) -> dict[str, int]:
    tokens = [*special, *plain]
    if not tokens:
        raise TokenizerFileError("no token is given; name at least one with --token or --plain")
    for at, token in enumerate(tokens):
        number = tokenizer.token_to_id(token)
        if not token.strip():
            raise TokenizerFileError(f"token {token!r} is blank")
        if number is not None or token in tokens[:at]:
            raise TokenizerFileError(
                f"token {token!r} is in {folder} already" + ("" if number is None else f", id {number}")
            )
    for token in tokens:
        tokenizer.add_tokens([AddedToken(token, special=token in special, normalized=False)])
    entries = tokenizer.get_vocab(with_added_tokens=True)
    return {token: entries[token] for token in tokens}


def _tokenizer_files(
    folder: Path, tokenizer: Tokenizer, ids: dict[str, int], special: set[str]
) -> dict[str, dict[str, Any]]:
    """The files that list tokens, as far as the folder has them."""
    files = {"tokenizer.json": json.loads(tokenizer.to_str())}
    settings = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for token, number in ids.items():
            settings["added_tokens_decoder"][str(number)] = {"content": token, **flags, "special": token in special}
        files["tokenizer_config.json"] = settings
    if (folder / "added_tokens.json").is_file():
        files["added_tokens.json"] = read_json(folder / "added_tokens.json") | ids
    return files


def _new_rows(model: ModelFolder, first: int, stop: int, num_earlier: int, init: str, seed: int) -> dict[str, NewRows]:
    if first > model.vocab_size:
        raise CheckpointError(
            f"{model.folder}: the tokenizer's ids go to {first - 1}, the model has only {model.vocab_size} rows"
        )
    std = model.config.get("initializer_range", _DEFAULT_STD)
    num_earlier = min(num_earlier, model.vocab_size)
    return {
        table.name: NewRows(first, make_rows(table, stop - first, num_earlier, init, std=std, seed=seed))
        for table in model.tables
    }


def make_rows(
    table: StoredTensor, num_rows: int, num_earlier: int, init: str, *, std: float = _DEFAULT_STD, seed: int = 0
) -> np.ndarray:
    """float64 [num_rows, ...]: new rows of a table whose first `num_earlier` rows are of known tokens.

    `normal` draws differ between tables, and are the same for the same seed and name.
    """
    width = table.shape[1:]
    if init == "normal":
        draws = np.random.default_rng([seed, zlib.crc32(table.name.encode())])
        return draws.normal(0.0, std, (num_rows, *width))
    row = mean_row(table, num_earlier) if init == "mean" else np.zeros(width)
    return np.broadcast_to(row, (num_rows, *width))

"""The tables of a Hugging Face model folder that have a row a token, and writing the folder with other rows."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer_tools.errors import CheckpointError
from tokenizer_tools.hf_tokenizer import read_json
from tokenizer_tools.safetensors_rows import NewRows, StoredTensor, read_header, rewrite

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
# How the transformers families name them; a name counts only with a row for every id.
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "lm_head.bias")
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.gguf", "tf_model.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """`tables` are the embedding and, where the model is not tied, the output layer (weight and bias)."""

    folder: Path
    config: dict[str, Any]
    vocab_size: int
    tables: tuple[StoredTensor, ...]
    weight_files: tuple[Path, ...]

    @property
    def is_tied(self) -> bool:
        return not any(table.name.endswith(HEADS) for table in self.tables)


def has_weights(folder: Path) -> bool:
    return (folder / SINGLE_FILE).is_file() or (folder / INDEX_FILE).is_file()


def read_model_folder(folder: Path) -> ModelFolder:
    """Read config.json and the headers of the weights. Raises CheckpointError naming file and field."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    config = read_json(folder / "config.json")
    vocab_size = _section(config).get("vocab_size")
    if not isinstance(vocab_size, int):
        raise CheckpointError(f"{folder / 'config.json'} states no vocab_size")
    if "quantization_config" in config:
        raise CheckpointError(f"{folder / 'config.json'} has a quantization_config; take the model in plain numbers")
    files = _weight_files(folder)
    tensors = [tensor for file in files for tensor in read_header(file)[0].values()]
    tables = tuple(tensor for tensor in tensors if tensor.name.endswith((*EMBEDDINGS, *HEADS)))
    _demand_tables(folder, config, vocab_size, tables)
    return ModelFolder(folder, config, vocab_size, tables, files)


def _section(config: dict[str, Any]) -> dict[str, Any]:
    """Where the vocabulary's size stands: models that read more than text have a part for the text."""
    inner = config.get("text_config")
    return inner if "vocab_size" not in config and isinstance(inner, dict) else config


def _weight_files(folder: Path) -> tuple[Path, ...]:
    if (folder / INDEX_FILE).is_file():
        named = sorted(set(read_json(folder / INDEX_FILE).get("weight_map", {}).values()))
    else:
        named = [SINGLE_FILE]
    files = tuple(folder / name for name in named)
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        raise CheckpointError(f"{missing[0] if missing else folder} is not there; the model must be in safetensors")
    others = [file for pattern in ("*.safetensors", *_OTHER_WEIGHTS) for file in sorted(folder.glob(pattern))]
    stale = [file for file in others if file not in files]
    if stale:
        raise CheckpointError(f"{stale[0]} would keep the old rows; move it out of the folder")
    return files


def _demand_tables(folder: Path, config: dict[str, Any], rows: int, tables: tuple[StoredTensor, ...]) -> None:
    for table in tables:
        if table.shape[0] != rows:
            raise CheckpointError(f"{table.file}: {table.name} has {table.shape[0]} rows, config.json says {rows}")
    if not any(table.name.endswith(EMBEDDINGS) for table in tables):
        raise CheckpointError(f"{folder}: no tensor is named as an embedding ({', '.join(EMBEDDINGS)})")
    has_head = any(table.name.endswith(HEADS[:2]) for table in tables)
    if not has_head and config.get("tie_word_embeddings") is False:
        raise CheckpointError(f"{folder}: config.json says tie_word_embeddings false, but there is no lm_head.weight")


def write_model_folder(
    model: ModelFolder, out: Path, edits: Mapping[str, NewRows], vocab_size: int, changed: Mapping[str, dict[str, Any]]
) -> Path:
    """Write the folder with other rows; `changed` are JSON files by name that replace the old ones.

    `out` appears whole or not at all: it is written beside and renamed. Raises CheckpointError.
    """
    config = json.loads(json.dumps(model.config))
    _section(config)["vocab_size"] = vocab_size
    jsons = {"config.json": config, **changed}
    grown = sum(
        (max(table.shape[0], edits[table.name].first_row + len(edits[table.name].values)) - table.shape[0])
        * table.row_bytes
        for table in model.tables
        if table.name in edits
    )
    if (model.folder / INDEX_FILE).is_file():
        index = read_json(model.folder / INDEX_FILE)
        if "total_size" in index.get("metadata", {}):
            index["metadata"]["total_size"] += grown
        index.get("metadata", {}).pop("total_parameters", None)  # optional, and other than it was
        jsons[INDEX_FILE] = index

    def write(source: Path, target: Path) -> bool:
        here = {
            name: edit for name, edit in edits.items() if any(t.name == name and t.file == source for t in model.tables)
        }
        if here:
            rewrite(source, target, here)
        return bool(here)

    return write_folder(model.folder, out, jsons, write)


def write_folder(
    folder: Path,
    out: Path,
    jsons: Mapping[str, dict[str, Any]],
    write: Callable[[Path, Path], bool] = lambda source, target: False,
) -> Path:
    """Copy `folder` to `out`, with these JSON files and with what `write` (old file, new file) writes itself.

    Hidden files stay behind. `out` appears whole or not at all. Raises CheckpointError where it exists.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty; give another folder")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for source in sorted(folder.rglob("*")):
        inside = source.relative_to(folder)
        if any(part.startswith(".") for part in inside.parts) or not source.is_file() or str(inside) in jsons:
            continue
        target = partial / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        if not write(source, target):
            shutil.copyfile(source, target)
            _sync(target)
    for name, content in jsons.items():
        (partial / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _sync(partial / name)
    _sync(partial)
    partial.rename(out)
    _sync(out.parent)
    return out


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

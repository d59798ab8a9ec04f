"""What a checkpoint holds beside the policy: where the run stands, and which run it is."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_spell.config.model_shape import ModelShape
from megatron_spell.config.schema import RunConfig
from megatron_spell.train.checkpoints import CheckpointError
from megatron_spell.train.run_folder import write_json

STATE = "run.json"
FORMAT = 1
FIELDS = {"seed", "shape", "step", "curriculum", "collector"}


@dataclass(frozen=True, slots=True)
class SavedState:
    """`step` optimizer steps are done; `curriculum`, `collector` and `watch` are their state() records."""

    step: int
    curriculum: dict
    collector: dict
    watch: dict = field(default_factory=dict)  # empty in checkpoints of runs that had none

    def save(self, folder: Path, config: RunConfig) -> None:
        identity = {"format": FORMAT, "seed": config.seed, "shape": asdict(ModelShape.load(config.model.path))}
        write_json(folder / STATE, identity | asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "SavedState":
        raw = _read(folder)
        return cls(
            step=raw["step"], curriculum=raw["curriculum"], collector=raw["collector"], watch=raw.get("watch", {})
        )


def find_mismatch(checkpoint: Path, config: RunConfig) -> str | None:
    """Why `config` cannot go on from `checkpoint`, or None."""
    try:
        raw = _read(checkpoint)
    except CheckpointError as error:
        return str(error)
    if raw["shape"] != asdict(ModelShape.load(config.model.path)):
        return f"{checkpoint} is a checkpoint of another model than model.path = {config.model.path}"
    if raw["seed"] != config.seed:
        return f"{checkpoint} was made with seed {raw['seed']}, not {config.seed}"
    return None


def _read(folder: Path) -> dict:
    try:
        raw = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / STATE} cannot be read: {error}") from None
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT or not raw.keys() >= FIELDS:
        raise CheckpointError(f"{folder / STATE} has format {found}, this version reads {FORMAT} with all its fields")
    return raw

"""What is to be run: variants.yaml, and how far each of its runs has got."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_spell.config.load import load_config
from megatron_spell.config.schema import RunConfig

INPUTS = "inputs.json"


class PlanError(ValueError):
    """The experiment cannot be run as it is described; one line naming field, value and way out."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Part):
    title: str
    set: tuple[str, ...] = ()  # section.field=value, as for --set
    paper: float | None = None  # points beside the paper's full method


class Required(_Part):
    """Of every run of one variant, whose runs are the ones shown in full. Shares, not points."""

    variant: str
    gain: float  # accuracy after less before, at least
    pass_at_all_change: float  # at least
    minutes: float  # at most


class Experiment(_Part):
    run: Path
    base: str
    seeds: tuple[int, ...] = Field(min_length=1)
    limit_minutes: float = Field(gt=0)
    required: Required
    paper: str  # where its figures stand
    variants: dict[str, Variant]

    def only(self, variants: Sequence[str], seeds: Sequence[int]) -> "Experiment":
        """The same with some of the variants and other seeds; empty takes all. Raises PlanError."""
        for name in variants:
            if name not in self.variants:
                raise PlanError(f"--variants {name}: is not one of {', '.join(self.variants)}")
        chosen = {name: v for name, v in self.variants.items() if not variants or name in variants}
        return self.model_copy(update={"variants": chosen, "seeds": tuple(seeds) or self.seeds})


def load_experiment(path: Path) -> Experiment:
    """Raises PlanError."""
    try:
        experiment = Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        fault = error.errors()[0]
        raise PlanError(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
    for field, name in (("base", experiment.base), ("required.variant", experiment.required.variant)):
        if name not in experiment.variants:
            raise PlanError(f"{path}: {field} = {name}: is not one of {', '.join(experiment.variants)}")
    return experiment


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One variant with one seed, in a folder of its own."""

    variant: str
    seed: int
    folder: Path
    file: Path
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").is_file()  # the last that a run writes

    def arguments(self) -> list[str]:
        """Of `megatron-spell`."""
        return ["train", str(self.file), *(word for text in self.overrides for word in ("--set", text))]

    def config(self) -> RunConfig:
        """Raises ConfigError."""
        return load_config(self.file, self.overrides)

    def check(self) -> None:
        """Raises PlanError when the folder holds a run of other settings, model or questions; ConfigError.

        Otherwise a table could mix what is not alike.
        """
        config, noted = self.config(), _read(self.folder / INPUTS)
        changed = differences(_read(self.folder / "config.json"), config.model_dump(mode="json"))
        changed += [name for name, found in hashes(config).items() if noted.get(name, found) != found]
        if changed:
            raise PlanError(
                f"{self.folder}: was made with other {', '.join(changed[:4])}; move it or give another --out"
            )

    def claim(self) -> None:
        """Make the folder and note there what the run is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / INPUTS).write_text(json.dumps(hashes(self.config()), indent=1), encoding="utf-8")


def planned_runs(experiment: Experiment, out: Path, common: Sequence[str] = ()) -> list[PlannedRun]:
    """Every variant with the first seed, then with the next: what is whole early can be compared early.

    `common` goes to every run, before what its variant sets.
    """
    runs = []
    for seed in experiment.seeds:
        for name, variant in experiment.variants.items():
            folder = out / name / f"seed_{seed}"
            overrides = (f"run_folder={folder}", f"seed={seed}", *common, *variant.set)
            runs.append(PlannedRun(name, seed, folder, experiment.run, overrides))
    return runs


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Fields with other values. A field that the earlier run did not know yet is none: there was no choice then."""
    return [name for name in _differences(earlier, now, prefix) if name != "run_folder"]


def _differences(earlier: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in earlier.keys() & now.keys():
        was, is_ = earlier[name], now[name]
        if isinstance(was, dict) and isinstance(is_, dict):
            yield from _differences(was, is_, f"{prefix}{name}.")
        elif was != is_:
            yield f"{prefix}{name}"


def hashes(config: RunConfig) -> dict[str, str]:
    """SHA-256 of the files that a run is made from, by the setting that names them."""
    files = {
        "data.store": config.data.store,
        "evaluation.questions": config.evaluation.questions,
        "play.questions": config.play.questions,
    }
    files |= {f"model.path/{path.name}": path for path in sorted(config.model.path.glob("*.safetensors"))}
    if config.play.templates is not None:
        files |= {f"play.templates/{path.name}": path for path in sorted(config.play.templates.iterdir())}
    return {name: _sha256(path) for name, path in files.items() if path is not None and path.is_file()}


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing was begun there, or it was killed as it began

"""Where an evaluation keeps what it makes, and how it goes on: what was written stays, whatever happens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_spell.evaluation.journal import whole_lines
from megatron_spell.evaluation.results import SampleResult
from megatron_spell.observe.files import json_line, write_whole

Count = Annotated[int, Field(ge=0)]
Key = tuple[str, bool, str, int]
JUDGE = "judge.model"  # None while the rule alone scores
OF_JUDGE = (JUDGE, "judge.max_tokens")


class FolderError(ValueError):
    """An evaluation cannot go on in this folder; each of `lines` names file or field, value and way out."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class Output(BaseModel):
    """One sample as it was written, before anybody scored it. Fields are those of `SampleResult`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    benchmark: str
    record_id: str
    documents: bool
    sample: Count
    seed: int
    prompt_tokens: Count
    truncated_tokens: Count
    finish_reason: str
    num_tokens: Count
    text: str

    @property
    def key(self) -> Key:
        return self.benchmark, self.documents, self.record_id, self.sample


def key_of(result: SampleResult) -> Key:
    return result.benchmark, result.documents, result.record_id, result.sample


@dataclass(frozen=True, slots=True)
class BenchmarkFolder:
    """The layout is documented in docs/evaluation.md and stays as it is."""

    root: Path

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs.jsonl"

    @property
    def results(self) -> Path:
        return self.root / "results.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def faults(self, identity: Mapping[str, Any]) -> list[str]:
        """Why what `identity` says cannot go on here: a line for each field that differs. Empty in a new folder.

        A judge may come to an evaluation that the rule alone scored.
        """
        known = self._identity()
        if known is None:
            strange = [path for path in (self.outputs, self.results) if path.exists()]
            return [f"{strange[0]}: stands there without {self.settings.name}; give another --out"] if strange else []
        given = json.loads(json_line(identity))
        return [
            f"{field} = {_differing(given, known, field)}: {self.root} was begun with"
            f" {_differing(known, given, field)}; give that or another --out"
            for field in sorted({*given, *known})
            if given.get(field) != known.get(field) and not (field in OF_JUDGE and known.get(JUDGE) is None)
        ]

    def begin(self, identity: Mapping[str, Any], settings: Mapping[str, Any], label: str = "") -> bool:
        """Make the folder this evaluation's, which people know as `label`.

        True when results of the rule alone are dropped, to be scored anew with the judge.
        """
        known = self._identity()
        judge_comes = known is not None and known.get(JUDGE) is None and identity.get(JUDGE) is not None
        if judge_comes:
            self.results.unlink(missing_ok=True)
        write_whole(self.settings, [json_line({"label": label, "identity": identity, "settings": settings})])
        return judge_comes

    def clear(self) -> None:
        """Remove every sample."""
        for path in (self.outputs, self.results, self.settings):
            path.unlink(missing_ok=True)

    def read_outputs(self) -> dict[Key, Output]:
        """Raises FolderError."""
        return {output.key: output for output in _read(self.outputs, Output)}

    def read_results(self) -> dict[Key, SampleResult]:
        """Raises FolderError."""
        return {key_of(result): result for result in _read(self.results, SampleResult)}

    def _identity(self) -> dict[str, Any] | None:
        if not self.settings.is_file():
            return None
        try:
            return dict(json.loads(self.settings.read_text(encoding="utf-8"))["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{self.settings}: cannot be read ({error!r}); give another --out") from None


def _read(path: Path, kind: type) -> list:
    read = []
    for number, line in whole_lines(path):
        try:
            read.append(kind.model_validate_json(line))
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(map(str, fault["loc"])) or "the line"
            raise FolderError(
                f"{path}:{number}: {field}: {fault['msg']}; remove the line, or give another --out"
            ) from None
    return read


def _differing(of: Mapping[str, Any], other: Mapping[str, Any], field: str) -> str:
    """The value of a field; of lists what only the one holds."""
    value, beside = of.get(field), other.get(field)
    if isinstance(value, list) and isinstance(beside, list):
        return _shown([each for each in value if each not in beside])
    return _shown(value)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."

"""Everything about an evaluation that can be found wrong in files and settings, before anybody is asked."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_spell.config.benchmark_run import BenchmarkRunConfig
from megatron_spell.config.check import CPU_ENGINE_HEAD_DIMS
from megatron_spell.config.engine_rules import serving_faults
from megatron_spell.config.model_shape import ModelShape, UnknownModel
from megatron_spell.config.schema import RolloutSection
from megatron_spell.evaluation.asking import Asking, Protocol
from megatron_spell.evaluation.paper import find_model, nearest_models, paper_models
from megatron_spell.evaluation.reading import gaps, read_benchmarks, told
from megatron_spell.evaluation.record import BENCHMARKS, BenchmarkError, Record
from megatron_spell.evaluation.report import beside_faults
from megatron_spell.roles.templates import TemplateError, Templates
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer, TokenizerError


class Unprepared(ValueError):
    """An evaluation cannot begin; each of `lines` names field or file, value and way out."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """`notes` are for people; `identity` is what may not differ when an evaluation is gone on with."""

    records: list[Record]
    asking: Asking
    identity: dict
    notes: tuple[str, ...] = ()


def prepare(config: BenchmarkRunConfig, *, on_cpu: bool) -> Prepared:
    """Read files, tokenizer and templates. Raises Unprepared with a line for everything that is wrong."""
    faults = [*_choices(config), *_model(config, on_cpu)]
    asking = records = None
    try:
        asking = _asking(config, config.tokenizer or config.model)
    except (TokenizerError, TemplateError) as error:
        faults.append(str(error))
    try:
        records = chosen_records(config.files, config.benchmarks, config.limit, documents=not config.no_documents)
    except Unprepared as error:
        faults += error.lines
    if faults or asking is None or records is None:
        raise Unprepared(*faults)
    return Prepared(records, asking, _identity(config, asking), tuple(_notes(config, records)))


def chosen_records(
    files: Sequence[str], benchmarks: Sequence[str] = (), limit: int | None = None, *, documents: bool = True
) -> list[Record]:
    """The first `limit` records of each file, of the named benchmarks only. Raises Unprepared."""
    unknown = [name for name in benchmarks if name not in BENCHMARKS]
    if unknown:
        raise Unprepared(f"benchmarks = {unknown[0]}: is none; use {', '.join(BENCHMARKS)}")
    try:
        every = read_benchmarks([told(text) for text in files])
    except BenchmarkError as error:
        raise Unprepared(*error.lines) from None
    records = [record for record in every if not benchmarks or record.benchmark in benchmarks]
    if absent := [name for name in benchmarks if all(record.benchmark != name for record in records)]:
        raise Unprepared(f"benchmarks = {absent[0]}: no file holds a record of it; give its file")
    if limit is not None:
        records = _first_of_each_file(records, limit)
    lacking = [gap for gap in gaps(records) if documents and gap.what.startswith("documents")]
    if lacking:
        raise Unprepared(
            *(f"{gap.first}: {gap.num_records} record(s) lack {gap.what} (no_documents)" for gap in lacking)
        )
    if not records:
        raise Unprepared(f"files = {', '.join(files)}: hold no record")
    return records


def engines_of(config: BenchmarkRunConfig) -> RolloutSection:
    """Engines whose context is just what the protocol needs, where the settings do not say otherwise."""
    if "max_model_len" in config.rollout.model_fields_set:
        return config.rollout
    return config.rollout.model_copy(update={"max_model_len": config.max_input_tokens + config.max_tokens})


def _first_of_each_file(records: Sequence[Record], limit: int) -> list[Record]:
    taken: dict[str, int] = {}
    chosen = []
    for record in records:
        file = record.origin.rpartition(":")[0]
        taken[file] = taken.get(file, 0) + 1
        if taken[file] <= limit:
            chosen.append(record)
    return chosen


def _choices(config: BenchmarkRunConfig) -> Iterator[str]:
    if (config.model is None) == (config.server.url is None):
        yield "model: give either a folder to write with (--model), or a server that writes (--server)"
    if config.rule_only == (config.judge.url is not None):
        yield "judge.url: give either a server that judges (--judge), or --rule-only"
    if config.model is None and config.tokenizer is None:
        yield "tokenizer: none to count and cut a server's prompts with; give the served model's folder (--tokenizer)"
    if config.paper_model is not None and find_model(config.paper_model) is None:
        near = nearest_models(config.paper_model) or [model.name for model in paper_models()]
        yield f"paper_model = {config.paper_model}: is not in the paper; it has {', '.join(near)}"
    yield from beside_faults(config.beside)
    if config.samples > 1 and config.temperature == 0:
        yield f"samples = {config.samples}: are all the same at temperature = 0; use 1"


def _model(config: BenchmarkRunConfig, on_cpu: bool) -> Iterator[str]:
    if config.model is None:
        return
    try:
        shape = ModelShape.load(config.model)
    except UnknownModel as error:
        yield f"model = {config.model}: {error}; give a Hugging Face folder of a known model, or a server"
        return
    rollout, needed = engines_of(config), config.max_input_tokens + config.max_tokens
    if needed > shape.max_positions:
        what = f"with max_tokens = {config.max_tokens} more than the model's {shape.max_positions} positions"
        yield f"max_input_tokens = {config.max_input_tokens}: {what}; lower one, or extend them (YaRN)"
    elif not needed <= rollout.max_model_len <= shape.max_positions:
        what = f"prompts and outputs take {needed} tokens, and the model has {shape.max_positions} positions"
        yield f"rollout.max_model_len = {rollout.max_model_len}: {what}; leave it out"
    if on_cpu and shape.head_dim not in CPU_ENGINE_HEAD_DIMS:
        known = ", ".join(map(str, CPU_ENGINE_HEAD_DIMS))
        yield f"model = {config.model}: vLLM on a CPU cannot serve its head_dim {shape.head_dim}; it serves {known}"
    if rollout.placement != "split":
        yield f"rollout.placement = {rollout.placement}: there are no trainers to share GPUs with; leave it out"
    yield from serving_faults(shape, rollout, on_cpu=on_cpu)


def _asking(config: BenchmarkRunConfig, folder: Path | None) -> Asking | None:
    if folder is None:
        return None  # `_choices` says so
    tokenizer = Tokenizer.load(folder)
    protocol = Protocol(
        samples=config.samples,
        seed=config.seed,
        max_input_tokens=config.max_input_tokens,
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        documents=not config.no_documents,
    )
    chat = ChatFormat(tokenizer, config.enable_thinking)
    return Asking(protocol, Templates.load(config.templates), chat, tokenizer)


def _identity(config: BenchmarkRunConfig, asking: Asking) -> dict:
    """By field: whatever decides which words are asked for. Who writes and who judges comes when they are known."""
    names = ("benchmarks", "limit", "samples", "seed", "max_input_tokens", "max_tokens", "temperature", "top_p")
    files = [told(text) for text in config.files]  # wherever they lie: two may have one name
    return {
        "files": sorted([path.name, _hash_of(path), name or ""] for name, path in files),
        **{name: getattr(config, name) for name in names},
        "no_documents": config.no_documents,
        "templates": hashlib.sha256(repr(sorted(asking.templates.pieces.items())).encode()).hexdigest(),
        "tokenizer": asking.tokenizer.fingerprint,
        "chat_template": hashlib.sha256(asking.chat.encode(()).tobytes()).hexdigest(),
    }


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _notes(config: BenchmarkRunConfig, records: Sequence[Record]) -> Iterator[str]:
    for gap in gaps(records):
        if not gap.what.startswith("documents"):
            yield f"{gap.num_records} record(s) lack {gap.what}; the first is {gap.first}"
    if config.no_documents:
        yield "documents are withheld: what is measured is what the model knows without them"


def weights_of(model: Path) -> list[list]:
    """Name, size and time of every file of weights: not read, so that a large folder costs nothing."""
    files = sorted(model.glob("*.safetensors"))
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]

"""One evaluation on benchmark files: who writes and who judges is found out, then every sample is got."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from megatron_spell.config.benchmark_run import BenchmarkRunConfig, EndpointSection
from megatron_spell.evaluation.asking import Asking
from megatron_spell.evaluation.benchmark_folder import JUDGE, BenchmarkFolder, FolderError
from megatron_spell.evaluation.endpoint import Endpoint, EndpointError
from megatron_spell.evaluation.judge import Judge, JudgmentError, Judgments
from megatron_spell.evaluation.preparing import Prepared, Unprepared, engines_of, weights_of
from megatron_spell.evaluation.progress import EvaluationProgress
from megatron_spell.evaluation.running import BenchmarkRunner, Tally
from megatron_spell.evaluation.writers import EngineWriter, Writer, connect_writer, served_model

JUDGMENTS = "judgments.sqlite"  # beside the folders of evaluations, which share it


@dataclass(slots=True, eq=False)
class Conducted:
    """How an evaluation went. `num_retries` were counted at servers."""

    tally: Tally
    folder: BenchmarkFolder
    label: str
    num_retries: int = 0
    judge: Judge | None = None


@dataclass(slots=True, eq=False)
class _Met:
    """The servers that were reached; `identity` says who they are."""

    writer: Writer | None = None
    judge: Judge | None = None
    identity: dict = field(default_factory=dict)
    endpoints: list[Endpoint] = field(default_factory=list)

    @property
    def num_retries(self) -> int:
        return sum(endpoint.asked.retries for endpoint in self.endpoints)


async def conduct(
    config: BenchmarkRunConfig, prepared: Prepared, keys: Mapping[str, str], console: Console
) -> Conducted:
    """Get every sample that is missing; `keys` are those of servers, by the variable that holds them.

    Raises Unprepared before anything is asked or written; then TooManyFailures, WriterGone, FolderError, JournalBusy,
    EngineError and ClusterError. Whatever was finished is kept, and the next call goes on from there.
    """
    folder = BenchmarkFolder(config.out)
    async with _met(config, prepared.asking, keys) as met:
        identity = {**prepared.identity, **met.identity}
        _check(folder, identity)
        label = label_of(config, identity)
        if folder.begin(identity, config.model_dump(mode="json"), label):
            console.print("outputs are kept; what the rule alone had scored is scored anew, with the judge")
        async with _writing(config, prepared.asking, met, folder) as writer:
            progress = EvaluationProgress(console)
            runner = BenchmarkRunner(
                prepared.asking,
                writer,
                met.judge,
                folder,
                _concurrency(config),
                config.max_failures,
                tell=lambda tally: progress.show(tally, met.num_retries),
            )
            with progress:
                tally = await runner.run(prepared.records)
        return Conducted(tally, folder, label, met.num_retries, met.judge)


def label_of(config: BenchmarkRunConfig, identity: Mapping[str, Any]) -> str:
    return config.label or (config.model.resolve().name if config.model else str(identity["server.model"]))


def _check(folder: BenchmarkFolder, identity: dict) -> None:
    try:
        faults = folder.faults(identity)
    except FolderError as error:
        raise Unprepared(*error.lines) from None
    if faults:
        raise Unprepared(*faults)


def _concurrency(config: BenchmarkRunConfig) -> int:
    """Samples under way: as many as write at the same time, and as many as are judged meanwhile."""
    rollout = config.rollout
    writing = rollout.engines * rollout.max_num_seqs if config.model else config.server.max_concurrency
    return writing + (0 if config.rule_only else config.judge.max_concurrency)


@contextlib.asynccontextmanager
async def _met(config: BenchmarkRunConfig, asking: Asking, keys: Mapping[str, str]) -> AsyncIterator[_Met]:
    met, faults = _Met(), []
    try:
        for meet, wanted in ((_meet_writer, config.model is None), (_meet_judge, not config.rule_only)):
            try:
                if wanted:
                    await meet(config, asking, keys, met)
            except (EndpointError, JudgmentError) as error:
                faults.append(str(error))
        if faults:
            raise Unprepared(*faults)
        if config.model is not None:
            met.identity["model"] = str(config.model.resolve())
            met.identity["weights"] = weights_of(config.model)
            met.identity["rollout.dtype"] = config.rollout.dtype
        met.identity.setdefault(JUDGE, None)
        yield met
    finally:
        if met.judge is not None:
            await met.judge.close()
        for endpoint in met.endpoints:
            await endpoint.close()


async def _meet_writer(config: BenchmarkRunConfig, asking: Asking, keys: Mapping[str, str], met: _Met) -> None:
    async with _asked_once(config.server, keys) as endpoint:
        entry = await served_model(endpoint, config.server.model)
        needed, room = config.max_input_tokens + config.max_tokens, entry.get("max_model_len")
        if isinstance(room, int) and needed > room:
            what = f"with max_tokens = {config.max_tokens} more than the {room} tokens of {entry['id']} there"
            raise EndpointError(f"{endpoint.address}: max_input_tokens = {config.max_input_tokens}: {what}; lower one")
        probe = await connect_writer(endpoint, entry, config.server.prompts, asking.chat, asking.tokenizer.stop_ids)
    met.endpoints.append(Endpoint(config.server, _key(config.server, keys)))
    met.writer = type(probe)(met.endpoints[-1], probe.model, probe.fields)
    met.identity |= {"server.model": probe.model, "server.extra": config.server.extra}
    met.identity["server.prompts"] = probe.prompts


async def _meet_judge(config: BenchmarkRunConfig, asking: Asking, keys: Mapping[str, str], met: _Met) -> None:
    judge = config.judge
    async with _asked_once(judge, keys) as endpoint:
        entry = await served_model(endpoint, judge.model)
        room = entry.get("max_model_len")
        if isinstance(room, int) and judge.max_tokens >= room:
            what = f"leaves no room for a prompt in the {room} tokens of {entry['id']} there"
            raise EndpointError(f"{endpoint.address}: judge.max_tokens = {judge.max_tokens}: {what}; lower it")
    judgments = Judgments(judge.cache or config.out.parent / JUDGMENTS)
    met.endpoints.append(Endpoint(judge, _key(judge, keys)))
    met.judge = Judge(met.endpoints[-1], str(entry["id"]), judge, judgments)
    met.identity |= {JUDGE: met.judge.name, "judge.max_tokens": judge.max_tokens}


@contextlib.asynccontextmanager
async def _asked_once(settings: EndpointSection, keys: Mapping[str, str]) -> AsyncIterator[Endpoint]:
    """For finding out whether the server is there: who is told so at once need not wait for retries."""
    endpoint = Endpoint(settings.model_copy(update={"max_retries": 0}), _key(settings, keys))
    try:
        yield endpoint
    finally:
        await endpoint.close()


def _key(settings: EndpointSection, keys: Mapping[str, str]) -> str | None:
    if settings.api_key_env is None:
        return None
    if not (key := keys.get(settings.api_key_env)):
        raise EndpointError(f"api_key_env = {settings.api_key_env}: is not set; export it with the key in it")
    return key


@contextlib.asynccontextmanager
async def _writing(
    config: BenchmarkRunConfig, asking: Asking, met: _Met, folder: BenchmarkFolder
) -> AsyncIterator[Writer]:
    if met.writer is not None:
        yield met.writer
    elif config.model is not None:
        from megatron_spell.evaluation.engines import started_engines  # Ray, which a server does without

        engines = started_engines(config.model, engines_of(config), config.seed, config.ray_address, folder.logs)
        async with engines as pool:
            yield EngineWriter(pool, asking.tokenizer)

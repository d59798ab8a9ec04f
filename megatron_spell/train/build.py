"""The composition root: from settings to a run, with every part put in its place once."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial

import psutil
from rich.console import Console

from megatron_spell.cluster.handles import ClusterError
from megatron_spell.cluster.local import own_address
from megatron_spell.cluster.ray import RayCluster
from megatron_spell.config.schema import RunConfig
from megatron_spell.curriculum.curriculum import Catalog, Curriculum, SetEntry
from megatron_spell.data.questions import load_questions
from megatron_spell.data.store import TokenStore
from megatron_spell.evaluation.suite import Suite
from megatron_spell.roles.templates import Templates
from megatron_spell.rollout.engine import Engine, EngineError
from megatron_spell.rollout.placement import has_gpu, resources, visible_gpus
from megatron_spell.rollout.remote import RemoteEngine
from megatron_spell.selfplay.collector import Collector
from megatron_spell.selfplay.given import GivenQuestions
from megatron_spell.selfplay.table import Table
from megatron_spell.text.chat import ChatFormat
from megatron_spell.text.tokenizer import Tokenizer
from megatron_spell.train.background import Background
from megatron_spell.train.crew import Crew
from megatron_spell.train.fleet import Fleet
from megatron_spell.train.links import ENGINE_MARGIN_S
from megatron_spell.train.memory import MemoryWatch
from megatron_spell.train.refresh import Refresh
from megatron_spell.train.run import Run
from megatron_spell.train.run_folder import RunFolder
from megatron_spell.train.watch import CollapseWatch
from megatron_spell.types.play import Draw

CACHED_SETS = 256


def build_run(config: RunConfig, crew: Crew) -> Run:
    """Start the engines and put the run together, on rank 0. What was started is closed again if this fails."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    mesh = config.policy.mesh.mesh()
    console.print(f"{mesh.world_size} trainer ranks ({mesh}); starting {config.rollout.engines} vLLM engine(s) ...")
    started = time.perf_counter()
    background = Background()
    memory = MemoryWatch(psutil.Process().parent() or psutil.Process())
    store = TokenStore.open(config.data.store)
    cluster = RayCluster.start(
        config.cluster.ray_address,
        num_cpus=config.rollout.engines * config.rollout.mesh().num_workers,  # of a Ray of our own, for engines only
        timeout_s=config.cluster.start_timeout_s,
    )
    try:
        fleet = background.run(_start_fleet(config, cluster, console.print))
    except BaseException:
        cluster.close()
        background.close()
        raise

    def shut() -> None:
        with contextlib.suppress(ClusterError, EngineError, TimeoutError):
            background.run(fleet.close(), config.cluster.start_timeout_s)
        cluster.close()
        store.close()

    console.print(f"engines ready after {time.perf_counter() - started:.0f} s")
    table = build_table(config, store, fleet.pool)
    curriculum = Curriculum(config, catalog(store, table.separator_tokens), config.seed)
    host = "127.0.0.1" if config.cluster.ray_address is None else own_address()
    return Run(
        config=config,
        folder=RunFolder(config.run_folder),
        crew=crew,
        table=table,
        curriculum=curriculum,
        collector=Collector(table, draws_of(config, store, curriculum), config.play, config.algo.max_staleness),
        refresh=Refresh(config, crew, fleet, background, host, console.print),
        questions=load_questions(config.evaluation.questions) if config.evaluation.questions else [],
        suite=Suite.of(config, table),
        memory=memory,
        watch=CollapseWatch(config, console.print),
        background=background,
        console=console,
        shut=shut,
    )


def build_table(config: RunConfig, store: TokenStore, engine: Engine) -> Table:
    tokenizer = Tokenizer.load(config.model.path)
    return Table(
        engine=engine,
        tokenizer=tokenizer,
        chat=ChatFormat(tokenizer, config.model.enable_thinking),
        templates=Templates.load(config.play.templates),
        document_set=lru_cache(CACHED_SETS)(store.document_set),
        config=config,
    )


def catalog(store: TokenStore, separator_tokens: int = 0) -> Catalog:
    """The training sets of a store, as the curriculum sees them; `separator_tokens` stand between two documents."""
    sets = tuple(SetEntry(set_id, store.document_lengths(set_id)) for set_id in store.set_ids("train"))
    return Catalog(sets, separator_tokens)


def draws_of(config: RunConfig, store: TokenStore, curriculum: Curriculum) -> Callable[[int], Draw]:
    """What is played, by number: the curriculum's draws, or the questions of `play.questions`."""
    if config.play.questions is None:
        return curriculum.draw
    num_documents = {entry.set_id: len(entry.document_tokens) for entry in catalog(store).sets}
    return GivenQuestions(load_questions(config.play.questions), num_documents, config.seed).draw


async def _start_fleet(config: RunConfig, cluster: RayCluster, tell: Callable[[str], None]) -> Fleet:
    start = partial(_start_engine, config, cluster)
    engines = await asyncio.gather(*(start(number) for number in range(config.rollout.engines)))
    rollout = config.rollout
    return Fleet(
        engines,
        start,
        max_restarts=rollout.max_restarts,
        start_timeout_s=rollout.start_timeout_s,
        stall_timeout_s=rollout.stall_timeout_s,
        tell=tell,
    )


async def _start_engine(config: RunConfig, cluster: RayCluster, number: int) -> Engine:
    given = resources(
        config.rollout,
        number,
        num_trainers=config.policy.mesh.mesh().world_size,
        on_cpu=not has_gpu(),
        gpus=visible_gpus() if config.cluster.ray_address is None else None,
    )
    return await RemoteEngine.spawn(
        cluster,
        config.model.path.resolve(),
        config.rollout,
        name=f"engine {number}",
        seed=config.seed,
        update_timeout_s=config.bridge.timeout_s + 2 * ENGINE_MARGIN_S,  # its transport's own limit comes first
        landing=config.bridge.landing,
        transport=config.bridge.transport,
        in_flight=config.algo.max_staleness > 0,
        expert_choices=config.policy.moe.routing_replay != "never",
        log=config.run_folder.resolve() / "logs" / f"engine_{number}.log",
        **given,
    )

"""Engines of our own, started as training starts them, for as long as an evaluation takes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from megatron_spell.cluster.handles import ClusterError
from megatron_spell.cluster.ray import RayCluster
from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.engine import Engine, EngineError
from megatron_spell.rollout.placement import has_gpu, resources, visible_gpus
from megatron_spell.rollout.remote import RemoteEngine
from megatron_spell.rollout.router import EnginePool
from megatron_spell.selfplay.together import all_of

RAY_START_S = 300.0  # longest wait for Ray


@contextlib.asynccontextmanager
async def started_engines(
    model: Path, rollout: RolloutSection, seed: int, ray_address: str | None, logs: Path
) -> AsyncIterator[EnginePool]:
    """`rollout.engines` of them behind a pool, on this machine or a Ray cluster. Raises EngineError, ClusterError.

    One that is lost is not started again: its requests go to the others, and with the last the evaluation ends.
    """
    num_workers = rollout.engines * rollout.mesh().num_workers
    cluster = RayCluster.start(ray_address, num_cpus=num_workers, timeout_s=RAY_START_S)
    try:
        async with all_of() as group:
            numbers = range(rollout.engines)
            starts = [group.create_task(_start(cluster, model, rollout, seed, ray_address, logs, n)) for n in numbers]
        pool = EnginePool([start.result() for start in starts])
        try:
            yield pool
        finally:
            with contextlib.suppress(EngineError, ClusterError, TimeoutError):
                await asyncio.wait_for(pool.close(), RAY_START_S)
    finally:
        cluster.close()


async def _start(
    cluster: RayCluster,
    model: Path,
    rollout: RolloutSection,
    seed: int,
    ray_address: str | None,
    logs: Path,
    number: int,
) -> Engine:
    gpus = visible_gpus() if ray_address is None else None
    given = resources(rollout, number, num_trainers=0, on_cpu=not has_gpu(), gpus=gpus)
    log = logs.resolve() / f"engine_{number}.log"
    name = f"engine {number}"
    return await RemoteEngine.spawn(cluster, model.resolve(), rollout, name=name, seed=seed, log=log, **given)

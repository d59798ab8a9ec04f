"""An engine in another process, as an `Engine`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_spell.cluster.handles import ActorDied, CallTimeout, Cluster, ClusterError, Handle
from megatron_spell.config.schema import RolloutSection
from megatron_spell.rollout.engine import EngineDied, EngineError, EngineTimeout, Part, SamplingSpec
from megatron_spell.rollout.landing import Probe, WorkerReport
from megatron_spell.types.play import Completion

VLLM_ENGINE = "megatron_spell.rollout.vllm_engine:VllmEngine"
MARGIN_S = 30.0  # the engine's own limits come first: their messages say more


class RemoteEngine:
    """Passes every call on to the engine behind `handle`; cluster errors become EngineErrors of the same meaning."""

    def __init__(self, handle: Handle, settings: RolloutSection, update_timeout_s: float = 300.0) -> None:
        self.name = handle.name
        self._handle = handle
        self._start_limit_s = settings.start_timeout_s + MARGIN_S
        self._request_limit_s = 2 * settings.request_timeout_s + MARGIN_S  # an update to wait for, then the completion
        self._ping_limit_s = settings.stall_timeout_s + MARGIN_S  # who pings gives up before
        self._update_limit_s = 3 * update_timeout_s + MARGIN_S  # finish_update takes three steps

    @classmethod
    async def spawn(
        cls,
        cluster: Cluster,
        model: Path,
        settings: RolloutSection,
        *,
        name: str,
        seed: int = 0,
        version: int = 0,
        update_timeout_s: float = 300.0,
        num_cpus: float | None = None,
        num_gpus: float = 0,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        **kwargs: Any,
    ) -> "RemoteEngine":
        """Start a vLLM engine in a process of its own and return when it generates. Raises EngineError, ClusterError.

        `kwargs` are further ones of VllmEngine. `num_cpus` is one for each of the engine's workers by default, and
        `num_gpus` the number of workers where Ray hands out GPUs. Each worker runs OMP_NUM_THREADS of `env` threads,
        without it its share of `num_cpus`. `log` takes all that the engine's processes print.
        """
        kwargs |= {"model": str(model), "settings": settings, "seed": seed, "name": name, "version": version}
        kwargs |= {"update_timeout_s": update_timeout_s}
        num_workers = settings.mesh().num_workers
        num_cpus = num_workers if num_cpus is None else num_cpus
        env = {"OMP_NUM_THREADS": str(max(1, int(num_cpus // num_workers))), **(env or {})}
        place = {"num_cpus": num_cpus, "num_gpus": num_gpus, "timeout_s": settings.start_timeout_s}
        handle = await cluster.spawn(VLLM_ENGINE, kwargs, name=name, env=env, log=log, **place)
        engine = cls(handle, settings, update_timeout_s)
        try:
            await engine.start()
        except BaseException:
            await handle.close(timeout_s=0)
            raise
        return engine

    async def start(self) -> None:
        await self._call("start", limit_s=self._start_limit_s)

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        return await self._call("generate", prompt_ids_T, spec, limit_s=self._request_limit_s, key=key)

    async def connect(self, channel: dict) -> None:
        await self._call("connect", channel, limit_s=self._update_limit_s)

    async def begin_update(self) -> None:
        await self._call("begin_update", limit_s=self._request_limit_s + self._update_limit_s)

    async def receive_weights(self, request: dict) -> None:
        await self._call("receive_weights", request, limit_s=self._update_limit_s)

    async def finish_update(self, version: int) -> None:
        await self._call("finish_update", version, limit_s=self._update_limit_s)

    async def sleep(self) -> str | None:
        return await self._call("sleep", limit_s=self._request_limit_s + self._update_limit_s)

    async def wake(self, part: Part) -> None:
        await self._call("wake", part, limit_s=self._update_limit_s)

    async def describe(self) -> list[WorkerReport]:
        """What each of the engine's workers holds and how it takes weights, in rank order."""
        return await self._call("describe", limit_s=self._update_limit_s)

    async def digests(self, probes: Sequence[Probe]) -> list[dict[str, str]]:
        """See VllmEngine."""
        return await self._call("digests", probes, limit_s=self._update_limit_s)

    async def ping(self) -> None:
        await self._call("ping", limit_s=self._ping_limit_s)

    async def close(self) -> None:
        await self._handle.close()

    async def _call(self, method: str, *args: Any, limit_s: float, **kwargs: Any) -> Any:
        try:
            return await self._handle.call(method, *args, timeout_s=limit_s, **kwargs)
        except ActorDied as error:
            raise EngineDied(str(error)) from None
        except CallTimeout as error:
            raise EngineTimeout(str(error)) from None
        except ClusterError as error:
            raise EngineError(str(error)) from None

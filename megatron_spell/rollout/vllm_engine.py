"""One vLLM engine as an `Engine`: token ids in, token ids and raw log-probs out, weights taken in place."""

import asyncio
import itertools
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import ValidationError

from megatron_spell.config.schema import Landing, RolloutSection, Transport
from megatron_spell.rollout.engine import (
    EngineDied,
    EngineError,
    EngineTimeout,
    MixedVersions,
    Part,
    PromptTooLong,
    SamplingSpec,
)
from megatron_spell.rollout.landing import Probe, WorkerReport, probes_to_json
from megatron_spell.rollout.turnstile import Turnstile, unless
from megatron_spell.rollout.vllm_settings import engine_args, prepare_environment, sampling_params
from megatron_spell.types.play import Completion, ExpertChoices

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")
LOOK_S = 0.5  # how often it is looked whether the engine process is alive


class VllmEngine:
    """An AsyncLLM with one policy version's weights at a time.

    `await start()` before anything else; all calls on one event loop. `version` names the weights in `model`.
    `update_timeout_s` bounds each step of a weight update. With `expert_choices` completions carry theirs; where vLLM
    cannot return them `start` raises. `landing` and `transport` are the bridge's settings. With `in_flight` an update
    does not wait for the requests under way: they are held, compute their keys and values anew with the new weights,
    and go on; such a completion says which version wrote which token.
    """

    def __init__(
        self,
        model: Path | str,
        settings: RolloutSection,
        seed: int = 0,
        name: str = "engine 0",
        version: int = 0,
        update_timeout_s: float = 300.0,
        expert_choices: bool = False,
        landing: Landing = "auto",
        transport: Transport = "auto",
        in_flight: bool = False,
    ) -> None:
        self.name = name
        self._landing: Landing = "checkpoint" if transport == "vllm_nccl" else landing
        self._transport: Transport = transport
        self._in_flight = in_flight
        self._reports: list[WorkerReport] = []
        self._asleep: Asleep | None = None
        self._expert_choices = expert_choices
        self._model = Path(model)
        self._settings = settings
        self._seed = seed
        self._update_timeout_s = update_timeout_s
        self._turnstile = Turnstile(name, version)
        self._request_ids = itertools.count()
        self._llm: AsyncLLM | None = None

    async def start(self) -> None:
        """Start vLLM's processes and generate once, because the first sampling compiles. Raises EngineError."""
        if not (self._model / "config.json").is_file():
            raise EngineError(f"{self.name}: {self._model} holds no config.json; give a Hugging Face model folder")
        prepare_environment(self._settings.start_timeout_s)
        from vllm.v1.engine.async_llm import AsyncLLM

        try:
            args = engine_args(
                self._model,
                self._settings,
                self._seed,
                expert_choices=self._expert_choices,
                landing=self._landing,
                transport=self._transport,
            )
            self._llm = AsyncLLM.from_engine_args(args)
        except Exception as error:
            raise EngineError(f"{self.name} did not start on {self._model}: {_one_line(error)}") from error
        limit_s = self._settings.start_timeout_s
        described = self._ask_workers("describe_for_bridge", self._landing)
        found = await self._within(limit_s, described, "its workers' description")
        self._reports = [WorkerReport.from_json(text) for text in found]
        await self._within(limit_s, self._llm.update_weight_version(str(self._turnstile.version)), "its version")
        warm_up = SamplingSpec(temperature=0.7, top_p=0.95, max_tokens=2, seed=0, n=2)
        await self._within(limit_s, self.generate(np.zeros(2, np.int32), warm_up), "its first completion")
        await self._drop_prefix_cache()

    async def generate(
        self, prompt_ids_T: np.ndarray, spec: SamplingSpec, *, key: str | None = None
    ) -> list[Completion]:
        """The `spec.n` completions, in sample order. Raises EngineError and its kinds."""
        room = self._settings.max_model_len - len(prompt_ids_T)
        if room < 1:
            raise PromptTooLong(
                f"{self.name}: a prompt of {len(prompt_ids_T)} tokens leaves no room in max_model_len "
                f"{self._settings.max_model_len}"
            )
        if len(prompt_ids_T) == 0:
            raise EngineError(f"{self.name}: the prompt is empty")
        limit_s = self._settings.request_timeout_s
        async with self._turnstile.request(limit_s):
            wanted = range(spec.first, spec.first + spec.n)
            samples = asyncio.gather(*(self._sample(prompt_ids_T, spec, i, room) for i in wanted))
            what = f"a completion of {len(prompt_ids_T)} prompt tokens"
            found = await self._turnstile.while_open(limit_s, unless(self._turnstile.until_broken(), samples), what)
        return with_experts_of_the_prompt(found)

    async def connect(self, channel: dict) -> None:
        """Open the bridge inside vLLM's workers; `channel` is `vllm_worker.Channel` as plain values."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        request = WeightTransferInitRequest(init_info=channel)
        await self._update_step("connect", self._running().init_weight_transfer_engine(request))

    async def describe(self) -> list[WorkerReport]:
        """What each worker holds and how it takes weights, in rank order; found out when the engine started."""
        self._running()
        return list(self._reports)

    async def digests(self, probes: Sequence[Probe]) -> list[dict[str, str]]:
        """By worker: probe (as text) -> digest, in the engine's dtype, of the weights that the worker computes with.

        Only probes that lie in a worker's shard are in its answer. Raises EngineError where weights cannot be read.
        """
        asked = self._ask_workers("digest_for_bridge", probes_to_json(probes), self._settings.dtype)
        return await self._within(self._update_timeout_s, asked, "digests of its weights")

    async def begin_update(self) -> None:
        """Let the requests in flight finish (or hold them, see the class), hold later ones back, and make ready."""
        llm = self._running()
        if self._asleep is None:
            await self._turnstile.close(self._settings.request_timeout_s, drain=not self._in_flight)
            pause = {"mode": "keep", "clear_cache": False} if self._in_flight else {"mode": "wait", "clear_cache": True}
            await self._update_step("pause", llm.pause_generation(**pause))
        elif not self._asleep.weights_woken:
            raise EngineError(f"{self.name} sleeps: wake its weights before an update")
        await self._update_step("begin_update", llm.start_weight_update())

    async def receive_weights(self, request: dict) -> None:
        """Receive weights from the trainers, who send meanwhile; `request` is `vllm_worker.Delivery` as values."""
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self._turnstile.expect_update()
        delivery = WeightTransferUpdateRequest(update_info=request)
        await self._update_step("receive_weights", self._running().update_weights(delivery))

    async def finish_update(self, version: int) -> None:
        """Put the weights received in force as `version`, forget keys and values of the old ones, and go on.

        An engine that sleeps goes on when its cache is woken.
        """
        self._turnstile.expect_update()
        llm = self._running()
        await self._update_step("finish_update", llm.finish_weight_update(weight_version=str(version)))
        if self._asleep is not None:
            self._asleep.version = version
            return
        await self._update_step("reset_prefix_cache", self._drop_prefix_cache())
        await self._update_step("resume", llm.resume_generation())
        self._turnstile.reopen(version)

    async def sleep(self) -> str | None:
        """Level rollout.sleep_level of vLLM's sleep mode, for which rollout.placement must be colocated.

        With `in_flight` requests are held where they are. vLLM takes them back into its queue before it drops the
        cache, and computes their keys and values anew when that is woken.
        """
        from vllm.platforms import current_platform

        llm = self._running()
        if current_platform.is_cpu():
            return "vLLM on a CPU does not sleep"
        if self._settings.placement != "colocated":
            return "rollout.placement is not colocated"
        await self._turnstile.close(self._settings.request_timeout_s, drain=not self._in_flight)
        level, mode = self._settings.sleep_level, "keep" if self._in_flight else "wait"
        await self._update_step("sleep", llm.sleep(level=level, mode=mode))
        self._asleep = Asleep(version=self._turnstile.version if level == 1 else None)
        return None

    async def wake(self, part: Part) -> None:
        """After level 2 the cache is only woken when new weights have come."""
        llm, asleep = self._running(), self._asleep
        if asleep is None:
            return
        if part == "weights":
            await self._update_step("wake", llm.wake_up(["weights"]))
            asleep.weights_woken = True
            return
        if not asleep.weights_woken or asleep.version is None:
            raise EngineError(f"{self.name} has no weights to wake up with: wake those and bring new ones first")
        await self._update_step("reset_prefix_cache", self._drop_prefix_cache())
        await self._update_step("wake", llm.wake_up(["kv_cache"]))  # vLLM goes on with the requests held at once
        self._asleep = None
        self._turnstile.reopen(asleep.version)

    async def ping(self) -> None:
        """Each engine process of vLLM answers between two steps of its workers, so one that hangs holds it up too."""
        core = self._running().engine_core
        if not self._turnstile.updating:
            await self._unless_dead(core.call_utility_all_async("is_scheduler_paused"), "a ping")

    async def close(self) -> None:
        """Stop vLLM's processes; the engine is unusable afterwards. Idempotent."""
        self._turnstile.break_down("it was closed")
        if self._llm is not None:
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)

    async def _sample(self, prompt_ids_T: np.ndarray, spec: SamplingSpec, sample: int, room: int) -> Completion:
        from vllm.v1.engine.exceptions import EngineDeadError

        llm, version = self._running(), self._turnstile.version
        prompt = {"prompt_token_ids": np.asarray(prompt_ids_T).tolist()}
        request_id = f"{self.name}/{next(self._request_ids)}"
        try:
            params = sampling_params(spec, sample, room, len(prompt_ids_T))
            outputs = [out async for out in llm.generate(prompt, params, request_id)]
        except asyncio.CancelledError:
            await llm.abort(request_id)  # vLLM 0.32 does so itself except for one that it is just handing over
            raise
        except EngineDeadError:
            self._turnstile.break_down("vLLM's engine process died")
            raise EngineDied(f"{self.name}: vLLM's engine process died during a completion") from None
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name}: vLLM refused a prompt: {_one_line(error)}") from error
        if not outputs:
            raise EngineError(f"{self.name}: vLLM ended a completion without output")
        return self._completion(outputs[-1].outputs[0], version, 0 if sample > spec.first else len(prompt_ids_T))

    def _completion(self, output: "CompletionOutput", version: int, num_prompt_tokens: int) -> Completion:
        """`num_prompt_tokens` are those whose expert choices come along."""
        token_ids_T = np.asarray(output.token_ids, np.int32)
        if output.finish_reason not in ("stop", "length"):
            raise EngineError(f"{self.name}: a completion ended with {output.finish_reason!r}")
        log_probs = output.logprobs
        log_probs_T = np.asarray(log_probs.logprobs, np.float32)
        if log_probs.token_ids != list(output.token_ids):
            raise EngineError(f"{self.name}: vLLM's log-probs are not those of the sampled tokens")
        versions_T = _versions(output)
        if len(versions_T) != len(token_ids_T) or (not self._in_flight and set(versions_T.tolist()) != {version}):
            found = sorted(set(versions_T.tolist()))
            raise MixedVersions(f"{self.name}: tokens of version {version} carry vLLM's versions {found}")
        mixed = versions_T if (versions_T != versions_T[0]).any() else None
        experts = self._experts(output.routed_experts, num_prompt_tokens, len(token_ids_T) - 1)
        first = int(versions_T[0])
        return Completion(token_ids_T, log_probs_T, output.finish_reason, first, experts, versions_T=mixed)

    def _experts(self, routed_T_L_K: np.ndarray | None, num_prompt: int, num_response: int) -> ExpertChoices | None:
        if not self._expert_choices:
            return None
        num_found = -1 if routed_T_L_K is None else len(routed_T_L_K)
        if num_found != num_prompt + num_response:
            raise EngineError(
                f"{self.name}: vLLM returned the expert choices of {max(0, num_found)} tokens of a completion that ran"
                f" {num_prompt + num_response}"
            )
        return ExpertChoices(routed_T_L_K[:num_prompt], routed_T_L_K[num_prompt:])

    async def _update_step(self, step: str, awaitable: Awaitable[T]) -> T:
        """Run one step of an update; whatever goes wrong leaves the engine unusable."""
        try:
            return await self._within(self._update_timeout_s, self._unless_dead(awaitable, step), step)
        except BaseException as error:
            self._turnstile.break_down(f"{step} failed: {_one_line(error)}")
            if isinstance(error, EngineError) or not isinstance(error, Exception):
                raise
            raise EngineError(f"{self.name}: {step} failed: {_one_line(error)}") from error

    async def _unless_dead(self, awaitable: Awaitable[T], step: str) -> T:
        """A call that vLLM's engine process was to answer stays open when that dies (0.32); so this looks for it."""
        llm, call = self._llm, asyncio.ensure_future(awaitable)
        try:
            while not (await asyncio.wait({call}, timeout=LOOK_S))[0]:
                if llm is not None and llm.errored:
                    raise EngineDied(f"{self.name}: vLLM's engine process died during {step}")
            return call.result()
        finally:
            call.cancel()

    async def _drop_prefix_cache(self) -> None:
        """Old keys and values under new weights are silently wrong: of 16 greedy completions none was right.

        Requests that are held lose theirs too: vLLM takes them back into the queue and computes prompt and tokens anew.
        """
        if not await self._running().reset_prefix_cache(reset_running_requests=self._in_flight):
            raise EngineError(f"{self.name}: vLLM kept its prefix cache; some request still holds blocks")

    async def _within(self, limit_s: float, awaitable: Awaitable[T], what: str) -> T:
        try:
            return await asyncio.wait_for(awaitable, limit_s)
        except TimeoutError:
            raise EngineTimeout(f"{self.name}: waited {limit_s:g} s for {what}") from None

    async def _ask_workers(self, method: str, *args: Any) -> list:
        """One result for each worker in rank order; whatever goes wrong is an EngineError.

        vLLM's own `collective_rpc` gives the first replica's results only.
        """
        core = self._running().engine_core
        try:
            found = await core.call_utility_all_async("collective_rpc", method, None, args, None)
            return [result for replica in found for result in replica]
        except Exception as error:
            raise EngineError(f"{self.name}: {method} failed: {_one_line(error)}") from error

    def _running(self) -> "AsyncLLM":
        self._turnstile.check()
        if self._llm is None:
            raise EngineError(f"{self.name} was not started")
        return self._llm


@dataclass(slots=True)
class Asleep:
    """What an engine has when it wakes: the version of its weights, None when it dropped them."""

    version: int | None
    weights_woken: bool = False


def _versions(output: "CompletionOutput") -> np.ndarray:
    """The version that wrote each token, int32 [T]."""
    spans = output.weight_versions or ()
    return np.concatenate([np.full(span.end - span.start, int(span.version), np.int32) for span in spans] or [[]])


def with_experts_of_the_prompt(completions: list[Completion]) -> list[Completion]:
    """All with the prompt's choices of the first, as one array: they are many, and the prompt is the same."""
    first = completions[0].experts
    if first is None:
        return completions
    return [replace(c, experts=replace(c.experts, prompt_T_L_K=first.prompt_T_L_K)) for c in completions]


def _one_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # of vLLM's settings; its own text has the reason on a later line
        return "; ".join(fault["msg"] for fault in error.errors())
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

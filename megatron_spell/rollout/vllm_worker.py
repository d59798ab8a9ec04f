"""The engine's end of the bridge, inside vLLM's worker processes.

vLLM drives a registered weight-transfer backend through init, start, update and finish (vLLM 0.32,
`vllm/distributed/weight_transfer/base.py`). Ours lands what comes in the live parameters, or feeds it to vLLM's
layerwise reload in checkpoint form; which of the two each worker finds out from its live model (vllm_inventory.py).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from megatron_spell.bridge.direct import DirectReceiver
from megatron_spell.bridge.executor import Receiver
from megatron_spell.bridge.inventory import checkpoint_shapes
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.transports import routed
from megatron_spell.bridge.transports.base import Transport
from megatron_spell.bridge.transports.gloo import loopback
from megatron_spell.bridge.transports.meeting import open_store
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.rollout.checkpoint_form import elements_to_come, whole_shaped
from megatron_spell.rollout.engine import EngineError
from megatron_spell.rollout.landing import WorkerReport, link_names, probes_from_json
from megatron_spell.rollout.vllm_adaptations import check_loaded, prepare_reload, repair_reload
from megatron_spell.rollout.vllm_inventory import DTYPES, describe, live_digests
from megatron_spell.rollout.vllm_live import LiveWeights
from megatron_spell.rollout.vllm_settings import BACKEND

WIRE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Channel(WeightTransferInitInfo):
    """How weights come: the plan of one link (JSON), and where its `size` ranks meet.

    Ranks below `num_trainers` are the trainers; `rank` is that of the engine's first worker, and the others follow in
    vLLM's order. What the plan sends to a worker is what `landing.target_inventory` says of its report. `engine` is
    the name for messages, `session` keeps channels over one store apart; a channel that is opened anew needs another.
    `transport` is one of `routed.KINDS`. With `direct` workers copy out of the trainers' own tensors (direct.py).
    """

    plan: str
    rank: int
    size: int
    num_trainers: int
    host: str
    port: int
    dtype: str
    bucket_bytes: int
    timeout_s: float
    session: str = "bridge"
    transport: str = "gloo"
    engine: str = "engine"
    direct: bool = False


@dataclass
class Delivery(WeightTransferUpdateInfo):
    """One run of the plan. With `check`, a number that both sides name alike, sampled boxes are compared."""

    check: int | None = None


class BridgeReceiver(WeightTransferEngine[Channel, Delivery]):
    """Registered with vLLM as "megatron_spell"."""

    init_info_cls = Channel
    update_info_cls = Delivery
    supports_draft_weight_update = False

    report: WorkerReport | None = None  # set by the worker's first description
    _transport: Transport | None = None
    _receiver: Receiver | DirectReceiver | None = None
    _elements: dict[str, int]
    _live: dict[str, torch.nn.Parameter]
    _was_reloaded = False

    def init_transfer_engine(self, init_info: Channel) -> None:
        """Meet the trainers; blocks until all have come. Raises BridgeError, EngineError."""
        self.shutdown()
        if init_info.dtype not in WIRE_DTYPES:
            raise EngineError(f"dtype {init_info.dtype!r} is not known to engines; known are {', '.join(WIRE_DTYPES)}")
        if init_info.direct and (self.report is None or self.report.landing != "in_place"):
            raise EngineError(f"a direct channel lands in place, which cannot be here: {self.report}")
        rank = init_info.rank + worker_rank(self.parallel_config)
        dtype = WIRE_DTYPES[init_info.dtype]
        plan = Plan.from_json(init_info.plan)
        kind = DirectReceiver if init_info.direct else Receiver
        self._receiver = kind(plan, rank, dtype=dtype, bucket_bytes=init_info.bucket_bytes)
        self._elements, self._live = elements_to_come(plan, rank), dict(self.model.named_parameters())
        device = next(self.model.parameters()).device
        self._transport = join(init_info, rank, device if device.type == "cuda" else None)

    def start_weight_update(self) -> None:
        if self._transport is None or self.report is None:
            raise EngineError("a weight update was begun before the channel was opened")
        if self.report.landing == "checkpoint":
            prepare_reload(self.model)
            initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class's, which asks the accelerator to finish even where there is none (vLLM 0.32.0)."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    @torch.no_grad()
    def receive_weights(self, update_info: Delivery) -> None:
        if self.report.landing == "in_place":
            self._receiver.into(self._transport, self._live, check=update_info.check)
            return
        boxes = self._receiver.boxes(self._transport, check=update_info.check)
        shapes = checkpoint_shapes(ModelShape.load(Path(self.model_config.model)))
        rest = None if self._was_reloaded else float("nan")
        self.model.load_weights(whole_shaped(boxes, self._elements, shapes, rest=rest))

    def finish_weight_update(self) -> None:
        if self.report.landing == "in_place":
            return
        check_loaded(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        repair_reload(self.model)
        if not self._was_reloaded:
            refuse_nan(self.model)
            self._was_reloaded = True

    def shutdown(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = self._receiver = None


class WorkerExtension:
    """Mixed into vLLM's worker by name: importing this module there registers the backend."""

    def describe_for_bridge(self, landing: str) -> str:
        """The worker's report (JSON); to be called while the weights are still those of the folder."""
        config = self.vllm_config
        folder = Path(config.model_config.model)
        report = describe(self.get_model(), folder, worker_rank(config.parallel_config), landing)
        self.weight_transfer_engine.report = report
        return report.to_json()

    def digest_for_bridge(self, probes: str, dtype: str) -> dict[str, str]:
        """Probe (as text) -> digest of what this worker's live model has there; `probes` are JSON."""
        folder = Path(self.vllm_config.model_config.model)
        place = self.weight_transfer_engine.report.place
        asked = probes_from_json(probes)
        return live_digests(self.get_model(), ModelShape.load(folder), place, asked, WIRE_DTYPES[dtype])


def join(channel: Channel, rank: int, device: torch.device | None) -> Transport:
    """Meet the others of the link at the store that trainer rank 0 serves. Raises TransportError."""
    names = link_names(channel.num_trainers, channel.engine, channel.size - channel.num_trainers)
    store = open_store(channel.host, channel.port, serve=False, timeout_s=channel.timeout_s)
    who = {"timeout_s": channel.timeout_s, "names": names, "session": channel.session}
    where = {"device": device, "address": loopback(channel.host)}
    return routed.meet(channel.transport, store, rank, channel.size, **who, **where)


def worker_rank(parallel_config) -> int:
    """The worker's number in its engine, over replicas too."""
    return parallel_config.data_parallel_index * parallel_config.world_size + parallel_config.rank


def refuse_nan(model: torch.nn.Module) -> None:
    """Raise EngineError where the loader took something that was not sent: that was filled with NaN."""
    weights = LiveWeights(model)
    wrong = [name for name in weights if weights[name].dtype in DTYPES and weights[name].isnan().any()]
    if wrong:
        raise EngineError(f"vLLM's loader read parts of {', '.join(wrong[:3])} that this worker was said not to hold")


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BridgeReceiver)

if current_platform.is_cpu():
    from megatron_spell.rollout.vllm_cpu import run_several_workers

    run_several_workers()

"""The engine's end of the bridge, inside vLLM's worker processes.

vLLM drives a registered weight-transfer backend through init, start, update and finish (vLLM 0.32,
`vllm/distributed/weight_transfer/base.py`). Ours receives whole tensors in checkpoint form from the trainers and feeds
them to vLLM's layerwise reload.
"""

from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from megatron_spell.bridge.executor import Receiver
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.transports.base import Transport, peer_names
from megatron_spell.bridge.transports.gloo import rendezvous
from megatron_spell.rollout.engine import EngineError
from megatron_spell.rollout.vllm_adaptations import check_loaded, prepare_reload, repair_reload
from megatron_spell.rollout.vllm_settings import BACKEND

WIRE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Channel(WeightTransferInitInfo):
    """How weights come: the bridge's plan (JSON), and where its `size` ranks meet.

    Ranks below `num_trainers` are the trainers. `rank` is that of the engine's first worker; the workers of a
    tensor-parallel engine take the ranks from there on, each a target of whole tensors. `session` keeps channels over
    one store apart.
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


@dataclass
class Delivery(WeightTransferUpdateInfo):
    """One run of the plan; the channel says all there is to say."""


class BridgeReceiver(WeightTransferEngine[Channel, Delivery]):
    """Registered with vLLM as "megatron_spell"."""

    init_info_cls = Channel
    update_info_cls = Delivery
    supports_draft_weight_update = False

    _transport: Transport | None = None
    _receiver: Receiver | None = None

    def init_transfer_engine(self, init_info: Channel) -> None:
        """Meet the trainers; blocks until all have come. Raises BridgeError."""
        self.shutdown()
        if init_info.dtype not in WIRE_DTYPES:
            raise EngineError(f"dtype {init_info.dtype!r} cannot be received; known are {', '.join(WIRE_DTYPES)}")
        rank = init_info.rank + self.parallel_config.rank
        names = peer_names(init_info.num_trainers, init_info.size - init_info.num_trainers)
        dtype = WIRE_DTYPES[init_info.dtype]
        plan = Plan.from_json(init_info.plan)
        self._receiver = Receiver(plan, rank, dtype=dtype, bucket_bytes=init_info.bucket_bytes)
        meet = {"timeout_s": init_info.timeout_s, "names": names, "session": init_info.session}
        self._transport = rendezvous(init_info.host, init_info.port, rank, init_info.size, **meet)

    def start_weight_update(self) -> None:
        if self._transport is None:
            raise EngineError("a weight update was begun before the channel was opened")
        prepare_reload(self.model)
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class's, which asks the accelerator to finish even where there is none (vLLM 0.32.0)."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Delivery) -> None:
        self.model.load_weights(self._receiver.tensors(self._transport))

    def finish_weight_update(self) -> None:
        check_loaded(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        repair_reload(self.model)

    def shutdown(self) -> None:
        if self._transport is not None:
            self._transport.close()
        self._transport = self._receiver = None


class WorkerExtension:
    """Mixed into vLLM's worker by name: importing this module there registers the backend."""


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, BridgeReceiver)

if current_platform.is_cpu():
    from megatron_spell.rollout.vllm_cpu import run_several_workers

    run_several_workers()

"""Which engine layouts, placements and ways of refreshing can be (vLLM 0.32)."""

from collections.abc import Iterator
from math import gcd

from megatron_spell.config.model_shape import Experts, ModelShape
from megatron_spell.config.schema import RolloutSection, RunConfig

VOCAB_MULTIPLE = 64  # vLLM pads the vocabulary to it and then splits (VocabParallelEmbedding)
GPU_TRANSPORTS = ("nccl", "cuda_ipc", "vllm_nccl")


def engine_faults(shape: ModelShape, config: RunConfig, *, on_cpu: bool) -> Iterator[str]:
    """Every reason why the engines cannot serve `shape` and be refreshed as the settings say."""
    yield from serving_faults(shape, config.rollout, on_cpu=on_cpu)
    yield from _placement(config, on_cpu)
    yield from _refresh(config, on_cpu)


def serving_faults(shape: ModelShape, rollout: RolloutSection, *, on_cpu: bool) -> Iterator[str]:
    """Every reason why no engine laid out as the settings say can serve `shape`."""
    yield from _tensor_parallel(shape, rollout)
    if rollout.pipeline_parallel > shape.num_layers:
        why = f"the model has {shape.num_layers} layers to fill the stages with"
        yield _fault("rollout.pipeline_parallel", rollout.pipeline_parallel, why, "lower it")
    yield from _no_experts(rollout) if shape.experts is None else _experts(shape.experts, rollout, on_cpu)


def _fault(field: str, value: object, why: str, way_out: str) -> str:
    return f"{field} = {value}: {why}; {way_out}"


def _tensor_parallel(shape: ModelShape, rollout: RolloutSection) -> Iterator[str]:
    tp = rollout.tensor_parallel
    cut = {"attention heads": shape.num_heads}
    cut[f"rows of the vocabulary, padded to a multiple of {VOCAB_MULTIPLE},"] = (
        -(-shape.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    )
    if shape.experts is None:
        cut["feed-forward columns"] = shape.ffn_size
    odd = [f"{size} {what}" for what, size in cut.items() if size % tp]
    if odd:
        why = f"the model's {' and '.join(odd)} do not divide by it"
        yield _fault("rollout.tensor_parallel", tp, why, f"use a divisor of {gcd(*cut.values())}")
    if shape.num_kv_heads % tp and tp % shape.num_kv_heads:
        why = f"the model's {shape.num_kv_heads} key-value heads neither divide by it nor divide it"
        yield _fault("rollout.tensor_parallel", tp, why, "use a divisor or a multiple of that number")


def _no_experts(rollout: RolloutSection) -> Iterator[str]:
    if rollout.expert_parallel:
        yield _fault("rollout.expert_parallel", True, "the model has no experts", "set it to false")


def _experts(experts: Experts, rollout: RolloutSection, on_cpu: bool) -> Iterator[str]:
    if on_cpu and rollout.data_parallel > 1:
        why = "vLLM on a CPU has no exchange of tokens between replicas that share experts"
        yield _fault("rollout.data_parallel", rollout.data_parallel, why, "use 1 and more rollout.engines")
    if rollout.tensor_parallel > experts.count:
        why = f"vLLM wants no more workers than the model's {experts.count} experts"
        yield _fault("rollout.tensor_parallel", rollout.tensor_parallel, why, "lower it")
    workers = rollout.tensor_parallel * rollout.data_parallel
    if rollout.expert_parallel and not 1 < workers <= experts.count:
        why = f"tensor_parallel x data_parallel = {workers} worker(s) cannot share {experts.count} experts"
        yield _fault("rollout.expert_parallel", True, why, "set it to false or change those")
    if not rollout.expert_parallel and experts.ffn_size % workers:
        why = f"an expert's {experts.ffn_size} feed-forward columns do not divide over {workers} workers"
        yield _fault("rollout.tensor_parallel", rollout.tensor_parallel, why, "set rollout.expert_parallel to true")


def _placement(config: RunConfig, on_cpu: bool) -> Iterator[str]:
    rollout = config.rollout
    if rollout.placement == "split":
        return
    if on_cpu:
        yield _fault("rollout.placement", rollout.placement, "vLLM on a CPU does not sleep", "use split")
    if config.cluster.ray_address is not None:
        why = "the Ray cluster that is joined does not know which GPUs the trainers have"
        yield _fault("rollout.placement", rollout.placement, why, "use split, or leave cluster.ray_address out")
    workers, trainers = rollout.engines * rollout.mesh().num_workers, config.policy.mesh.mesh().world_size
    if workers > trainers:
        why = f"their {workers} workers would share the GPUs of {trainers} trainer ranks"
        yield _fault("rollout.engines", rollout.engines, why, "use fewer engines or smaller ones, or placement split")


def _refresh(config: RunConfig, on_cpu: bool) -> Iterator[str]:
    transport, placement = config.bridge.transport, config.rollout.placement
    if on_cpu and transport in GPU_TRANSPORTS:
        yield _fault("bridge.transport", transport, "there is no GPU here", "use auto, shm or gloo")
    elif placement == "colocated" and transport in ("nccl", "vllm_nccl"):
        why = "NCCL refuses two ranks on one GPU, and rollout.placement is colocated"
        yield _fault("bridge.transport", transport, why, "use auto or cuda_ipc")
    if transport == "vllm_nccl" and config.bridge.landing == "in_place":
        why = "transport vllm_nccl delivers whole tensors in checkpoint form"
        yield _fault("bridge.landing", "in_place", why, "use auto or checkpoint")
    if transport == "vllm_nccl" and config.bridge.check:
        yield _fault("bridge.check", True, "transport vllm_nccl compares nothing after landing", "set it to false")

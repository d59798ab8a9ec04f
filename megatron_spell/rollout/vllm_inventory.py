"""What a live vLLM model holds, read from its own modules, and whether weights can be written into it in place.

Nothing is assumed from the settings: layers, shards and experts are those of the modules (vLLM 0.32), and the family's
table is checked against the live parameters and against the folder that they were loaded from.
"""

import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from vllm.distributed.parallel_state import get_pp_group
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.linear import QKVParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.utils import PPMissingLayer

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory, Segment
from megatron_spell.bridge.engine_inventory import engine_inventory, engine_shapes
from megatron_spell.bridge.hf_files import read_segments
from megatron_spell.bridge.receipts import sampled_box
from megatron_spell.bridge.stacks import is_stack, member
from megatron_spell.bridge.verify import Probe, digests
from megatron_spell.config.model_shape import ModelShape, UnknownModel
from megatron_spell.config.schema import Landing
from megatron_spell.layout.engine_mesh import WorkerPlace
from megatron_spell.rollout.engine import EngineError
from megatron_spell.rollout.landing import WorkerReport
from megatron_spell.rollout.vllm_live import HEAD, LiveWeights

TABLE = "model.embed_tokens.weight"
SAMPLE_ELEMENTS = 1024  # of each segment, compared with the folder
SAMPLED_EXPERTS = 4  # of each stack of experts
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


T = TypeVar("T")


class NotPlain(ValueError):
    """Why a live model is not laid out as the family's table says; one line."""


def describe(model: torch.nn.Module, folder: Path, worker: int, wanted: Landing) -> WorkerReport:
    """The report of this worker, whose weights are still those of `folder`.

    Raises EngineError when the model is of no known family, or cannot take weights in place as `wanted`.
    """
    try:
        shape, place = ModelShape.load(folder), live_place(model)
        reason = "as bridge.landing says" if wanted == "checkpoint" else _why_not_in_place(model, shape, place, folder)
    except UnknownModel as error:
        raise EngineError(str(error)) from None
    if reason and wanted == "in_place":
        raise EngineError(f"bridge.landing = in_place: worker {worker} cannot take weights so: {reason}; use auto")
    landing = "checkpoint" if reason else "in_place"
    return WorkerReport(worker, place, landing, reason, socket.gethostname(), device_of(model))


def device_of(model: torch.nn.Module) -> str:
    """ "cpu", or a GPU's own name, the same in every process that sees it."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return device.type
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def live_place(model: torch.nn.Module) -> WorkerPlace:
    """Read from the modules. Raises EngineError for a model that is not built as the known families are."""
    inner = getattr(model, "model", None)
    qkv = _first(model, QKVParallelLinear)
    if inner is None or qkv is None or not hasattr(inner, "start_layer"):
        raise EngineError(f"{type(model).__name__} is not built as the models that the bridge knows")
    stage = get_pp_group()
    experts = _first(model, RoutedExperts)
    held = _held_experts(experts) if experts is not None else ()
    return WorkerPlace(
        tp=qkv.tp_size,
        tp_rank=qkv.tp_rank,
        kv_parts=qkv.tp_size // qkv.num_kv_head_replicas,
        kv_part=qkv.tp_rank // qkv.num_kv_head_replicas,
        layers=range(inner.start_layer, inner.end_layer),
        first_stage=stage.is_first_rank,
        last_stage=stage.is_last_rank,
        embedding=not isinstance(inner.embed_tokens, PPMissingLayer),
        head=not isinstance(inner.norm, PPMissingLayer),
        experts=held,
        expert_tp=experts.moe_config.tp_size if experts is not None else 1,
        expert_tp_rank=experts.moe_config.tp_rank if experts is not None else 0,
    )


def check_plain(model: torch.nn.Module, shape: ModelShape, place: WorkerPlace) -> None:
    """Raise NotPlain unless the live parameters are those of the table: names, shapes, dtype and plain memory."""
    live, expected = dict(model.named_parameters()), engine_shapes(shape, place)
    unknown, missing = sorted(live.keys() - expected.keys()), sorted(expected.keys() - live.keys())
    if unknown:
        raise NotPlain(f"the family's table does not know its parameter {unknown[0]} ({len(unknown)} such)")
    if missing:
        raise NotPlain(f"it has no parameter {missing[0]} ({len(missing)} such)")
    weights = LiveWeights(model)
    for name in weights:
        if weights.is_packed(name):
            raise NotPlain(f"its kernel reads a packed copy of {name}")
    for name, parameter in live.items():
        if tuple(parameter.shape) != expected[name]:
            raise NotPlain(f"{name} has shape {tuple(parameter.shape)}, the family's table says {expected[name]}")
        if parameter.dtype not in DTYPES or not parameter.is_contiguous():
            raise NotPlain(f"{name} is of {parameter.dtype} with strides {parameter.stride()}")
    check_vocabulary(model, place)


def check_vocabulary(model: torch.nn.Module, place: WorkerPlace) -> None:
    """Raise NotPlain where a shard of the vocabulary begins elsewhere than the table says."""
    for name, layer in model.named_modules():
        if isinstance(layer, VocabParallelEmbedding):
            at, num_rows = layer.shard_indices.org_vocab_start_index, layer.num_embeddings_per_partition
            if at != min(place.tp_rank * num_rows, layer.org_vocab_size):
                raise NotPlain(f"{name} begins at row {at} of the vocabulary, not at {place.tp_rank} x {num_rows}")


def check_against_folder(weights: Mapping[str, torch.Tensor], inventory: Inventory, folder: Path) -> None:
    """Raise NotPlain where a sampled box of a live weight is not what `folder` has there. Raises BridgeError."""
    samples = list(_samples(inventory))
    stored = {s.local_name: torch.empty(s.hf_box.shape, dtype=weights[live].dtype) for s, live, _ in samples}
    read_segments(folder, tuple(segment for segment, _, _ in samples), stored)
    for segment, live, box in samples:
        expected = stored[segment.local_name]
        if not torch.equal(weights[live][box.index].cpu().reshape(expected.shape), expected):
            raise NotPlain(f"{live}{box} does not hold {segment.hf_name}{segment.hf_box} of {folder}")


def live_digests(
    model: torch.nn.Module, shape: ModelShape, place: WorkerPlace, probes: Sequence[Probe], dtype: torch.dtype
) -> dict[str, str]:
    """Probe (as text) -> digest of what the model computes with there, of the probes that this worker holds.

    Raises EngineError where a weight cannot be read back in its plain shape (quantised, re-laid on a GPU).
    """
    weights, inventory = LiveWeights(model), engine_inventory(shape, place)
    if HEAD in weights and shape.tied_embeddings:  # packed apart from the embedding that it is tied to
        inventory += tuple(Segment(s.hf_name, s.hf_box, HEAD, s.local_box) for s in inventory if s.local_name == TABLE)
    expected = engine_shapes(shape, place)
    names = [name for name in weights if not (name == HEAD and shape.tied_embeddings)]
    odd = [name for name in names if name not in expected or tuple(weights[name].shape) != expected[name]]
    if odd or len(names) != len(expected):
        raise EngineError(f"live weights such as {(odd or ['?'])[0]} are not laid out plainly and cannot be read back")
    place_of = {s.hf_name: s.local_name for s in inventory}
    ordered = sorted(probes, key=lambda probe: place_of.get(probe.hf_name, ""))  # one reading for each weight
    return digests(ordered, inventory, weights, dtype)


def _why_not_in_place(model: torch.nn.Module, shape: ModelShape, place: WorkerPlace, folder: Path) -> str:
    try:
        check_plain(model, shape, place)
        check_against_folder(LiveWeights(model), engine_inventory(shape, place), folder)
    except (NotPlain, BridgeError) as reason:
        return str(reason)
    return ""


def _samples(inventory: Inventory) -> Iterator[tuple[Segment, str, Box]]:
    """Of each segment a drawn box: read from its file into a tensor of its own; the live name and box beside it."""
    draw = random.Random(0)
    for segment in inventory:
        for name, whole in _sampled_members(segment, draw):
            part = sampled_box(whole, draw, SAMPLE_ELEMENTS)
            box = part if name == segment.hf_name else Box(part.start[1:], part.stop[1:])
            local = f"{name} for {segment.local_name}{segment.to_local(part)}"
            yield Segment(name, box, local, Box.whole(box.shape)), segment.local_name, segment.to_local(part)


def _sampled_members(segment: Segment, draw: random.Random) -> Iterator[tuple[str, Box]]:
    """A plain tensor's name and box; of a stack the names of some experts and the box with only that expert."""
    start, stop = segment.hf_box.start, segment.hf_box.stop
    if not is_stack(segment.hf_name):
        yield segment.hf_name, segment.hf_box
        return
    held = range(start[0], stop[0])
    for index in sorted({held[0], held[-1], *draw.sample(held, min(len(held), SAMPLED_EXPERTS))}):
        yield member(segment.hf_name, index), Box((index, *start[1:]), (index + 1, *stop[1:]))


def _held_experts(layer: RoutedExperts) -> tuple[int, ...]:
    """Global indices in the order of the local ones."""
    manager = layer.expert_map_manager
    return tuple(sorted(manager.get_local_expert_ids(), key=manager.map_global_to_local))


def _first(model: torch.nn.Module, kind: type[T]) -> T | None:
    return next((layer for layer in model.modules() if isinstance(layer, kind)), None)

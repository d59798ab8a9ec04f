"""What a worker of an engine holds, as segments under vLLM's parameter names; read from the family's table."""

from collections.abc import Iterator

from megatron_spell.bridge.boxes import Inventory
from megatron_spell.bridge.families.entry import Entry, Place
from megatron_spell.bridge.inventory import Shapes, entries, hf_tensors, local_shapes, segments
from megatron_spell.bridge.rules import Cut, padded_vocab, vocab_rows
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.engine_mesh import EngineMesh, WorkerPlace, places

VOCAB_MULTIPLE = 64  # vLLM 0.32, DEFAULT_VOCAB_PADDING_SIZE of model_executor/layers/vocab_parallel_embedding.py
ENDS_ON_EVERY_STAGE = ("qwen3_moe",)  # vLLM 0.32 makes their embedding, last norm and output layer on all stages


def engine_inventory(shape: ModelShape, place: WorkerPlace) -> Inventory:
    """The segments of one worker in the layout of vLLM's plain, unquantised parameters.

    Layers have their global numbers; a layer's experts are two tensors with the worker's experts as dim 0. Replicated
    keys and values are segments on every worker that has them. Raises BridgeError where a tensor does not divide.
    """
    return tuple(
        segment
        for entry, name, layer in _parameters(shape, place)
        for segment in segments(
            entry.engine_rule,
            name,
            hf_tensors(entry, shape, layer),
            _cut(entry, shape, place),
            place.experts if entry.place is Place.EXPERT else None,
        )
    )


def engine_shapes(shape: ModelShape, place: WorkerPlace) -> Shapes:
    """The shapes of the worker's parameters, padding rows included."""
    shapes = local_shapes(engine_inventory(shape, place))
    for entry, name, layer in _parameters(shape, place):
        if entry.engine_rule is vocab_rows:
            num_rows, *rest = hf_tensors(entry, shape, layer)[0].shape
            shapes[name] = (padded_vocab(num_rows, VOCAB_MULTIPLE) // place.tp, *rest)
    return shapes


def engine_places(shape: ModelShape, mesh: EngineMesh) -> tuple[WorkerPlace, ...]:
    """The places of an engine's workers in rank order. Raises ValueError where the model does not fit the mesh."""
    return tuple(
        places(
            mesh,
            num_layers=shape.num_layers,
            num_kv_heads=shape.num_kv_heads,
            num_experts=shape.experts.count if shape.experts else 0,
            tied=shape.tied_embeddings,
            ends_on_every_stage=shape.family in ENDS_ON_EVERY_STAGE,
        )
    )


def _parameters(shape: ModelShape, place: WorkerPlace) -> Iterator[tuple[Entry, str, int]]:
    for entry, layer in entries(shape, place.layers, first=place.embedding, last=place.head):
        yield entry, entry.engine.format(layer=layer), layer


def _cut(entry: Entry, shape: ModelShape, place: WorkerPlace) -> Cut:
    if entry.place is Place.EXPERT:
        return Cut(place.expert_tp_rank, place.expert_tp, shape.head_dim, VOCAB_MULTIPLE)
    return Cut(place.tp_rank, place.tp, shape.head_dim, VOCAB_MULTIPLE)

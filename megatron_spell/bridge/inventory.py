"""What a trainer rank and a Hugging Face folder hold, as segments; all read from the family's table."""

from collections.abc import Iterator
from math import prod

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory, Segment
from megatron_spell.bridge.families.entry import Entry, Place
from megatron_spell.bridge.families.registry import family_table
from megatron_spell.bridge.rules import Cut, HfTensor, padded_vocab, vocab_rows
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh

Shape = tuple[int, ...]


def trainer_inventory(shape: ModelShape, mesh: Mesh, rank: int) -> Inventory:
    """The segments of one trainer rank, under megatron-core's parameter names of its pipeline stage.

    Layer indices in local names count from the stage's first layer. With tied embeddings and pp > 1 the last stage
    holds its copy of the embedding as `output_layer.weight`. Ranks that differ only in dp or cp hold the same.
    Raises BridgeError where the model does not divide over the mesh, ValueError for a rank outside it.
    """
    cut = Cut(index=mesh.coordinates(rank).tp, parts=mesh.tp, head_dim=shape.head_dim)
    return tuple(
        segment
        for entry, local, tensors in _parameters(shape, mesh, mesh.coordinates(rank).pp)
        for segment in entry.rule(local, tensors, cut)
    )


def trainer_shapes(shape: ModelShape, mesh: Mesh, rank: int) -> dict[str, Shape]:
    """The shapes of the rank's parameters, padding rows included: what the model built there must have."""
    shapes = local_shapes(trainer_inventory(shape, mesh, rank))
    for entry, local, tensors in _parameters(shape, mesh, mesh.coordinates(rank).pp):
        if entry.rule is vocab_rows:
            num_rows, *rest = tensors[0].shape
            shapes[local] = (padded_vocab(num_rows, mesh.tp) // mesh.tp, *rest)
    return shapes


def checkpoint_shapes(shape: ModelShape) -> dict[str, Shape]:
    """The tensors of the model's Hugging Face folder, in reading order; a tied model has no output layer there."""
    return {t.name: t.shape for _, _, tensors in _parameters(shape, Mesh(), pp=0) for t in tensors}


def checkpoint_inventory(shape: ModelShape) -> Inventory:
    """Every Hugging Face tensor as a whole, under its own name."""
    return whole_tensors(checkpoint_shapes(shape))


def whole_tensors(shapes: dict[str, Shape]) -> Inventory:
    """The inventory of a holder that keeps each of these Hugging Face tensors as it is."""
    boxes = {name: Box.whole(shape) for name, shape in shapes.items()}
    return tuple(Segment(name, box, name, box) for name, box in boxes.items())


def local_shapes(inventory: Inventory) -> dict[str, Shape]:
    """The smallest shape of each local tensor that holds its segments (so without padding rows)."""
    shapes: dict[str, Shape] = {}
    for segment in inventory:
        stop = segment.local_box.stop
        known = shapes.get(segment.local_name, stop)
        shapes[segment.local_name] = tuple(max(a, b) for a, b in zip(known, stop, strict=True))
    return shapes


def _parameters(shape: ModelShape, mesh: Mesh, pp: int) -> Iterator[tuple[Entry, str, list[HfTensor]]]:
    """Each parameter of stage `pp`: its line of the table, its local name and its Hugging Face tensors."""
    if mesh.vpp > 1:
        raise BridgeError(f"vpp = {mesh.vpp}: the bridge has no names for interleaved stages; use 1")
    table = family_table(shape.family)
    layers = mesh.stage_layers(shape.num_layers, pp)
    for place in (Place.FIRST, Place.LAYER, Place.LAST, Place.UNTIED_LAST, Place.TIED_LAST):
        entries = [entry for entry in table if entry.place is place]
        if place is Place.LAYER:
            yield from ((e, e.local.format(i), _tensors(e, shape, n)) for i, n in enumerate(layers) for e in entries)
        elif _stands_on(place, shape, mesh, pp):
            yield from ((entry, entry.local, _tensors(entry, shape)) for entry in entries)


def _stands_on(place: Place, shape: ModelShape, mesh: Mesh, pp: int) -> bool:
    first, last = pp == 0, pp == mesh.pp - 1
    if place is Place.FIRST:
        return first
    if place is Place.UNTIED_LAST:
        return last and not shape.tied_embeddings
    if place is Place.TIED_LAST:
        return last and not first and shape.tied_embeddings
    return last


def _tensors(entry: Entry, shape: ModelShape, layer: int = 0) -> list[HfTensor]:
    letters = {
        "W": shape.vocab_size,
        "D": shape.hidden_size,
        "N": shape.num_heads,
        "K": shape.num_kv_heads,
        "H": shape.head_dim,
        "F": shape.ffn_size,
    }
    return [
        HfTensor(name.format(layer), tuple(prod(letters[letter] for letter in word) for word in words.split()))
        for name, words in entry.hf.items()
    ]

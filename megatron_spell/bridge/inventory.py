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
Indices = dict[str, int]  # of layer and expert, as a table's names call them


def trainer_inventory(shape: ModelShape, mesh: Mesh, rank: int) -> Inventory:
    """The segments of one trainer rank, under megatron-core's parameter names of its pipeline stage.

    Layer and expert indices in local names count from the first that the rank (of interleaved stages, the chunk)
    holds; `chunk_prefix` keeps the chunks apart. With tied embeddings and pp > 1 the last stage holds its copy of the
    embedding as `output_layer.weight`. Ranks that differ only in dp or cp hold the same, but for experts.
    Raises BridgeError where the model does not divide over the mesh, ValueError for a rank outside it.
    """
    return tuple(
        segment
        for entry, local, tensors in _parameters(shape, mesh, rank)
        for segment in entry.rule(local, tensors, _cut(entry, shape, mesh, rank))
    )


def trainer_shapes(shape: ModelShape, mesh: Mesh, rank: int) -> dict[str, Shape]:
    """The shapes of the rank's parameters, padding rows included: what the model built there must have."""
    shapes = local_shapes(trainer_inventory(shape, mesh, rank))
    for entry, local, tensors in _parameters(shape, mesh, rank):
        if entry.rule is vocab_rows:
            num_rows, *rest = tensors[0].shape
            shapes[local] = (padded_vocab(num_rows, mesh.tp) // mesh.tp, *rest)
    return shapes


def chunk_prefix(mesh: Mesh, chunk: int) -> str:
    """What the local names of a chunk of an interleaved pipeline stage begin with; nothing where there is one chunk."""
    return f"chunk{chunk}." if mesh.vpp > 1 else ""


def checkpoint_shapes(shape: ModelShape) -> dict[str, Shape]:
    """The tensors of the model's Hugging Face folder, in reading order; a tied model has no output layer there."""
    return {t.name: t.shape for _, _, tensors in _parameters(shape, Mesh(), rank=0) for t in tensors}


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


def _parameters(shape: ModelShape, mesh: Mesh, rank: int) -> Iterator[tuple[Entry, str, list[HfTensor]]]:
    """Each parameter of a rank: its line of the table, its local name and its Hugging Face tensors."""
    pp = mesh.coordinates(rank).pp
    for chunk in range(mesh.vpp):
        prefix = chunk_prefix(mesh, chunk)
        for entry, local, hf in _places(shape, mesh, rank, chunk):
            if _stands_on(entry.place, shape, mesh, pp, chunk):
                yield entry, prefix + entry.local.format(**local), _tensors(entry, shape, hf)


def _places(shape: ModelShape, mesh: Mesh, rank: int, chunk: int) -> Iterator[tuple[Entry, Indices, Indices]]:
    """The lines of the table in reading order, each with the local and the global indices that its names take."""
    table = family_table(shape.family)
    layers = mesh.chunk_layers(shape.num_layers, mesh.coordinates(rank).pp, chunk)
    experts = _experts_of(shape, mesh, rank)
    yield from ((entry, {}, {}) for entry in table if entry.place is Place.FIRST)
    for local_layer, layer in enumerate(layers):
        here, there = {"layer": local_layer}, {"layer": layer}
        yield from ((entry, here, there) for entry in table if entry.place is Place.LAYER)
        for number, expert in enumerate(experts):
            of_expert = here | {"expert": number}, there | {"expert": expert}
            yield from ((entry, *of_expert) for entry in table if entry.place is Place.EXPERT)
    last = (Place.LAST, Place.UNTIED_LAST, Place.TIED_LAST)
    yield from ((entry, {}, {}) for place in last for entry in table if entry.place is place)


def _experts_of(shape: ModelShape, mesh: Mesh, rank: int) -> range:
    """Global indices of the experts that a rank holds, whole or split over etp."""
    if shape.experts is None:
        return range(0)
    per_rank, rest = divmod(shape.experts.count, mesh.ep)
    if rest:
        raise BridgeError(f"{shape.experts.count} experts do not divide over ep = {mesh.ep}")
    first = mesh.expert_coordinates(rank).ep * per_rank
    return range(first, first + per_rank)


def _cut(entry: Entry, shape: ModelShape, mesh: Mesh, rank: int) -> Cut:
    if entry.place is Place.EXPERT:
        return Cut(index=mesh.expert_coordinates(rank).etp, parts=mesh.expert_tp, head_dim=shape.head_dim)
    return Cut(index=mesh.coordinates(rank).tp, parts=mesh.tp, head_dim=shape.head_dim)


def _stands_on(place: Place, shape: ModelShape, mesh: Mesh, pp: int, chunk: int) -> bool:
    first, last = (pp, chunk) == (0, 0), (pp, chunk) == (mesh.pp - 1, mesh.vpp - 1)
    if place is Place.FIRST:
        return first
    if place is Place.LAST:
        return last
    if place is Place.UNTIED_LAST:
        return last and not shape.tied_embeddings
    if place is Place.TIED_LAST:
        return last and not first and shape.tied_embeddings
    return True


def _tensors(entry: Entry, shape: ModelShape, indices: Indices) -> list[HfTensor]:
    letters = {
        "W": shape.vocab_size,
        "D": shape.hidden_size,
        "N": shape.num_heads,
        "K": shape.num_kv_heads,
        "H": shape.head_dim,
        "F": shape.ffn_size,
    }
    if shape.experts is not None:
        letters |= {"E": shape.experts.count, "M": shape.experts.ffn_size}
    return [
        HfTensor(name.format(**indices), tuple(prod(letters[letter] for letter in word) for word in words.split()))
        for name, words in entry.hf.items()
    ]

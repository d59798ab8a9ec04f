"""What a trainer rank and a Hugging Face folder hold, as segments; all read from the family's table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory, Segment
from megatron_spell.bridge.families.entry import Entry, Place
from megatron_spell.bridge.families.registry import family_table
from megatron_spell.bridge.rules import Cut, HfTensor, Rule, padded_vocab, vocab_rows
from megatron_spell.bridge.stacks import members, runs
from megatron_spell.config.model_shape import ModelShape
from megatron_spell.layout.mesh import Mesh

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def trainer_inventory(shape: ModelShape, mesh: Mesh, rank: int) -> Inventory:
    """The segments of one trainer rank, under megatron-core's parameter names of its pipeline stage.

    Layer and expert indices in local names count from the first that the rank (of interleaved stages, the chunk)
    holds; `chunk_prefix` keeps the chunks apart. With tied embeddings and pp > 1 the last stage holds its copy of the
    embedding as `output_layer.weight`. Ranks that differ only in dp or cp hold the same, but for experts, which form
    stacks. Raises BridgeError where the model does not divide over the mesh, ValueError for a rank outside it.
    """
    return tuple(
        segment
        for entry, local, layer in _trainer_parameters(shape, mesh, rank)
        for segment in segments(
            entry.rule,
            local,
            hf_tensors(entry, shape, layer),
            _cut(entry, shape, mesh, rank),
            _experts_of(shape, mesh, rank) if entry.place is Place.EXPERT else None,
        )
    )


def trainer_inventories(shape: ModelShape, mesh: Mesh) -> dict[int, Inventory]:
    """The segments of every trainer rank."""
    return {rank: trainer_inventory(shape, mesh, rank) for rank in range(mesh.world_size)}


def trainer_shapes(shape: ModelShape, mesh: Mesh, rank: int) -> Shapes:
    """The shapes of the rank's parameters, padding rows included: what the model built there must have."""
    shapes = local_shapes(trainer_inventory(shape, mesh, rank))
    for entry, local, layer in _trainer_parameters(shape, mesh, rank):
        if entry.rule is vocab_rows:
            num_rows, *rest = hf_tensors(entry, shape, layer)[0].shape
            shapes[local] = (padded_vocab(num_rows, mesh.tp) // mesh.tp, *rest)
    return shapes


def chunk_prefix(mesh: Mesh, chunk: int) -> str:
    """What the local names of a chunk of an interleaved pipeline stage begin with; nothing where there is one chunk."""
    return f"chunk{chunk}." if mesh.vpp > 1 else ""


def checkpoint_inventory(shape: ModelShape) -> Inventory:
    """Every Hugging Face tensor as a whole, under its own name; the experts of a layer are stacks."""
    found: dict[str, Segment] = {}
    for entry, layer in entries(shape, range(shape.num_layers), first=True, last=True):
        for tensor in hf_tensors(entry, shape, layer):
            stack = (shape.experts.count,) if entry.place is Place.EXPERT and shape.experts else ()
            num_rows, *rest = tensor.shape  # of the last part, where a tensor has several
            box = Box.whole((*stack, tensor.first_row + num_rows, *rest))
            found[tensor.name] = Segment(tensor.name, box, tensor.name, box)
    return tuple(found.values())


def checkpoint_shapes(shape: ModelShape) -> Shapes:
    """The tensors of the model's Hugging Face folder, in reading order; a tied model has no output layer there."""
    return local_shapes(checkpoint_inventory(shape))


def whole_tensors(shapes: Mapping[str, Shape]) -> Inventory:
    """The inventory of a holder that keeps each of these Hugging Face tensors as it is."""
    boxes = {name: Box.whole(shape) for name, shape in shapes.items()}
    return tuple(Segment(name, box, name, box) for name, box in boxes.items())


def local_shapes(inventory: Inventory) -> Shapes:
    """The smallest shape of each local tensor that holds its segments (so without padding rows)."""
    shapes: Shapes = {}
    for segment in inventory:
        for name, box in members(segment.local_name, segment.local_box):
            known = shapes.get(name, box.stop)
            shapes[name] = tuple(max(a, b) for a, b in zip(known, box.stop, strict=True))
    return shapes


def entries(shape: ModelShape, layers: Iterable[int], *, first: bool, last: bool) -> Iterator[tuple[Entry, int]]:
    """The lines of the family's table that stand in a stretch of layers, in reading order, each with its layer.

    `first` and `last` say whether the stretch begins and ends the model. Outside of layers the layer is 0.
    """
    table = family_table(shape.family)
    if first:
        yield from ((entry, 0) for entry in table if entry.place is Place.FIRST)
    for layer in layers:
        yield from ((entry, layer) for entry in table if entry.place in (Place.LAYER, Place.EXPERT))
    if last:
        tied = not first if shape.tied_embeddings else None
        wanted = {Place.LAST: True, Place.UNTIED_LAST: tied is None, Place.TIED_LAST: bool(tied)}
        yield from ((entry, 0) for place in wanted if wanted[place] for entry in table if entry.place is place)


def hf_tensors(entry: Entry, shape: ModelShape, layer: int) -> list[HfTensor]:
    """The Hugging Face tensors of a line of the table, or their parts; of an expert's, one expert's."""
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
        HfTensor(name.format(layer=layer), (num_rows, *rest), first_row)
        for name, size in entry.hf.items()
        for num_rows, first_row, rest in _parts(size, letters)
    ]


def segments(
    rule: Rule, local: str, tensors: Sequence[HfTensor], cut: Cut, experts: Sequence[int] | None
) -> Iterator[Segment]:
    """What `rule` says; of an expert's line for all `experts` (global indices in the order of the local dim 0)."""
    for segment in rule(local, tensors, cut):
        if experts is None:
            yield segment
            continue
        for place, start, stop in runs(experts):
            yield Segment(
                segment.hf_name,
                _stacked(segment.hf_box, start, stop),
                segment.local_name,
                _stacked(segment.local_box, place, place + stop - start),
            )


def _stacked(box: Box, start: int, stop: int) -> Box:
    return Box((start, *box.start), (stop, *box.stop))


def _parts(size: str, letters: Mapping[str, int]) -> Iterator[tuple[int, int, list[int]]]:
    """(rows, first row, the other dims) of each part that "NH+KH+KH D" speaks of."""
    rows, *others = size.split()
    rest, first_row = [prod(_size(letter, letters) for letter in word) for word in others], 0
    for word in rows.split("+"):
        num_rows = prod(_size(letter, letters) for letter in word)
        yield num_rows, first_row, rest
        first_row += num_rows


def _size(letter: str, letters: Mapping[str, int]) -> int:
    return int(letter) if letter.isdigit() else letters[letter]


def _trainer_parameters(shape: ModelShape, mesh: Mesh, rank: int) -> Iterator[tuple[Entry, str, int]]:
    """Each parameter of a rank: its line of the table, its local name, and its layer in the model."""
    pp = mesh.coordinates(rank).pp
    for chunk in range(mesh.vpp):
        layers = mesh.chunk_layers(shape.num_layers, pp, chunk)
        first, last = (pp, chunk) == (0, 0), (pp, chunk) == (mesh.pp - 1, mesh.vpp - 1)
        for entry, layer in entries(shape, layers, first=first, last=last):
            yield entry, chunk_prefix(mesh, chunk) + entry.local.format(layer=layer - layers.start), layer


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
        return Cut(mesh.expert_coordinates(rank).etp, mesh.expert_tp, shape.head_dim, mesh.tp)
    return Cut(mesh.coordinates(rank).tp, mesh.tp, shape.head_dim, mesh.tp)

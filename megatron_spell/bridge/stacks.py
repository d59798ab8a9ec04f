"""Stacks: tensors of one shape that are seen as one, so that all experts of a layer are a single segment.

A name with `*` is a stack: a tensor for each index that can take the star's place. Its boxes have that index as dim 0.
A tensor that really has the index as dim 0 (vLLM keeps the experts of a layer so) has a plain name and the same boxes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from megatron_spell.bridge.boxes import Box, BridgeError, Inventory, Segment

if TYPE_CHECKING:  # planning needs none of it
    import torch

STAR = "*"

Tensors = Mapping[str, "torch.Tensor"]


def is_stack(name: str) -> bool:
    return STAR in name


def member(name: str, index: int) -> str:
    """The name of one tensor of a stack."""
    return name.replace(STAR, str(index))


def members(name: str, box: Box) -> Iterator[tuple[str, Box]]:
    """The tensors in which `box` lies, by their own names, and where it lies in each; a plain tensor as it is."""
    if not is_stack(name):
        yield name, box
        return
    rest = Box(box.start[1:], box.stop[1:])
    for index in range(box.start[0], box.stop[0]):
        yield member(name, index), rest


def one_by_one(name: str, box: Box) -> Iterator[tuple[str, Box]]:
    """As `members` for a stack; of a plain tensor what stands under each index of dim 0, which is kept."""
    if is_stack(name):
        yield from members(name, box)
        return
    for index in range(box.start[0], box.stop[0]):
        yield name, Box((index, *box.start[1:]), (index + 1, *box.stop[1:]))


def views(tensors: Tensors, name: str, box: Box, *, apart: bool) -> "list[torch.Tensor]":
    """What lies in `box`: one view, or with `apart` one for each index of dim 0. A stack is always apart."""
    if is_stack(name):
        return [tensors[own].detach()[rest.index] for own, rest in members(name, box)]
    whole = tensors[name].detach()[box.index]
    return list(whole.unbind(0)) if apart else [whole]


def values(tensors: Tensors, name: str, box: Box) -> "torch.Tensor":
    """What lies in `box`, in its shape: a view of a plain tensor, a copy of a stack's."""
    import torch

    found = views(tensors, name, box, apart=False)
    return torch.stack(found) if is_stack(name) else found[0]


def unstacked(inventory: Inventory) -> Inventory:
    """The same with a segment for each tensor. Raises BridgeError where only one side of a segment is a stack."""
    return tuple(plain for segment in inventory for plain in _unstacked(segment))


def _unstacked(segment: Segment) -> Iterator[Segment]:
    if is_stack(segment.hf_name) != is_stack(segment.local_name):
        raise BridgeError(f"{segment.hf_name} and {segment.local_name}: only one of them is a stack")
    theirs, own = members(segment.hf_name, segment.hf_box), members(segment.local_name, segment.local_box)
    for (hf_name, hf_box), (local_name, local_box) in zip(theirs, own, strict=True):
        yield Segment(hf_name, hf_box, local_name, local_box)


def local_names(inventory: Inventory) -> set[str]:
    """The tensors that an inventory is about, each by its own name."""
    return {name for segment in inventory for name, _ in members(segment.local_name, segment.local_box)}


def runs(indices: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(first place, start, stop) for each stretch of `indices` that counts up by one."""
    breaks = [i for i, (a, b) in enumerate(pairwise(indices), start=1) if b != a + 1]
    for first, last in pairwise([0, *breaks, len(indices)]):
        if first < last:
            yield first, indices[first], indices[last - 1] + 1


def restricted(inventory: Inventory, names: Iterable[str]) -> Inventory:
    """What of an inventory in Hugging Face's own coordinates (local = Hugging Face) concerns the tensors `names`."""
    wanted, found = set(names), []
    for segment in inventory:
        if not is_stack(segment.hf_name):
            found += [segment] if segment.hf_name in wanted else []
            continue
        start, stop = segment.hf_box.start, segment.hf_box.stop
        kept = [i for i in range(start[0], stop[0]) if member(segment.hf_name, i) in wanted]
        for _, first, last in runs(kept):
            box = Box((first, *start[1:]), (last, *stop[1:]))
            found.append(Segment(segment.hf_name, box, segment.local_name, box))
    return tuple(found)

"""Boxes as they come, put into tensors of the whole Hugging Face shape, for loaders that take no others."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import torch

from megatron_spell.bridge.boxes import Box
from megatron_spell.bridge.planner import Plan
from megatron_spell.bridge.stacks import members
from megatron_spell.rollout.landing import in_checkpoint


def elements_to_come(plan: Plan, rank: int) -> dict[str, int]:
    """Hugging Face tensor -> the number of its elements that the plan sends to the target `rank`."""
    found: dict[str, int] = defaultdict(int)
    for move in plan.moves:
        if move.dst_rank == rank:
            for name, box in members(move.dst_name, move.dst_box):
                found[in_checkpoint(name, box)[0]] += box.num_elements
    return dict(found)


def whole_shaped(
    boxes: Iterable[tuple[str, Box, torch.Tensor]],
    num_elements: Mapping[str, int],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    rest: float | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, tensor of its shape in `shapes`) as soon as its `num_elements` elements have come.

    `boxes` are of names of `landing.checkpoint_form`, or of whole tensors under their own names.
    A loader that cuts out one worker's shard reads just the boxes that came; everything else is `rest`, or left as it
    is without. The boxes' values are read before the next is asked for.
    """
    left = dict(num_elements)
    begun: dict[str, torch.Tensor] = {}
    for local_name, local_box, values in boxes:
        name, box = in_checkpoint(local_name, local_box)
        if name not in begun:
            begun[name] = values.new_empty(shapes[name])
            if rest is not None:
                begun[name].fill_(rest)
        begun[name][box.index].copy_(values)
        left[name] -= values.numel()
        if not left[name]:
            yield name, begun.pop(name)

"""Tensors as the boxes that a folder is written from."""

from collections.abc import Iterator, Mapping

import torch

from megatron_spell.bridge.boxes import Box


def whole_boxes(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Box, torch.Tensor]]:
    """Each tensor as one box."""
    for name, tensor in tensors.items():
        yield name, Box.whole(tuple(tensor.shape)), tensor


def cut_boxes(tensors: Mapping[str, torch.Tensor], max_elements: int) -> Iterator[tuple[str, Box, torch.Tensor]]:
    """Each tensor in pieces, columns apart from one another where it has two halves of them."""
    for name, tensor in tensors.items():
        whole = Box.whole(tuple(tensor.shape))
        half = whole.shape[-1] // 2
        sides = [
            Box((*whole.start[:-1], a), (*whole.stop[:-1], b)) for a, b in ((half, whole.shape[-1]), (0, half)) if a < b
        ]
        for side in sides:
            for box in side.pieces(max_elements):
                yield name, box, tensor[box.index]

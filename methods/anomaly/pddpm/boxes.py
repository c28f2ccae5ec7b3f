"""The boxes into which a slice is cut: a grid of equal ones, which cover each pixel once."""

from __future__ import annotations

import torch
from torch import Tensor

Box = tuple[slice, slice]


def boxes(height: int, width: int, grid: int) -> list[Box]:
    """`grid` × `grid` boxes (rows, columns), row by row; both sides are multiples of `grid`."""
    tall, wide = height // grid, width // grid
    return [
        (slice(row * tall, (row + 1) * tall), slice(column * wide, (column + 1) * wide))
        for row in range(grid)
        for column in range(grid)
    ]


def box_masks(chosen: Tensor, height: int, width: int, grid: int) -> Tensor:
    """1 within a box for each slice, 0 elsewhere: float32 [B, 1, H, W] of the numbers of boxes, int64 [B]."""
    masks = torch.zeros(len(chosen), 1, height, width, device=chosen.device)
    for number, (rows, columns) in enumerate(boxes(height, width, grid)):
        masks[chosen == number, :, rows, columns] = 1
    return masks

"""Batches of slices in grey levels: conversion, crops, padding. The only place where [0, 1] becomes 0..255."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import ImageSet

Batch = tuple[Tensor, Tensor]
"""Grey levels and brain mask (0 or 1), both float32 [B, 1, h, w]."""


def grey_levels(images: ImageSet, index: Any) -> np.ndarray:
    """Slices as float32 [n, H, W] in 0..255; 8-bit pixels come exactly."""
    if images.pixels.dtype == np.uint8:
        return np.asarray(images.pixels[index]).astype(np.float32)
    return images.floats(index) * np.float32(255)


def whole(images: ImageSet, index: Any) -> Batch:
    """Slices at their full size."""
    masks = np.asarray(images.mask[index], dtype=np.float32)
    return torch.from_numpy(grey_levels(images, index))[:, None], torch.from_numpy(masks)[:, None]


@dataclass(frozen=True)
class Crops:
    """Windows of slices, brought to a size that a network can take.

    size:     rows and columns of a window; a slice that is not larger, or any with None, is used whole.
    shift:    random windows start at −shift..shift−1 pixels from the central one.
    multiple: windows are padded evenly with background until rows and columns are divisible by it.
    """

    size: int | None
    shift: int
    multiple: int

    def random(self, images: ImageSet, index: np.ndarray, rng: np.random.Generator) -> Batch:
        """A window of each slice, drawn for each slice and axis."""
        room = self._room(images)
        centre = room // 2
        low, high = np.maximum(centre - self.shift, 0), np.minimum(centre + max(self.shift - 1, 0), room)
        return self._cut(images, index, rng.integers(low, high + 1, size=(len(index), 2)))

    def central(self, images: ImageSet, index: Any) -> Batch:
        """The central window of each slice."""
        return self._cut(images, index, self._room(images) // 2)

    def batches(self, images: ImageSet, size: int) -> Iterator[Batch]:
        """Central windows of all slices, in order."""
        for start in range(0, len(images), size):
            yield self.central(images, slice(start, start + size))

    def _room(self, images: ImageSet) -> np.ndarray:
        """Rows and columns that a window leaves out, [2]."""
        shape = np.array(images.pixels.shape[1:])
        return np.zeros_like(shape) if self.size is None else np.maximum(shape - self.size, 0)

    def _cut(self, images: ImageSet, index: Any, offsets: np.ndarray) -> Batch:
        """Windows that start at `offsets` [2] or [B, 2]."""
        pixels, masks = whole(images, index)
        height, width = np.array(images.pixels.shape[1:]) - self._room(images)
        starts = np.broadcast_to(offsets, (len(pixels), 2)).tolist()
        rows = [slice(top, top + height) for top, _ in starts]
        columns = [slice(left, left + width) for _, left in starts]

        def cut(x: Tensor) -> Tensor:
            windows = [each[:, row, column] for each, row, column in zip(x, rows, columns, strict=True)]
            return pad_to_multiple(torch.stack(windows), self.multiple)[0]

        return cut(pixels), cut(masks)


def pad_to_multiple(x: Tensor, multiple: int) -> tuple[Tensor, tuple[Any, ...]]:
    """x [..., H, W] in the middle of zeros, rows and columns divisible by `multiple`; and the index that undoes it."""
    height, width = x.shape[-2:]
    below, beside = -height % multiple, -width % multiple
    top, left = below // 2, beside // 2
    inside = (..., slice(top, top + height), slice(left, left + width))
    if not (below or beside):
        return x, inside
    return F.pad(x, (left, beside - left, top, below - top)), inside

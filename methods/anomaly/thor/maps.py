"""THOR's maps: how one is made of a slice and what it is taken for, and how those of several times are one.

All slices and maps are [B, 1, H, W]; each slice is treated by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.anomaly.components.perceptual import Compare, blurred

REFERENCE_SIDE = 128  # pixels of the slices for which lengths are given
TRUNCATE = 4.0  # standard deviations at which a Gaussian filter ends


def anomaly(clean: Tensor, slices: Tensor, compare: Compare, deviation: float) -> Tensor:
    """|clean − slices|, weighed by the smoothed perceptual distance, over its largest value; 0 where they are equal.

    compare: the perceptual distance from `slices`. deviation: of the Gaussian that smooths it, in pixels.
    """
    weight = blurred(compare(clean), deviation, round(TRUNCATE * deviation)) if deviation else compare(clean)
    found = weight.clamp(0, 1) * (clean - slices).abs()
    largest = found.amax((1, 2, 3), keepdim=True)
    return torch.where(largest > 0, found / largest, 0.0)


def replacement(found: Tensor, radius: int) -> Tensor:
    """How much of each pixel is to be replaced, 0..1: the mean of a map and of its closed and widened self."""
    return ((dilated(eroded(dilated(found, radius), radius), radius) + found) / 2).clamp(0, 1)


def dilated(x: Tensor, radius: int) -> Tensor:
    """The largest value within a square that reaches `radius` pixels."""
    return F.max_pool2d(x, 2 * radius + 1, stride=1, padding=radius)


def eroded(x: Tensor, radius: int) -> Tensor:
    """The smallest value within a square that reaches `radius` pixels."""
    return -dilated(-x, radius)


class HarmonicMean:
    """The harmonic mean of maps that come one after the other: 0 where any of them is."""

    def __init__(self) -> None:
        self.count, self.inverse = 0, torch.zeros(())

    def add(self, found: Tensor) -> None:
        self.count += 1
        self.inverse = self.inverse.to(found.device) + 1 / found

    def value(self) -> Tensor:
        return self.count / self.inverse


def scaled_radius(radius: int, side: int) -> int:
    """A radius in pixels of slices of 128 as one of slices with such a longer side."""
    return round(radius * side / REFERENCE_SIDE)

"""Stacks of adjacent slices, each scan divided by its maximum; and the crops of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import ImageSet, MethodError
from methods.harmonization.style_transfer.networks import HEAD
from methods.harmonization.style_transfer.settings import Hyperparameters


class Stacks:
    """The slices of an image set, each with its neighbours in the same scan; a scan's end slice stands for one that
    is missing.

    brain:     indices of slices with brain.
    neighbours: [N, C], the slices of each stack; the middle one is the slice itself.
    """

    def __init__(self, images: ImageSet, adjacent: int):
        self.images = images
        self.brain = np.flatnonzero(np.any(images.mask, axis=(1, 2)))
        self.neighbours = np.empty((len(images), adjacent), np.int64)
        self._gain = np.ones((len(images), 1, 1), np.float32)
        offsets = np.arange(adjacent) - adjacent // 2
        for scan, pixels, _ in images.volumes():
            index = np.arange(scan.start, scan.stop)[:, None] + offsets
            self.neighbours[scan.slices] = index.clip(scan.start, scan.stop - 1)
            largest = float(pixels.max())
            self._gain[scan.slices] = 1 / largest if largest > 0 else 1

    def __getitem__(self, index: np.ndarray) -> Tensor:
        """Stacks [len(index), C, H, W] in [-1, 1]."""
        wanted = self.neighbours[index]
        flat = self.images.floats(wanted.reshape(-1)) * self._gain[wanted.reshape(-1)]
        return torch.from_numpy(2 * flat - 1).reshape(*wanted.shape, *flat.shape[1:])


class Pool:
    """Stacks of several image sets, pooled: every slice with brain is as likely, wherever it is from.

    Raises MethodError where there is none, where slices are of several sizes, or too small for the networks.
    """

    def __init__(self, sets: Sequence[ImageSet], settings: Hyperparameters):
        self.settings = settings
        self.stacks = [Stacks(images, settings.adjacent_slices) for images in sets]
        self._ends = np.cumsum([len(stacks.brain) for stacks in self.stacks])
        sizes = {images.pixels.shape[1:] for images in sets}
        if len(sizes) > 1:
            raise MethodError(
                f"style_transfer: training slices are of several sizes, {sorted(sizes)}; prepare one size"
            )
        if not len(self._ends) or not self._ends[-1]:
            raise MethodError("style_transfer: no training slice has brain; check the masks")
        check_size(settings, sizes.pop())

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """Stacks [size, C, H, W] in [-1, 1], cropped and mirrored."""
        drawn = rng.integers(self._ends[-1], size=size)
        number = np.searchsorted(self._ends, drawn, side="right")
        rows = []
        for k, which in zip(drawn, number, strict=True):
            stacks = self.stacks[which]
            rows.append(stacks[stacks.brain[[k - self._ends[which] + len(stacks.brain)]]])
        return pad(crop(torch.cat(rows), rng, self.settings), self.settings.downs)


def crop(x: Tensor, rng: np.random.Generator, settings: Hyperparameters) -> Tensor:
    """Stacks [B, C, H, W], some of them cropped and brought back to their size, some mirrored."""
    n = len(x)
    area = rng.uniform(*settings.crop_area, size=n)
    low, high = map(math.log, settings.crop_ratio)
    ratio = np.exp(rng.uniform(low, high, size=n))
    # Half the sides of the window, in coordinates that run from -1 to 1 over the slice, and its middle.
    half = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)]), 1)
    half = np.where(rng.random(n) < settings.crop_probability, half, 1)
    middle = rng.uniform(-1, 1, size=(2, n)) * (1 - half)
    mirror = np.where((rng.random(n) < 0.5) & settings.flip, -1.0, 1.0)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = mirror * half[0], half[1], middle.T
    grid = F.affine_grid(torch.from_numpy(theta), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def pad(x: Tensor, downs: int) -> Tensor:
    """Background, -1, below and to the right of [B, C, H, W], up to sizes that can be halved `downs` times."""
    height, width = (_padded(side, downs) for side in x.shape[2:])
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), value=-1.0)


def check_size(settings: Hyperparameters, shape: tuple[int, ...]) -> None:
    """Raises MethodError where slices of this shape are too small for the trunks."""
    side = min(_padded(side, settings.downs) for side in shape[-2:])
    if side // 2**settings.trunk_downs < HEAD:
        raise MethodError(
            f"style_transfer: slices of {shape[-2]} × {shape[-1]} pixels are too small for trunk_downs "
            f"{settings.trunk_downs}, which needs {HEAD * 2**settings.trunk_downs}; set fewer trunk_downs"
        )


def _padded(side: int, downs: int) -> int:
    return max(2, -(-side // 2**downs)) * 2**downs  # a single pixel at the bottom could not be normalised

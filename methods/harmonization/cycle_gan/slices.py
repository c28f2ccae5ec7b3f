"""Slices of one site as CycleGAN is trained on them: drawn, resized, cropped, mirrored, padded."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.api import ImageSet, MethodError
from methods.harmonization.cycle_gan.generator import MULTIPLE
from methods.harmonization.cycle_gan.settings import Hyperparameters

SMALLEST = 2 * MULTIPLE
"""Rows and columns below which the residual blocks would see a single pixel, which cannot be normalised."""


class SiteSlices:
    """Random windows of the slices with brain of one site. Raises MethodError where there is none."""

    def __init__(self, images: ImageSet, settings: Hyperparameters):
        self.images, self.settings = images, settings
        self.index = np.flatnonzero(np.any(images.mask, axis=(1, 2)))
        if not len(self.index):
            raise MethodError("cycle_gan: a site has no training slice with brain; check its mask")
        smallest = max(SMALLEST, 3 * 2**settings.discriminator_layers)
        if min(self.window) < smallest:
            rows, columns = self.window
            raise MethodError(
                f"cycle_gan: training windows are {rows} × {columns} pixels, but discriminator_layers "
                f"{settings.discriminator_layers} needs {smallest}; enlarge crop, or set fewer discriminator_layers"
            )

    @property
    def site(self) -> str:
        return self.images.scans[0].site

    @property
    def window(self) -> tuple[int, int]:
        """Rows and columns of what `draw` returns."""
        height, width = (_padded(cut) for cut in self._cut(self._resized()))
        return height, width

    def draw(self, rng: np.random.Generator, size: int) -> Tensor:
        """Slices [size, 1, h, w] in [0, 1]."""
        x = torch.from_numpy(self.images.floats(rng.choice(self.index, size=size)))[:, None]
        full = self._resized()
        if full != tuple(x.shape[2:]):
            x = F.interpolate(x, size=full, mode="bilinear", align_corners=False)
        height, width = self._cut(full)
        tops = rng.integers(full[0] - height + 1, size=size)
        lefts = rng.integers(full[1] - width + 1, size=size)
        windows = [
            each[:, top : top + height, left : left + width]
            for each, top, left in zip(x, tops.tolist(), lefts.tolist(), strict=True)
        ]
        mirrored = (rng.random(size) < 0.5) & self.settings.flip
        return pad(torch.stack([w.flip(-1) if m else w for w, m in zip(windows, mirrored, strict=True)]))

    def _resized(self) -> tuple[int, int]:
        height, width = self.images.pixels.shape[1:]
        if self.settings.resize is None:
            return height, width
        scale = self.settings.resize / min(height, width)
        return round(height * scale), round(width * scale)

    def _cut(self, full: tuple[int, int]) -> tuple[int, int]:
        crop = self.settings.crop
        return full if crop is None else (min(crop, full[0]), min(crop, full[1]))


def pad(x: Tensor) -> Tensor:
    """Background below and to the right of [B, 1, H, W], up to sizes that the generator takes."""
    height, width = x.shape[2:]
    return F.pad(x, (0, _padded(width) - width, 0, _padded(height) - height))


def _padded(side: int) -> int:
    return max(SMALLEST, side + -side % MULTIPLE)

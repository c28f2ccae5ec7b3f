"""Random moves of slices, in training and, where a method says so, when it predicts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.api import Settings, hyper
from methods.networks.resampling import affine_grid, resample

DRAWS = 7
"""Uniform numbers in 0..1 that `Augmentation.apply` needs for each sample."""


class Augmentation(Settings):
    """Turns, shears, shifts, mirrors and dims; a method with published ranges overrides the defaults in a subclass."""

    rotate_degrees: float = hyper(0.0, "rotation, uniform within ± this", origin="ours", ge=0, le=360)
    shift: float = hyper(
        0.0, "shift along rows and columns, uniform within ± this part of the side", origin="ours", ge=0, lt=1
    )
    shear_degrees: float = hyper(0.0, "shear of the columns, uniform within ± this", origin="ours", ge=0, lt=90)
    flip_rows: bool = hyper(False, "turn every second slice upside down", origin="ours")
    flip_columns: bool = hyper(False, "mirror every second slice", origin="ours")
    dim_to: float = hyper(
        1.0, "intensities are multiplied by a number uniform between this and 1", origin="ours", gt=0, le=1
    )

    def apply(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """Samples [B, C, H, W] moved, all channels alike and with 0 from outside; `draws` [B, 7] say how.

        A slice is read once, bilinearly: mirrored, sheared and turned about its centre, and shifted.
        """
        height, width = pixels.shape[-2:]
        signed = 2 * draws - 1
        angle = signed[:, 0] * math.radians(self.rotate_degrees)
        shear = (signed[:, 3] * math.radians(self.shear_degrees)).tan()
        upside = torch.where((draws[:, 4] < 0.5) & self.flip_rows, -1.0, 1.0)
        mirror = torch.where((draws[:, 5] < 0.5) & self.flip_columns, -1.0, 1.0)
        cos, sin, aspect = angle.cos(), angle.sin(), height / width
        # A rotation times a shear times mirrors, of (x, y) in pixels; then in units of half a side each.
        theta = torch.stack(
            [
                cos * mirror,
                (cos * shear - sin) * upside * aspect,
                2 * self.shift * signed[:, 2],
                sin * mirror / aspect,
                (sin * shear + cos) * upside,
                2 * self.shift * signed[:, 1],
            ],
            dim=1,
        ).reshape(-1, 2, 3)
        # Under mixed precision a grid would be in bf16, which tells places of 138 pixels to a quarter of one.
        with torch.autocast(pixels.device.type, enabled=False):
            moved = resample(pixels, affine_grid(theta, height, width))
        return moved * (1 - (1 - self.dim_to) * draws[:, 6, None, None, None])

    def random(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """The same with draws from `generator`, on the device of the samples."""
        draws = torch.rand(len(pixels), DRAWS, generator=generator, device=pixels.device)
        return self.apply(pixels, draws)

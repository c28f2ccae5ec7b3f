"""Moving slices and their labels: matrices, resampling, and the augmentation that task models share."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def affine_matrices(mirror: Tensor, angle: Tensor, zoom: Tensor, aspect: float) -> Tensor:
    """Matrices [B, 2, 3] for `affine_grid`, which map output to input coordinates, (x, y) each in [−1, 1].

    mirror −1 or 1 for the columns, angle in radians, zoom > 1 magnifies. `aspect` = H / W keeps a rotation
    rigid on slices that are not square. Pixels are taken as square.
    """
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(angle)
    rows = [mirror * cos, -mirror * sin * aspect, zero, sin / aspect, cos, zero]
    return torch.stack(rows, 1).reshape(-1, 2, 3)


def affine_grid(theta: Tensor, height: int, width: int) -> Tensor:
    """Where each output pixel is read, [B, H, W, 2] as (x, y) in [−1, 1], from matrices [B, 2, 3].

    float32 under mixed precision too: bf16 tells places apart no finer than a pixel or so.
    """
    with torch.autocast(theta.device.type, enabled=False):
        return F.affine_grid(theta.float(), [len(theta), 1, height, width], align_corners=False)


def resample(pixels: Tensor, grid: Tensor) -> Tensor:
    """Pixels [B, C, H, W] read at `grid`, bilinearly; 0 outside."""
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def resample_labels(labels: Tensor, grid: Tensor) -> Tensor:
    """Labels [B, H, W] of any type read at `grid`, from the nearest pixel; 0 outside."""
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved[:, 0].to(labels.dtype)


def random_grid(
    pixels: Tensor, generator: torch.Generator, *, flip: bool, rotate_degrees: float, scale: float
) -> Tensor | None:
    """A grid [B, H, W, 2] that mirrors, turns and magnifies each of `pixels` [B, 1, H, W] about its centre.

    flip: mirror the columns of every second slice; rotation uniform within ± `rotate_degrees`; magnification
    uniform within 1 ± `scale`. None, and nothing drawn, where all three are off.
    """
    if not (flip or rotate_degrees or scale):
        return None
    n, _, height, width = pixels.shape
    draws = torch.rand(3, n, generator=generator, device=pixels.device)
    mirror = torch.where(draws[0] < 0.5, -1.0, 1.0) if flip else torch.ones_like(draws[0])
    angle = (2 * draws[1] - 1) * math.radians(rotate_degrees)
    zoom = 1 + (2 * draws[2] - 1) * scale
    return affine_grid(affine_matrices(mirror, angle, zoom, height / width), height, width)

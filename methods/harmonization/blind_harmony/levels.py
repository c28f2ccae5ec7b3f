"""Slices on their way into the flow and back: least and largest intensity, 12-bit levels, noise, padding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.harmonization.blind_harmony.flow import SplineGlow
from methods.networks.flow import bits_per_dimension

PARTS = 16  # 12-bit levels to a grey level of 8 bits
LEVELS = 256 * PARTS
TOP = 255 * PARTS  # the level of intensity 1


def unit_range(slices: Tensor) -> Tensor:
    """Each slice [..., H, W] moved and scaled to run from 0 to 1, background included; a constant slice becomes 0."""
    low, high = slices.amin((-2, -1), keepdim=True), slices.amax((-2, -1), keepdim=True)
    return (slices - low) / torch.where(high > low, high - low, torch.ones_like(high))


def dequantize(x: Tensor, generator: torch.Generator) -> Tensor:
    """Intensities of 0..1 to the level below, plus uniform noise of one level, in −0.5..0.5."""
    # A whisker more, so that a level that went to float32 and back is found again.
    level = (x * TOP + 1e-3).floor()
    noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return (level + noise) / LEVELS - 0.5


def quantize(x: Tensor) -> Tensor:
    """What `dequantize` undid: −0.5..0.5 to intensities of 0..1."""
    return (((x + 0.5) * LEVELS).floor() / TOP).clamp(0, 1)


def slice_bits(flow: SplineGlow, x: Tensor, generator: torch.Generator) -> Tensor:
    """Bits per pixel, [B], that the flow needs for slices x [B, 1, H, W] of 0..1 in 12-bit levels."""
    noisy = dequantize(x, generator)
    return bits_per_dimension(flow.log_likelihood(noisy), x.shape) + math.log2(LEVELS)


def pad(x: Tensor, multiple: int) -> Tensor:
    """x [..., H, W] with background below and to the right, until both sizes are multiples."""
    return F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple))

"""The harmoniser: a small U-Net that maps a slice of any contrast to the contrast of the source, and its loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.harmonization.harmonizing_flows.blocks import ConcatEluConv, upsample
from methods.harmonization.harmonizing_flows.slices import pad_to_multiple

WINDOW = 11  # pixels a side of SSIM's window
WINDOW_SIGMA = 1.5  # its Gaussian weights, as in Wang et al., IEEE TIP 2004


class HarmonizerNet(nn.Module):
    """U-Net without normalisation, grey levels [B, 1, H, W] to grey levels, of any size.

    head:  "plain": the last convolution is the output. "affine": it is β, the pooled bottleneck gives one α for
           each slice, and the output is α·x + β.
    scale: grey levels are divided by it on the way in and multiplied on the way out, so that default-initialised
           convolutions work in 0..1.
    """

    def __init__(self, widths: Sequence[int], head: Literal["plain", "affine"], scale: float):
        super().__init__()
        self.scale, self.multiple = scale, 2 ** (len(widths) - 1)
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_block(narrow, wide) for narrow, wide in pairs)
        self.up = nn.ModuleList(_block(narrow + wide, narrow) for narrow, wide in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.slope = nn.Conv2d(widths[-1], 1, 1) if head == "affine" else None

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.parts(x)
        return beta if alpha is None else alpha * x + beta

    def parts(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """(α [B, 1, 1, 1], or None with a plain head; β [B, 1, H, W] in grey levels)."""
        padded, inside = pad_to_multiple(x, self.multiple)
        y = self.stem(padded / self.scale)
        passed = []
        for block in self.down:
            passed.append(y)
            y = block(F.max_pool2d(y, 2))
        alpha = None if self.slope is None else self.slope(y.mean((2, 3), keepdim=True))
        for block in self.up:
            y = block(torch.cat([upsample(y), passed.pop()], 1))
        return alpha, (self.head(y) * self.scale)[inside]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(ConcatEluConv(inputs, outputs), ConcatEluConv(outputs, outputs))


def harmonized(network: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """What the harmoniser shows: its output within 0..255, 0 outside the brain; x and mask [B, 1, H, W]."""
    return network(x).clamp(0, 255) * mask


def reconstruction_loss(output: Tensor, truth: Tensor, kind: Literal["l1_ssim", "mse"]) -> dict[str, Tensor]:
    """Loss of a batch of grey levels [B, 1, H, W], and its terms.

    SSIM sees the output within 0..255 (ours). It does not tell an image from its negative, since both of its factors
    change sign: a network whose first outputs happen to be negative would learn the negative image and stay there.
    """
    output, truth = output.float() / 255, truth / 255
    if kind == "mse":
        return {"loss": F.mse_loss(output, truth)}
    absolute, similarity = F.l1_loss(output, truth), ssim(output.clamp(0, 1), truth)
    return {"loss": absolute + 1 - similarity, "l1": absolute, "ssim": similarity}


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of slices [B, 1, H, W] in [0, 1], over all windows that lie inside."""
    offset = torch.arange(WINDOW, device=a.device, dtype=a.dtype) - (WINDOW - 1) / 2
    weights = torch.exp(-0.5 * (offset / WINDOW_SIGMA).square())
    weights = weights / weights.sum()
    maps = torch.cat([a, b, a * a, b * b, a * b])
    maps = F.conv2d(F.conv2d(maps, weights[None, None, :, None]), weights[None, None, None, :])
    mean_a, mean_b, aa, bb, ab = maps.chunk(5)
    var_a, var_b, covariance = aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()

"""Layers that the flow's conditioners and the harmoniser share."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of −x side by side: [B, C, H, W] to [B, 2C, H, W]."""
    return F.elu_(torch.cat([x, -x], 1))


def upsample(x: Tensor) -> Tensor:
    """Twice the rows and columns, bilinear with aligned corners."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class ConcatEluConv(nn.Module):
    """Concatenated ELU, then a 3 × 3 convolution that keeps the size."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.convolution = nn.Conv2d(2 * inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(concat_elu(x))


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, with scale and shift."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        # Channels come last in memory (see `nhwc`), so both permutations only rename the axes.
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


Network = TypeVar("Network", bound=nn.Module)


def nhwc(network: Network) -> Network:
    """The network with channels last in memory, which convolutions and `ChannelNorm` are faster with."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

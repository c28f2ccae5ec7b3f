"""A U-Net that is told the time: the network of diffusion models on slices.

    slices ─ conv ─ [blocks ─ down] × levels ─ block, attention, block ─ [blocks ─ up] × levels ─ norm, SiLU, conv

One skeleton has served two families, which differ in their settings alone: the guided-diffusion network (Dhariwal &
Nichol, NeurIPS 2021: heads, time that scales and shifts, attention that starts as nothing) and the one that MONAI
offers for medical images (Pinaya et al., 2023: time that is added). On the way up each level has one block more than
on the way down, and each block is handed one tensor from there.

Whether slices become smaller and larger by convolutions, or within residual blocks that average and repeat pixels, is
a setting too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PERIOD = 10_000  # of the slowest wave that codes a time
EPSILON = 1e-6  # of the normalisations

Resize = Literal["none", "down", "up"]


class DiffusionUNet(nn.Module):
    """What a slice at a given time is to become: x [B, C, H, W] and times [B] to [B, C', H, W].

    widths:     channels of each level; a level is half as large as the one before it, so H and W are multiples of
                `multiple`. All are multiples of `groups`.
    blocks:     residual blocks of a level on the way down; one more on the way up.
    attention:  levels, from 0, whose blocks are each followed by attention. The middle always attends.
    head_width: channels of an attention head; None for one head, whatever the width.
    groups:     of the group normalisations.
    scale_shift: time scales and shifts normalised features, rather than being added before the normalisation.
    resize_blocks: slices are halved and doubled within residual blocks; else by convolutions.
    silent_attention: attention starts as nothing, its last layer being 0.
    """

    def __init__(
        self,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int] = (),
        *,
        head_width: int | None = None,
        groups: int = 32,
        scale_shift: bool = False,
        resize_blocks: bool = False,
        silent_attention: bool = False,
        in_channels: int = 1,
        out_channels: int = 1,
    ):
        super().__init__()
        first, time_width = widths[0], 4 * widths[0]

        def block(before: int, after: int, resize: Resize = "none") -> Block:
            return Block(before, after, time_width, groups, scale_shift, resize)

        def attend(width: int) -> Attention:
            return Attention(width, head_width, groups, silent_attention)

        def stage(before: int, after: int, level: int) -> Stage:
            return Stage(block(before, after), attend(after) if level in attention else nn.Identity())

        def resize(width: int, way: Literal["down", "up"]) -> nn.Module:
            return block(width, width, way) if resize_blocks else Resized(width, way)

        self.multiple = 2 ** (len(widths) - 1)
        self.time_waves = first
        self.time = nn.Sequential(nn.Linear(first, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(in_channels, first, 3, padding=1)
        kept, width = [first], first
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, wanted in enumerate(widths):
            for _ in range(blocks):
                self.down.append(stage(width, wanted, level))
                width = wanted
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(resize(width, "down"))
                kept.append(width)
        self.middle = nn.ModuleList([Stage(block(width, width), attend(width)), block(width, width)])
        for level, wanted in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(stage(width + kept.pop(), wanted, level))
                width = wanted
            if level:
                self.up.append(resize(width, "up"))
        self.head = nn.Sequential(nn.GroupNorm(groups, width, eps=EPSILON), nn.SiLU(), _silent(width, out_channels))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        time = self.time(waves(times, self.time_waves))
        h = self.stem(x)
        kept = [h]
        for layer in self.down:
            h = layer(h, time)
            kept.append(h)
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.up:
            h = layer(torch.cat([h, kept.pop()], 1) if isinstance(layer, Stage) else h, time)
        found: Tensor = self.head(h)
        return found


def waves(times: Tensor, width: int) -> Tensor:
    """Times [B] as cosines and sines [B, width] of wavelengths from 2π to almost 2π × 10,000; width is even."""
    half = width // 2
    pace = torch.exp(-math.log(PERIOD) / half * torch.arange(half, device=times.device, dtype=torch.float32))
    angles = times.float()[:, None] * pace
    return torch.cat([angles.cos(), angles.sin()], 1)


class Stage(nn.Module):
    """A residual block, and what follows it: attention, or nothing."""

    def __init__(self, block: Block, after: nn.Module):
        super().__init__()
        self.block, self.after = block, after

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self.after(self.block(x, time))
        return found


class Block(nn.Module):
    """norm, SiLU, resize, conv, time, norm, SiLU, conv; the last convolution starts as 0."""

    def __init__(self, before: int, after: int, time_width: int, groups: int, scale_shift: bool, resize: Resize):
        super().__init__()
        self.scale_shift, self.resize = scale_shift, resize
        self.norm_in, self.norm_out = (nn.GroupNorm(groups, width, eps=EPSILON) for width in (before, after))
        self.conv_in, self.conv_out = nn.Conv2d(before, after, 3, padding=1), _silent(after, after)
        self.time = nn.Linear(time_width, 2 * after if scale_shift else after)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_in(_resized(F.silu(self.norm_in(x)), self.resize))
        told = self.time(F.silu(time))[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, 1)
            h = self.norm_out(h) * (1 + scale) + shift
        else:
            h = self.norm_out(h + told)
        found: Tensor = self.skip(_resized(x, self.resize)) + self.conv_out(F.silu(h))
        return found


class Resized(nn.Module):
    """Half or double the size by a convolution."""

    def __init__(self, width: int, way: Literal["down", "up"]):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(width, width, 3, stride=2 if way == "down" else 1, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        found: Tensor = self.conv(_resized(x, "up") if self.way == "up" else x)
        return found


class Attention(nn.Module):
    """Each pixel attends to all; what it gathers is added."""

    def __init__(self, width: int, head_width: int | None, groups: int, silent: bool):
        super().__init__()
        self.heads = width // head_width if head_width else 1
        self.norm = nn.GroupNorm(groups, width, eps=EPSILON)
        self.ask = nn.Linear(width, 3 * width)
        self.tell = nn.Linear(width, width)
        if silent:
            nn.init.zeros_(self.tell.weight)
            nn.init.zeros_(self.tell.bias)

    def forward(self, x: Tensor) -> Tensor:
        n, width, height, columns = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        asked = self.ask(tokens).view(n, -1, 3, self.heads, width // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4)
        gathered = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.tell(gathered).transpose(1, 2).reshape(n, width, height, columns)


def _resized(x: Tensor, way: Resize) -> Tensor:
    """Slices averaged over 2 × 2 pixels, or each pixel repeated 2 × 2 times."""
    if way == "down":
        return F.avg_pool2d(x, 2)
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if way == "up" else x


def _silent(before: int, after: int) -> nn.Conv2d:
    """A 3 × 3 convolution that starts as 0."""
    conv = nn.Conv2d(before, after, 3, padding=1)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv

"""The U-Net of latent diffusion, as the denoisers of MAD-AD and REFLECT use it.

Rombach et al., CVPR 2022, after Dhariwal & Nichol, NeurIPS 2021: attention follows every residual block, at all levels
and in the middle, each with the same number of heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from harness.api import MethodError, Settings, hyper

SIZES = {"XS": (64, 4), "S": (128, 4), "M": (192, 6), "L": (256, 8), "XL": (384, 12)}
"""Published sizes: name → (width, heads). XL is REFLECT's; MAD-AD's, 320 wide, has 12 heads, which do not divide it."""

Size = Literal["XS", "S", "M", "L", "XL"]
LONGEST_PERIOD = 10_000.0
CODE = "authors' code"


class UNetSettings(Settings):
    """Which U-Net a denoiser has."""

    size: Size = hyper("L", "published size: XS, S, M, L or XL", origin=CODE)
    width: int | None = hyper(None, "channels of the first level; null: of the size", origin="ours", ge=2)
    heads: int | None = hyper(None, "heads of each attention; null: of the size", origin="ours", ge=1)
    multipliers: tuple[int, ...] = hyper((1, 2, 4), "channels of the levels over those of the first", origin=CODE)
    groups: int = hyper(32, "groups of the normalisations", origin=CODE, ge=1)
    dropout: float = hyper(0.4, "dropout in residual blocks", origin=CODE, ge=0, lt=1)
    checkpointing: bool = hyper(True, "attention is computed again in the backward pass, to save memory", origin=CODE)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError("multipliers must be whole numbers from 1 on, one for each level")
        if problem := _cannot_be_built(*self.shape(), self.multipliers, self.groups):
            raise ValueError(problem)
        return self

    def shape(self) -> tuple[int, int]:
        """(width, heads)."""
        width, heads = SIZES[self.size]
        return self.width or width, self.heads or heads

    def build(self, in_channels: int, out_channels: int, time: Literal["sinusoidal", "scalar"]) -> LatentUNet:
        """The network, its weights drawn from torch's global generator."""
        width, heads = self.shape()
        return LatentUNet(
            in_channels,
            out_channels,
            width,
            heads,
            multipliers=self.multipliers,
            dropout=self.dropout,
            time=time,
            checkpointing=self.checkpointing,
            groups=self.groups,
        )


class LatentUNet(nn.Module):
    """Latents x [B, in_channels, h, w] at times [B] to [B, out_channels, h, w]; h and w divisible by `multiple`.

    width:          channels of the first level; level i has width × multipliers[i].
    heads:          of each attention; must divide the channels of every level.
    dropout:        in every residual block, before its second convolution.
    time:           "sinusoidal" takes the time's sines and cosines, as many as `width`, "scalar" the number as it is.
    checkpointing:  attention is computed again in the backward pass, which saves memory.
    encoder_blocks: residual blocks of an encoder level; one more in a decoder level.
    groups:         of every group normalisation.

    The last convolution starts at 0, and so does every residual branch. Raises MethodError for channels that heads or
    groups do not divide, and for latents whose size does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        heads: int,
        *,
        multipliers: Sequence[int] = (1, 2, 4),
        dropout: float = 0.4,
        time: Literal["sinusoidal", "scalar"] = "sinusoidal",
        checkpointing: bool = True,
        encoder_blocks: int = 2,
        groups: int = 32,
    ):
        super().__init__()
        if problem := _cannot_be_built(width, heads, multipliers, groups):
            raise MethodError(problem)
        self.width, self.time = width, time
        self.multiple = 2 ** (len(multipliers) - 1)
        embedding = 4 * width

        def block(inputs: int, outputs: int) -> _Block:
            return _Block(inputs, outputs, embedding, heads, dropout, groups, checkpointing)

        self.embed = nn.Sequential(
            nn.Linear(width if time == "sinusoidal" else 1, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.encoder, self.downs = nn.ModuleList(), nn.ModuleList()
        channels, skipped = width, [width]
        for level, multiplier in enumerate(multipliers):
            blocks = nn.ModuleList()
            for _ in range(encoder_blocks):
                blocks.append(block(channels, width * multiplier))
                channels = width * multiplier
                skipped.append(channels)
            self.encoder.append(blocks)
            if level < len(multipliers) - 1:
                self.downs.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skipped.append(channels)
        self.middle = block(channels, channels)
        self.middle_residual = _Residual(channels, channels, embedding, dropout, groups)
        self.decoder, self.ups = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            blocks = nn.ModuleList()
            for _ in range(encoder_blocks + 1):
                blocks.append(block(channels + skipped.pop(), width * multiplier))
                channels = width * multiplier
            self.decoder.append(blocks)
            if level:
                self.ups.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.head = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), zeroed(nn.Conv2d(width, out_channels, 3, padding=1))
        )

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        return self.head(self.features(x, times))

    def features(self, x: Tensor, times: Tensor) -> Tensor:
        """What the head is given: [B, width, h, w]."""
        if x.shape[2] % self.multiple or x.shape[3] % self.multiple:
            raise MethodError(
                f"latents of {x.shape[2]} × {x.shape[3]} do not fit a U-Net that needs multiples of {self.multiple}"
            )
        embedded = self.embed(self._times(times))
        x = self.stem(x)
        passed = [x]
        for level, blocks in enumerate(self.encoder):
            assert isinstance(blocks, nn.ModuleList)
            for each in blocks:
                x = each(x, embedded)
                passed.append(x)
            if level < len(self.downs):
                x = self.downs[level](x)
                passed.append(x)
        x = self.middle_residual(self.middle(x, embedded), embedded)
        for level, blocks in enumerate(self.decoder):
            assert isinstance(blocks, nn.ModuleList)
            for each in blocks:
                x = each(torch.cat([x, passed.pop()], 1), embedded)
            if level < len(self.ups):
                x = self.ups[level](F.interpolate(x, scale_factor=2, mode="nearest"))
        return x

    def _times(self, times: Tensor) -> Tensor:
        if self.time == "scalar":
            return times.float()[:, None]
        half = self.width // 2
        steps = torch.arange(half, device=times.device, dtype=torch.float32)
        angles = times.float()[:, None] * torch.exp(-math.log(LONGEST_PERIOD) / half * steps)
        return torch.cat([angles.cos(), angles.sin()], 1)


class _Block(nn.Module):
    """A residual block and attention."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, heads: int, dropout: float, groups: int, checkpointing: bool
    ):
        super().__init__()
        self.residual = _Residual(inputs, outputs, embedding, dropout, groups)
        self.attention = _Attention(outputs, heads, groups)
        self.checkpointing = checkpointing

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        x = self.residual(x, embedded)
        if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
            # Nothing in it is random, so there is no generator state to keep.
            return checkpoint(self.attention, x, use_reentrant=False, preserve_rng_state=False)
        return self.attention(x)


class _Residual(nn.Module):
    """x + two normalised 3 × 3 convolutions of it, the time's embedding added between them."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, groups: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.shift = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outputs))
        self.second = nn.Sequential(
            nn.GroupNorm(groups, outputs),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        return self.skip(x) + self.second(self.first(x) + self.shift(embedded)[:, :, None, None])


class _Attention(nn.Module):
    """x + attention of all positions to all, queries, keys and values from one 1 × 1 convolution."""

    def __init__(self, channels: int, heads: int, groups: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        # [B, 3C, h, w] to three of [B, heads, h·w, C / heads]
        queries, keys, values = (
            each.transpose(-1, -2) for each in self.qkv(self.norm(x)).view(b, 3, self.heads, -1, h * w).unbind(1)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return x + self.out(mixed.transpose(-1, -2).reshape(b, c, h, w))


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and biases 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _cannot_be_built(width: int, heads: int, multipliers: Sequence[int], groups: int) -> str | None:
    """Why there is no such network; None where there is."""
    for channels in (width * multiplier for multiplier in multipliers):
        for what, parts in (("heads", heads), ("groups", groups)):
            if channels % parts:
                return (
                    f"a U-Net of width {width} cannot be built with {parts} {what}, which do not divide the "
                    f"{channels} channels of one level"
                )
    return None

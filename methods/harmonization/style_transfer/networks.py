"""The four networks of StarGAN v2 (Choi et al., CVPR 2020), for one domain.

Slices come as [B, C, H, W] in [-1, 1], where the channels are adjacent slices. At the published sizes, for 256 pixels:
generator 33.9 M parameters, style encoder and discriminator 20.9 M each, mapping network 1.6 M.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
HEAD = 4
"""Rows and columns of the convolution that ends a trunk, without padding."""


def widths(base: int, largest: int, downs: int) -> list[int]:
    """Channels before and after each halving: doubled each time, up to `largest`."""
    return [min(base * 2**level, largest) for level in range(downs + 1)]


class Generator(nn.Module):
    """A slice and a style [B, style_dim] to the slice in that style; no tanh, so it may leave [-1, 1].

    The way down normalises, which takes the contrast away; each block of the way up puts the style's in its place.
    """

    def __init__(self, channels: int, base: int, largest: int, downs: int, style_dim: int):
        super().__init__()
        steps = list(pairwise(widths(base, largest, downs)))
        deepest = steps[-1][1]
        self.enter = nn.Conv2d(channels, base, 3, padding=1)
        down = [ResidualBlock(narrow, wide, normalize=True, halve=True) for narrow, wide in steps]
        bottom = [ResidualBlock(deepest, deepest, normalize=True, halve=False) for _ in range(2)]
        self.encode = nn.Sequential(*down, *bottom)
        bottom_styled = [StyledBlock(deepest, deepest, style_dim, enlarge=False) for _ in range(2)]
        up = [StyledBlock(wide, narrow, style_dim, enlarge=True) for narrow, wide in reversed(steps)]
        self.decode = nn.ModuleList([*bottom_styled, *up])
        norm = nn.InstanceNorm2d(base, affine=True)
        self.leave = nn.Sequential(norm, nn.LeakyReLU(SLOPE), nn.Conv2d(base, channels, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = self.encode(self.enter(x))
        for block in self.decode:
            x = block(x, style)
        return self.leave(x)


class Trunk(nn.Module):
    """A slice to features [B, F]: residual blocks without normalisation, each of which halves, and a 4×4 convolution.

    At the published size one position is left at the end; on larger slices the mean over positions is taken (ours).
    """

    def __init__(self, channels: int, base: int, largest: int, downs: int):
        super().__init__()
        steps = list(pairwise(widths(base, largest, downs)))
        self.features = steps[-1][1]
        blocks = [ResidualBlock(narrow, wide, normalize=False, halve=True) for narrow, wide in steps]
        head = nn.Conv2d(self.features, self.features, HEAD)
        enter = nn.Conv2d(channels, base, 3, padding=1)
        self.layers = nn.Sequential(enter, *blocks, nn.LeakyReLU(SLOPE), head, nn.LeakyReLU(SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))


class StyleEncoder(nn.Module):
    """A slice to its style [B, style_dim]."""

    def __init__(self, channels: int, base: int, largest: int, downs: int, style_dim: int):
        super().__init__()
        self.trunk = Trunk(channels, base, largest, downs)
        self.leave = nn.Linear(self.trunk.features, style_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.trunk(x))


class Discriminator(nn.Module):
    """A slice to a logit [B]: real above 0. (The mean over positions is taken before the last, linear layer.)"""

    def __init__(self, channels: int, base: int, largest: int, downs: int):
        super().__init__()
        self.trunk = Trunk(channels, base, largest, downs)
        self.leave = nn.Linear(self.trunk.features, 1)  # a 1×1 convolution on one position

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.trunk(x))[:, 0]


class Mapping(nn.Sequential):
    """A latent [B, latent_dim], drawn from N(0, 1), to a style [B, style_dim]: seven hidden layers of one width."""

    def __init__(self, latent_dim: int, width: int, style_dim: int):
        layers: list[nn.Module] = []
        for entering in (latent_dim, *[width] * 6):
            layers += [nn.Linear(entering, width), nn.ReLU()]
        super().__init__(*layers, nn.Linear(width, style_dim))


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, summed and divided by √2; with `halve`, average pooling by 2 in both."""

    def __init__(self, narrow: int, wide: int, *, normalize: bool, halve: bool):
        super().__init__()
        self.halve = halve
        self.first = nn.Sequential(*_activated(narrow, normalize), nn.Conv2d(narrow, narrow, 3, padding=1))
        self.second = nn.Sequential(*_activated(narrow, normalize), nn.Conv2d(narrow, wide, 3, padding=1))
        self.shortcut = _shortcut(narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        straight, bent = self.shortcut(x), self.first(x)
        if self.halve:
            straight, bent = F.avg_pool2d(straight, 2), F.avg_pool2d(bent, 2)
        return (straight + self.second(bent)) / math.sqrt(2)


class StyledBlock(nn.Module):
    """A residual block whose normalisations take scale and shift from the style; with `enlarge`, nearest ×2 in both."""

    def __init__(self, wide: int, narrow: int, style_dim: int, *, enlarge: bool):
        super().__init__()
        self.enlarge = enlarge
        self.first_norm, self.second_norm = StyledNorm(wide, style_dim), StyledNorm(narrow, style_dim)
        self.first, self.second = nn.Conv2d(wide, narrow, 3, padding=1), nn.Conv2d(narrow, narrow, 3, padding=1)
        self.shortcut = _shortcut(wide, narrow)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        bent = F.leaky_relu(self.first_norm(x, style), SLOPE)
        if self.enlarge:
            x, bent = (F.interpolate(each, scale_factor=2, mode="nearest") for each in (x, bent))
        bent = F.leaky_relu(self.second_norm(self.first(bent), style), SLOPE)
        return (self.shortcut(x) + self.second(bent)) / math.sqrt(2)


class StyledNorm(nn.Module):
    """Instance normalisation, times 1 + γ plus β, both linear in the style (adaptive instance normalisation)."""

    def __init__(self, width: int, style_dim: int):
        super().__init__()
        self.norm = nn.InstanceNorm2d(width)
        self.affine = nn.Linear(style_dim, 2 * width)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.affine(style)[:, :, None, None].chunk(2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


def initialize_he(module: nn.Module) -> None:
    """Weights from N(0, 2 / fan-in), biases 0, in place (He et al., ICCV 2015)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _activated(width: int, normalize: bool) -> list[nn.Module]:
    norm = [nn.InstanceNorm2d(width, affine=True)] if normalize else []
    return [*norm, nn.LeakyReLU(SLOPE)]


def _shortcut(entering: int, leaving: int) -> nn.Module:
    return nn.Identity() if entering == leaving else nn.Conv2d(entering, leaving, 1, bias=False)

"""The residual attention network for ages, of the sizes of the public code."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.brain_age.learning import AgeHead

EPSILON = 1e-3  # Keras default of normalisations
FLOOR = 1e-6  # least variance, of the public code
DEPTHS = (3, 2, 0)
"""How often the mask of each stage's attention module halves the sides; that of the last has another form."""
POOLED = 4  # side of the last average pooling
MULTIPLE = 64
"""What the side of a slice must be a multiple of: four halvings, and the last pooling."""


class AttentionNetwork(nn.Module):
    """Slices [B, 1, S, S] to ages and variances, [B, 2].

    widths: (f1, f2, f3) of the first stage's bottlenecks, doubled in each of the other two. f1 is also the stem's.
    mean: where the age begins.
    """

    def __init__(self, widths: tuple[int, int, int], side: int, momentum: float, mean: float = 0.0):
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, 2)
        self.stem_norm = _norm(widths[0], momentum)
        first, second, third = (_times(widths, factor) for factor in (1, 2, 4))
        self.first = _stage(widths[0], first, 1, DEPTHS[0], momentum)
        self.second = _stage(first[-1], second, 2, DEPTHS[1], momentum)
        self.third = _stage(second[-1], third, 2, DEPTHS[2], momentum)
        self.last = nn.Sequential(Unit(third, momentum), Unit(third, momentum), _norm(third[-1], momentum), nn.ReLU())
        features = third[-1] * (side // MULTIPLE) ** 2
        self.mean = AgeHead(features, mean)
        self.spread = AgeHead(features)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for head in (self.mean, self.spread):
            nn.init.xavier_normal_(head.weight)

    def stemmed(self, pixels: Tensor) -> Tensor:
        """What the first stage is given, [B, f1, S / 4, S / 4]."""
        found = F.relu(self.stem_norm(self.stem(F.pad(pixels, (0, 1, 0, 1)))))  # padded behind, as TensorFlow does
        return _pooled(found)

    def features(self, pixels: Tensor) -> Tensor:
        """What both outputs are linear in, [B, 4 × f3 × (S / 64)²]."""
        found = self.last(self.third(self.second(self.first(self.stemmed(pixels)))))
        return F.avg_pool2d(found, POOLED).flatten(1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features(pixels)
        return torch.stack([self.mean(features), F.softplus(self.spread(features)) + FLOOR], dim=1)


def negative_log_likelihood(outputs: Tensor, ages: Tensor) -> Tensor:
    """Mean of ½ log v + ½ (y − μ)² / v, of outputs [B, 2] = (μ, v) and ages y [B]; less a constant."""
    mean, variance = outputs.float().unbind(1)
    return 0.5 * (variance.log() + (ages - mean) ** 2 / variance).mean()


class Unit(nn.Module):
    """Normalisation, ReLU and a convolution, of 1×1, 3×3 and 1×1 in turn, added to the input.

    Where `channels` are given, or the stride is 2, the input too is normalised and convolved, 1×1.
    """

    def __init__(self, widths: tuple[int, int, int], momentum: float, *, channels: int | None = None, stride: int = 1):
        super().__init__()
        narrow, middle, wide = widths
        entering = wide if channels is None else channels
        self.stride = stride
        self.squeeze = _convolution(entering, narrow, momentum)
        self.look_norm = _norm(narrow, momentum)
        self.look = nn.Conv2d(narrow, middle, 3, stride, 1 if stride == 1 else 0)
        self.widen = _convolution(middle, wide, momentum)
        self.shortcut = nn.Identity() if channels is None else _convolution(entering, wide, momentum, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.look_norm(self.squeeze(x)))
        if self.stride == 2:
            inner = F.pad(inner, (0, 1, 0, 1))  # behind, as TensorFlow does
        return self.widen(self.look(inner)) + self.shortcut(x)


class Attention(nn.Module):
    """A unit, then a trunk of two whose result is multiplied by 1 + a mask in 0..1 of its own size, then a unit.

    depth: how often the mask halves the sides; 0: it is two units and a sigmoid, and the trunk two 1×1 convolutions.
    """

    def __init__(self, widths: tuple[int, int, int], depth: int, momentum: float):
        super().__init__()
        wide = widths[-1]
        self.before = Unit(widths, momentum)
        two_units = [Unit(widths, momentum), Unit(widths, momentum)]
        two_convolutions = [_convolution(wide, wide, momentum), _convolution(wide, wide, momentum)]
        if depth:
            self.trunk = nn.Sequential(*two_units)
            self.mask = nn.Sequential(Glances(widths, depth, momentum), *two_convolutions, nn.Sigmoid())
        else:
            self.trunk = nn.Sequential(*two_convolutions)
            self.mask = nn.Sequential(*two_units, nn.Sigmoid())
        self.after = Unit(widths, momentum)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.trunk(x) * (1 + self.mask(x)))


class Glances(nn.Module):
    """Down `depth` halvings and up again: the size of the input, seen from ever farther away."""

    def __init__(self, widths: tuple[int, int, int], depth: int, momentum: float):
        super().__init__()
        self.down = nn.ModuleList([Unit(widths, momentum) for _ in range(depth)])
        self.across = nn.ModuleList([Unit(widths, momentum) for _ in range(depth - 1)])
        self.bottom = Unit(widths, momentum)
        self.up = nn.ModuleList([Unit(widths, momentum) for _ in range(depth - 1)])

    def forward(self, x: Tensor) -> Tensor:
        sizes, kept = [x.shape[-2:]], []
        for level, unit in enumerate(self.down):
            x = unit(_pooled(x))
            if level < len(self.across):
                kept.append(self.across[level](x))
                sizes.append(x.shape[-2:])
        x = self.bottom(x)
        for unit in self.up:
            x = unit(_enlarged(x, sizes.pop()) + kept.pop())
        return _enlarged(x, sizes.pop())


def _stage(channels: int, widths: tuple[int, int, int], stride: int, depth: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(
        Unit(widths, momentum, channels=channels, stride=stride),
        Attention(widths, depth, momentum),
    )


def _convolution(channels: int, wide: int, momentum: float, stride: int = 1) -> nn.Sequential:
    """Normalisation, ReLU, and a 1×1 convolution."""
    return nn.Sequential(_norm(channels, momentum), nn.ReLU(), nn.Conv2d(channels, wide, 1, stride))


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=momentum)


def _pooled(x: Tensor) -> Tensor:
    """The largest of 3 × 3 pixels, every second; even sides are halved, and continued behind, as TensorFlow does."""
    return F.max_pool2d(x, 3, 2, ceil_mode=True)


def _enlarged(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _times(widths: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    return (widths[0] * factor, widths[1] * factor, widths[2] * factor)

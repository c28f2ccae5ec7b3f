"""What normalising flows share: layers that know their log-determinant, how they are chained, and bits per dimension.

A `Layer` maps x [B, C, H, W] to y, and back. Its log-determinant log|det dy/dx| is summed over all dimensions of a
sample, [B]. Layers that draw noise or leave out part of their input have no place here; those of one method stay with
that method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Layer(nn.Module, ABC):
    """An invertible map of images."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, log|det dy/dx| [B])."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """The x that `forward` maps to y."""


class Chain(Layer):
    """Layers one after the other."""

    def __init__(self, layers: Iterable[Layer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        for layer in reversed(self.layers):
            assert isinstance(layer, Layer)
            y = layer.inverse(y)
        return y


class Squeeze(Layer):
    """2 × 2 blocks of pixels become channels: [B, C, H, W] to [B, 4C, H/2, W/2]. H and W must be even."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, 2)


class Logit(Layer):
    """y = logit(α/2 + (1 − α)·x) for x in [0, 1]: the shrinkage by α keeps both ends finite."""

    def __init__(self, alpha: float = 1e-5):
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shrunk = self.alpha / 2 + (1 - self.alpha) * x
        slope = math.log(1 - self.alpha) - shrunk.log() - (1 - shrunk).log()
        return shrunk.log() - (1 - shrunk).log(), slope.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return (y.sigmoid() - self.alpha / 2) / (1 - self.alpha)


class Sigmoid(Layer):
    """y = 1 / (1 + exp(−x)), into (0, 1)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sigmoid(), (F.logsigmoid(x) + F.logsigmoid(-x)).flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return y.log() - (1 - y).log()


def normal_log_density(z: Tensor) -> Tensor:
    """log N(z; 0, I) of each sample, [B]."""
    return -0.5 * (z.square() + math.log(2 * math.pi)).flatten(1).sum(1)


def logistic_log_density(z: Tensor) -> Tensor:
    """Log-density of independent standard logistic variables, [B]."""
    return (F.logsigmoid(z) + F.logsigmoid(-z)).flatten(1).sum(1)


def bits_per_dimension(log_likelihood: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """−log₂ p(x) / (C·H·W) of samples [B, C, H, W] with log-likelihood (nats) [B]."""
    return -log_likelihood / (math.log(2) * math.prod(shape[1:]))

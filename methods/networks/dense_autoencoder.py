"""The convolutional autoencoder with a dense bottleneck, plain and variational, of the comparison by Baur et al. 2021.

Convolutions of stride 2 halve a slice until its shorter side has 8 to 15 pixels; a vector describes what is left. For
slices of 64, 128 and 256 pixels the plain one has 1.19, 1.63 and 2.06 M parameters.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from harness.api import MethodError, Settings, hyper

PAPER = "Baur et al., Medical Image Analysis 2021"
CODE = f"{PAPER}, public code"
COARSEST = 8  # pixels of the shorter side below which nothing is halved


class DenseArchitecture(Settings):
    """Sizes of the network. Stages have `width` · 1, 2, 4, 4 … channels downwards, and 4, 2, 1, 1 … upwards."""

    width: int = hyper(32, "channels of the first stage; no stage has more than 4 times as many", origin=CODE, ge=2)
    latent: int = hyper(128, "length of the vector that describes a slice", origin=CODE, ge=1)
    spatial: bool = hyper(
        False,
        "the description stays a map of a few channels, without fully connected layers (the paper's spatial variant)",
        origin=PAPER,
    )
    dropout: float = hyper(0.2, "probability of dropout about the description", origin=CODE, ge=0, lt=1)
    normalisation: Literal["none", "batch"] = hyper(
        "none",
        "batch: batch normalisation after each 5 × 5 convolution",
        origin="the authors on their code, whose default is batch: the paper's figures are without it",
    )
    slope: float = hyper(0.3, "slope of the leaky ReLU below 0", origin="Keras default, which the code uses", ge=0)


def stages_of(size: tuple[int, int]) -> int:
    """How often slices of `size` (H, W) are halved. Raises MethodError where that leaves a remainder."""
    stages = int(math.log2(max(1, min(size) // COARSEST)))
    if stages < 1 or any(side % 2**stages for side in size):
        raise MethodError(
            f"slices are {size[0]} × {size[1]} pixels; the autoencoder needs at least {2 * COARSEST} a side, and "
            f"multiples of {2 ** max(1, stages)}: prepare slices of another size"
        )
    return stages


class _Dense(nn.Module):
    """Encoder, heads, and decoder for slices [B, 1, H, W], whose reconstructions may have any range.

    Encoder: 5 × 5 convolutions of stride 2, each with a leaky ReLU. Bottleneck: 1 × 1 to an eighth of the channels,
    fully connected to `latent` and back, 1 × 1 to the channels as before, ReLU. Decoder: transposed convolutions
    likewise, then 1 × 1 to one channel. Dropout acts on the description and on what is fully connected back.
    """

    def __init__(self, size: tuple[int, int], architecture: DenseArchitecture, heads: int):
        super().__init__()
        stages, width = stages_of(size), architecture.width
        down = [min(4 * width, width * 2**i) for i in range(stages)]
        up = [max(width, 4 * width // 2**i) for i in range(stages)]
        narrow = max(1, down[-1] // 8)
        grid = (narrow, size[0] >> stages, size[1] >> stages)
        self.size = size
        self.description = grid if architecture.spatial else (architecture.latent,)
        self.encoder = nn.Sequential(
            *(
                layer
                for before, after in zip([1, *down], down, strict=False)
                for layer in (nn.Conv2d(before, after, 5, 2, 2), *_after(after, architecture))
            ),
            nn.Conv2d(down[-1], narrow, 1),
        )
        self.heads = nn.ModuleList(_head(grid, architecture, heads) for _ in range(heads))
        self.dropout = nn.Dropout(architecture.dropout)
        self.expand = nn.Identity() if architecture.spatial else _expansion(grid, architecture)
        self.decoder = nn.Sequential(
            nn.Conv2d(narrow, down[-1], 1),
            *_normal(down[-1], architecture),
            nn.ReLU(),
            *(
                layer
                for before, after in zip([down[-1], *up], up, strict=False)
                for layer in (
                    nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=1),
                    *_after(after, architecture),
                )
            ),
            nn.Conv2d(up[-1], 1, 1),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)  # the default of TensorFlow, in which the code is written
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def encode(self, x: Tensor) -> list[Tensor]:
        """What each head says of slices, [B, *description]."""
        found = self.encoder(x)
        return [self.dropout(head(found)) for head in self.heads]

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions [B, 1, H, W] of descriptions [B, *description]."""
        return self.decoder(self.expand(z))


class DenseAutoencoder(_Dense):
    """Slices [B, 1, H, W] to their reconstructions of the same shape, of any range; see `_Dense`."""

    def __init__(self, size: tuple[int, int], architecture: DenseArchitecture):
        super().__init__(size, architecture, heads=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)[0])


class DenseVariational(_Dense):
    """The same with two heads: a slice is described by a normal distribution for each entry of the description."""

    def __init__(self, size: tuple[int, int], architecture: DenseArchitecture):
        super().__init__(size, architecture, heads=2)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions, and means and logarithms of the standard deviations of the descriptions.

        noise: standard normal, [B, *description]; None reconstructs from the means.
        """
        mean, log_deviation = self.encode(x)
        z = mean if noise is None else mean + noise * log_deviation.exp()
        return self.decode(z), mean, log_deviation


def divergence(mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Kullback–Leibler divergence of N(mean, deviation²) from N(0, 1) for each of B descriptions, [B]; 0 or more."""
    each = mean.square() + (2 * log_deviation).exp() - 1 - 2 * log_deviation
    return 0.5 * each.flatten(1).sum(1)


def _normal(channels: int, architecture: DenseArchitecture) -> tuple[nn.Module, ...]:
    return (nn.BatchNorm2d(channels),) if architecture.normalisation == "batch" else ()


def _after(channels: int, architecture: DenseArchitecture) -> tuple[nn.Module, ...]:
    return (*_normal(channels, architecture), nn.LeakyReLU(architecture.slope))


def _head(grid: tuple[int, int, int], architecture: DenseArchitecture, heads: int) -> nn.Module:
    """From the bottleneck's map to a description. A lone spatial one is that map itself."""
    if architecture.spatial:
        return nn.Identity() if heads == 1 else nn.Conv2d(grid[0], grid[0], 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(grid), architecture.latent))


def _expansion(grid: tuple[int, int, int], architecture: DenseArchitecture) -> nn.Module:
    return nn.Sequential(
        nn.Linear(architecture.latent, math.prod(grid)), nn.Dropout(architecture.dropout), nn.Unflatten(1, grid)
    )

"""The flow of BlindHarmony: Glow with rational-quadratic splines (Durkan et al., Neural Spline Flows, NeurIPS 2019).

    x ─ squeeze ─ steps × (normalise, mix, couple) ─ mix ─ half the channels leave as latents, the rest goes on ─ ...

The last scale keeps all of its channels. There and back, errors must stay below a level of a 12-bit image, 1/4096, in
float32: so mixing is a matrix product, which a GPU does not round to 10 bits as it does a convolution.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.harmonization.blind_harmony.settings import FlowSettings
from methods.networks.flow import Chain, Layer, Squeeze, normal_log_density
from methods.networks.rational_quadratic import parameters_per_spline, rational_quadratic

LEAST_PIVOT = 1e-3  # keeps a mixing matrix from losing rank
LEAST_DEVIATION = 1e-6  # of a channel that the first batch leaves constant


class ActNorm(Layer):
    """y = exp(s)·x + t for each channel; s and t bring the first batch of the training to mean 0 and deviation 1."""

    initialized: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.initialized:
            self._initialize(x)
        log_det = self.log_scale.sum() * (x.shape[2] * x.shape[3])
        return x * self.log_scale.exp()[:, None, None] + self.shift[:, None, None], log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift[:, None, None]) * (-self.log_scale).exp()[:, None, None]

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.log_scale.copy_(-deviation.clamp(min=LEAST_DEVIATION).log())
        self.shift.copy_(-mean * self.log_scale.exp())
        self.initialized.fill_(True)


class Mixing(Layer):
    """A 1 × 1 convolution: channels in a fixed random order, times a matrix L·U, plus a bias.

    L has ones on its diagonal, U positive numbers: the determinant is their product. Both start as the identity.
    """

    order: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))
        self.lower = nn.Parameter(torch.zeros(channels * (channels - 1) // 2))
        self.upper = nn.Parameter(torch.zeros(channels * (channels - 1) // 2))
        self.pivots = nn.Parameter(torch.full((channels,), math.log(math.expm1(1 - LEAST_PIVOT))))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, pivots = self._factors()
        y = torch.matmul(lower @ upper, x[:, self.order].flatten(2)) + self.bias[:, None]
        log_det = pivots.log().sum() * (x.shape[2] * x.shape[3])
        return y.view_as(x), log_det.expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        lower, upper, _ = self._factors()
        x = (y.flatten(2) - self.bias[:, None]).transpose(0, 1).flatten(1)
        x = torch.linalg.solve_triangular(lower, x, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, x, upper=True)
        x = x.view(y.shape[1], len(y), *y.shape[2:]).transpose(0, 1)
        return x[:, self.order.argsort()]

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """L, U and the diagonal of U."""
        channels = len(self.pivots)
        pivots = F.softplus(self.pivots) + LEAST_PIVOT
        rows, columns = torch.tril_indices(channels, channels, -1, device=self.bias.device)
        lower = torch.eye(channels, dtype=pivots.dtype, device=pivots.device).index_put((rows, columns), self.lower)
        upper = torch.diag(pivots).index_put((columns, rows), self.upper)
        return lower, upper, pivots


class ResidualBlock(nn.Module):
    """x + two 3 × 3 convolutions of x, each after batch normalisation and ReLU; almost x at first."""

    def __init__(self, channels: int):
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        for parameter in last.parameters():
            nn.init.uniform_(parameter, -1e-3, 1e-3)
        before, between = (nn.BatchNorm2d(channels, eps=1e-3) for _ in range(2))
        self.layers = nn.Sequential(before, nn.ReLU(), first, between, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class SplineCoupling(Layer):
    """Channels [B, C, H, W], C even: the first half passes unchanged and bends the second half, pixel by pixel."""

    def __init__(self, channels: int, settings: FlowSettings):
        super().__init__()
        self.kept, self.bound, self.minimum = channels // 2, settings.bound, settings.minimum
        self.each = parameters_per_spline(settings.bins)
        self.bins, self.softness = settings.bins, math.sqrt(settings.hidden)
        hidden = settings.hidden
        self.network = nn.Sequential(
            nn.Conv2d(self.kept, hidden, 1),
            *(ResidualBlock(hidden) for _ in range(settings.blocks)),
            nn.Conv2d(hidden, (channels - self.kept) * self.each, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, bent = x[:, : self.kept], x[:, self.kept :]
        bent, log_slope = rational_quadratic(bent, self._splines(kept), bound=self.bound, minimum=self.minimum)
        return torch.cat([kept, bent], 1), log_slope.sum((1, 2, 3))

    def inverse(self, y: Tensor) -> Tensor:
        kept, bent = y[:, : self.kept], y[:, self.kept :]
        splines = self._splines(kept)
        bent, _ = rational_quadratic(bent, splines, bound=self.bound, minimum=self.minimum, inverse=True)
        return torch.cat([kept, bent], 1)

    def _splines(self, kept: Tensor) -> Tensor:
        """Parameters [B, C − C/2, H, W, 3K − 1]."""
        raw = self.network(kept).to(kept.dtype)
        raw = raw.unflatten(1, (-1, self.each)).movedim(2, -1)
        # Widths and heights pass a softmax, which wide networks would drive to its ends at the start.
        scale = torch.ones(self.each, dtype=raw.dtype, device=raw.device)
        scale[: 2 * self.bins] = 1 / self.softness
        return raw * scale


class SplineGlow(nn.Module):
    """The whole flow: slices x [B, 1, H, W] to latents, one tensor for each scale. H and W divisible by `multiple`."""

    def __init__(self, settings: FlowSettings):
        super().__init__()
        self.multiple = 2**settings.levels
        self.scales = nn.ModuleList()
        channels = 1
        for _ in range(settings.levels):
            channels *= 4
            layers: list[Layer] = [Squeeze()]
            for _ in range(settings.steps):
                layers += [ActNorm(channels), Mixing(channels), SplineCoupling(channels, settings)]
            self.scales.append(Chain([*layers, Mixing(channels)]))
            channels //= 2  # the half that goes on

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """(latents, log|det| [B])."""
        latents, total = [], x.new_zeros(len(x))
        for scale in self.scales:
            x, log_det = scale(x)
            total = total + log_det
            if scale is not self.scales[-1]:
                leaving, x = x.chunk(2, 1)
                latents.append(leaving)
        return [*latents, x], total

    def inverse(self, latents: list[Tensor]) -> Tensor:
        x = latents[-1]
        for scale, leaving in zip(reversed(self.scales), [None, *reversed(latents[:-1])], strict=True):
            assert isinstance(scale, Chain)
            x = scale.inverse(x if leaving is None else torch.cat([leaving, x], 1))
        return x

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Log-density of slices, nats [B]."""
        latents, log_det = self(x)
        return log_det + torch.stack([normal_log_density(z) for z in latents]).sum(0)

"""The flow of Harmonizing Flows: a density over whole slices of the source, background included.

    x in 0..255 ─ variational dequantiser ─▶ (x + u) / 256 in (0, 1) ─ logit ─▶ couplings, squeeze, couplings,
    squeeze, couplings ─▶ z [B, 16, H/4, W/4] ~ N(0, I)

No dimension is factored out, and there is no activation normalisation and no invertible convolution. All of it is
differentiable in x, which is how the likelihood teaches the harmoniser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.harmonization.harmonizing_flows.blocks import ChannelNorm, ConcatEluConv, upsample
from methods.networks.flow import (
    Chain,
    Layer,
    Logit,
    Sigmoid,
    Squeeze,
    bits_per_dimension,
    logistic_log_density,
    normal_log_density,
)

SCALES = 3  # full, half and quarter resolution
LEVELS = 256  # grey levels


class Conditioner(nn.Module):
    """U-Net [B, inputs, H, W] to [B, outputs, H, W]: one normalised 3 × 3 convolution at each scale, down and up.

    H and W must be divisible by 2^(number of widths − 1). The last convolution starts at 0, so that a coupling
    starts as the identity (ours).
    """

    def __init__(self, inputs: int, outputs: int, widths: Sequence[int]):
        super().__init__()
        down = list(zip([inputs, *widths[:-1]], widths, strict=True))
        up = [(narrow + wide, narrow) for narrow, wide in pairwise(widths)][::-1]
        self.down = nn.ModuleList(nn.Sequential(ConcatEluConv(a, b), ChannelNorm(b)) for a, b in down)
        self.up = nn.ModuleList(nn.Sequential(ConcatEluConv(a, b), ChannelNorm(b)) for a, b in up)
        self.head = nn.Conv2d(widths[0], outputs, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        passed = []
        for scale, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if scale else x)
            passed.append(x)
        passed.pop()
        for block in self.up:
            x = block(torch.cat([upsample(x), passed.pop()], 1))
        return self.head(x)


class Coupling(Layer):
    """y = (x + t)·exp(s) where the mask is 0, y = x where it is 1; s and t are read off what the mask keeps.

    s = tanh(s′ / eᵃ)·eᵃ keeps each scale within a bound that is learnt for each channel (a starts at 0).

    mask:    "checkerboard" over pixels, or the first half of the "channels".
    parity:  couplings of odd parity keep the other half.
    context: channels of a picture that the conditioner also sees.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        mask: Literal["checkerboard", "channels"],
        parity: int,
        context: int = 0,
    ):
        super().__init__()
        self.mask, self.parity = mask, parity % 2
        self.log_bound = nn.Parameter(torch.zeros(channels, 1, 1))
        self.conditioner = Conditioner(channels + context, 2 * channels, widths)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        s, t = self._scale_and_shift(x, context)
        return (x + t) * s.exp(), s.sum((1, 2, 3))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        s, t = self._scale_and_shift(y, context)
        return y * (-s).exp() - t

    def _scale_and_shift(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, both 0 where the mask is 1, [B, C, H, W]."""
        kept = self._kept(x)
        seen = x * kept
        raw = self.conditioner(seen if context is None else torch.cat([seen, context], 1))
        s, t = raw.to(x.dtype).chunk(2, 1)  # sums of s need full precision, whatever the conditioner computes in
        bound = self.log_bound.exp()
        moved = 1 - kept
        return torch.tanh(s / bound) * bound * moved, t * moved

    def _kept(self, x: Tensor) -> Tensor:
        """The mask: 1 for what passes unchanged, broadcastable to x."""
        _, channels, height, width = x.shape
        if self.mask == "channels":
            first = torch.arange(channels, device=x.device) < channels // 2
            kept = first[:, None, None] if self.parity == 0 else ~first[:, None, None]
        else:
            rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
            kept = (rows[:, None] + columns) % 2 == self.parity
        return kept.to(x.dtype)


class VariationalDequantizer(nn.Module):
    """Grey levels x [B, 1, H, W] in 0..255 to (x + u) / 256 in (0, 1), where u ~ q(u | x) is learnt.

    u starts uniform and passes, in logit space, through couplings that see the picture. The second result is the
    log-determinant of the division minus log q(u | x), [B]: added to the log-density of the first, it is a
    single-sample lower bound of log P(x).
    """

    def __init__(self, couplings: int, widths: Sequence[int], alpha: float):
        super().__init__()
        self.logit, self.sigmoid = Logit(alpha), Sigmoid()
        self.couplings = nn.ModuleList(Coupling(1, widths, "checkerboard", i, context=1) for i in range(couplings))

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        u, log_det = self.dequantize(noise, x)
        return (x + u) / LEVELS, log_det - math.log(LEVELS) * x[0].numel()

    def dequantize(self, noise: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(u in (0, 1), log|det du/dnoise| [B]) for uniform noise of the shape of x."""
        picture = x / ((LEVELS - 1) / 2) - 1  # to [−1, 1]
        u, total = self.logit(noise)
        for coupling in self.couplings:
            u, log_det = coupling(u, picture)
            total = total + log_det
        u, log_det = self.sigmoid(u)
        return u, total + log_det


class SliceFlow(nn.Module):
    """Bits per dimension of slices: [B, 1, H, W], grey levels 0..255 that need not be integers, to [B].

    H and W must be multiples of `multiple`. `couplings` are split evenly over the three scales; the
    dequantiser's are extra.
    """

    def __init__(
        self,
        couplings: int,
        widths: Sequence[int],
        dequantizer_couplings: int,
        alpha: float = 1e-5,
        base: Literal["normal", "logistic"] = "normal",
    ):
        super().__init__()
        if couplings % SCALES:
            raise ValueError(f"{couplings} couplings cannot be split evenly over {SCALES} scales")
        self.multiple = size_multiple(widths)
        self.base = base
        self.dequantizer = VariationalDequantizer(dequantizer_couplings, widths, alpha)
        each = couplings // SCALES
        layers: list[Layer] = [Logit(alpha)]
        layers += [Coupling(1, widths, "checkerboard", i) for i in range(each)]
        for channels in (4, 16):
            layers += [Squeeze(), *(Coupling(channels, widths, "channels", i) for i in range(each))]
        self.chain = Chain(layers)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Bits per dimension of each slice, from one draw of the dequantisation noise."""
        unit, log_likelihood = self.dequantizer(x, generator)
        z, log_det = self.chain(unit)
        density = normal_log_density if self.base == "normal" else logistic_log_density
        return bits_per_dimension(log_likelihood + log_det + density(z), x.shape)


def size_multiple(widths: Sequence[int]) -> int:
    """What a flow's rows and columns must be divisible by: two squeezes, then the conditioner's poolings."""
    return int(2 ** (SCALES - 1 + len(widths) - 1))


def guided_loss(bpd: Tensor, label: Tensor, margin: float) -> Tensor:
    """Mean over a batch of max(label·BPD, −margin); bpd and label [B], label 1 for source and −1 for augmented.

    Augmented slices are made less likely until their bits per dimension exceed the margin; from there on they
    have no gradient.
    """
    return (label * bpd).clamp(min=-margin).mean()

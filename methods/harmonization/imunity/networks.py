"""The networks of ImUnity: the generator, a U-shaped variational autoencoder, and a classifier that seeks the site."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # ours: the PatchGAN's, which the generator plays against
LOG_VARIANCE_LIMIT = 10.0  # ours: beyond e^±10 a variance is lost in float32 rounding


class Code(NamedTuple):
    """What the encoder makes of [content, style]: mu, log_variance [B, C, h, w], and the features that skip the latent,
    finest first."""

    mu: Tensor
    log_variance: Tensor
    skips: tuple[Tensor, ...]


class Generator(nn.Module):
    """Content and style slices [B, 1, H, W] in [0, 1] to the content in the contrast of the style, [B, 1, H, W].

    Each level halves the resolution, so L widths need H and W divisible by 2^L, and the latent is H / 2^L × W / 2^L.
    Nothing passes from encoder to decoder at full resolution. With `skips`, the coarser levels above the latent do;
    without, all goes through it.
    """

    def __init__(self, widths: tuple[int, ...], latent_channels: int, skips: bool):
        super().__init__()
        narrower = (2, *widths[:-1])  # the two slices enter as channels
        self.down = nn.ModuleList(
            # Without normalisation at first: it would take away the brightness that tells contrasts apart.
            nn.Sequential(*_convolution(narrow, wide, stride=2, normalize=i > 0), *_convolution(wide, wide))
            for i, (narrow, wide) in enumerate(zip(narrower, widths, strict=True))
        )
        self.heads = nn.Conv2d(widths[-1], 2 * latent_channels, 1)
        self.enter = nn.Conv2d(latent_channels, widths[-1], 1)
        coarse_to_fine = (*widths[::-1], widths[0])
        self.up = nn.ModuleList(nn.Sequential(*_convolution(wide, narrow)) for wide, narrow in pairwise(coarse_to_fine))
        joined = [2 * width if skips else width for width in widths[-2::-1]] + [widths[0]]
        self.merge = nn.ModuleList(
            nn.Sequential(*_convolution(wide, narrow)) for wide, narrow in zip(joined, coarse_to_fine[1:], strict=True)
        )
        self.paint = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.skips = skips

    def encode(self, content: Tensor, style: Tensor) -> Code:
        x = torch.cat([content, style], 1)
        features = []
        for level in self.down:
            x = level(x)
            features.append(x)
        mu, log_variance = self.heads(x).float().chunk(2, 1)  # variances need more than half precision
        log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return Code(mu, log_variance, tuple(features[:-1]) if self.skips else ())

    def decode(self, z: Tensor, skips: tuple[Tensor, ...]) -> Tensor:
        """Pixels in [0, 1] by a sigmoid; the background is whatever comes out, so mask it."""
        x = self.enter(z)
        for i, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            x = up(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # leaves no checkerboard
            if i < len(skips):
                x = torch.cat([x, skips[-1 - i]], 1)
            x = merge(x)
        return self.paint(x).float().sigmoid()

    def forward(self, content: Tensor, style: Tensor) -> Tensor:
        """The translation with z = mu: no draws."""
        code = self.encode(content, style)
        return self.decode(code.mu, code.skips)


class SiteClassifier(nn.Module):
    """Latent codes [B, C, h, w] to the logits of `sites`, [B, sites]: two convolutions, mean over space, linear."""

    def __init__(self, channels: int, width: int, sites: int):
        super().__init__()
        self.layers = nn.Sequential(
            # Over the whole code: it cannot hide by being small, and what its channels' means tell is kept.
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(1, width),
            nn.LeakyReLU(SLOPE),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, sites),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def reparameterize(code: Code, generator: torch.Generator) -> Tensor:
    """z = mu + sigma ε, ε from N(0, 1)."""
    noise = torch.randn(code.mu.shape, generator=generator, device=code.mu.device)
    return code.mu + (0.5 * code.log_variance).exp() * noise


def kl_divergence(code: Code) -> Tensor:
    """KL(N(mu, sigma²) ‖ N(0, 1)) ≥ 0 in nats, the mean over the batch and over all entries of the code."""
    return 0.5 * (code.mu.square() + code.log_variance.exp() - 1 - code.log_variance).mean()


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Cross-entropy of the classifier's answer, logits [B, K], to the uniform distribution: ln K at best."""
    return -logits.float().log_softmax(1).mean()


def _convolution(inputs: int, outputs: int, stride: int = 1, normalize: bool = True) -> list[nn.Module]:
    kernel = 3 if stride == 1 else 4
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, 1)]
    if normalize:
        layers.append(nn.InstanceNorm2d(outputs))
    return [*layers, nn.LeakyReLU(SLOPE)]

"""The network of MAD-AD: a latent U-Net with two heads."""

from __future__ import annotations

from torch import Tensor, nn

from methods.networks.latent_unet import LatentUNet, UNetSettings, zeroed


class MaskedDenoiser(nn.Module):
    """Latents [B, C, h, w] at times [B] to (clean latents [B, C, h, w], logits of being noisy [B, 1, h, w]).

    Both heads start at 0, so that the probability of being noisy starts at 1/2.
    """

    unet: LatentUNet

    def __init__(self, channels: int, settings: UNetSettings):
        super().__init__()
        self.unet = settings.build(channels, channels, "sinusoidal")
        width, _ = settings.shape()
        self.mask = nn.Sequential(nn.GroupNorm(settings.groups, width), zeroed(nn.Conv2d(width, 1, 3, padding=1)))

    def forward(self, latents: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        features = self.unet.features(latents, times)
        return self.unet.head(features), self.mask(features)

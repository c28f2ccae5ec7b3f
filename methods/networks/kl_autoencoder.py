"""The variational autoencoder of latent diffusion (Rombach et al., CVPR 2022), for slices of one channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL
from torch import Tensor, nn


class KLAutoencoder(nn.Module):
    """Slices [B, 1, H, W] in [-1, 1] to the posterior of latents [B, C, h, w], and latents to slices.

    Its layers are those of `diffusers.AutoencoderKL` and have their names. Sides are halved between levels, once less
    than there are multipliers; the widest level attends at its end.
    """

    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, latent_channels: int, groups: int):
        super().__init__()
        levels = len(multipliers)
        whole: Any = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=tuple(width * multiplier for multiplier in multipliers),
            layers_per_block=blocks,
            latent_channels=latent_channels,
            norm_num_groups=groups,
        )
        self.encoder, self.decoder = whole.encoder, whole.decoder
        self.quant_conv, self.post_quant_conv = whole.quant_conv, whole.post_quant_conv

    @property
    def last(self) -> Tensor:
        """Weights of the decoder's last layer."""
        return self.decoder.conv_out.weight

    def encoding(self) -> nn.Sequential:
        """The part that makes `posterior` of slices: [B, 2C, h, w]."""
        return nn.Sequential(self.encoder, self.quant_conv)

    def decoding(self) -> nn.Sequential:
        """The part that makes slices of latents."""
        return nn.Sequential(self.post_quant_conv, self.decoder)


def posterior(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance, both float32 [B, C, h, w], of what `KLAutoencoder.encoding` makes."""
    mean, log_variance = encoded.float().chunk(2, 1)
    return mean, log_variance.clamp(-30, 20)

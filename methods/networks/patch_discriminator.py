"""The PatchGAN discriminator and the least-squares adversarial loss, which several image translation methods share.

Isola et al., CVPR 2017 (architecture); Mao et al., ICCV 2017 (loss). Receptive field of one output: 16, 34 or 70
pixels with 1, 2 or 3 layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Images [B, C, H, W] to a map of scores [B, 1, h, w], each of one patch; no sigmoid.

    `layers` convolutions of stride 2, then two of stride 1, all 4 × 4; instance normalisation without affine
    except after the first; LeakyReLU 0.2. With width 64 and 3 layers: 2.76 M parameters for one channel.
    """

    def __init__(self, channels: int = 1, width: int = 64, layers: int = 3):
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, layers + 1):
            wide, stride = width * min(2**level, 8), 2 if level < layers else 1
            narrow = width * min(2 ** (level - 1), 8)
            blocks += [nn.Conv2d(narrow, wide, 4, stride, 1), nn.InstanceNorm2d(wide), nn.LeakyReLU(0.2)]
        blocks.append(nn.Conv2d(width * min(2**layers, 8), 1, 4, 1, 1))
        self.layers = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def least_squares(scores: Tensor, real: bool) -> Tensor:
    """Mean squared distance of the scores from 1 (real) or 0 (fake)."""
    return (scores - float(real)).square().mean()


def initialize_normal(module: nn.Module, deviation: float = 0.02) -> None:
    """Weights of convolutions and linear layers from N(0, deviation²), biases 0, in place (DCGAN; CycleGAN)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            with torch.no_grad():
                nn.init.normal_(layer.weight, 0.0, deviation)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

"""The two networks that segment 3-D patches, as deep as the patch's size allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

SMALLEST = 8  # voxels a side below which nothing is halved further: nnU-Net's least of 4 after halving
DEEPEST = 5  # halvings at most

NetworkName = Literal["dynunet", "unet"]


def strides_of(patch: int) -> tuple[int, ...]:
    """Stride of each level for cubic patches of so many voxels a side, by nnU-Net's rule.

    The first level keeps the size; halvings follow while at least 4 voxels a side are left, five at most. So 128
    gives (1, 2, 2, 2, 2, 2) and 64 gives (1, 2, 2, 2, 2).
    """
    strides, side = [1], patch
    while side >= SMALLEST and len(strides) <= DEEPEST:
        strides.append(2)
        side //= 2
    return tuple(strides)


def build(name: NetworkName, patch: int, filters: Sequence[int], n_labels: int) -> nn.Module:
    """A network from patches [B, 1, P, P, P] to logits [B, C, P, P, P]; its weights come from torch's generator.

    dynunet: MONAI's, with instance normalisation, leaky ReLU and no deep supervision. unet: see `UNet`.
    filters: channels of each level from full resolution down; those beyond the patch's levels are not used.
    """
    strides = strides_of(patch)
    if name == "unet":
        return UNet(n_labels, filters[: len(strides)])
    from monai.networks.nets.dynunet import DynUNet  # `import monai` takes seconds

    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=n_labels,
        kernel_size=[3] * len(strides),
        strides=list(strides),
        upsample_kernel_size=list(strides[1:]),
        filters=list(filters[: len(strides)]),
    )


class UNet(nn.Module):
    """The plain 3-D U-Net: two 3³ convolutions a level, each with batch normalisation and ReLU.

    Largest values of 2³ voxels lead down, transposed convolutions of 2³ up, where the level's own channels are put
    beside. Not MONAI's BasicUNet, which always has five levels, nor its UNet, which has other blocks.
    """

    def __init__(self, n_labels: int, filters: Sequence[int]):
        super().__init__()
        self.down = nn.ModuleList(_double(a, b) for a, b in zip((1, *filters[:-1]), filters, strict=True))
        upwards = list(zip(filters[:0:-1], filters[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, stride=2) for a, b in upwards)
        self.up = nn.ModuleList(_double(2 * b, b) for _, b in upwards)
        self.head = nn.Conv3d(filters[0], n_labels, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in self.down:
            x = level(nn.functional.max_pool3d(x, 2) if skips else x)
            skips.append(x)
        for enlarge, level, skip in zip(self.enlarge, self.up, skips[-2::-1], strict=True):
            x = level(torch.cat((enlarge(x), skip), 1))
        return self.head(x)


def _double(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        # What a bias would add, the normalisation takes away.
        convolution = nn.Conv3d(channels, outputs, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

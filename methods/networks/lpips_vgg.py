"""LPIPS with VGG-16 (Zhang et al., CVPR 2018): a perceptual distance of images, its weights supplied from outside."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.problems import Problem, UserError

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions of each stage; features are what each ends with, and pooling comes between."""
MEAN, DEVIATION = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the colour channels of images in [-1, 1]."""


class LpipsVGG(nn.Module):
    """Images [B, 1 or 3, H, W] in [-1, 1] to their distances [B]; grey is copied to three channels.

    Features of five stages, of length 1 at each place, are compared by squares, weighted by channel, averaged over
    places and summed over stages. Frozen; gradients flow to the images. Sides of at least 16 pixels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages, inputs = nn.ModuleList(), 3
        for widths in STAGES:
            stage = nn.ModuleList()
            for width in widths:
                stage.append(nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
            self.stages.append(stage)
        self.weights = nn.ParameterList([torch.zeros(1, widths[-1], 1, 1) for widths in STAGES])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1))

    @classmethod
    def from_weights(cls, found: Mapping[str, Tensor], where: str) -> LpipsVGG:
        """The network with the entries of the state dict of the lpips package's model "vgg".

        Its stages are called net.slice1 to net.slice5 and number their layers through from 0, pooling and activations
        included; the weights of the channels are lin0.model.1 to lin4.model.1. Raises UserError, naming `where`, for an
        entry that is missing or has another shape.
        """
        network = cls()
        for own, key in _names().items():
            target = network.get_parameter(own)
            if key not in found or found[key].shape != target.shape:
                raise UserError(Problem(where, f"it is not LPIPS with VGG-16: {key} is missing or has another shape"))
            target.data.copy_(found[key])
        return network.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a))
        for weight, x, y in zip(self.weights, self._features(a), self._features(b), strict=True):
            total = total + ((_unit(x) - _unit(y)).square() * weight).sum(1).mean((1, 2))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        found = []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            x = F.max_pool2d(x, 2) if number else x
            for layer in stage:
                x = F.relu(layer(x))
            found.append(x)
        return found


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def _names() -> dict[str, str]:
    """Own name → name in the package's state dict, of every parameter."""
    names, number = {}, 0
    for stage, widths in enumerate(STAGES):
        number += stage > 0  # the pooling before it
        for layer in range(len(widths)):
            for kind in ("weight", "bias"):
                names[f"stages.{stage}.{layer}.{kind}"] = f"net.slice{stage + 1}.{number}.{kind}"
            number += 2  # the convolution and its activation
        names[f"weights.{stage}"] = f"lin{stage}.model.1.weight"
    return names

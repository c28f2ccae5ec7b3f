"""ResNet V2: residual blocks whose normalisation comes first, of the sizes of the published Keras model."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from methods.brain_age.learning import AgeHead

EXPANSION = 4
EPSILON = 1.001e-5  # of the Keras model's normalisations


class ResnetV2(nn.Module):
    """Slices [B, 1, H, W] to ages [B].

    A 7×7 stem and max-pooling, a stage of blocks for each width, normalisation, ReLU, the mean over the plane, dropout
    and one linear unit, whose bias begins at `bias`. The last block of every stage but the last halves the sides, as
    the Keras model has it. Weights begin as Keras draws them: Glorot's uniform.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        kind: Literal["bottleneck", "basic"],
        dropout: float,
        momentum: float,
        bias: float = 0.0,
    ):
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 7, 2, 3)
        stages, channels = [], widths[0]
        for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            members = []
            for index in range(count):
                stride = 2 if index == count - 1 and stage < len(widths) - 1 else 1
                members.append(Block(channels, width, stride, kind, projected=index == 0, momentum=momentum))
                channels = members[-1].channels
            stages.append(nn.Sequential(*members))
        self.stages = nn.Sequential(*stages)
        self.norm = _norm(channels, momentum)
        self.dropout = nn.Dropout(dropout)
        self.head = AgeHead(channels, bias)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def stemmed(self, pixels: Tensor) -> Tensor:
        """What the first stage is given, [B, widths[0], H / 4, W / 4]."""
        # Keras pads with 0, which counts here: what is pooled has not been through a ReLU.
        return F.max_pool2d(F.pad(self.stem(pixels), (1, 1, 1, 1)), 3, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        found = F.relu(self.norm(self.stages(self.stemmed(pixels))))
        return self.head(self.dropout(found.mean((2, 3))))


class Block(nn.Module):
    """Normalisation and ReLU before each convolution: 1×1, 3×3, 1×1 ("bottleneck") or 3×3, 3×3 ("basic").

    Added to the input, or to a 1×1 convolution of the input once normalised (`projected`).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        stride: int,
        kind: Literal["bottleneck", "basic"],
        *,
        projected: bool,
        momentum: float,
    ):
        super().__init__()
        self.channels = width * EXPANSION if kind == "bottleneck" else width
        self.stride = stride
        self.pre = _norm(channels, momentum)
        self.shortcut = nn.Conv2d(channels, self.channels, 1, stride) if projected else None
        if kind == "bottleneck":
            convolutions = [
                nn.Conv2d(channels, width, 1, bias=False),
                nn.Conv2d(width, width, 3, stride, 1, bias=False),
                nn.Conv2d(width, self.channels, 1),
            ]
        else:
            convolutions = [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.Conv2d(width, width, 3, stride, 1)]
        layers: list[nn.Module] = [convolutions[0]]
        for convolution in convolutions[1:]:
            layers += [_norm(width, momentum), nn.ReLU(), convolution]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.pre(x))
        if self.shortcut is not None:
            return self.shortcut(ready) + self.body(ready)
        return x[..., :: self.stride, :: self.stride] + self.body(ready)


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=momentum)

"""The global-local transformer, of the sizes of the public code."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.brain_age.learning import AgeHead


class GlobalLocal(nn.Module):
    """Slices as channels, [B, C, H, W], to ages by the whole and by each window in turn, [B, 1 + windows].

    Two networks of convolutions, of the same sizes but not of the same weights, see the whole and a window. Blocks
    bring what the whole says to what is seen in the window; all windows share them and the linear unit.

    mean: where all ages begin.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        *,
        patch: int,
        step: int,
        last_window: bool,
        blocks: int,
        heads: int,
        dropout: float,
        mean: float = 0.0,
    ):
        super().__init__()
        self.patch, self.step, self.last_window = patch, step, last_window
        self.whole, self.local = convolutions(channels, widths), convolutions(channels, widths)
        self.blocks = nn.ModuleList([Block(widths[-1], heads, dropout) for _ in range(blocks)])
        self.whole_age, self.local_age = AgeHead(widths[-1], mean), AgeHead(widths[-1], mean)

    def forward(self, pixels: Tensor) -> Tensor:
        whole = self.whole(pixels)
        context = tokens(whole)
        ages = [self.whole_age(whole.mean((2, 3)))]
        # One window after the other, as in the public code: normalisations then see a batch of one window at a time.
        for row, column in self.windows(*pixels.shape[-2:]):
            local = self.local(pixels[..., row : row + self.patch, column : column + self.patch])
            for block in self.blocks:
                local = block(local, context)
            ages.append(self.local_age(local.mean((2, 3))))
        return torch.stack(ages, dim=1)

    def windows(self, height: int, width: int) -> list[tuple[int, int]]:
        """First row and column of each window."""
        rows, columns = (starts(side, self.patch, self.step, self.last_window) for side in (height, width))
        return [(row, column) for row in rows for column in columns]


class Block(nn.Module):
    """What attention finds for a window is joined to it, mixed by two 1×1 convolutions, and added to it."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = CrossAttention(width, heads, dropout)
        self.mix = nn.Sequential(*_convolution(2 * width, width, 1), *_convolution(width, width, 1))

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        """local [B, D, h, w], context [B, N, D] → [B, D, h, w]."""
        found = self.attention(tokens(local), context).transpose(1, 2).reshape(local.shape)
        return local + self.mix(torch.cat([found, local], dim=1))


class CrossAttention(nn.Module):
    """Each token of a window asks all tokens of the whole; without normalisation and without places."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def weights(self, local: Tensor, context: Tensor) -> Tensor:
        """How much each token of `local` [B, n, D] takes of each of `context` [B, N, D]: [B, heads, n, N]."""
        query, key = self._parted(self.query(local)), self._parted(self.key(context))
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)

    def forward(self, local: Tensor, context: Tensor) -> Tensor:
        found = self.dropout(self.weights(local, context)) @ self._parted(self.value(context))
        return self.dropout(self.out(found.transpose(1, 2).flatten(2)))

    def _parted(self, x: Tensor) -> Tensor:
        """[B, n, D] to [B, heads, n, D / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def convolutions(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Two 3×3 convolutions of each width, normalised and rectified, and the sides halved after each pair."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [*_convolution(channels, width, 3), *_convolution(width, width, 3), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers)


def starts(side: int, patch: int, step: int, last_window: bool) -> range:
    """Where windows begin along a side. Without `last_window` none begins at side − patch, as in the public code."""
    return range(0, side - patch + last_window, step)


def tokens(maps: Tensor) -> Tensor:
    """[B, D, h, w] to [B, h × w, D]."""
    return maps.flatten(2).transpose(1, 2)


def _convolution(channels: int, width: int, side: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, side, padding=side // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]

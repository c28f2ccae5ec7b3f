"""Where MAD-AD adds noise: random patches of the latents, inside the brain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def random_patches(
    rng: np.random.Generator,
    n: int,
    shape: tuple[int, int],
    largest_ratio: float,
    sides: Sequence[int],
    chances: Sequence[float],
) -> Tensor:
    """Noisy latents of n slices, bool [n, 1, h, w].

    Height and width of the patches are drawn from `sides`, each by itself, once for all slices. Of each slice's grid of
    patches a share drawn uniformly from [0, largest_ratio], rounded to whole patches, is noisy.
    """
    height, width = (int(side) for side in rng.choice(sides, size=2, p=np.asarray(chances) / np.sum(chances)))
    rows, columns = -(-shape[0] // height), -(-shape[1] // width)
    cells = rows * columns
    counts = np.rint(rng.uniform(0, largest_ratio, n) * cells)
    ranks = rng.random((n, cells)).argsort(1).argsort(1)
    chosen = (ranks < counts[:, None]).reshape(n, 1, rows, columns)
    patches = chosen.repeat(height, 2).repeat(width, 3)
    return torch.from_numpy(patches[:, :, : shape[0], : shape[1]].copy())


def inside(brain: Tensor, factor: int, coverage: float, block: int) -> Tensor:
    """Latents that may be noisy, bool [B, 1, h, w], of brain masks [B, H, W]: blocks of them that are brain to at least
    `coverage`. block: latents of a side. H and W must be divisible by `block` × `factor`, the pixels of a latent's
    side."""
    share = F.avg_pool2d(brain[:, None].float(), block * factor)
    return (share >= coverage).repeat_interleave(block, 2).repeat_interleave(block, 3)

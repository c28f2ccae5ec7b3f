"""Random contrasts and shapes.

Every change of contrast acts on each grey level by itself, so it is drawn as a table of 256 levels, on which the
operations are cheap, and applied to a slice in one look-up. Parameters are drawn with numpy; slices are changed on
whatever device they lie.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.harmonization.harmonizing_flows.settings import Geometry, Guidance, IntensityAugmentation, Range

LEVELS = 256


# ------------------------------------------------------------------------------------------- contrast


def random_tables(rng: np.random.Generator, n: int, settings: IntensityAugmentation) -> np.ndarray:
    """n tables [n, 256] from grey level to grey level, whole numbers in 0..255, as float32."""
    shares = np.array([settings.lut, settings.photometric, settings.both])
    kind = rng.choice(3, size=n, p=shares / shares.sum())[:, None]
    curves, photometric = random_curves(rng, n), random_photometric(rng, n, settings)
    after = np.take_along_axis(curves, photometric.astype(np.intp), axis=1)
    return np.where(kind == 0, curves, np.where(kind == 1, photometric, after)).astype(np.float32)


def random_curves(rng: np.random.Generator, n: int) -> np.ndarray:
    """n monotone curves [n, 256] by midpoint subdivision, from 0 ↦ 0 and 256 ↦ 255.

    In eight rounds each midpoint is drawn uniformly between its neighbours' values, both ends of the interval
    moved inwards by a fifth of its length, and rounded. Rounding stays between the neighbours, so curves rise.
    """
    values = np.zeros((n, LEVELS + 1))
    values[:, LEVELS] = LEVELS - 1
    step = LEVELS
    while step > 1:
        low, high = values[:, :-1:step], values[:, step::step]
        values[:, step // 2 :: step] = np.rint(low + (high - low) * rng.uniform(0.2, 0.8, low.shape))
        step //= 2
    return values[:, :LEVELS]


def random_photometric(rng: np.random.Generator, n: int, settings: IntensityAugmentation) -> np.ndarray:
    """n tables [n, 256]: add, multiply, gamma in this order, each at random, clipped to 0..255, rounded at the end."""
    levels = np.broadcast_to(np.arange(LEVELS, dtype=np.float64), (n, LEVELS))
    levels = _clip(levels + _sometimes(rng, n, settings.shift, 0.0, settings.probability))
    levels = _clip(levels * _sometimes(rng, n, settings.factor, 1.0, settings.probability))
    top = LEVELS - 1
    return np.rint((levels / top) ** _sometimes(rng, n, settings.gamma, 1.0, settings.probability) * top)


def apply_tables(pixels: Tensor, tables: Tensor) -> Tensor:
    """Slices [B, 1, H, W] in 0..255 through a table each [B, 256]; between two levels, linearly between entries."""
    flat = pixels.flatten(1)
    below = flat.floor().clamp(0, LEVELS - 1)
    index = below.long()
    low, high = tables.gather(1, index), tables.gather(1, (index + 1).clamp(max=LEVELS - 1))
    return (low + (high - low) * (flat - below)).view_as(pixels)


def far_enough(pixels: Tensor, augmented: Tensor, mask: Tensor, guidance: Guidance) -> Tensor:
    """Whether augmented slices [B, 1, H, W] differ enough from their originals to be negatives, [B].

    Differences are in grey levels over the brain; a slice without brain is never far.
    """
    brain = mask.flatten(1)
    count = brain.sum(1).clamp(min=1)
    difference = (augmented - pixels).flatten(1) * brain
    squares = difference.square().sum(1) / count
    if guidance.rule == "mse":
        return squares > guidance.threshold
    variance = (squares - (difference.sum(1) / count).square()).clamp(min=0)
    return difference.abs().sum(1) / count + 2 * variance.sqrt() > guidance.code_threshold


# ---------------------------------------------------------------------------------------------- shape


def random_warps(rng: np.random.Generator, n: int, settings: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """(homographies [n, 3, 3], displacements of nodes [n, 2, nodes, nodes]), float32.

    Both map output to input coordinates (x, y), each −1..1 over a side.
    """

    def drawn(span: Range, neutral: float) -> np.ndarray:
        return _sometimes(rng, n, span, neutral, settings.probability)[:, 0]

    size, wide, tall = (drawn(settings.scale, 1.0) for _ in range(3))
    limit = math.tan(math.radians(settings.shear_degrees))
    shear_x, shear_y = (drawn((-limit, limit), 0.0) for _ in range(2))
    tilt = drawn(settings.perspective, 0.0)[:, None] * rng.standard_normal((n, 2))
    matrices = np.zeros((n, 3, 3))
    matrices[:, 0, 0], matrices[:, 0, 1] = 1 / (size * wide), shear_x
    matrices[:, 1, 0], matrices[:, 1, 1] = shear_y, 1 / (size * tall)
    matrices[:, 2, :2], matrices[:, 2, 2] = tilt, 1
    spread = 2 * drawn(settings.piecewise, 0.0)  # a side is 2 long
    nodes = spread[:, None, None, None] * rng.standard_normal((n, 2, settings.nodes, settings.nodes))
    return matrices.astype(np.float32), nodes.astype(np.float32)


def warp(pixels: Tensor, mask: Tensor, matrices: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Slices and masks [B, 1, H, W] moved alike, bilinearly; grey levels rounded, background 0, masks 0 or 1."""
    n, _, height, width = pixels.shape
    identity = torch.eye(2, 3, device=pixels.device).expand(n, 2, 3)
    plane = F.affine_grid(identity, [n, 1, height, width], align_corners=False)
    point = torch.cat([plane, torch.ones_like(plane[..., :1])], -1)[..., None, :]
    mapped = (matrices[:, None, None] * point).sum(-1)
    grid = mapped[..., :2] / mapped[..., 2:]
    bent = F.interpolate(nodes, size=(height, width), mode="bilinear", align_corners=True)
    moved = F.grid_sample(torch.cat([pixels, mask], 1), grid + bent.permute(0, 2, 3, 1), align_corners=False)
    brain = (moved[:, 1:] > 0.5).to(mask.dtype)
    return moved[:, :1].round() * brain, brain


# ------------------------------------------------------------------------------------------- helpers


def _sometimes(rng: np.random.Generator, n: int, span: Range, neutral: float, probability: float) -> np.ndarray:
    """n uniform draws from `span`, each replaced by `neutral` unless its coin says otherwise, [n, 1]."""
    values, coins = rng.uniform(*span, size=(n, 1)), rng.random((n, 1))
    return np.where(coins < probability, values, neutral)


def _clip(levels: np.ndarray) -> np.ndarray:
    return np.clip(levels, 0, LEVELS - 1)

"""The mild augmentation of MAD-AD and REFLECT: small rotations and shifts, small changes of contrast.

Parameters are drawn with numpy; slices are changed on whatever device they lie.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.api import Settings, hyper
from methods.networks.resampling import affine_grid, resample

CODE = "authors' code"
SIDE = 256  # pixels of the slices that lengths are given for


class MildAugmentation(Settings):
    """Each change is made with `probability`, by an amount drawn uniformly from −limit to limit."""

    probability: float = hyper(0.5, "share of slices that undergo each change", origin=CODE, ge=0, le=1)
    rotation: float = hyper(5.0, "limit of the angle, in degrees; REFLECT has 0", origin=CODE, ge=0)
    translation: float = hyper(
        8.0, "limit of the shift along rows and columns, in pixels of slices of 256", origin=CODE, ge=0
    )
    brightness: float = hyper(0.1, "limit of what is added to intensities in [0, 1]", origin=CODE, ge=0)
    contrast: float = hyper(0.1, "limit of what is added to the factor 1 of intensities", origin=CODE, ge=0, lt=1)
    strict: bool = hyper(
        False,
        "rotate and shift by the limit itself, never less nor to the other side: what the published code does, whose "
        "library takes a single number for a constant",
        origin="ours; the publication speaks of ranges",
    )


def draw_changes(rng: np.random.Generator, n: int, shape: tuple[int, int], settings: MildAugmentation) -> Tensor:
    """Changes of n slices of `shape` (rows, columns), float32 [n, 8] for `change`.

    Six numbers of an affine map from output to input coordinates, each −1..1 over a side, then factor and offset.
    """

    def coins() -> np.ndarray:
        return rng.random(n) < settings.probability

    def drawn(limit: float, constant: bool = False) -> np.ndarray:
        values = rng.uniform(-limit, limit, n)
        return np.full(n, limit) if constant else values

    rows, columns = shape
    strict = settings.strict
    angle = np.radians(drawn(settings.rotation, strict)) * coins()
    # A shift is a fraction of the side, which is 2 long in the map's coordinates.
    down, right = (drawn(2 * settings.translation / SIDE, strict) for _ in range(2))
    moved = coins()
    lit = coins()
    factor, offset = 1 + drawn(settings.contrast) * lit, drawn(settings.brightness) * lit
    cos, sin = np.cos(angle), np.sin(angle)
    # Contents move by (right, down), so the map to the input goes the other way.
    numbers = [cos, -sin * rows / columns, -right * moved, sin * columns / rows, cos, -down * moved, factor, offset]
    return torch.from_numpy(np.stack(numbers, 1).astype(np.float32))


def change(pixels: Tensor, mask: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """Slices [B, 1, H, W] in [0, 1] and their brain masks [B, 1, H, W] bool, changed; background 0.

    Both are moved bilinearly; a moved mask is what is at least half brain.
    """
    maps = changes[:, :6].view(-1, 2, 3)
    grid = affine_grid(maps, *pixels.shape[2:])
    both = torch.cat([pixels, mask.to(pixels.dtype)], 1)
    still = (maps == torch.eye(2, 3, device=maps.device)).flatten(1).all(1)
    moved = resample(both, grid)
    # A map that changes nothing must not cost a rounding error.
    moved = torch.where(still[:, None, None, None], both, moved)
    brain = moved[:, 1:] >= 0.5
    factor, offset = (each[:, None, None, None] for each in (changes[:, 6], changes[:, 7]))
    return (moved[:, :1] * factor + offset).clamp(0, 1) * brain, brain

"""Pairs of a healthy latent and its corruption, which a velocity learns to undo."""

from __future__ import annotations

import numpy as np

from harness.api import MethodError
from methods.anomaly.reflect.settings import Corruption
from methods.anomaly.reflect.walks import draw_regions


def corrupt(
    latents: np.ndarray,
    brain: np.ndarray,
    textures: np.ndarray | None,
    corruption: Corruption,
    rng: np.random.Generator,
) -> np.ndarray:
    """Corrupted copies of healthy latents, float32 [B, C, h, w].

    latents:  float32 [B, C, h, w], of unit variance if corrupted ones are to have it.
    brain:    bool [B, h, w]. Cells outside stay as they are.
    textures: [N, C, H, W] latents of textures, at least as large as the grid; None where none can be asked for.

    In a region of severity α the latent z becomes √(1 − α)·z + √α·r. The replacement r is a piece of a texture, or
    √b·q + √(1 − b)·p with b uniform in [0, 1], one standard normal q for each channel and one p for each cell. α, b, q
    and the piece are drawn for each region.

    Raises MethodError where a texture is wanted and none fits.
    """
    slices, channels, height, width = latents.shape
    regions = draw_regions(brain, region_counts(slices, corruption, rng), corruption, rng)
    entries = (slices, len(corruption.longest) + 1)  # entry 0 is what no region covers
    severity = rng.uniform(*corruption.severity, entries)
    severity[:, 0] = 0
    share = rng.random(entries)
    tint = rng.standard_normal((*entries, channels), np.float32)
    textured = rng.random(entries) < corruption.texture_probability
    of = np.arange(slices)[:, None, None]

    def everywhere(values: np.ndarray) -> np.ndarray:
        """What holds in each cell, float32 [B, 1, h, w], of values for each region."""
        return values[of, regions][:, None].astype(np.float32)

    flat = np.moveaxis(tint[of, regions], 3, 1)
    grain = rng.standard_normal(latents.shape, np.float32)
    replacement = np.sqrt(everywhere(share)) * flat + np.sqrt(everywhere(1 - share)) * grain
    for index, region in zip(*np.nonzero(textured[:, 1:]), strict=True):
        inside = regions[index] == region + 1
        if inside.any():
            replacement[index, :, inside] = _piece(textures, (channels, height, width), rng)[:, inside].T
    return np.sqrt(everywhere(1 - severity)) * latents + np.sqrt(everywhere(severity)) * replacement


def region_counts(slices: int, corruption: Corruption, rng: np.random.Generator) -> np.ndarray:
    """Numbers of regions of slices, int64 [slices]; 0 for those that stay as they are."""
    most = len(corruption.longest)
    weights = np.ones(most) if corruption.region_counts == "uniform" else 1 / np.arange(1.0, most + 1)
    counts = 1 + rng.choice(most, slices, p=weights / weights.sum())
    return np.where(rng.random(slices) < corruption.identity, 0, counts)


def brain_cells(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Which cells of a latent grid count as brain, bool [B, h, w], of masks [B, H, W] bool.

    As in the authors' code a mask is resized bilinearly, without smoothing, and all that is not 0 is brain: the cells
    one of whose central pixels is (two along an axis where the factor is even, one where it is odd).
    """
    rows, columns = (_central(size, cells) for size, cells in zip(masks.shape[1:], grid, strict=True))
    return np.logical_or.reduce([masks[:, row][:, :, column] for row in rows for column in columns])


def _central(size: int, cells: int) -> list[np.ndarray]:
    """Indices of the central pixels of each cell: one or two arrays [cells]."""
    factor = size // cells
    first = np.arange(cells) * factor + (factor - 1) // 2
    return [first] if factor % 2 else [first, first + 1]


def _piece(textures: np.ndarray | None, shape: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """A random piece of a random texture, float32 of `shape` (channels, rows, columns)."""
    channels, height, width = shape
    if textures is None or not len(textures):
        raise MethodError("reflect: there are no textures to fill regions with; set texture_probability to 0")
    room = textures.shape[2] - height, textures.shape[3] - width
    if min(room) < 0 or textures.shape[1] != channels:
        raise MethodError(
            f"reflect: textures of {' × '.join(map(str, textures.shape[1:]))} latent numbers do not cover slices of "
            f"{' × '.join(map(str, shape))}; raise textures.size"
        )
    top, left = rng.integers(0, room[0] + 1), rng.integers(0, room[1] + 1)
    chosen = textures[rng.integers(len(textures))]
    return chosen[:, top : top + height, left : left + width].astype(np.float32)

"""What may be done to anomaly maps before they are scored: `harness.anomaly.Processing`, applied to arrays.

Lengths and areas of a `Processing` are those of slices of 128 × 128 pixels. For slices H × W lengths are multiplied by
s = max(H, W) / 128, areas by s², and rounded to whole pixels, halves upwards; the side of a median filter is rounded to
the nearest odd number, evens upwards. All filters see a slice by itself, with 0 outside the mask and beyond its border.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from harness.anomaly import Processing

REFERENCE = 128
CROSS = ndimage.generate_binary_structure(2, 1)[None]  # 4 neighbours, within a slice


def process(maps: np.ndarray, mask: np.ndarray, processing: Processing) -> np.ndarray:
    """Maps after erosion, median, smoothing and the removal of small regions, float32 [N, H, W].

    maps: float32 [N, H, W], 0 or more, and 0 outside the mask [N, H, W]. The result is 0 outside the eroded mask. Where
    `processing` has nothing to do with slices of this size, it is `maps` itself.
    """
    own = scaled(processing, maps.shape[1:])
    if own == Processing():
        return maps
    brain = eroded(mask, processing)
    out = np.where(brain, maps, 0).astype(np.float32)
    # Filters take their time by the area, of which the brain is often less than half. All about it is 0.
    window = _box(np.asarray(brain.any(axis=0)))
    inner, inside = out[:, *window], brain[:, *window]
    if own.median > 1:
        inner = ndimage.median_filter(inner, size=(1, own.median, own.median), mode="constant") * inside
    if own.smooth:
        inner = ndimage.gaussian_filter(inner, (0, own.smooth, own.smooth), mode="constant") * inside
    if own.smallest:
        inner = np.stack([without_small(each, own.smallest) for each in inner])
    out[:, *window] = inner
    return out


def scaled(processing: Processing, size: tuple[int, ...]) -> Processing:
    """The same in pixels of slices of `size` (H, W)."""
    scale = max(size) / REFERENCE
    median = 2 * math.floor(processing.median * scale / 2) + 1  # an even window has no centre
    return Processing(
        erode=_rounded(processing.erode * scale),
        median=median if median > 1 else 0,
        smooth=processing.smooth * scale,
        smallest=_rounded(processing.smallest * scale**2),
    )


def eroded(mask: np.ndarray, processing: Processing) -> np.ndarray:
    """The mask bool [N, H, W] without the pixels that are reached from outside in `erode` steps to 4 neighbours.

    What lies beyond the border of a slice is outside.
    """
    steps = scaled(processing, mask.shape[1:]).erode
    mask = np.asarray(mask, bool)
    return ndimage.binary_erosion(mask, CROSS, iterations=steps) if steps else mask


def eroded_share(labels: np.ndarray, mask: np.ndarray, processing: Processing) -> float:
    """Share of the lesion pixels (`labels` [N, H, W] above 0) within the mask that erosion takes away from the maps.

    It bounds the recall: no map can find them. NaN where there is no lesion within the mask.
    """
    lesion = (np.asarray(labels) > 0) & np.asarray(mask, bool)
    total = int(lesion.sum())
    return 1 - int((lesion & eroded(mask, processing)).sum()) / total if total else math.nan


def without_small(image: np.ndarray, smallest: int) -> np.ndarray:
    """A map [H, W], 0 or more, from which 8-connected regions of at most `smallest` pixels are removed at every level.

    For each t ≥ 0, the pixels of the result above t are those of the map above t, less the regions that are so small:
    a grey-scale area opening, with 0 beyond the border.
    """
    from skimage.morphology import area_opening  # takes a moment to import

    out = np.zeros_like(image)
    if not image.any():
        return out
    box = _box(image > 0)
    # Framed by 0, so that the ground, which an opening leaves as it is, is 0 also where the box holds no other.
    out[box] = area_opening(np.pad(image[box], 1), smallest + 1, connectivity=2)[1:-1, 1:-1]
    return out


def _box(where: np.ndarray) -> tuple[slice, slice]:
    """The smallest box that holds `where` [H, W]; empty where nothing is True."""
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(0), slice(0))


def _rounded(value: float) -> int:
    return math.floor(value + 0.5)

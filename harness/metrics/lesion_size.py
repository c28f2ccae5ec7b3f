"""Max Dice by lesion size: in bins of images by their lesion area, and averaged over the bins.

An image's bin is that of the area of all its lesions together. Two averages with one name are in print, and differ
widely where small lesions are many and large ones easy: the Dice of all pixels pooled, and the mean of the bins' own
maximum Dice weighted by their images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.max_dice import global_max_dice
from harness.metrics.ranked_maps import Floats, RankedMaps


@dataclass(frozen=True)
class SizeBin:
    """Images with a lesion area in (low, high], in pixels or mm² as `binned_dice` is given areas."""

    name: str
    low: float
    high: float


# Areas in pixels of slices of 128 × 128.
THOR_BINS = (SizeBin("small", 3, 71), SizeBin("medium", 71, 570), SizeBin("large", 570, 10000))  # Bercea 2024
ITERMASK_BINS = (SizeBin("small", 0, 199), SizeBin("medium", 199, 799), SizeBin("large", 799, math.inf))  # Liang 2024
PUBLISHED_SHAPE = (128, 128)


@dataclass(frozen=True)
class BinScores:
    """One bin of n images. `max_dice` pools their pixels and chooses the bin's own best `threshold` (THOR).

    pooled_at_global, mean_at_global: Dice at the threshold that is best for all images pooled, of the bin's pixels
    and as the mean over its images (IterMask2). All are nan for an empty bin. False positives in images of other
    bins, healthy ones too, do not count here.
    """

    bin: SizeBin
    n: int
    max_dice: float
    threshold: float
    pooled_at_global: float
    mean_at_global: float


@dataclass(frozen=True)
class BinnedDice:
    """bins: one entry for each bin given. n_unbinned: images with a lesion that no bin holds.

    global_pooled: max Dice over all pixels of all images, binned or not, with its threshold.
    """

    bins: tuple[BinScores, ...]
    n_unbinned: int
    global_pooled: float
    global_threshold: float

    @property
    def global_bin_weighted(self) -> float:
        """Mean of the bins' own max Dice, weighted by their images; nan without a binned image."""
        filled = [scores for scores in self.bins if scores.n]
        n = sum(scores.n for scores in filled)
        return math.fsum(scores.n * scores.max_dice for scores in filled) / n if n else math.nan


def scaled_bins(
    bins: Sequence[SizeBin], shape: tuple[int, int], reference: tuple[int, int] = PUBLISHED_SHAPE
) -> tuple[SizeBin, ...]:
    """Bins in pixels of slices of `reference` size as bins in pixels of the same slices resampled to `shape`.

    Right only where both show the same field of view; bins in mm² depend on neither.
    """
    factor = math.prod(shape) / math.prod(reference)
    return tuple(SizeBin(b.name, b.low * factor, b.high * factor) for b in bins)


def bins_in_mm2(bins: Sequence[SizeBin], pixel_mm2: float) -> tuple[SizeBin, ...]:
    """Bins in pixels of `pixel_mm2` each as bins in mm². Raises ValueError unless it is a positive number."""
    _check_pixel_area(np.asarray(pixel_mm2))
    return tuple(SizeBin(b.name, b.low * pixel_mm2, b.high * pixel_mm2) for b in bins)


def lesion_areas(maps: RankedMaps, pixel_mm2: ArrayLike = 1.0) -> Floats:
    """Lesion area of each image inside the mask, float64 [N]: in pixels, or mm² where their area is given.

    pixel_mm2: one for all images or one each, [N] (the product of the in-plane spacing). Raises ValueError for
    areas that are not positive numbers, or too few.
    """
    area = np.asarray(pixel_mm2, np.float64)
    _check_pixel_area(area)
    if area.shape not in ((), (maps.n_images,)):
        raise ValueError(f"need the pixel area of {maps.n_images} images, not shape {area.shape}")
    return np.diff(maps.abnormal_starts) * area


def binned_dice(maps: RankedMaps, areas: ArrayLike, bins: Sequence[SizeBin]) -> BinnedDice:
    """Max Dice in each bin of lesion area and over all. areas: one per image, [N], in the unit of the bins.

    Raises ValueError where the lengths differ, or where bins overlap or are empty intervals.
    """
    area = np.asarray(areas, np.float64)
    if area.shape != (maps.n_images,):
        raise ValueError(f"need the lesion area of {maps.n_images} images, not shape {area.shape}")
    _check_bins(bins)
    pooled = global_max_dice(maps)
    scores, held = [], np.zeros(maps.n_images, np.bool_)
    for b in bins:
        inside = maps.is_abnormal & (area > b.low) & (area <= b.high)
        held |= inside
        scores.append(_bin_scores(b, maps.select(np.flatnonzero(inside)), pooled.threshold))
    return BinnedDice(
        bins=tuple(scores),
        n_unbinned=int((maps.is_abnormal & ~held).sum()),
        global_pooled=pooled.value,
        global_threshold=pooled.threshold,
    )


def _bin_scores(b: SizeBin, maps: RankedMaps, global_threshold: float) -> BinScores:
    if maps.n_images == 0:
        return BinScores(b, 0, math.nan, math.nan, math.nan, math.nan)
    own = global_max_dice(maps)
    sizes = np.diff(maps.abnormal_starts)
    true, false = maps.counts_at(global_threshold)
    return BinScores(
        bin=b,
        n=maps.n_images,
        max_dice=own.value,
        threshold=own.threshold,
        pooled_at_global=2 * int(true.sum()) / int((sizes + true + false).sum()),
        mean_at_global=math.fsum(2 * true / (sizes + true + false)) / maps.n_images,
    )


def _check_pixel_area(area: Floats) -> None:
    if not (np.isfinite(area).all() and (area > 0).all()):
        raise ValueError("the area of a pixel must be a positive number of mm²")


def _check_bins(bins: Sequence[SizeBin]) -> None:
    for b in bins:
        if not b.low < b.high:
            raise ValueError(f"size bin '{b.name}' is empty: ({b.low:g}, {b.high:g}]")
    in_order = sorted(bins, key=lambda b: b.low)
    for first, second in itertools.pairwise(in_order):
        if second.low < first.high:
            raise ValueError(f"size bins '{first.name}' and '{second.name}' overlap: images would count twice")

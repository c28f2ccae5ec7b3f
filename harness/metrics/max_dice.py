"""Dice of anomaly maps. "Maximum Dice" names four different numbers; here each has its own function.

global_max_dice   one threshold, all pixels of all images pooled. Large lesions count most.
shared_max_dice   one threshold, mean of the images' Dice.
oracle_max_dice   the best threshold of each image, mean: an upper bound that no method can use in practice.
dice_at           the threshold given, for one that `operating_threshold` found on healthy validation maps.

The first three choose the threshold by the labels they are scored against, from all distinct scores, whatever their
range; they take maps sorted by `ranked_maps.rank_maps`. Over the same images oracle ≥ shared ≥ the mean of `dice_at`,
and global may be above or below. A pixel is called abnormal where its score is at least the threshold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.detection import Optimum, f1_max
from harness.metrics.ranked_maps import Bools, Floats, RankedMaps, checked_maps

PUBLISHED_EPSILON = 1e-6  # in the denominator of the published code of MAD-AD and REFLECT


def global_max_dice(maps: RankedMaps) -> Optimum:
    """The best Dice of all pixels pooled: pixel-level F1max under the name of the segmentation papers."""
    return f1_max(maps)


def shared_max_dice(maps: RankedMaps, *, abnormal_only: bool = False) -> Optimum:
    """The best mean over images of the Dice at one threshold, in [0, 1], over all distinct scores.

    A healthy image scores 1 where nothing in it is called abnormal, else 0; with abnormal_only it is left out, and so
    is always an image without a pixel in the mask. With healthy images alone the best threshold is inf and scores 1.
    nan without images.
    """
    curve, healthy = maps.curve, int(maps.is_healthy.sum())
    n = int(maps.is_abnormal.sum())
    if abnormal_only:
        total = curve.dice_sum
        silent = 0
    else:
        total = curve.dice_sum + (healthy - curve.hit) * int(curve.scale)
        silent = healthy
        n += healthy
    if n == 0:
        return Optimum(math.nan, math.nan)
    # Above every abnormal pixel, only healthy images score.
    if not total.size or silent * int(curve.scale) >= total.max():
        return Optimum(silent / n, math.inf)
    threshold = float(curve.thresholds[int(total.argmax())])
    true, false = maps.counts_at(threshold)
    dice = _dice(np.diff(maps.abnormal_starts), true, true + false, maps.is_abnormal | maps.is_healthy)
    # Added without rounding: the walk's sums only say where the best threshold is.
    return Optimum(math.fsum(dice[maps.is_abnormal if abnormal_only else ~np.isnan(dice)]) / n, threshold)


@dataclass(frozen=True)
class OracleDice:
    """dice: float64 [N], the best Dice of each image; threshold: float64 [N]. Both nan in images without a lesion."""

    dice: Floats
    threshold: Floats

    @property
    def mean(self) -> float:
        """Mean over the images with a lesion; nan without any."""
        return _mean(self.dice)


def oracle_max_dice(maps: RankedMaps) -> OracleDice:
    """The best Dice of each image by a threshold of its own; report it as an oracle only."""
    curve, abnormal = maps.curve, maps.is_abnormal
    threshold = np.full(maps.n_images, np.nan)
    threshold[abnormal] = curve.thresholds[curve.image_bucket[abnormal]]
    return OracleDice(curve.image_best.copy(), threshold)


# At a given threshold ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DiceAt:
    """Dice at one threshold. pooled: of all pixels together, nan without abnormal ones.

    per_image: float64 [N], in a healthy image 1 where nothing is called abnormal, else 0; nan without any pixel in
    the mask. is_abnormal: bool [N].
    """

    threshold: float
    pooled: float
    per_image: Floats
    is_abnormal: Bools

    @property
    def mean(self) -> float:
        """Mean over images; nan without any."""
        return _mean(self.per_image)

    @property
    def mean_abnormal(self) -> float:
        """Mean over the images with a lesion; nan without any."""
        return _mean(self.per_image[self.is_abnormal])


def dice_at(scores: ArrayLike, labels: ArrayLike, threshold: float, mask: ArrayLike | None = None) -> DiceAt:
    """Dice at a threshold fixed beforehand, inf and -inf included; arrays and errors as for `ranked_maps.rank_maps`.

    Raises ValueError also where the threshold is nan.
    """
    values, truth, inside = checked_maps(scores, labels, mask)
    if math.isnan(threshold):
        raise ValueError("the threshold is nan: it was never determined")
    # numpy would round a Python float to the scores' float32, but no float64 scalar.
    called = values >= np.float64(threshold)
    if inside is not None:
        called, truth = called & inside, truth & inside
    sizes, true, positive = (_per_image(pixels) for pixels in (truth, truth & called, called))
    filled = np.ones(len(values), np.bool_) if inside is None else _per_image(inside) > 0
    total = int(sizes.sum())
    return DiceAt(
        threshold=float(threshold),
        pooled=2 * int(true.sum()) / (total + int(positive.sum())) if total else math.nan,
        per_image=_dice(sizes, true, positive, filled),
        is_abnormal=sizes > 0,
    )


def operating_threshold(healthy: ArrayLike, rate: float, mask: ArrayLike | None = None) -> float:
    """The lowest threshold at which at most the share `rate`, in [0, 1), of healthy pixels is called abnormal.

    healthy: maps [N, ...] of images without lesions, all pixels (of the mask) pooled. It is the float64 next above a
    score, so that pixels which share that score are all left uncalled: compare in float64, as all functions here do.
    Raises ValueError as `ranked_maps.rank_maps`, for another rate, and for a mask without any pixel.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the false-positive rate must lie in [0, 1), not {rate}")
    values, _, inside = checked_maps(healthy, None, mask)
    pool = values.reshape(-1) if inside is None else values[inside]
    if pool.size == 0:
        raise ValueError("the mask of the healthy maps holds no pixel")
    allowed = math.floor(rate * pool.size)
    if (allowed + 1) / pool.size <= rate:  # 0.29 * 100 is a little less than 29
        allowed += 1
    highest_uncalled = np.partition(pool, pool.size - 1 - allowed)[pool.size - 1 - allowed]
    return float(np.nextafter(np.float64(highest_uncalled), np.inf))


@dataclass(frozen=True)
class FalsePositives:
    """Shares of healthy pixels that are called abnormal, in [0, 1]: of all pixels pooled, and float64 [N] per image.

    nan in an image without a pixel in the mask.
    """

    pooled: float
    per_image: Floats

    @property
    def mean(self) -> float:
        """Mean over images; nan without any."""
        return _mean(self.per_image)


def false_positive_rate(healthy: ArrayLike, threshold: float, mask: ArrayLike | None = None) -> FalsePositives:
    """How much of healthy images is called abnormal; `healthy` and `mask` as for `operating_threshold`.

    Give maps of images without lesions that did not fix the threshold. Raises ValueError as `dice_at`.
    """
    at = np.float64(threshold)
    values, _, inside = checked_maps(healthy, None, mask)
    if math.isnan(threshold):
        raise ValueError("the threshold is nan: it was never determined")
    called = values >= at if inside is None else (values >= at) & inside
    false = _per_image(called)
    pixels = np.full(len(values), values[0].size) if inside is None else _per_image(inside)
    rates = np.divide(false, pixels, out=np.full(len(values), np.nan), where=pixels > 0)
    total = int(pixels.sum())
    return FalsePositives(int(false.sum()) / total if total else math.nan, rates)


# As published -----------------------------------------------------------------------------------------------------


def published_max_dice(
    scores: ArrayLike, labels: ArrayLike, levels: int = 201, mask: ArrayLike | None = None
) -> Optimum:
    """`shared_max_dice` by the rule of the published code, for comparison with published tables alone.

    Thresholds are `levels` equal steps from 0 to 1, whatever the scores' range; abnormal is what scores strictly
    more; the Dice is 2TP / (P + G + 1e-6), and 1 in a healthy image without a finding. Scores and thresholds are
    compared in float64. levels: 201 (MAD-AD) or 101 (REFLECT), at least 2. Other arguments and errors as `dice_at`.
    """
    if levels < 2:
        raise ValueError(f"a grid needs at least two thresholds, not {levels}")
    values, truth, inside = checked_maps(scores, labels, mask)
    n = len(values)
    grid = np.linspace(0, 1, levels)
    normal, abnormal = (np.zeros((n, levels + 1), np.int64) for _ in range(2))
    flat, label = values.reshape(n, -1), truth.reshape(n, -1)
    within = label if inside is None else inside.reshape(n, -1)
    _count_on_grid(flat, label, within, inside is not None, grid, normal, abnormal)
    true = abnormal[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    positive = true + normal[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    sizes = abnormal.sum(axis=1, keepdims=True)
    dice = np.where(sizes > 0, 2 * true / (positive + sizes + PUBLISHED_EPSILON), positive == 0)
    means = dice[(sizes[:, 0] + normal.sum(axis=1)) > 0].mean(axis=0)
    best = int(means.argmax())
    return Optimum(float(means[best]), float(grid[best]))


@numba.njit(cache=True)
def _count_on_grid(scores, labels, inside, masked, grid, normal, abnormal):  # type: ignore[no-untyped-def]
    """Histograms [N, levels + 1] of how many thresholds of the grid each pixel exceeds."""
    last = grid.size - 1
    for i in range(scores.shape[0]):
        for j in range(scores.shape[1]):
            if masked and not inside[i, j]:
                continue
            score = np.float64(scores[i, j])
            # An estimate, then the truth: a step times its number is not always the threshold to the last bit.
            exceeded = np.int64(min(max(score, 0.0), 1.0) * last)
            while exceeded <= last and grid[exceeded] < score:
                exceeded += 1
            while exceeded > 0 and grid[exceeded - 1] >= score:
                exceeded -= 1
            if labels[i, j]:
                abnormal[i, exceeded] += 1
            else:
                normal[i, exceeded] += 1


def _dice(sizes: np.ndarray, true: np.ndarray, positive: np.ndarray, filled: np.ndarray) -> Floats:
    """Dice per image, [N]; 1 without a lesion and without a finding; nan in images that are not `filled`."""
    total = sizes + positive
    return np.where(filled, np.divide(2 * true, total, out=np.ones(len(total)), where=total > 0), np.nan)


def _per_image(pixels: Bools) -> np.ndarray:
    return np.count_nonzero(pixels.reshape(len(pixels), -1), axis=1)


def _mean(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return math.fsum(defined) / defined.size if defined.size else math.nan

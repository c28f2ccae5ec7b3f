"""Bootstrap intervals of scores over pooled pixels, with subjects as the units.

Pixels of one subject are not independent, so subjects are drawn, each with all its images. A resample only changes how
often each subject's pixels count: the counts of every subject at every threshold are made once, and a resample is a
weighted sum of them, exact to the last pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.metrics.bca import bca_limits
from harness.metrics.ranked_maps import Floats, RankedMaps
from harness.metrics.ranking import Interval

CHUNK = 4096
"""Thresholds at a time: what is held is (subjects + resamples) × CHUNK."""


@dataclass(frozen=True)
class PooledIntervals:
    """Of AUROC, average precision and global max Dice; bounds are nan for fewer than two subjects with a lesion."""

    auroc: Interval
    ap: Interval
    max_dice: Interval


def pooled_intervals(
    maps: RankedMaps, subjects: Sequence[str], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> PooledIntervals:
    """BCa intervals over subjects. subjects: whose image it is, [N]. Raises ValueError where lengths differ.

    Resamples in which nobody has a lesion are left out. Source: Efron, JASA 1987.
    """
    if len(subjects) != maps.n_images:
        raise ValueError(f"need the subject of {maps.n_images} images, not {len(subjects)}")
    names = sorted(set(subjects))
    of_image = np.array([names.index(subject) for subject in subjects], np.int64)
    n = len(names)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    # One row of weights for each: all subjects once, the resamples, and every subject left out in turn.
    weights = np.concatenate([np.ones((1, n)), drawn, 1 - np.eye(n)])
    auroc, ap, dice = _scores(maps, of_image, weights)
    lesioned = len({int(of_image[i]) for i in np.flatnonzero(maps.is_abnormal)})

    def interval(values: Floats) -> Interval:
        return _bca(values[0], values[1 : resamples + 1], values[resamples + 1 :], confidence, n, lesioned > 1)

    return PooledIntervals(interval(auroc), interval(ap), interval(dice))


def _scores(maps: RankedMaps, of_image: np.ndarray, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """AUROC, average precision and best Dice of each row of weights; nan where the weighted pixels do not define it."""
    n = weights.shape[1]
    abnormal = weights @ np.bincount(of_image, np.diff(maps.abnormal_starts), n)
    normal = weights @ np.bincount(of_image, maps.normal_count, n)
    area, precision_sum, best = (np.zeros(len(weights)) for _ in range(3))
    before = np.zeros(len(weights))
    for true, false, above in _counts(maps, of_image, n):
        found_so_far, false_so_far, false_above = (weights @ counts for counts in (true, false, above))
        found = np.diff(found_so_far, axis=1, prepend=before[:, None])
        before = found_so_far[:, -1]
        area += (found * (2 * normal[:, None] - false_above - false_so_far)).sum(1)
        called = found_so_far + false_so_far
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(called > 0, found_so_far / called, 0)
            dice = 2 * found_so_far / (abnormal[:, None] + called)
        precision_sum += (found * precision).sum(1)
        best = np.maximum(best, np.nan_to_num(dice).max(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        undefined = np.where(abnormal > 0, 0, np.nan)
        return area / (2 * abnormal * normal), precision_sum / abnormal, best + undefined


def _counts(maps: RankedMaps, of_image: np.ndarray, n: int) -> Iterator[tuple[Floats, Floats, Floats]]:
    """For thresholds in falling order, CHUNK at a time: true, false, and false of a higher score, float64 [n, K]."""
    thresholds = maps.curve.thresholds
    ranked = [
        (
            np.sort(maps.abnormal[maps.abnormal_starts[i] : maps.abnormal_starts[i + 1]]),
            maps.normal[maps.normal_starts[i] : maps.normal_starts[i + 1]],
        )
        for i in range(maps.n_images)
    ]
    for start in range(0, len(thresholds), CHUNK):
        levels = thresholds[start : start + CHUNK]
        true, false, above = (np.zeros((n, len(levels))) for _ in range(3))
        for subject, (sick, well) in zip(of_image, ranked, strict=True):
            true[subject] += len(sick) - np.searchsorted(sick, levels)
            false[subject] += len(well) - np.searchsorted(well, levels)
            above[subject] += len(well) - np.searchsorted(well, levels, side="right")
        yield true, false, above


def _bca(estimate: float, replicates: Floats, left_out: Floats, confidence: float, n: int, defined: bool) -> Interval:
    kept, jackknife = replicates[np.isfinite(replicates)], left_out[np.isfinite(left_out)]
    if not defined or len(kept) < 2 or len(jackknife) < 2:
        return Interval(float(estimate), math.nan, math.nan, math.nan, n)
    low, high = bca_limits(estimate, kept, jackknife, confidence)
    return Interval(float(estimate), low, high, float(kept.std(ddof=1)), n)

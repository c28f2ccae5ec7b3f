"""Scores of anomaly maps over all pixels of a set of images: AUROC, average precision, F1max and AUPRO.

Every distinct score is a threshold, so a strictly increasing function of all scores changes no value. `rank_maps`
sorts once for all functions of this file and of `max_dice`. What is not defined is nan, never 0 and never a reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.metrics.ranked_maps import Floats, RankedMaps, checked_maps, rank_maps
from harness.metrics.ranking import Interval, bootstrap_mean


@dataclass(frozen=True)
class Optimum:
    """The best value over all thresholds, and the highest threshold that reaches it; inf calls nothing abnormal."""

    value: float
    threshold: float


@dataclass(frozen=True)
class DetectionScores:
    """auroc, ap, aupro and f1max.value in [0, 1], nan where they are not defined; what they were computed from.

    n_outside: abnormal pixels that the mask leaves out, which no method can find.
    """

    auroc: float
    ap: float
    f1max: Optimum
    aupro: float
    n_abnormal: int
    n_normal: int
    n_regions: int
    n_outside: int


def detection_scores(
    scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None, limit: float = 0.3
) -> DetectionScores:
    """All pixel-level scores of this file from one sort; arguments and errors as for `rank_maps` and `aupro`."""
    maps = rank_maps(scores, labels, mask)
    return DetectionScores(
        auroc=auroc(maps),
        ap=average_precision(maps),
        f1max=f1_max(maps),
        aupro=aupro(maps, limit),
        n_abnormal=maps.n_abnormal,
        n_normal=maps.n_normal,
        n_regions=int(maps.regions.count.sum()),
        n_outside=maps.n_outside,
    )


def auroc(maps: RankedMaps) -> float:
    """Area under the ROC curve in [0, 1]: the chance that an abnormal pixel scores higher than a normal one.

    Ties count one half. One division of exact integers. nan where all pixels are normal, or all abnormal.
    Source: Hanley and McNeil, Radiology 1982.
    """
    curve, n, p = maps.curve, maps.n_normal, maps.n_abnormal
    if n == 0 or p == 0:
        return math.nan
    twice_u = int((curve.found * (2 * n - curve.false_above - curve.false)).sum())
    return twice_u / (2 * p * n)


def average_precision(maps: RankedMaps) -> float:
    """Average precision in [0, 1] (also AUPRC): the precision at every distinct score, weighted by the recall gained.

    A constant map scores the share of abnormal pixels, so say whether background and healthy images are among them.
    nan without abnormal pixels.
    """
    curve = maps.curve
    if maps.n_abnormal == 0:
        return math.nan
    precision = curve.true / (curve.true + curve.false)
    return float((curve.found * precision).sum()) / maps.n_abnormal


def f1_max(maps: RankedMaps) -> Optimum:
    """The best F1 = Dice = 2TP / (P + TP + FP) over all pixels pooled, in (0, 1]. nan without abnormal pixels."""
    curve = maps.curve
    if maps.n_abnormal == 0:
        return Optimum(math.nan, math.nan)
    dice = 2 * curve.true / (maps.n_abnormal + curve.true + curve.false)
    best = int(dice.argmax())
    return Optimum(float(dice[best]), float(curve.thresholds[best]))


def aupro(maps: RankedMaps, limit: float = 0.3) -> float:
    """Area under the per-region overlap curve up to the false-positive rate `limit` in (0, 1], divided by `limit`.

    The overlap is the mean over all regions of the share of the region that is found. Regions are connected over
    faces, edges and corners, within one image; the mask may cut a region, which then counts as what is left of it.
    Normal pixels of healthy images count. The curve is interpolated linearly at ties and at the limit.
    In [0, 1]; nan without regions or without normal pixels. Raises ValueError for another limit.
    Source: Bergmann et al., IJCV 2021.
    """
    if not 0 < limit <= 1:
        raise ValueError(f"the integration limit must lie in (0, 1], not {limit}")
    if maps.n_abnormal == 0 or maps.n_normal == 0:
        return math.nan
    curve, regions = maps.curve, maps.regions
    # What a pixel adds to the area: nothing until its score is reached, a ramp among the normal pixels that share
    # the score, and all from there on. No running sum, hence no rounding to speak of.
    end = limit * maps.n_normal
    tied = curve.false - curve.false_above
    on_ramp = np.clip(end - curve.false_above, 0, tied)
    ramp = np.divide(on_ramp**2, 2 * tied, out=np.zeros(len(tied)), where=tied > 0)
    area = ramp + np.clip(end - curve.false, 0, None)
    weights = np.bincount(curve.bucket, regions.share, len(area))
    return float((weights * area).sum()) / (int(regions.count.sum()) * end)


def image_scores(scores: ArrayLike, mask: ArrayLike | None = None) -> Floats:
    """One score per image, float64 [N]: the largest of its map [N, ...] inside the mask; errors as for `rank_maps`.

    Raises ValueError also for an image without a pixel inside the mask.
    """
    values, _, inside = checked_maps(scores, None, mask)
    flat = values.reshape(len(values), -1)
    if inside is None:
        return flat.max(axis=1).astype(np.float64)
    within = inside.reshape(flat.shape)
    if not within.any(axis=1).all():
        raise ValueError(f"image {int(np.argmin(within.any(axis=1)))} has no pixel inside the mask")
    return np.where(within, flat, -np.inf).max(axis=1).astype(np.float64)


def image_auroc(scores: ArrayLike, abnormal: ArrayLike) -> float:
    """AUROC of images: one score and one truth value for each, [N] both. nan where only one kind of image is there."""
    values, truth = np.asarray(scores), np.asarray(abnormal)
    if values.ndim != 1:
        raise ValueError(f"need one score per image, [N], not shape {values.shape}; see image_scores")
    return auroc(rank_maps(values[:, None], truth[:, None]))


def subject_interval(
    values: ArrayLike, subjects: Sequence[Any], *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Interval:
    """The mean over subjects of the mean over each one's images, with its BCa interval over subjects.

    values: one per image, [N]; nan (not defined for this image) is left out. subjects: whose image it is, [N].
    For values per image (Dice, false-positive rates), not for pooled ones. Raises ValueError where lengths differ.
    """
    each = np.asarray(values, np.float64)
    if each.shape != (len(subjects),):
        raise ValueError(f"need one value for each of {len(subjects)} images, not shape {each.shape}")
    of_subject: dict[Any, list[float]] = {}
    for value, subject in zip(each.tolist(), subjects, strict=True):
        if not math.isnan(value):
            of_subject.setdefault(subject, []).append(value)
    means = [math.fsum(found) / len(found) for found in of_subject.values()]
    return bootstrap_mean(means, confidence=confidence, resamples=resamples, seed=seed)

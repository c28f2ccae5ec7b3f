"""Anomaly maps of a set of images, sorted once, and all counts that change with the threshold.

A pixel is called abnormal where its score is at least the threshold. Only the distinct scores of abnormal pixels
matter as thresholds: between two of them nothing is gained, only normal pixels are lost. So the scores are sorted
within each image, and one walk over the images from the highest threshold down notes what changes at each. What is
counted is integer, so ties are exact, and no result depends on the range of the scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Curve:
    """What changes with the threshold, at the K distinct scores of abnormal pixels, highest first.

    thresholds: [K]. bucket: int64 [P], the threshold of each abnormal pixel. int64 [K] each: found, the abnormal
    pixels of exactly this score; true and false, the abnormal and normal pixels of at least this score; false_above,
    the normal pixels of a higher one.
    dice_sum: int64 [K], the sum over abnormal images of their Dice, times `scale`; rounded down once per image.
    hit: int64 [K], the healthy images in which some pixel is called abnormal.
    image_best: float64 [N], each image's best Dice, nan in healthy ones; image_bucket: int64 [N], its threshold.
    """

    thresholds: Scores
    bucket: Ints
    found: Ints
    true: Ints
    false: Ints
    false_above: Ints
    dice_sum: Ints
    scale: float
    hit: Ints
    image_best: Floats
    image_bucket: Ints


@dataclass(frozen=True)
class Regions:
    """share: float64 [P], for each abnormal pixel 1 / (pixels of its region). count: int64 [N], regions per image."""

    share: Floats
    count: Ints


@dataclass(frozen=True, eq=False)
class RankedMaps:
    """The scores of N images, sorted within each; made by `rank_maps`, which says what was given.

    abnormal: scores [P] of abnormal pixels, image after image; at: int64 [P], their flat positions in `labels`;
    those of image i are [abnormal_starts[i]:abnormal_starts[i + 1]], and so for `normal`, which ascends in each image.
    normal holds no score below `floor`, the lowest of an abnormal pixel, because nothing depends on those;
    normal_count: int64 [N], all normal pixels. outside: int64 [N], abnormal pixels that the mask left out.
    """

    labels: Bools
    abnormal: Scores
    at: Ints
    abnormal_starts: Ints
    normal: Scores
    normal_starts: Ints
    normal_count: Ints
    outside: Ints
    floor: float

    @property
    def n_images(self) -> int:
        return len(self.normal_count)

    @property
    def n_abnormal(self) -> int:
        """Abnormal pixels."""
        return len(self.abnormal)

    @property
    def n_normal(self) -> int:
        """Normal pixels."""
        return int(self.normal_count.sum())

    @property
    def n_outside(self) -> int:
        """Abnormal pixels outside of the mask."""
        return int(self.outside.sum())

    @property
    def is_abnormal(self) -> Bools:
        """Which images hold abnormal pixels, [N]."""
        return np.diff(self.abnormal_starts) > 0

    @property
    def is_healthy(self) -> Bools:
        """Which images hold normal pixels alone, [N]. An image without any pixel in the mask is neither."""
        return ~self.is_abnormal & (self.normal_count > 0)

    def select(self, images: Sequence[int] | Ints) -> RankedMaps:
        """The same of some of the images, in the order given, without sorting anything again."""
        chosen = np.asarray(images, np.int64)
        pixels = math.prod(self.labels.shape[1:])
        abnormal, normal = self.abnormal_starts, self.normal_starts
        of_abnormal = [np.arange(abnormal[i], abnormal[i + 1]) for i in chosen]
        of_normal = [self.normal[normal[i] : normal[i + 1]] for i in chosen]
        take = np.concatenate([np.empty(0, np.int64), *of_abnormal])
        shift = np.repeat(np.arange(len(chosen)) - chosen, np.diff(abnormal)[chosen]) * pixels
        return RankedMaps(
            labels=self.labels[chosen],
            abnormal=self.abnormal[take],
            at=self.at[take] + shift,
            abnormal_starts=_starts(np.diff(abnormal)[chosen]),
            normal=np.concatenate([self.normal[:0], *of_normal]),
            normal_starts=_starts(np.diff(normal)[chosen]),
            normal_count=self.normal_count[chosen],
            outside=self.outside[chosen],
            floor=self.floor,
        )

    def counts_at(self, threshold: float) -> tuple[Ints, Ints]:
        """True and false positives of each image, int64 [N] both, at a threshold of at least `floor`."""
        if not threshold >= self.floor:
            raise ValueError(f"the threshold {threshold} is below every abnormal pixel; see max_dice.dice_at")
        # numpy rounds a Python float to the scores' float32, but no float64 scalar.
        level = np.float64(threshold)
        called = np.concatenate([[0], np.cumsum(self.abnormal >= level)])[self.abnormal_starts]
        normal = [self.normal[self.normal_starts[i] : self.normal_starts[i + 1]] for i in range(self.n_images)]
        false = [len(n) - int(np.searchsorted(n, level)) for n in normal]
        return np.diff(called), np.array(false, np.int64)

    @cached_property
    def curve(self) -> Curve:
        values, inverse = np.unique(self.abnormal, return_inverse=True)
        k, n = len(values), self.n_images
        bucket = k - 1 - inverse.astype(np.int64)
        thresholds = np.ascontiguousarray(values[::-1])
        image = np.repeat(np.arange(n), np.diff(self.abnormal_starts))
        in_order = np.sort(image * k + bucket) - image * k
        # Fixed-point sums do not depend on their order, and what was added is taken away again without a trace.
        scale = 2.0 ** min(53, 62 - max(n, 1).bit_length())
        above, tied, dice_steps, hits = (np.zeros(k, np.int64) for _ in range(4))
        best, at = np.full(n, np.nan), np.zeros(n, np.int64)
        ranked = (in_order, self.abnormal_starts, self.normal, self.normal_starts)
        _walk(thresholds, *ranked, scale, above, tied, dice_steps, hits, best, at)
        found = np.bincount(bucket, minlength=k).astype(np.int64)
        false = np.cumsum(above + tied)
        return Curve(
            thresholds=thresholds,
            bucket=bucket,
            found=found,
            true=np.cumsum(found),
            false=false,
            false_above=false - tied,
            dice_sum=np.cumsum(dice_steps),
            scale=scale,
            hit=np.cumsum(hits),
            image_best=best,
            image_bucket=at,
        )

    @cached_property
    def regions(self) -> Regions:
        from scipy import ndimage

        shape = self.labels.shape[1:]
        structure = np.ones((3,) * len(shape), np.bool_)
        share, count = np.empty(self.n_abnormal), np.zeros(self.n_images, np.int64)
        for i in np.flatnonzero(self.is_abnormal):
            # The whole label, masked or not: a mask must not make two regions of one.
            everywhere = np.stack(np.nonzero(self.labels[i]))
            low, high = everywhere.min(axis=1), everywhere.max(axis=1) + 1
            region, _ = ndimage.label(self.labels[i][tuple(map(slice, low, high))], structure)
            part = slice(self.abnormal_starts[i], self.abnormal_starts[i + 1])
            inside = np.stack(np.unravel_index(self.at[part] - i * math.prod(shape), shape)) - low[:, None]
            ids = region[tuple(inside)]
            sizes = np.bincount(ids)
            share[part] = 1 / sizes[ids]
            count[i] = np.count_nonzero(sizes)
        return Regions(share, count)


def rank_maps(scores: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> RankedMaps:
    """Sort the scores of a set of anomaly maps once, for all metrics of `detection` and `max_dice`.

    scores: [N, ...] (2-D or 3-D maps of N images), any finite numbers, higher is more abnormal; float32 is kept,
    all else becomes float64. labels: the same shape, boolean or integer, abnormal where not 0.
    mask: the same shape, boolean, pixels that count (the brain); None: all, the background too.
    Raises ValueError for other shapes and types, and for scores that are not finite, masked or not.
    The labels are kept, not copied: do not change them while the result is in use.
    """
    values, truth, inside = checked_maps(scores, labels, mask)
    n, pixels = len(values), math.prod(values.shape[1:])
    counted = truth if inside is None else truth & inside
    at = np.flatnonzero(counted)
    abnormal = values.reshape(-1)[at]
    floor = abnormal.min() if at.size else None
    abnormal_starts = np.searchsorted(at, pixels * np.arange(n + 1)).astype(np.int64)
    per_image = np.diff(abnormal_starts)
    normal, lengths = [values.reshape(-1)[:0]], np.zeros(n, np.int64)
    if floor is not None:
        for i in range(n):
            kept = values[i] >= floor
            kept &= ~truth[i]
            if inside is not None:
                kept &= inside[i]
            normal.append(values[i].reshape(-1).compress(kept.reshape(-1)))
            normal[-1].sort()
            lengths[i] = normal[-1].size
    return RankedMaps(
        labels=truth,
        abnormal=abnormal,
        at=at,
        abnormal_starts=abnormal_starts,
        normal=np.concatenate(normal),
        normal_starts=_starts(lengths),
        normal_count=(np.full(n, pixels) if inside is None else _per_image(inside)) - per_image,
        outside=np.zeros(n, np.int64) if inside is None else _per_image(truth) - per_image,
        floor=-math.inf if floor is None else float(floor),
    )


def checked_maps(
    scores: ArrayLike, labels: ArrayLike | None, mask: ArrayLike | None
) -> tuple[Scores, Bools, Bools | None]:
    """Contiguous scores, labels (no abnormal pixel where they are None) and mask; errors as for `rank_maps`."""
    values = np.asarray(scores)
    if values.ndim < 2 or values.size == 0:
        raise ValueError(f"anomaly maps must be [N, ...] with at least one pixel, not shape {values.shape}")
    # Wider integers and floats do not fit into float64: scores that differ could become equal.
    if values.dtype.kind not in "fiub" or values.dtype.itemsize > (8 if values.dtype.kind == "f" else 4):
        raise ValueError(f"anomaly maps must be floats of up to 64 bits, not {values.dtype}")
    values = np.ascontiguousarray(values, np.float32 if values.dtype == np.float32 else np.float64)
    if not np.isfinite(values).all():
        raise ValueError("anomaly maps must be finite, in the background too")
    truth = np.zeros(values.shape, np.bool_) if labels is None else _as_bools("labels", labels, values.shape, "iub")
    return values, truth, None if mask is None else _as_bools("mask", mask, values.shape, "b")


def _as_bools(name: str, given: ArrayLike, shape: tuple[int, ...], kinds: str) -> Bools:
    array = np.asarray(given)
    if array.shape != shape:
        raise ValueError(f"{name} and anomaly maps differ in shape: {array.shape} and {shape}")
    if array.dtype.kind not in kinds:
        raise ValueError(f"{name} must be boolean{' or integer' if 'i' in kinds else ''}, not {array.dtype}")
    return np.ascontiguousarray(array if array.dtype.kind == "b" else array != 0)


def _starts(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _per_image(pixels: Bools) -> Ints:
    return np.count_nonzero(pixels.reshape(len(pixels), -1), axis=1).astype(np.int64)


@numba.njit(cache=True)
def _walk(  # type: ignore[no-untyped-def]
    thresholds, bucket, bucket_starts, normal, normal_starts, scale, above, tied, dice_steps, hits, best, best_at
):
    """Lower the threshold over each image and note, at every threshold where some pixel of it joins, what changes.

    above, tied: normal pixels between this threshold and the one before, and on it. dice_steps: change of the Dice.
    """
    n_thresholds = thresholds.size
    for i in range(best.size):
        p, p_end = bucket_starts[i], bucket_starts[i + 1]
        j, j_end = normal_starts[i + 1] - 1, normal_starts[i]
        size = p_end - p
        true = false = before = 0
        k = 0
        first = True
        while True:
            after = bucket[p] if p < p_end else n_thresholds
            if j >= j_end and k < after:
                # The first threshold that the next normal score reaches, by steps that double, then by halves.
                score = normal[j]
                low, step = k, 1
                while low + step <= after and thresholds[low + step - 1] > score:
                    low += step
                    step *= 2
                high = min(low + step - 1, after)
                while low < high:
                    middle = (low + high) // 2
                    if thresholds[middle] > score:
                        low = middle + 1
                    else:
                        high = middle
                after = low
            if after >= n_thresholds:
                break
            k = after
            level = thresholds[k]
            start = j
            while j >= j_end and normal[j] > level:
                j -= 1
            above[k] += start - j
            false += start - j
            start = j
            while j >= j_end and normal[j] == level:
                j -= 1
            tied[k] += start - j
            false += start - j
            while p < p_end and bucket[p] == k:
                p += 1
                true += 1
            if size > 0:
                dice = 2 * true / (size + true + false)
                now = int(dice * scale)
                dice_steps[k] += now - before
                before = now
                if first or dice > best[i]:
                    best[i] = dice
                    best_at[i] = k
            elif first:
                hits[k] += 1
            first = False
            k += 1

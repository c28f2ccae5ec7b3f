"""Reference scans: which of a site's scans are typical, and which of their slices show the same place."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from harness.api import ImageSet, Scan


def nearest_in_place(brain: ArrayLike, count: int) -> np.ndarray:
    """For each slice of a scan of `count` slices the nearest in place of another scan, int64 [count].

    brain: bool [n], which slices of the other scan may be chosen; at least one. A place is the slice's number; where
    scans differ in their number of slices, its fraction of the way from first to last.
    """
    able, last = np.flatnonzero(brain), np.size(brain) - 1
    places = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
    return able[np.abs(places[:, None] - able).argmin(axis=1)]


def typical_scans(images: ImageSet, count: int) -> list[Scan]:
    """The `count` scans whose mean brain intensity is nearest to the median of all; in case of a tie, the first.

    Scans without brain do not count; fewer come back where fewer have any.
    """
    means = np.array([pixels[mask].mean() if mask.any() else np.nan for _, pixels, mask in images.volumes()])
    able = np.flatnonzero(np.isfinite(means))
    order = np.argsort(np.abs(means[able] - np.median(means[able])), kind="stable") if len(able) else able
    return [images.scans[able[i]] for i in order[:count]]

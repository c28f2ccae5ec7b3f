"""Which slices of two scans show the same place, for scans that were cut alike but may differ in their number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def nearest_in_place(brain: ArrayLike, count: int) -> np.ndarray:
    """For each slice of a scan of `count` slices the nearest in place of another scan, int64 [count].

    brain: bool [n], which slices of the other scan may be chosen; at least one. A place is the slice's number; where
    scans differ in their number of slices, its fraction of the way from first to last.
    """
    able, last = np.flatnonzero(brain), np.size(brain) - 1
    places = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
    return able[np.abs(places[:, None] - able).argmin(axis=1)]

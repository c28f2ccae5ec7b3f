"""As many training scans of each week of age as of the most frequent one."""

from __future__ import annotations

import numpy as np


def balanced(ages: np.ndarray, unit: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of scans, ages of each multiple of `unit`, to which they are rounded, as often as the most frequent.

    A scan is repeated as often as any other of its age, or once more; `rng` says which.
    """
    classes = np.floor(np.asarray(ages, np.float64) / unit + 0.5)
    values, counts = np.unique(classes, return_counts=True)
    most = int(counts.max())
    return np.concatenate([np.resize(rng.permutation(np.flatnonzero(classes == value)), most) for value in values])

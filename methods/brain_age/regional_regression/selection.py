"""Which features follow age best."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from methods.brain_age.regional_regression.base import Floats

NAMED = 5
"""How many columns a message lists by number."""


def selected(train_features: NDArray[Any], train_ages: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Columns of the k features whose Pearson correlation with age is largest in size, largest first: int64 [<= k].

    train_features: [subjects, features]; train_ages: [subjects]; both of training subjects alone. Equal correlations
    stay in the order of the columns. A feature that is the same for every subject is never selected, so fewer than k
    come back where fewer vary. The published choice is k = 100 of 172.
    Raises ValueError for other shapes, k below 1, values that are not finite, or ages that do not vary.
    """
    features, ages = np.asarray(train_features, np.float64), np.asarray(train_ages, np.float64)
    if features.ndim != 2 or ages.shape != features.shape[:1]:
        raise ValueError(
            f"features [subjects, n] and ages [subjects] are needed, not {features.shape} and {ages.shape}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not np.isfinite(ages).all():
        raise ValueError("an age is missing or infinite")
    if len(ages) == 0 or (ages == ages[0]).all():
        raise ValueError("the ages of the training subjects do not vary: nothing correlates with them")
    if not (whole := np.isfinite(features).all(axis=0)).all():
        missing = np.flatnonzero(~whole)
        shown = ", ".join(map(str, missing[:NAMED]))
        more = "" if len(missing) <= NAMED else f" and {len(missing) - NAMED} more"
        raise ValueError(f"features that are not finite for every training subject: columns {shown}{more}")
    varies = np.flatnonzero((features != features[0]).any(axis=0))
    # Entry by entry, with no matrix product: equal columns then have equal correlations wherever they stand.
    deviation, by_age = _deviations(features[:, varies]), _deviations(ages[:, None])
    together = (deviation * by_age).sum(axis=0)
    size = np.abs(together) / np.sqrt((deviation**2).sum(axis=0) * (by_age**2).sum(axis=0))
    return varies[np.argsort(-size, kind="stable")][:k].astype(np.int64)


def _deviations(columns: Floats) -> Floats:
    """Differences from each column's mean, over the largest: their squares neither vanish nor overflow."""
    differences = columns - columns.mean(axis=0)
    return differences / np.abs(differences).max(axis=0)

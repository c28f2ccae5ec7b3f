"""Bias-corrected and accelerated limits of a bootstrap, for scores whose resamples are made by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def bca_limits(estimate: float, replicates: Floats, left_out: Floats, confidence: float) -> tuple[float, float]:
    """The interval of an estimate, from its values over resamples and with each unit left out in turn.

    replicates, left_out: finite, at least two of each. Equal replicates are an interval of no width. Source: Efron,
    JASA 1987; ties are counted as scipy's bootstrap does.
    """
    from scipy.special import ndtr, ndtri

    if np.ptp(replicates) == 0:
        return float(replicates[0]), float(replicates[0])
    # A tie is half below; the share stays off 0 and 1, whose quantiles are infinite.
    below = ((replicates < estimate).mean() + (replicates <= estimate).mean()) / 2
    bias = ndtri(min(max(below, 0.5 / len(replicates)), 1 - 0.5 / len(replicates)))
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum() ** 1.5)
    acceleration = float((pull**3).sum()) / (6 * spread) if spread > 0 else 0.0
    ends = bias + ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    low, high = np.quantile(replicates, ndtr(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)

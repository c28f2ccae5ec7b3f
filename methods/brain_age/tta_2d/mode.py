"""The age that most slices agree on."""

from __future__ import annotations

import numpy as np


def histogram_mode(values: np.ndarray, width: float) -> float:
    """The mode of `values` [n], n ≥ 1, refined from a histogram with bins of `width`.

    Of the fullest bin, with lower edge L and f₁ values, and its neighbours with f₀ below and f₂ above, it is
    L + width (f₁ − f₀) / (2 f₁ − f₀ − f₂). Where several bins are the fullest it is 3 × median − 2 × mean, Pearson's
    estimate. Where bins begin is not published; ours lie so that one is centred on the median, so values that are all
    equal are their own mode, and one stray value moves no bin. nan where a value is not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        return float("nan")
    median = float(np.median(values))
    bins, counts = np.unique(np.floor((values - median) / width + 0.5), return_counts=True)
    most = int(counts.max())
    if (counts == most).sum() > 1:
        return 3 * median - 2 * float(values.mean())
    fullest = float(bins[counts.argmax()])
    below, above = (int(counts[bins == fullest + side].sum()) for side in (-1, 1))
    return median + width * (fullest - 0.5 + (most - below) / (2 * most - below - above))

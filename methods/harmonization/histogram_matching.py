"""Nyúl–Udupa histogram standardisation: percentiles of each scan are moved to those of the source site.

The three functions at the end are the whole algorithm on plain arrays; the class only feeds them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import field_validator

from harness.api import ApplyData, Context, FitData, Harmonizer, MethodError, State, hyper

NYUL_PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


class HistogramMatching(Harmonizer):
    """Map each scan's brain percentiles to the source site's mean percentiles, piecewise linearly.

    Landmarks pool a whole scan: those of single slices would follow anatomy instead of contrast.
    """

    id = "histogram_matching"
    reference = "Nyúl and Udupa, Magnetic Resonance in Medicine 1999; Nyúl et al., IEEE TMI 2000"
    notes = (
        "The standard scale runs from the mean source p1 to the mean source p99 (ours), so that source images "
        "stay what the task model was trained on; tied landmarks are merged (ours)."
    )
    source_free, task_agnostic, unknown_domains = True, True, True

    percentiles: tuple[float, ...] = hyper(
        NYUL_PERCENTILES,
        "landmarks, as percentiles of the brain's intensities, rising within 0..100",
        origin="Nyúl et al. 2000: the deciles between p_low and p_high; 1 and 99 are the usual ends",
        min_length=2,
    )
    output_range: Literal["source"] | tuple[float, float] = hyper(
        "source",
        "where the first and last landmark go: 'source' (mean source landmarks) or fixed [low, high] in 0..1",
        origin="ours; published code uses a fixed range, which a frozen task model has never seen",
    )

    @field_validator("percentiles")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not (value[0] >= 0 and value[-1] <= 100 and all(a < b for a, b in pairwise(value))):
            raise ValueError("percentiles must rise strictly within 0..100")
        return value

    @field_validator("output_range")
    @classmethod
    def _within_unit(cls, value: Literal["source"] | tuple[float, float]) -> Literal["source"] | tuple[float, float]:
        if value != "source" and not 0 <= value[0] < value[1] <= 1:
            raise ValueError("a fixed range must be [low, high] with 0 <= low < high <= 1")
        return value

    def fit(self, data: FitData, ctx: Context) -> State:
        """Learn the standard scale. Raises MethodError for a source scan whose brain has no contrast."""
        rows = []
        for scan, image, mask in data.source.volumes():
            own = landmarks(image[mask], self.percentiles) if mask.any() else np.zeros(len(self.percentiles))
            if own[0] == own[-1]:
                raise MethodError(f"source scan {scan.id} has no contrast: its first and last landmark are equal")
            rows.append(own)
        fixed = None if self.output_range == "source" else self.output_range
        return {"standard": standard_scale(np.stack(rows), fixed)}

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        out = np.zeros(data.target.pixels.shape, np.float32)
        for scan, image, mask in data.target.volumes():
            if mask.any():
                brain = image[mask]
                mapped = transform(brain, landmarks(brain, self.percentiles), state["standard"])
                out[scan.slices][mask] = np.clip(mapped, 0, 1)
        return out


def landmarks(values: np.ndarray, percentiles: tuple[float, ...]) -> np.ndarray:
    """Percentiles of the foreground `values` [V], float64 [K]."""
    return np.percentile(np.asarray(values, np.float64), percentiles)


def standard_scale(rows: np.ndarray, fixed: tuple[float, float] | None = None) -> np.ndarray:
    """The standard scale [K] from the landmarks of I images, `rows` [I, K].

    Each row is mapped affinely so that its ends fall on the ends of the range, then rows are averaged.
    The range is `fixed`, or the mean first and mean last landmark.
    """
    low, high = fixed if fixed is not None else (rows[:, 0].mean(), rows[:, -1].mean())
    first, last = rows[:, :1], rows[:, -1:]
    return (low + (high - low) * (rows - first) / (last - first)).mean(axis=0)


def transform(values: np.ndarray, own: np.ndarray, standard: np.ndarray) -> np.ndarray:
    """f(values), float64: f is linear between landmarks, f(own[k]) = standard[k], the end segments go on.

    Equal landmarks (8-bit images have them) become one, at the mean of their standard values: a segment of
    no width has no slope. With a single distinct landmark f is a shift.
    """
    values = np.asarray(values, np.float64)
    knots, group = np.unique(own, return_inverse=True)
    heights = np.bincount(group, weights=standard) / np.bincount(group)
    if len(knots) == 1:
        return values - knots[0] + heights[0]
    slopes = np.diff(heights) / np.diff(knots)
    segment = np.clip(np.searchsorted(knots, values, side="right") - 1, 0, len(slopes) - 1)
    # Measured from the nearer knot of each segment, so that both of its ends are hit without rounding.
    left, right = values - knots[segment], values - knots[segment + 1]
    return np.where(
        np.abs(left) <= np.abs(right),
        heights[segment] + slopes[segment] * left,
        heights[segment + 1] + slopes[segment] * right,
    )

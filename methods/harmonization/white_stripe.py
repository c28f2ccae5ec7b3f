"""WhiteStripe: scans are matched by their normal-appearing white matter, found as a mode of the histogram."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.stats import gaussian_kde

from harness.api import ApplyData, Context, FitData, Harmonizer, State, hyper
from methods.harmonization._moments import match_moments, mean_moments

PACKAGE = "intensity-normalization package"


class WhiteStripe(Harmonizer):
    """(x − μ) / σ of a scan's white stripe, then × σ + μ of the source's stripe: the mean over its training scans.

    The stripe is the brain intensities whose quantiles lie within `width` of the white-matter mode's. The mode is
    sought on a smoothed histogram, by a rule for each modality.
    """

    id = "white_stripe"
    reference = "Shinohara et al., Statistical normalization techniques for MRI, NeuroImage: Clinical 2014"
    notes = (
        "Normalised intensities are brought back to source intensities (ours): the frozen task model knows no "
        "others. The histogram is smoothed on an even sample of the sorted intensities (ours), not on all."
    )
    source_free, task_agnostic, unknown_domains = True, True, True

    modality: Literal["T1", "T2", "PD"] = hyper(
        "T1",
        "which mode is white matter: the last (T1), the largest (T2, also for FLAIR) or the first (PD)",
        origin=PACKAGE,
    )
    width: float = hyper(
        0.05, "half the stripe's width, as a fraction of the brain", origin="Shinohara et al. 2014", gt=0, le=0.5
    )
    t1_percentile: float = hyper(
        96.0, "T1: intensities above this percentile do not enter the histogram", origin=PACKAGE, gt=0, le=100
    )
    pd_percentile: float = hyper(
        99.0, "PD: intensities above this percentile do not enter the histogram", origin=PACKAGE, gt=0, le=100
    )
    grid: int = hyper(80, "points of the smoothed histogram", origin=PACKAGE, ge=5)
    sample: int = hyper(20_000, "most intensities that are smoothed; the cost is sample × grid", origin="ours", ge=100)

    def fit(self, data: FitData, ctx: Context) -> State:
        """Learn "moments", the stripe's mean and deviation. Raises MethodError for a source scan without contrast."""
        return {"moments": mean_moments(data.source, self.stripe_moments)}

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return match_moments(data.target, self.stripe_moments, state["moments"])

    def stripe_moments(self, values: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the stripe of brain intensities [V]."""
        stripe = white_stripe(values, self.mode(values), self.width)
        return float(stripe.mean()), float(stripe.std())

    def mode(self, values: np.ndarray) -> float:
        """The white-matter mode of brain intensities [V], by the rule of the modality."""
        cut = {"T1": self.t1_percentile, "PD": self.pd_percentile}.get(self.modality, 100.0)
        kept = values[values <= np.percentile(values, cut)]
        grid, density = smoothed_histogram(kept, self.grid, self.sample)
        inner = density[1:-1]
        peaks = 1 + np.flatnonzero((inner > density[:-2]) & (inner > density[2:]))
        if self.modality == "T2" or not len(peaks):
            return float(grid[density.argmax()])
        return float(grid[peaks[-1] if self.modality == "T1" else peaks[0]])


def smoothed_histogram(values: np.ndarray, grid: int, sample: int) -> tuple[np.ndarray, np.ndarray]:
    """Grid from the least to the largest of `values` [V], and a Gaussian kernel density (Scott's width) on it.

    Of more than `sample` values, as many evenly spaced ones of their sorted order stand for all.
    """
    ordered = np.sort(values)
    if len(ordered) > sample:
        ordered = ordered[np.linspace(0, len(ordered) - 1, sample).round().astype(np.int64)]
    points = np.linspace(ordered[0], ordered[-1], grid)
    if ordered[0] == ordered[-1]:  # a kernel density of one intensity does not exist
        return points, np.ones(grid)
    return points, gaussian_kde(ordered)(points)


def white_stripe(values: np.ndarray, mode: float, width: float) -> np.ndarray:
    """Those of `values` [V] between the quantiles F(mode) ± width, both included; F is their distribution function."""
    rank = (values <= mode).mean()
    low, high = np.quantile(values, [max(rank - width, 0.0), min(rank + width, 1.0)])
    return values[(values >= low) & (values <= high)]

"""Z-score normalisation: mean and standard deviation of each scan's brain become those of the source site."""

from __future__ import annotations

import numpy as np

from harness.api import ApplyData, Context, FitData, Harmonizer, State
from methods.harmonization._moments import match_moments, mean_moments


class ZScore(Harmonizer):
    """(x − μ) / σ over a scan's brain, then × σ + μ of the source: the mean over its training scans.

    Moments pool a whole scan: those of single slices would follow anatomy instead of contrast.
    """

    id = "z_score"
    reference = "Reinhold et al., Evaluating the impact of intensity normalization on MR image synthesis, SPIE 2019"
    notes = "Standard scores are brought back to source intensities (ours): the frozen task model knows no others."
    source_free, task_agnostic, unknown_domains = True, True, True

    def fit(self, data: FitData, ctx: Context) -> State:
        """Learn "moments", mean and deviation. Raises MethodError for a source scan whose brain has no contrast."""
        return {"moments": mean_moments(data.source, brain_moments)}

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return match_moments(data.target, brain_moments, state["moments"])


def brain_moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (divided by V, not V − 1) of brain intensities [V]."""
    return float(values.mean()), float(values.std())

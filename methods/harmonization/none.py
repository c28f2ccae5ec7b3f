"""No harmonisation: the baseline of every table."""

from __future__ import annotations

import numpy as np

from harness.api import ApplyData, Context, Harmonizer, State


class NoHarmonization(Harmonizer):
    """Hand the target images on as they are, so that the table shows what the site shift costs."""

    id = "none"
    reference = "baseline: no harmonisation"
    source_free, task_agnostic, unknown_domains = True, True, True

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return data.target.floats()

"""The mean age of the training scans: what every other estimator must beat."""

from __future__ import annotations

import numpy as np

from harness.api import Context, State
from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining
from methods.brain_age.learning import known_ages


class MeanAge(AgeEstimator):
    """The mean age of the training scans, whoever is asked about, with their standard deviation; reads no scan."""

    id = "mean_age"
    reference = "ours"
    reads = "nothing"

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """Returns "mean" and "sd" of the training ages. Raises MethodError without one, or for one that is unknown."""
        ages = known_ages(data.ages, data.train.scans, "training")
        return {"mean": float(ages.mean()), "sd": float(ages.std())}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        count = len(data.scans)
        return AgePredictions(np.full(count, state["mean"]), np.full(count, state["sd"]))

"""Estimators and segmenters for tests of the brain-age track: what they return can be wrong in every way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from harness.api import Context, State
from harness.brain_age import (
    AgeEstimator,
    AgeInputs,
    AgePredictions,
    AgeTraining,
    SegmentationTraining,
    VolumeSegmenter,
    VolumeSet,
)


class Levels(VolumeSegmenter):
    """Label 1 where it is dark and 2 where it is bright, outside of the brain too; or what no segmenter may return."""

    id = "levels"
    reference = "ours"
    late_fields = ("wrong",)

    threshold: float = 0.5
    wrong: Literal["", "shape", "type", "value", "few", "many", "list"] = ""

    def fit(self, data: SegmentationTraining, ctx: Context) -> State:
        return {"seen": [scan.id for scan in data.volumes.scans], "shapes": [m.shape for m in data.regions]}

    def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
        for number, volume in enumerate(volumes):
            found = np.where(volume.image > self.threshold, 2, 1).astype(np.uint8)
            if self.wrong == "few" and number:
                return
            changed: dict[str, Any] = {
                "shape": found[1:], "type": found.astype(np.int64), "value": found + np.uint8(7), "list": [1, 2]
            }  # fmt: skip
            yield changed.get(self.wrong, found)
        if self.wrong == "many":
            yield found


class Wrong(AgeEstimator):
    """Ages that are no ages."""

    id = "wrong_ages"
    reference = "ours"
    reads = "nothing"

    how: Literal["type", "few", "nan", "sds", "negative", ""] = ""

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        return {}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        ages = np.full(len(data.scans), 40.0)
        returned: dict[str, Any] = {
            "type": ages,
            "few": AgePredictions(ages[1:]),
            "nan": AgePredictions(np.where(np.arange(len(ages)) < 2, np.nan, ages)),
            "sds": AgePredictions(ages, ages[:, None]),
            "negative": AgePredictions(ages, -ages),
        }
        return returned.get(self.how, AgePredictions(ages, ages / 40))  # type: ignore[no-any-return]


class Unnamed(AgeEstimator):
    """Reads features and says of none which."""

    id = "unnamed"
    reference = "ours"
    reads = "features"

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        return {}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        return AgePredictions(data.features.values.mean(axis=1))

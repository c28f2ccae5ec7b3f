"""Conformance of generalizers, of harmonisers that adapt step by step, and of models of age."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import toy_methods

from harness.api import ApplyData, Context, FitData, ImageSet, Method, State, TaskData, TaskModel
from harness.conformance import check_method


def failures(cls: type[Method]) -> dict[str, str]:
    return {result.name: result.detail for result in check_method(cls) if not result.passed}


@pytest.mark.parametrize(
    "cls", [toy_methods.Stepwise, toy_methods.PairMean, toy_methods.PooledMean, toy_methods.Darker]
)
def test_sound_methods_pass(cls: type[Method]) -> None:
    assert failures(cls) == {}


class TestGeneralizers:
    def test_pixels_out_of_range(self) -> None:
        class Brighter(toy_methods.Darker):
            """Doubles."""

            def augment(self, pixels: Any, mask: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
                return pixels * 2, labels

        assert "must be finite and lie in [0, 1]" in failures(Brighter)["output"]

    def test_writing_to_the_batch(self) -> None:
        class InPlace(toy_methods.Darker):
            """Halves where it stands."""

            def augment(self, pixels: Any, mask: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
                return pixels.mul_(0.5), labels

        assert "wrote to its inputs" in failures(InPlace)["inputs"]

    def test_drawing_from_elsewhere(self) -> None:
        class Noisy(toy_methods.Darker):
            """Ignores the generator."""

            def augment(self, pixels: Any, mask: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
                return pixels * torch.rand(()), labels

        assert "draw from the generator only" in failures(Noisy)["deterministic"]

    def test_inventing_labels(self) -> None:
        class Inventive(toy_methods.Darker):
            """Adds a label."""

            def augment(self, pixels: Any, mask: Any, labels: Any, generator: Any) -> tuple[Any, Any]:
                return pixels / 2, None if labels is None else labels + 9

        assert "no label that was not there" in failures(Inventive)["labels"]


class TestSteps:
    def test_a_step_that_cannot_be_shown(self) -> None:
        class Broken(toy_methods.Stepwise):
            """Step 2 is dark beyond black."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                shown = super().harmonize(state, data, ctx)
                return shown - 1 if state.get("step") == 2 else shown

        assert "must lie in [0, 1]" in failures(Broken)["steps"]

    def test_an_adaptation_without_steps(self) -> None:
        class Stepless(toy_methods.Stepwise):
            """Names none."""

            def steps(self, state: State) -> tuple[int, ...]:
                return ()

        assert "names none" in failures(Stepless)["steps"]

    def test_a_part_that_reads_what_was_not_granted(self) -> None:
        class Curious(toy_methods.Stepwise):
            """Looks at the target while it fits."""

            def fit_part(self, part: str, data: FitData, ctx: Context) -> State:
                return {"value": toy_methods.brain_mean(data.target)}

        assert "unknown_domains" in failures(Curious)["learns"]


class AgeFromSize(TaskModel):
    """Age from the size of the brain, by least squares."""

    id = "age_from_size"
    reference = "ours"
    outcome = "age"

    def train(self, data: TaskData, ctx: Context, augment: Any = None) -> State:
        slope, offset = np.polyfit(self._sizes(data.images), data.ages, 1)
        return {"slope": float(slope), "offset": float(offset)}

    def network(self, state: State) -> torch.nn.Module:
        class Linear(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return state["slope"] * (x > 0).float().mean((1, 2, 3)) + state["offset"]

        return Linear()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        return state["slope"] * self._sizes(images) + state["offset"]

    def _sizes(self, images: ImageSet) -> np.ndarray:
        assert all(scan.age is None for scan in images.scans), "ages come as the reference only"
        return images.per_scan((images.floats() > 0).mean((1, 2)))


class TestAges:
    def test_a_sound_model_passes(self) -> None:
        assert failures(AgeFromSize) == {}

    def test_an_age_for_each_slice_is_too_many(self) -> None:
        class PerSlice(AgeFromSize):
            """Forgets to average."""

            def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
                return np.zeros(len(images))

        assert "there are 3 scans" in failures(PerSlice)["output"]

    def test_ages_must_be_finite(self) -> None:
        class Lost(AgeFromSize):
            """Does not know."""

            def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
                return np.full(len(images.scans), np.nan)

        assert "must be finite" in failures(Lost)["output"]

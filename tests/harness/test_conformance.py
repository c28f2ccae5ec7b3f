"""The conformance kit passes sound methods and names what is wrong with broken ones."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from pydantic import Field

from harness._conformance_data import ToyTask, make_material
from harness.api import (
    AccessDenied,
    ApplyData,
    Context,
    FitData,
    Harmonizer,
    ImageSet,
    Method,
    MethodError,
    Settings,
    State,
    TaskData,
    TestTimeAdapter,
    hyper,
)
from harness.conformance import (
    CheckResult,
    check_harmonized,
    check_method,
    check_predictions,
    grant_apply,
    grant_fit,
)
from methods.harmonization.combat import ComBat
from methods.harmonization.histogram_matching import HistogramMatching
from methods.harmonization.none import NoHarmonization


def _failures(cls: type[Method]) -> dict[str, str]:
    return {result.name: result.detail for result in check_method(cls) if not result.passed}


class Sound(Harmonizer):
    """A harmoniser without fault; the broken ones below change one thing each."""

    id = "sound"
    reference = "ours"
    source_free, task_agnostic, unknown_domains = True, True, True
    gain: float = hyper(0.9, "factor of all intensities", origin="ours", gt=0, le=1)

    def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        return data.target.floats() * np.float32(self.gain)


class PredictsSource(TestTimeAdapter):
    """Predicts with the task model as it is."""

    id = "predicts_source"
    reference = "ours"
    source_free, task_agnostic, unknown_domains = True, False, True

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        with torch.no_grad():
            logits = data.task.network()(torch.from_numpy(data.target.floats())[:, None])
        return logits.argmax(1).numpy().astype(np.uint8)


class TestSoundMethods:
    @pytest.mark.parametrize(
        "cls", [NoHarmonization, HistogramMatching, ComBat, Sound, PredictsSource, ToyTask], ids=lambda c: c.__name__
    )
    def test_pass_everything(self, cls: type[Method]) -> None:
        results = check_method(cls)
        assert [r for r in results if not r.passed] == []
        assert {"id", "state", "output", "inputs", "deterministic"} <= {r.name for r in results}
        assert all(isinstance(r, CheckResult) and r.detail == "" for r in results)

    def test_global_random_state_is_left_alone(self) -> None:
        before = random.getstate(), torch.random.get_rng_state()
        check_method(Sound)
        assert random.getstate() == before[0]
        assert torch.equal(torch.random.get_rng_state(), before[1])


class TestBrokenOutputs:
    def test_nan(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                out = data.target.floats()
                out[5, 32, 30:33] = np.nan
                return out

        assert _failures(Broken)["output"].startswith("MethodError: harmonised images: 3 NaN and 0 infinite of ")
        assert "first in scan b-test-1, slice 1 of 4" in _failures(Broken)["output"]

    def test_shape(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.target.floats()[:, None]

        assert "have shape (12, 1, 64, 64), the images (12, 64, 64)" in _failures(Broken)["output"]

    def test_range(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.target.floats() * 255

        detail = _failures(Broken)["output"]
        assert "must lie in [0, 1]" in detail
        assert "values run from " in detail

    def test_labels_out_of_range(self) -> None:
        class Broken(PredictsSource):
            """."""

            def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return np.full(data.target.pixels.shape, 4, np.uint8)

        assert "must lie in 0..3" in _failures(Broken)["output"]


class TestBrokenConduct:
    def test_reads_forbidden_input_in_harmonize(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.target.floats() * data.source.floats().mean()

        failures = _failures(Broken)
        assert "sound is source_free: no source image is handed to it once fitted" in failures["access"]
        assert "test_conformance.py" in failures["access"]
        assert failures["output"] == "not run: runs failed"

    def test_reads_the_target_in_fit(self) -> None:
        class Broken(Sound):
            """."""

            def fit(self, data: FitData, ctx: Context) -> State:
                return {"mean": float(data.target.floats().mean())}

        assert "unknown_domains: its fit is handed no image of the target" in _failures(Broken)["access"]

    def test_reads_labels(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.labels.labels

        assert "labels are never handed" in _failures(Broken)["access"]

    def test_writes_to_its_input(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                data.target.pixels[0] = 0
                return data.target.floats()

        failures = _failures(Broken)
        assert failures["inputs"] == "the method wrote to its inputs: test.pixels"
        assert set(failures) == {"inputs", "deterministic"}
        assert failures["deterministic"] == "not run: inputs failed"

    def test_writes_to_the_task_model(self) -> None:
        class Broken(PredictsSource):
            """."""

            def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                data.task.state["3.bias"][:] = 0
                return super().adapt(state, data, ctx)

        assert "task.state 3.bias" in _failures(Broken)["inputs"]

    def test_draws_from_global_state(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.target.floats() * np.random.rand()  # noqa: NPY002

        assert "two runs with one seed differ in" in _failures(Broken)["deterministic"]
        advice = next(r for r in check_method(Broken) if r.name == "random_state")
        assert (advice.passed, advice.advisory) == (False, True)
        assert "numpy.random" in advice.detail

    def test_keeps_state_outside_the_state(self) -> None:
        class Broken(Sound):
            """."""

            memory: ClassVar[list[float]] = []

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                self.memory.append(1.0)
                return data.target.floats() / len(self.memory)

        assert set(_failures(Broken)) == {"deterministic"}

    def test_state_that_does_not_survive(self) -> None:
        class Tupled(Sound):
            """."""

            def fit(self, data: FitData, ctx: Context) -> State:
                return {"shape": (1, 2)}

        class Opaque(Sound):
            """."""

            def fit(self, data: FitData, ctx: Context) -> State:
                return {"thing": object()}

        class Wrong(Sound):
            """."""

            def fit(self, data: FitData, ctx: Context) -> State:
                return np.zeros(3)  # type: ignore[return-value]

        assert _failures(Tupled)["state"] == "state entry 'shape' does not survive saving: (1, 2) became [1, 2]"
        assert "state entry 'thing' is a object" in _failures(Opaque)["state"]
        assert _failures(Wrong)["learns"] == "a state is a dict, not ndarray"

    def test_fails_on_float_pixels(self) -> None:
        class Broken(Sound):
            """."""

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return np.linspace(0, 1, 256, dtype=np.float32)[data.target.pixels]

        assert set(_failures(Broken)) == {"float_pixels"}

    def test_task_model_that_learns_nothing_is_warned_of(self) -> None:
        class Broken(ToyTask):
            """."""

            def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
                return np.zeros(images.pixels.shape, np.uint8)

        results = [r for r in check_method(Broken) if not r.passed]
        assert [(r.name, r.advisory) for r in results] == [("accuracy", True)]
        assert "accuracy in the brain is 0.00" in results[0].detail

    def test_task_model_with_wrong_logits(self) -> None:
        class Broken(ToyTask):
            """."""

            def network(self, state: State) -> torch.nn.Module:
                return torch.nn.Identity()

            def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
                return ToyTask().predict(state, images, ctx)

        assert "logits have shape (2, 1, 64, 64), expected (2, 4, 64, 64)" in _failures(Broken)["network"]

    def test_task_model_that_fails_to_train(self) -> None:
        class Broken(ToyTask):
            """."""

            def train(self, data: TaskData, ctx: Context) -> State:
                raise RuntimeError("loss\nis NaN")

        failures = _failures(Broken)
        assert failures["learns"].startswith("RuntimeError: loss is NaN (test_conformance.py:")
        assert failures["output"] == "not run: runs failed"


class TestBrokenCards:
    def test_missing_reference(self) -> None:
        class Broken(Sound):
            """."""

            reference = " "

        assert set(_failures(Broken)) == {"reference"}

    def test_id(self) -> None:
        class Broken(Sound):
            """."""

            id = "Not-An-Id"

        assert "'Not-An-Id'" in _failures(Broken)["id"]

    def test_docstring(self) -> None:
        class Broken(Sound):
            pass

        assert set(_failures(Broken)) == {"docstring"}

    def test_fields_without_description_or_origin(self) -> None:
        class Group(Settings):
            rate: float = Field(0.1, description="rate")

        class Broken(Sound):
            """."""

            bare: int = 3
            group: Group = hyper(Group(), "a group", origin="ours")

        detail = _failures(Broken)["fields"]
        assert "bare has no description and no origin" in detail
        assert "group.rate has no origin" in detail

    def test_undeclared_traits(self) -> None:
        class Broken(Harmonizer):
            """."""

            id = "broken"
            reference = "ours"

            def harmonize(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
                return data.target.floats()

        assert _failures(Broken) == {"traits": "not declared as True or False: source_free, unknown_domains"}

    def test_no_family(self) -> None:
        class Broken(Method):
            """."""

            id = "broken"
            reference = "ours"

        assert "belongs to none of Harmonizer, TestTimeAdapter, Generalizer, TaskModel" in _failures(Broken)["family"]

    def test_defaults_that_cannot_be_made(self) -> None:
        class Abstract(Harmonizer):
            """."""

            id = "broken"
            reference = "ours"
            source_free, unknown_domains = True, True

        class Required(Sound):
            """."""

            needed: int = Field(description="no default", json_schema_extra={"origin": "ours"})

        class Foreign(Sound):
            """."""

            @classmethod
            def example(cls) -> Self:
                return Sound()  # type: ignore[return-value]

        assert "abstract" in _failures(Abstract)["defaults"]
        assert "needed" in _failures(Required)["defaults"]
        assert _failures(Foreign)["defaults"] == "example() returns a Sound, not a Foreign"


class TestGrants:
    MATERIAL = make_material()

    def _cls(self, **traits: bool) -> type[Sound]:
        return type("Granted", (Sound,), {"__doc__": ".", **traits})  # type: ignore[return-value]

    @pytest.mark.parametrize(
        ("source_free", "unknown_domains", "source", "target"),
        [(True, True, True, False), (True, False, False, True), (False, True, True, False), (False, False, True, True)],
    )
    def test_fit(self, source_free: bool, unknown_domains: bool, source: bool, target: bool) -> None:
        cls = self._cls(source_free=source_free, unknown_domains=unknown_domains)
        data = grant_fit(cls(), {"source": self.MATERIAL.source, "target": self.MATERIAL.target})
        assert _readable(data, "source") == source
        assert _readable(data, "target") == target

    @pytest.mark.parametrize("source_free", [True, False])
    @pytest.mark.parametrize("task_agnostic", [True, False])
    def test_apply(self, source_free: bool, task_agnostic: bool) -> None:
        cls = self._cls(source_free=source_free, task_agnostic=task_agnostic)
        task: Any = object()
        data = grant_apply(cls(), {"target": self.MATERIAL.test, "source": self.MATERIAL.source, "task": task})
        assert data.target is self.MATERIAL.test
        assert _readable(data, "source") == (not source_free)
        assert _readable(data, "task") == (not task_agnostic)


def _readable(data: Any, name: str) -> bool:
    try:
        getattr(data, name)
    except AccessDenied:
        return False
    return True


class TestValidators:
    IMAGES = make_material().test

    def test_background_is_zeroed_whatever_stands_there(self) -> None:
        out = np.where(self.IMAGES.mask, 0.5, np.nan)
        clean = check_harmonized(out, self.IMAGES)
        assert clean.dtype == np.float32
        np.testing.assert_array_equal(clean, np.where(self.IMAGES.mask, np.float32(0.5), 0))

    def test_rounding_is_forgiven(self) -> None:
        assert check_harmonized(np.full(self.IMAGES.mask.shape, 1 + 5e-7), self.IMAGES).max() == 1
        assert check_harmonized(np.full(self.IMAGES.mask.shape, -5e-7), self.IMAGES).min() == 0

    def test_infinity_is_counted(self) -> None:
        out = self.IMAGES.floats()
        out[11, 32, 32] = np.inf
        with pytest.raises(
            MethodError, match=r"0 NaN and 1 infinite of \d+ brain pixels, first in scan b-test-2, slice 3"
        ):
            check_harmonized(out, self.IMAGES)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (torch.zeros(12, 64, 64), "must be a numpy array, not Tensor"),
            (None, "not NoneType"),
            (np.zeros((12, 64, 64), complex), "must be numbers, not complex128"),
        ],
    )
    def test_harmonized_type(self, array: Any, message: str) -> None:
        with pytest.raises(MethodError, match=message):
            check_harmonized(array, self.IMAGES)

    def test_empty_mask_is_no_error(self) -> None:
        empty = replace(self.IMAGES, mask=np.zeros_like(self.IMAGES.mask))
        assert not check_harmonized(np.full(self.IMAGES.mask.shape, 9.0), empty).any()

    def test_predictions(self) -> None:
        labels = np.zeros(self.IMAGES.mask.shape, np.int64)
        assert check_predictions(labels, self.IMAGES, 4).dtype == np.uint8
        labels[4, 0, 0] = -1
        with pytest.raises(MethodError, match=r"0\.\.3; 1 of 49152 .* from -1 to 0, first in scan b-test-1, slice 0"):
            check_predictions(labels, self.IMAGES, 4)
        with pytest.raises(MethodError, match="must be integer labels, not float32"):
            check_predictions(labels.astype(np.float32), self.IMAGES, 4)

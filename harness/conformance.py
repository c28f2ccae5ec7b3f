"""What every method must pass, built-in or third-party: `harness check ID` runs `check_method` on its class.

The checks use small synthetic scans, grant a method exactly what its traits allow, and treat its state and
inputs as a run does: grants and output validators are those of `harness.contract`, which the stages of a run
call too. Settings come from the method's `example()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from harness._conformance_data import Material, ageless, make_material, make_task
from harness._conformance_steps import (
    CheckResult,
    Step,
    Trial,
    random_state_kept,
    seed_everything,
    state_differences,
    told,
)
from harness.anomaly import AnomalyDetector, Component
from harness.api import (
    Adaptive,
    Context,
    Generalizer,
    Harmonizer,
    ImageSet,
    Method,
    Settings,
    State,
    TaskHandle,
    TaskModel,
    TestTimeAdapter,
)
from harness.brain_age import AgeEstimator, VolumeSegmenter
from harness.conformance_ages import AgeTrial, SegmenterTrial
from harness.conformance_detectors import ComponentTrial, DetectorTrial
from harness.contract import (
    check_ages,
    check_harmonized,
    check_predictions,
    grant_adapt,
    grant_apply,
    grant_fit,
    learn,
)
from harness.data.arrays import load_state, save_state

__all__ = ["CheckResult", "check_harmonized", "check_method", "check_predictions", "grant_apply", "grant_fit"]

TRAITS = ("source_free", "task_agnostic", "unknown_domains")
FAMILIES = (
    Harmonizer,
    TestTimeAdapter,
    Generalizer,
    TaskModel,
    AnomalyDetector,
    Component,
    AgeEstimator,
    VolumeSegmenter,
)
TRIALS: tuple[tuple[type[Method], type[Trial]], ...] = (
    (AnomalyDetector, DetectorTrial),
    (Component, ComponentTrial),
    (AgeEstimator, AgeTrial),
    (VolumeSegmenter, SegmenterTrial),
)


def check_method(cls: type[Method]) -> list[CheckResult]:
    """Every check in order; those that could not run because an earlier one failed say so.

    Random states of numpy, torch and the standard library are left as they were.
    """
    card = [CheckResult(name, not problem, problem) for name, problem in _card(cls).items()]
    if any(not r.passed for r in card if r.name in ("id", "family", "traits", "defaults")):
        return card
    with TemporaryDirectory() as folder, random_state_kept():
        return card + _trial(cls, Path(folder)).results()


def _trial(cls: type[Method], folder: Path) -> Trial | _AugmentTrial:
    """The checks of the class's family."""
    if issubclass(cls, Generalizer):
        return _AugmentTrial(cls, folder)
    trial = next((trial for family, trial in TRIALS if issubclass(cls, family)), _Trial)
    return trial(cls, folder)


def _card(cls: type[Method]) -> dict[str, str]:
    """Name of a check → what is wrong with the class's card, "" if nothing."""
    identity, reference = getattr(cls, "id", None), getattr(cls, "reference", None)
    undeclared = [name for name in TRAITS if not isinstance(getattr(cls, name, None), bool)]
    problems = dict.fromkeys(("id", "reference", "docstring", "family", "traits"), "")
    if not (isinstance(identity, str) and re.fullmatch(r"(?=.*[a-z])[a-z0-9_]+", identity)):
        problems["id"] = f"id is {identity!r}; lower-case letters, digits and _ are needed, one letter at least"
    if not (isinstance(reference, str) and reference.strip()):
        problems["reference"] = 'no reference; name the publication, or say reference = "ours"'
    if not (cls.__dict__.get("__doc__") or "").strip():
        problems["docstring"] = "the class has no docstring"
    if not issubclass(cls, FAMILIES):
        problems["family"] = f"{cls.__name__} belongs to none of {', '.join(f.__name__ for f in FAMILIES)}"
    if issubclass(cls, Adaptive | Generalizer) and undeclared:
        problems["traits"] = f"not declared as True or False: {', '.join(undeclared)}"
    problems["defaults"], settings = _defaults(cls)
    problems["fields"] = "not run: defaults failed" if settings is None else "; ".join(_field_problems(settings, ""))
    return problems


def _defaults(cls: type[Method]) -> tuple[str, Method | None]:
    """What is wrong with the class's defaults or its example, and an instance of the defaults."""
    try:
        settings = cls()
        example = cls.example()
    except Exception as error:
        return f"cannot be made: {told(error, cls)}", None
    if type(example) is not cls:
        return f"example() returns a {type(example).__name__}, not a {cls.__name__}", settings
    return "", settings


def _field_problems(settings: Settings, prefix: str) -> Iterator[str]:
    """Fields without a description or an origin, those of nested groups included."""
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        missing = [
            what for what, value in (("description", field.description), ("origin", extra.get("origin"))) if not value
        ]
        if missing:
            yield f"{prefix}{name} has no {' and no '.join(missing)}; declare it with hyper()"
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _field_problems(value, f"{prefix}{name}.")


class _Trial(Trial):
    """One method on the synthetic material. A step returns what is wrong, "" if nothing."""

    advisory = frozenset({"random_state", "accuracy"})

    def __init__(self, cls: type[Method], folder: Path):
        self.material = make_material()  # writable, so that a method that writes to it is found out
        self.learned: State = {}
        self.state: State = {}
        self.output: Any = None
        super().__init__(cls, folder)

    def steps(self) -> list[Step]:
        steps: list[Step] = [
            ("learns", self.learns, ()),
            ("state", self.keeps_state, ("learns",)),
            ("runs", self.runs, ("state",)),
            ("output", self.gives_valid_output, ("runs",)),
            ("inputs", self.leaves_inputs, ("runs",)),
            ("random_state", self.leaves_random_state, ("runs",)),
            ("deterministic", self.repeats, ("runs", "inputs")),
            ("float_pixels", self.takes_floats, ("output",)),
        ]
        if issubclass(self.cls, TaskModel):
            steps += [("network", self.gives_network, ("state",)), ("accuracy", self.beats_chance, ("output",))]
        if issubclass(self.cls, Harmonizer) and self.cls.adapt is not Harmonizer.adapt:
            steps += [("steps", self.shows_steps, ("output",))]
        return steps

    def results(self) -> list[CheckResult]:
        results = super().results()
        if issubclass(self.cls, Adaptive):
            results.append(CheckResult("access", not self.denied, self.denied))
        return results

    # The steps.

    def learns(self) -> str:
        self.learned = self._learn(self.material, "first")
        return "" if isinstance(self.learned, dict) else f"a state is a dict, not {type(self.learned).__name__}"

    def keeps_state(self) -> str:
        folder = self.folder / "state"
        folder.mkdir()
        save_state(folder, self.learned)
        self.state = load_state(folder)
        return "; ".join(state_differences(self.learned, self.state))

    def runs(self) -> str:
        self.output = self._use(self.material, self.state, "first")
        return ""

    def gives_valid_output(self) -> str:
        self._validated(self.output, self.material.test)
        return ""

    def leaves_inputs(self) -> str:
        now, before = self.material.arrays(), make_material().arrays()
        changed = [name for name in before if not np.array_equal(now[name], before[name])]
        if "_task" in self.__dict__:  # only methods that use the task model have made it
            fresh = make_task().state
            changed += [f"task.state {k}" for k, v in self._task.state.items() if not np.array_equal(v, fresh[k])]
        return f"the method wrote to its inputs: {', '.join(changed)}" if changed else ""

    def repeats(self) -> str:
        """Same seed, other global random state, read-only inputs, new instance and scratch: same output."""
        seed_everything(2)
        material = make_material().locked()
        again = self._use(material, self._learn(material, "second"), "second")
        first, second = np.asarray(self.output), np.asarray(again)
        if first.shape != second.shape:
            return f"two runs with one seed differ in shape: {first.shape} and {second.shape}"
        differ = ~np.isclose(first, second, rtol=0, atol=0, equal_nan=True)
        return f"two runs with one seed differ in {differ.sum()} of {differ.size} pixels" if differ.any() else ""

    def takes_floats(self) -> str:
        """Pixels may be float32 in [0, 1] instead of uint8."""
        floats = self.material.test.with_pixels(self.material.test.floats())
        self._validated(self._use(self.material, self.state, "floats", images=floats), floats)
        return ""

    def gives_network(self) -> str:
        import torch

        method = self.cls.example()
        assert isinstance(method, TaskModel)
        pixels = torch.from_numpy(self.material.test.floats(slice(0, 2)))[:, None]
        with torch.no_grad():
            found = method.network(self.state).eval()(pixels)
        what, wanted = "ages", (2,)
        if method.outcome == "labels":
            what, wanted = "logits", (2, self.material.task_data.n_labels, *pixels.shape[2:])
        if tuple(found.shape) != wanted:
            return f"{what} have shape {tuple(found.shape)}, expected {wanted} (slices, labels, rows, columns)"
        return "" if bool(torch.isfinite(found).all()) else f"{what} are not finite"

    def beats_chance(self) -> str:
        """On its own training images the model knows more than the commonest tissue, or than the mean age."""
        predicted = self._use(self.material, self.state, "accuracy", images=self.material.source)
        if self._predicts_age:
            ages = self.material.age_data.ages
            error, chance = np.abs(predicted - ages).mean(), np.abs(ages - ages.mean()).mean()
            return "" if error < chance else f"the mean error is {error:.1f}, that of the mean age {chance:.1f}"
        brain = self.material.source.mask
        truth = self.material.source_labels.labels[brain]
        accuracy, chance = (predicted[brain] == truth).mean(), np.bincount(truth).max() / truth.size
        if accuracy > chance:
            return ""
        return f"accuracy in the brain is {accuracy:.2f}, the commonest label's {chance:.2f}"

    def shows_steps(self) -> str:
        """Every step that an adaptation offers can be shown, and is a valid output."""
        method = self.cls.example()
        assert isinstance(method, Harmonizer)
        if not method.adapts():
            return ""
        ctx = self.context("steps")
        state = self._adapted(method, self.material, self.material.test, self.state, ctx)
        data = grant_apply(method, {"target": self.material.test, "source": self.material.source, "task": self._task})
        steps = method.steps(state)
        for step in steps:
            self._validated(method.harmonize(method.at(state, step), data, ctx), self.material.test)
        return "" if steps else "adapt is written, but steps() names none"

    # How a run would call the method.

    @property
    def _predicts_age(self) -> bool:
        return issubclass(self.cls, TaskModel) and self.cls.outcome == "age"

    def _learn(self, material: Material, name: str) -> State:
        method = self.cls.example()
        if isinstance(method, TaskModel):
            data = material.age_data if self._predicts_age else material.task_data
            return method.train(data, self.context(f"{name}-learn"))
        assert isinstance(method, Adaptive)
        if not method.has_fit():
            return {}
        sites = {"a": material.source, "b": material.target}
        images = {"source": material.source, "validation": material.validation, "target": material.target}
        contexts = {part: self.context(f"{name}-learn-{part}") for part in method.fit_parts() or ("",)}
        return learn(method, grant_fit(method, {**images, "sites": sites}), contexts)

    def _use(self, material: Material, state: State, name: str, images: ImageSet | None = None) -> np.ndarray:
        method, ctx = self.cls.example(), self.context(f"{name}-use")
        images = material.test if images is None else images
        if isinstance(method, TaskModel):
            return method.predict(state, ageless(images) if self._predicts_age else images, ctx)
        assert isinstance(method, Adaptive)
        task = self._task if method.uses_task() else None
        data = grant_apply(method, {"target": images, "source": material.source, "task": task})
        if isinstance(method, Harmonizer):
            if method.adapts():
                state = self._adapted(method, material, images, state, self.context(f"{name}-adapt"))
            if method.is_oracle():
                state = method.at(state, method.steps(state)[0])
            return method.harmonize(state, data, ctx)
        assert isinstance(method, TestTimeAdapter)
        return method.adapt(state, data, ctx)

    def _adapted(self, method: Harmonizer, material: Material, images: ImageSet, state: State, ctx: Context) -> State:
        """The state after adaptation, saved and loaded as a run does."""
        adapted = method.adapt(state, grant_adapt(method, {"target": images, "source": material.source}), ctx)
        with TemporaryDirectory(dir=self.folder) as folder:
            save_state(Path(folder), adapted)
            return load_state(Path(folder))

    def _validated(self, output: Any, images: ImageSet) -> np.ndarray:
        if issubclass(self.cls, Harmonizer):
            return check_harmonized(output, images)
        if self._predicts_age:
            return check_ages(output, images)
        return check_predictions(output, images, self.material.task_data.n_labels)

    @cached_property
    def _task(self) -> TaskHandle:
        """The synthetic task model, shared by all runs of this trial as a run's methods share theirs."""
        return make_task()


class _AugmentTrial:
    """A generalizer on a batch of the synthetic material. A step returns what is wrong, "" if nothing."""

    def __init__(self, cls: type[Method], folder: Path):
        self.cls = cls
        seed_everything(1)

    def results(self) -> list[CheckResult]:
        steps = {
            "output": self.gives_valid_batches,
            "labels": self.moves_labels,
            "inputs": self.leaves_inputs,
            "deterministic": self.repeats,
        }
        results = []
        for name, check in steps.items():
            try:
                problem = check()
            except Exception as error:  # whatever a plugin may raise is a finding
                problem = told(error, self.cls)
            results.append(CheckResult(name, not problem, problem))
        return results

    def _augment(self, draw: int, *, labelled: bool = True) -> tuple[Any, Any, tuple[Any, Any, Any]]:
        import torch

        method, material = self.cls.example(), make_material()
        assert isinstance(method, Generalizer)
        pixels = torch.from_numpy(material.source.floats())[:, None]
        mask = torch.from_numpy(material.source.mask.copy())
        labels = torch.from_numpy(material.source_labels.labels.copy()) if labelled else None
        found = method.augment(pixels, mask, labels, torch.Generator().manual_seed(draw))
        return *found, (pixels, mask, labels)

    def gives_valid_batches(self) -> str:
        import torch

        for draw in range(8):
            pixels, _, (before, _, _) = self._augment(draw)
            if pixels.shape != before.shape or pixels.dtype != torch.float32:
                return f"pixels are {pixels.dtype} {list(pixels.shape)}, not float32 {list(before.shape)}"
            if not bool(torch.isfinite(pixels).all()) or float(pixels.min()) < 0 or float(pixels.max()) > 1:
                return "pixels must be finite and lie in [0, 1]"
        return ""

    def moves_labels(self) -> str:
        pixels, labels, (_, _, before) = self._augment(0)
        if labels.shape != before.shape or not set(labels.unique().tolist()) <= set(before.unique().tolist()):
            return "labels must keep their shape and hold no label that was not there"
        outside = pixels[:, 0][labels == 0]  # the background of the material carries label 0
        if outside.numel() and float(outside.abs().mean()) > 0.05:
            return "the background must stay 0"
        return "" if self._augment(0, labelled=False)[1] is None else "without labels, None must be returned for them"

    def leaves_inputs(self) -> str:
        import torch

        _, _, (pixels, _, labels) = self._augment(3)
        material = make_material()
        same = torch.equal(pixels[:, 0], torch.from_numpy(material.source.floats()))
        same = same and torch.equal(labels, torch.from_numpy(material.source_labels.labels))
        return "" if same else "the method wrote to its inputs"

    def repeats(self) -> str:
        import torch

        first, _, _ = self._augment(5)
        seed_everything(2)
        second, _, _ = self._augment(5)
        return "" if torch.equal(first, second) else "two runs with one generator differ; draw from the generator only"

"""What every method must pass, built-in or third-party: `harness check ID` runs `check_method` on its class.

The checks use small synthetic scans, grant a method exactly what its traits allow, and treat its state and
inputs as a run does: grants and output validators are those of `harness.contract`, which the stages of a run
call too. Settings come from the method's `example()`.
"""

from __future__ import annotations

import inspect
import json
import random
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from harness._conformance_data import Material, ageless, make_material, make_task
from harness.api import (
    AccessDenied,
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
FAMILIES = (Harmonizer, TestTimeAdapter, Generalizer, TaskModel)
SEED = 7


@dataclass(frozen=True)
class CheckResult:
    """One check. `detail` says what was wrong, "" if nothing. A failed advisory check is a warning only."""

    name: str
    passed: bool
    detail: str
    advisory: bool = False


def check_method(cls: type[Method]) -> list[CheckResult]:
    """Every check in order; those that could not run because an earlier one failed say so.

    Random states of numpy, torch and the standard library are left as they were.
    """
    card = [CheckResult(name, not problem, problem) for name, problem in _card(cls).items()]
    if any(not r.passed for r in card if r.name in ("id", "family", "traits", "defaults")):
        return card
    with TemporaryDirectory() as folder, _random_state_kept():
        trial = _AugmentTrial if issubclass(cls, Generalizer) else _Trial
        return card + trial(cls, Path(folder)).results()


def _card(cls: type[Method]) -> dict[str, str]:
    """Name of a check → what is wrong with the class's card, "" if nothing."""
    identity, reference = getattr(cls, "id", None), getattr(cls, "reference", None)
    undeclared = [name for name in TRAITS if not isinstance(getattr(cls, name, None), bool)]
    problems = dict.fromkeys(("id", "reference", "docstring", "family", "traits"), "")
    if not (isinstance(identity, str) and re.fullmatch(r"[a-z][a-z0-9_]*", identity)):
        problems["id"] = f"id is {identity!r}; lower-case letters, digits and _ are needed, a letter first"
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
        return f"cannot be made: {_told(error, cls)}", None
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


class _Trial:
    """One method on the synthetic material, step by step. A step returns what is wrong, "" if nothing."""

    def __init__(self, cls: type[Method], folder: Path):
        self.cls, self.folder = cls, folder
        self.material = make_material()  # writable, so that a method that writes to it is found out
        self.denied = ""
        self.learned: State = {}
        self.state: State = {}
        self.output: Any = None
        _seed_everything(1)
        self.random_state_before = _random_state()

    def results(self) -> list[CheckResult]:
        """Steps in order: name, check, what must have passed before."""
        steps: list[tuple[str, Callable[[], str], tuple[str, ...]]] = [
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
        advisory = {"random_state", "accuracy"}
        failed: set[str] = set()
        results = []
        for name, check, needs in steps:
            broken = [need for need in needs if need in failed]
            problem = f"not run: {broken[0]} failed" if broken else self._attempt(check)
            if problem:
                failed.add(name)
            results.append(CheckResult(name, not problem, problem, advisory=name in advisory))
        if issubclass(self.cls, Adaptive):
            results.append(CheckResult("access", not self.denied, self.denied))
        return results

    def _attempt(self, check: Callable[[], str]) -> str:
        try:
            return check()
        except AccessDenied as error:
            self.denied = _told(error, self.cls)
            return self.denied
        except Exception as error:  # whatever a plugin may raise is a finding
            return _told(error, self.cls)

    # The steps.

    def learns(self) -> str:
        self.learned = self._learn(self.material, "first")
        return "" if isinstance(self.learned, dict) else f"a state is a dict, not {type(self.learned).__name__}"

    def keeps_state(self) -> str:
        folder = self.folder / "state"
        folder.mkdir()
        save_state(folder, self.learned)
        self.state = load_state(folder)
        return "; ".join(_state_differences(self.learned, self.state))

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

    def leaves_random_state(self) -> str:
        changed = [name for name, state in _random_state().items() if state != self.random_state_before[name]]
        return f"changed {', '.join(changed)}; draw from ctx.rng or a generator of your own" if changed else ""

    def repeats(self) -> str:
        """Same seed, other global random state, read-only inputs, new instance and scratch: same output."""
        _seed_everything(2)
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
        ctx = self._context("steps")
        state = self._adapted(method, self.material, self.material.test, self.state, ctx)
        data = grant_apply(method, {"target": self.material.test, "source": self.material.source, "task": self._task})
        steps = method.steps(state)
        for step in steps:
            self._validated(method.harmonize(method.at(state, step), data, ctx), self.material.test)
        return "" if steps else "adapt is written, but steps() names none"

    # How a run would call the method.

    def _context(self, name: str) -> Context:
        scratch = self.folder / f"scratch-{name}"
        scratch.mkdir(exist_ok=True)
        return Context(seed=SEED, device="cpu", scratch=scratch, log=_check_log)

    @property
    def _predicts_age(self) -> bool:
        return issubclass(self.cls, TaskModel) and self.cls.outcome == "age"

    def _learn(self, material: Material, name: str) -> State:
        method = self.cls.example()
        if isinstance(method, TaskModel):
            data = material.age_data if self._predicts_age else material.task_data
            return method.train(data, self._context(f"{name}-learn"))
        assert isinstance(method, Adaptive)
        if not method.has_fit():
            return {}
        sites = {"a": material.source, "b": material.target}
        images = {"source": material.source, "validation": material.validation, "target": material.target}
        contexts = {part: self._context(f"{name}-learn-{part}") for part in method.fit_parts() or ("",)}
        return learn(method, grant_fit(method, {**images, "sites": sites}), contexts)

    def _use(self, material: Material, state: State, name: str, images: ImageSet | None = None) -> np.ndarray:
        method, ctx = self.cls.example(), self._context(f"{name}-use")
        images = material.test if images is None else images
        if isinstance(method, TaskModel):
            return method.predict(state, ageless(images) if self._predicts_age else images, ctx)
        assert isinstance(method, Adaptive)
        task = self._task if method.uses_task() else None
        data = grant_apply(method, {"target": images, "source": material.source, "task": task})
        if isinstance(method, Harmonizer):
            if method.adapts():
                state = self._adapted(method, material, images, state, self._context(f"{name}-adapt"))
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
        _seed_everything(1)

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
                problem = _told(error, self.cls)
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
        _seed_everything(2)
        second, _, _ = self._augment(5)
        return "" if torch.equal(first, second) else "two runs with one generator differ; draw from the generator only"


def _check_log(name: str, step: int, value: float) -> None:
    """What a run's log does with its arguments, so that a wrong type is found here."""
    json.dumps([str(name), int(step), float(value)])


def _state_differences(before: State, after: State) -> Iterator[str]:
    """Entries that do not come back from disk as they were, bit by bit."""
    for name, old in before.items():
        new = after[name]
        if hasattr(old, "detach"):
            old = old.detach().cpu().numpy()
        if isinstance(old, np.ndarray | np.generic):
            same = old.shape == new.shape and old.dtype == new.dtype and old.tobytes() == new.tobytes()
        else:
            same = type(old) is type(new) and old == new
        if not same:
            yield f"state entry {name!r} does not survive saving: {_brief(old)} became {_brief(new)}"


def _brief(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray | np.generic) else repr(value)[:60]


def _told(error: Exception, cls: type[Method]) -> str:
    """The exception in one line, with the last line of the method's own file that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == inspect.getsourcefile(cls)]
    frame = (own or list(frames))[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({Path(frame.filename).name}:{frame.lineno})"


# ------------------------------------------------------------------------------------ global random state


def _random_state() -> dict[str, bytes]:
    import torch

    kind, keys, position, *rest = np.random.get_state()  # noqa: NPY002 - the global state is what is watched
    return {
        "random": repr(random.getstate()).encode(),
        "numpy.random": repr((kind, np.asarray(keys).tobytes(), position, rest)).encode(),
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }


def _seed_everything(seed: int) -> None:
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - a method that draws from the global state must show
    torch.default_generator.manual_seed(seed)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    import torch

    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.random.set_rng_state(states[2])

"""The conformance checks of anomaly detectors and of the components they share; `harness.conformance` calls them.

Components are learnt first, their own before them, and come back from disk as a run's do. A detector is then fitted and
maps slices with bright and dark discs in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from harness._conformance_data import AnomalyMaterial, make_anomaly_material, without_brain
from harness._conformance_steps import CheckResult, Step, Trial, seed_everything, state_differences
from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, NormalData, Processing
from harness.api import ImageSet, Method, Settings, State
from harness.contract import ROUNDING, check_maps, merge
from harness.cost import Meter, measured
from harness.data.arrays import load_state, save_state

TOLERANCE = 1e-4  # of the largest value: what another order of sums in a larger batch may change


class LearnerTrial(Trial):
    """What is checked of detectors and components alike."""

    def __init__(self, cls: type[Method], folder: Path):
        self.material = make_anomaly_material()  # writable, so that a method that writes to it is found out
        self.learned: Any = {}
        self.state: State = {}
        self.has_tensors = False
        self.known: list[tuple[Component, State]] = []
        self.changed_components: set[str] = set()
        super().__init__(cls, folder)

    def results(self) -> list[CheckResult]:
        return [*super().results(), CheckResult("access", not self.denied, self.denied)]

    def example(self) -> AnomalyDetector | Component:
        """A new instance with the settings of the checks."""
        method = self.cls.example()
        assert isinstance(method, AnomalyDetector | Component)
        return method

    # The steps.

    def declares_components(self) -> str:
        """Components have names, and are fields, of the method or of a component of it, so that they count."""
        for method in (self.cls(), self.example()):
            assert isinstance(method, AnomalyDetector | Component)
            found: Any = method.components()
            if not isinstance(found, Mapping):
                return f"components() returns a {type(found).__name__}, not a dict of components by name"
            for name, component in found.items():
                if not (isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9_]*", name)):
                    return f"component name {name!r}: lower-case letters, digits and _ are needed, a letter first"
                if not isinstance(component, Component):
                    return f"component {name!r} is a {type(component).__name__}, no Component"
                if component not in list(_components_in(method)):
                    return f"component {name!r} is no field of {self.cls.__name__}; declare it as one with hyper()"
        return ""

    def learns(self) -> str:
        self.learned = self.learn(self.example(), self.material, "first")
        if not isinstance(self.learned, dict):
            return f"a state is a dict, not {type(self.learned).__name__}"
        names = tuple(f"{name}." for name in self.example().components())
        clashing = [entry for entry in self.learned if str(entry).startswith(names)] if names else []
        return f"state entry {clashing[0]!r} is called like one of a component" if clashing else ""

    def keeps_state(self) -> str:
        self.state = self.handed()
        return "; ".join(state_differences(self.learned, self.state))

    def leaves_inputs(self) -> str:
        now, before = self.material.arrays(), make_anomaly_material().arrays()
        changed = [name for name in before if not np.array_equal(now[name], before[name])]
        changed += sorted(f"data.components[{name!r}]" for name in self.changed_components)
        changed += [f"state[{name!r}]" for name, value in self.handed().items() if not _same(value, self.state[name])]
        return f"the method wrote to its inputs: {', '.join(changed)}" if changed else ""

    # How a run would call the method.

    def learn(self, method: AnomalyDetector | Component, material: AnomalyMaterial, name: str) -> Any:
        """What the method learns, after its components; {} where it has nothing of its own to learn."""
        components = self.component_states(method, material, name)
        if isinstance(method, AnomalyDetector) and not method.has_fit():
            return {}
        data = NormalData(material.images, material.validation, components)
        found: Any = method.fit(data, self.context(f"{name}-learn"))
        for key, before in self.component_states(method, material, name).items():
            if not _same_states(before, components[key]):
                self.changed_components.add(key)
        if isinstance(found, dict):
            self.has_tensors |= any(hasattr(value, "detach") for value in found.values())
        return found

    def component_states(
        self, method: AnomalyDetector | Component, material: AnomalyMaterial, name: str
    ) -> dict[str, State]:
        """Copies of the states of the method's components as they come back from disk; equal ones are learnt once."""
        return {
            key: self._component_state(component, material, f"{name}-{key}")
            for key, component in method.components().items()
        }

    def _component_state(self, component: Component, material: AnomalyMaterial, name: str) -> State:
        if all(known != component for known, _ in self.known):
            self.known.append((component, self.kept(self.learn(component, material, name))))
        return deepcopy(next(state for known, state in self.known if known == component))

    def handed(self) -> State:
        """What comes after `fit`: its state and, for `detect`, those of the components."""
        return self.kept(self.learned)

    def kept(self, state: State) -> State:
        """A state saved and loaded as a run does."""
        with TemporaryDirectory(dir=self.folder) as folder:
            save_state(Path(folder), state)
            return load_state(Path(folder))


class ComponentTrial(LearnerTrial):
    """A component on the synthetic material."""

    def steps(self) -> list[Step]:
        return [
            ("components", self.declares_components, ()),
            ("learns", self.learns, ("components",)),
            ("state", self.keeps_state, ("learns",)),
            ("inputs", self.leaves_inputs, ("learns",)),
            ("random_state", self.leaves_random_state, ("learns",)),
            ("deterministic", self.repeats, ("state", "inputs")),
            ("float_pixels", self.takes_floats, ("learns",)),
        ]

    def repeats(self) -> str:
        """Same seed, other global random state, read-only inputs, new instance and scratch: same state."""
        seed_everything(2)
        again = self.learn(self.example(), make_anomaly_material().locked(), "second")
        if again.keys() != self.learned.keys():
            return f"two runs with one seed differ in their entries: {sorted(again.keys() ^ self.learned.keys())}"
        differing = [problem.split(" does not")[0] for problem in state_differences(again, self.state)]
        return f"two runs with one seed differ in {', '.join(differing)}" if differing else ""

    def takes_floats(self) -> str:
        """Pixels may be float32 in [0, 1] instead of uint8."""
        material = self.material
        floats = AnomalyMaterial(
            *(images.with_pixels(images.floats()) for images in (material.images, material.validation, material.test))
        )
        self.learn(self.example(), floats, "floats")
        return ""


class DetectorTrial(LearnerTrial):
    """A detector on the synthetic material."""

    advisory = frozenset({"random_state", "counted"})

    def __init__(self, cls: type[Method], folder: Path):
        self.output: Any = None
        self.meter = Meter()
        super().__init__(cls, folder)

    @property
    def few(self) -> ImageSet:
        """Two slices of one scan of three, as a set of their own."""
        images = self.material.test
        scan = images.scans[1]
        chosen = slice(scan.start, scan.start + 2)
        return ImageSet(images.pixels[chosen], images.mask[chosen], (replace(scan, start=0, stop=2),))

    def steps(self) -> list[Step]:
        return [
            ("components", self.declares_components, ()),
            ("late_fields", self.names_late_fields, ()),
            ("deviations", self.tells_deviations, ()),
            ("processing", self.tells_processing, ()),
            ("learns", self.learns, ("components",)),
            ("state", self.keeps_state, ("learns",)),
            ("runs", self.runs, ("state",)),
            ("output", self.gives_valid_output, ("runs",)),
            ("illustrate", self.illustrates, ("runs",)),
            ("inputs", self.leaves_inputs, ("runs",)),
            ("random_state", self.leaves_random_state, ("runs",)),
            ("deterministic", self.repeats, ("output", "inputs")),
            ("float_pixels", self.takes_floats, ("output",)),
            ("independent", self.maps_alone, ("output",)),
            ("empty_slice", self.takes_empty_slices, ("output",)),
            ("counted", self.is_counted, ("runs",)),
        ]

    def names_late_fields(self) -> str:
        unknown = [name for name in self.cls.late_fields if name not in self.cls.model_fields]  # type: ignore[attr-defined]
        return f"late_fields names what is no field: {', '.join(unknown)}" if unknown else ""

    def tells_deviations(self) -> str:
        for method in (self.cls(), self.example()):
            assert isinstance(method, AnomalyDetector)
            found: Any = method.deviations()
            plain = isinstance(found, Sequence) and not isinstance(found, str)
            if not plain or not all(isinstance(each, str) and each.strip() for each in found):
                return f"deviations() must return a tuple of phrases, not {found!r}"
        return ""

    def tells_processing(self) -> str:
        for method in (self.cls(), self.example()):
            assert isinstance(method, AnomalyDetector)
            found: Any = method.published_processing()
            if not isinstance(found, Processing):
                return f"published_processing() must return a Processing, not a {type(found).__name__}"
        return ""

    def runs(self) -> str:
        with measured("cpu") as self.meter:
            self.output = self.detect(self.state, self.material.test, "first")
        return ""

    def gives_valid_output(self) -> str:
        check_maps(self.output, self.material.test)
        return ""

    def illustrates(self) -> str:
        """Pictures of a few slices, which are numbers in [0, 1] of their shape."""
        found: Any = self.detector().illustrate(self.state, self.few, self.context("illustrate"))
        if not isinstance(found, Mapping):
            return f"illustrate() returns a {type(found).__name__}, not a dict of pictures by caption"
        shape = self.few.pixels.shape
        for caption, picture in found.items():
            if not (isinstance(caption, str) and caption.strip()):
                return f"a picture's caption is {caption!r}"
            if not isinstance(picture, np.ndarray) or picture.shape != shape or picture.dtype.kind not in "fiub":
                seen = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
                return f"picture {caption!r} is {seen}, not numbers {shape} (slices, rows, columns)"
            if not np.isfinite(picture).all() or picture.min() < -ROUNDING or picture.max() > 1 + ROUNDING:
                return f"picture {caption!r} must be finite and lie in [0, 1]"
        return ""

    def repeats(self) -> str:
        """Same seed, other global random state, read-only inputs, new instance and scratch: same maps."""
        seed_everything(2)
        material = make_anomaly_material().locked()
        state = self.kept(self.learn(self.example(), material, "second")) | self._of_components()
        again = self.detect(state, material.test, "second")
        for what, first, second in _parts(self.output, again, material.test):
            if (differ := first != second).any():
                return f"two runs with one seed differ in {differ.sum()} of {differ.size} values of the {what}"
        return ""

    def takes_floats(self) -> str:
        """Pixels may be float32 in [0, 1] instead of uint8."""
        floats = self.material.test.with_pixels(self.material.test.floats())
        check_maps(self.detect(self.state, floats, "floats"), floats)
        return ""

    def maps_alone(self) -> str:
        """Slices are mapped alike whether others are in the set or not."""
        scan = self.material.test.scans[1]
        chosen = slice(scan.start, scan.start + len(self.few))
        alone = check_maps(self.detect(self.state, self.few, "alone"), self.few)
        among = check_maps(self.output, self.material.test)
        maps, *others = (None if each is None else each[chosen] for each in _arrays(among))
        assert maps is not None
        among = AnomalyMaps(maps, *others)
        for what, first, second in _parts(among, alone, self.few):
            largest = float(np.abs(first).max())
            if (off := float(np.abs(first - second).max())) > TOLERANCE * largest:
                return f"the {what} of a slice depend on other slices: by {off:.3g}, where the largest is {largest:.3g}"
        return ""

    def takes_empty_slices(self) -> str:
        """A slice may be without brain."""
        empty = without_brain(self.material.test)
        check_maps(self.detect(self.state, empty, "empty"), empty)
        return ""

    def is_counted(self) -> str:
        if self.has_tensors and not self.meter.evaluations:
            return "networks were learnt, but detect calls none that is marked with harness.cost.counted"
        return ""

    # How a run would call the method.

    def handed(self) -> State:
        return super().handed() | self._of_components()

    def _of_components(self) -> State:
        return merge(self.component_states(self.example(), self.material, "first"))

    def detector(self) -> AnomalyDetector:
        method = self.example()
        assert isinstance(method, AnomalyDetector)
        return method

    def detect(self, state: State, images: ImageSet, name: str) -> AnomalyMaps:
        return self.detector().detect(state, images, self.context(f"{name}-use"))


def _components_in(settings: Settings) -> Iterator[Component]:
    """Components that are fields, those of nested groups and of components included."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Component):
            yield value
        if isinstance(value, Settings):
            yield from _components_in(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return bool(one == other)


def _same_states(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())


def _arrays(found: AnomalyMaps) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    return found.maps, found.reconstruction, found.image_scores


def _parts(one: AnomalyMaps, other: AnomalyMaps, images: ImageSet) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Pairs of what two detections of the same images say, as the harness keeps it, by a word for it."""
    pairs = zip(_arrays(check_maps(one, images)), _arrays(check_maps(other, images)), strict=True)
    for what, (first, second) in zip(("maps", "reconstructions", "image scores"), pairs, strict=True):
        if (first is None) != (second is None):
            raise ValueError(f"one of two detections has no {what}")
        if first is not None and second is not None:
            yield what, first, second

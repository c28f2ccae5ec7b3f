"""What is checked of methods that are fitted to the synthetic heads: estimators of age and segmenters alike.

Methods are built and called as the stages of a run build and call them: from their fields as JSON, for `fit` without
the late ones; their states come back from disk.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, get_origin

import numpy as np
from pydantic import ValidationError

from harness._conformance_steps import CheckResult, Trial, random_states, seed_everything, state_differences
from harness._conformance_volumes import Heads, VolumeMaterial, make_volume_material
from harness.api import Method, State
from harness.data.arrays import load_state, save_state
from harness.tracks.base import payload_of


class FittedTrial(Trial):
    """The steps that both families share, on their own material."""

    def __init__(self, cls: type[Method], folder: Path):
        self.material = make_volume_material()  # writable, so that a method that writes to it is found out
        self.learned: Any = {}
        self.state: State = {}
        self.output: Any = None
        super().__init__(cls, folder)

    def results(self) -> list[CheckResult]:
        return [*super().results(), CheckResult("access", not self.denied, self.denied)]

    # The steps.

    def names_late_fields(self) -> str:
        unknown = [name for name in self.late_fields if name not in self.cls.model_fields]
        return f"late_fields names what is no field: {', '.join(unknown)}" if unknown else ""

    def learns(self) -> str:
        self.learned = self.learn(self.built(early=True), self.material, "first")
        return "" if isinstance(self.learned, dict) else f"a state is a dict, not {type(self.learned).__name__}"

    def keeps_state(self) -> str:
        self.state = self.kept(self.learned)
        return "; ".join(state_differences(self.learned, self.state))

    def runs(self) -> str:
        self.output = self.use(self.state, self.material.test, "first")
        return ""

    def leaves_inputs(self) -> str:
        now, before = self.material.arrays(), self.fresh().arrays()
        changed = [name for name in before if not np.array_equal(now[name], before[name], equal_nan=True)]
        changed += [f"state[{name!r}]" for name in _differing(self.kept(self.learned), self.state)]
        return f"the method wrote to its inputs: {', '.join(changed)}" if changed else ""

    def repeats(self) -> str:
        """Same seed, other global random state, read-only inputs, new instance and scratch: same state and output."""
        seed_everything(2)
        self.random_state_before = random_states()  # anew: the first import of a library may draw, once
        material = self.fresh().locked()
        state = self.kept(self.learn(self.built(early=True), material, "second"))
        if differing := _differing(self.state, state):
            return f"two fits with one seed differ in {', '.join(differing)}"
        return self.unlike(self.use(state, material.test, "second"))

    def fits_without_late_fields(self) -> str:
        """A plan leaves them out of what `fit` depends on."""
        method, changed = _with_others(self.built(early=True), self.late_fields)
        if not changed:
            return ""
        differing = _differing(self.state, self.kept(self.learn(method, self.material, "late")))
        if not differing:
            return ""
        return (
            f"fit reads what late_fields names: with another {', '.join(changed)} its state differs in "
            f"{', '.join(differing)}"
        )

    # How a run would call the method.

    @property
    def late_fields(self) -> tuple[str, ...]:
        return self.cls.late_fields  # type: ignore[attr-defined]

    def built(self, *, early: bool = False) -> Method:
        """The example as a stage builds it; early: as that of `fit` does, late fields at their defaults."""
        names = [name for name in self.cls.model_fields if not (early and name in self.late_fields)]
        return self.cls.model_validate(payload_of(self.cls.example(), fields=names)["fields"])

    def fresh(self) -> VolumeMaterial:
        """The material as it was."""
        return make_volume_material()

    @abstractmethod
    def learn(self, method: Method, material: VolumeMaterial, name: str) -> Any:
        """What `fit` returns."""

    @abstractmethod
    def use(self, state: State, heads: Heads, name: str, places: Sequence[int] | None = None) -> Any:
        """What is made of all scans of a split, or of some in the order given."""

    @abstractmethod
    def unlike(self, other: Any) -> str:
        """In what another output of the same scans differs from the first, "" if in nothing."""

    def kept(self, state: State) -> State:
        """A state saved and loaded as a run does."""
        with TemporaryDirectory(dir=self.folder) as folder:
            save_state(Path(folder), state)
            return load_state(Path(folder))


def _differing(one: State, other: State) -> list[str]:
    """Names of the entries that only one of two states has, else of those that are not the same bit by bit."""
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [name for name in one if any(state_differences({name: one[name]}, other))]


def _with_others(method: Method, names: Sequence[str]) -> tuple[Method, list[str]]:
    """The method with another value in as many of these fields as can be, and which they are."""
    changed = []
    for name in names:
        for value in _others(getattr(method, name), type(method).model_fields[name].annotation):
            try:
                found = type(method).model_validate({**dict(method), name: value})
            except ValidationError:
                continue
            if getattr(found, name) != getattr(method, name):
                method = found
                changed.append(name)
                break
    return method, changed


def _others(value: Any, annotation: Any) -> Iterator[Any]:
    """Values that a field might have in place of this one: words, switches and numbers."""
    for option in (annotation, *get_args(annotation)):
        if get_origin(option) is Literal:
            yield from get_args(option)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (value + 1, value - 1, value * 2, value / 2)
    elif value is None:
        yield from (1, 2, 0.5, True)

"""The plan: every stage of a benchmark, content-addressed, before any of it runs.

A stage is a function from input folders to an output folder. Its key hashes all that its result depends on:
the function, its parameters, the keys of its inputs, the first-party code it can reach, the data it reads and
its seed. Equal keys are one stage, whoever asks for it; a key that the store holds is never computed again.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from harness.engine import code


@dataclass(frozen=True, eq=False)
class Stage:
    """One unit of work.

    kind:      images, labels, train, fit, apply, predict, score ...: what `harness plan` counts by.
    title:     unique within a plan and readable: "apply METHOD NYU→KKI".
    fn:        "package.module:function", called with a `StageRun` (engine/worker.py).
    params:    JSON values the result depends on.
    needs:     input name → stage whose artifact is mounted under that name.
    resources: resource class: prepare, train, apply or score.
    code:      further "module:name" roots of the code fingerprint (the method's class).
    data:      fingerprint of files read from outside the store.
    seed:      derived from the cell's identity, see `seed_of`.
    local:     where things lie on this machine (data root). Not part of the key.
    workers:   processes that train it together, each with a batch of its own (docs/multi_gpu.md).
    """

    kind: str
    title: str
    fn: str
    params: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, Stage] = field(default_factory=dict)
    resources: str = "score"
    code: tuple[str, ...] = ()
    data: str = ""
    seed: int | None = None
    local: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 1

    @property
    def components(self) -> dict[str, Any]:
        """What the key is made of, name by name; kept in the manifest so that `explain` can compare."""
        return {"parameters": json.loads(canonical(self.params)), **self._other_components()}

    def _other_components(self) -> dict[str, Any]:
        roots = tuple(dict.fromkeys((self.fn, *self.code)))
        return {
            "function": self.fn,
            "inputs": {name: need.key for name, need in sorted(self.needs.items())},
            "code": code.fingerprint(roots),
            "data": self.data,
            "seed": self.seed,
            # Several workers make another result; one must keep the keys of old.
            **({"workers": self.workers} if self.workers > 1 else {}),
        }

    @cached_property
    def key(self) -> str:
        """sha256 of the components as canonical JSON."""
        # Parameters are most of the text and much the same from stage to stage: they are not parsed and written anew.
        texts = {name: _encode(value) for name, value in self._other_components().items()}
        texts["parameters"] = _settled(_encode(self.params))
        text = ",".join(f"{_encode(name)}:{texts[name]}" for name in sorted(texts))
        return hashlib.sha256(f"{{{text}}}".encode()).hexdigest()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stage) and self.key == other.key


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; refuses NaN and anything that is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""`canonical`, without an encoder of its own for each call. Stages hash by `canonical`: its code is in their keys."""


@lru_cache(maxsize=1024)
def _settled(text: str) -> str:
    """Canonical JSON as reading and writing it again leaves it: names that were numbers are sorted as text."""
    return canonical(json.loads(text))


def seed_of(*identity: str | int) -> int:
    """A seed in 0..2³²-1 from a cell's identity (never from its position in a list)."""
    digest = hashlib.sha256(canonical(list(identity)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


@dataclass(frozen=True)
class Cell:
    """One entry of the result matrix, and by role the final stages that answer for it."""

    method: str
    source: str
    target: str
    seed: int
    finals: Mapping[str, Stage]

    @property
    def name(self) -> str:
        return f"{self.method} {self.source}→{self.target}"


@dataclass(frozen=True)
class Plan:
    """All stages of a benchmark in an order in which every stage follows its inputs."""

    benchmark: str
    stages: tuple[Stage, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, benchmark: str, cells: Iterable[Cell], extra: Iterable[Stage] = ()) -> Plan:
        """Collect what the cells need. Stages with equal keys are one; two titles for one key is fine."""
        cells = tuple(cells)
        finals = [stage for cell in cells for stage in cell.finals.values()]
        return cls(benchmark, tuple(_in_order([*finals, *extra])), cells)

    @cached_property
    def by_key(self) -> dict[str, Stage]:
        return {stage.key: stage for stage in self.stages}

    @cached_property
    def dependants(self) -> dict[str, tuple[Stage, ...]]:
        found: dict[str, list[Stage]] = {stage.key: [] for stage in self.stages}
        for stage in self.stages:
            for key in {need.key for need in stage.needs.values()}:
                found[key].append(stage)
        return {key: tuple(stages) for key, stages in found.items()}

    def ancestors(self, stage: Stage) -> set[str]:
        """Keys of everything the stage's result depends on, itself excluded."""
        seen: set[str] = set()
        stack = list(stage.needs.values())
        while stack:
            need = stack.pop()
            if need.key not in seen:
                seen.add(need.key)
                stack.extend(need.needs.values())
        return seen

    def counts(self) -> Counter[str]:
        return Counter(stage.kind for stage in self.stages)

    def trainings_saved(self) -> int:
        """Trainings that sharing avoids: had each cell trained its own, less the ones planned."""
        none: frozenset[str] = frozenset()
        behind: dict[str, frozenset[str]] = {}  # trainings that lead to a stage, itself included; most sets are shared
        planned = 0
        for stage in self.stages:
            found = none
            for need in stage.needs.values():
                if not behind[need.key] <= found:
                    found = found | behind[need.key] if found else behind[need.key]
            if stage.kind in ("train", "fit"):
                planned += 1
                found |= {stage.key}
            behind[stage.key] = found
        wanted = sum(len(none.union(*(behind[final.key] for final in cell.finals.values()))) for cell in self.cells)
        return wanted - planned

    def find(self, name: str) -> list[Stage]:
        """Stages whose title equals `name`, else whose key starts with it, else whose title contains it."""
        for matches in (
            [s for s in self.stages if s.title == name],
            [s for s in self.stages if len(name) >= 6 and s.key.startswith(name)],
            [s for s in self.stages if name.lower() in s.title.lower()],
        ):
            if matches:
                return matches
        return []


def _in_order(finals: Iterable[Stage]) -> Iterator[Stage]:
    """Depth-first, inputs first, each key once. Iterative: a plan may be deeper than Python's stack."""
    done: set[str] = set()
    for final in finals:
        stack: list[tuple[Stage, bool]] = [(final, False)]
        while stack:
            stage, inputs_done = stack.pop()
            if stage.key in done:
                continue
            if inputs_done:
                done.add(stage.key)
                yield stage
            else:
                stack.append((stage, True))
                stack.extend((need, False) for need in reversed(list(stage.needs.values())))


@contextmanager
def uncollected() -> Iterator[None]:
    """Plan without Python looking for garbage: all that importing methods and planning make stays, and it looks often.

    Saves about a fifth of the time.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()

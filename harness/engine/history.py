"""How long stages took, so that plans can be priced and the longest path goes first."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from sys import intern
from typing import Any

from harness.engine.plan import Stage, canonical
from harness.engine.store import write_atomically

DEFAULTS = {
    "images": 2.5, "labels": 2.5, "volumes": 60.0, "regions": 50.0, "train": 65.0, "fit": 1.0, "segment": 60.0,
    "apply": 0.5, "detect": 3.0, "predict": 0.5, "score": 0.2,
}  # fmt: skip
"""Seconds assumed for a kind of stage before any was seen (ours, from the small benchmark on two cores)."""
PER_ITERATION = 0.2
"""Seconds assumed for an update of an optimiser before any was seen (ours, from the same)."""


class History:
    """Mean seconds by kind of work, kept in the store's root. Losing it loses nothing but estimates."""

    def __init__(self, root: Path):
        self.path = root / "durations.json"
        self.seen: dict[str, tuple[int, float]] = {}
        self._named: dict[tuple[str, str, tuple[str, ...]], tuple[str, str, str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.seen = {k: (int(n), float(m)) for k, (n, m) in json.loads(self.path.read_text()).items()}

    def _names(self, stage: Stage) -> tuple[str, str, str]:
        """From exact to vague: the same work with the same settings, the same work, the same kind."""
        # A run asks for each stage's estimate again and again: to rank it, and at every update of the progress.
        asked = (stage.key, stage.kind, stage.code)
        if asked not in self._named:
            self._named[asked] = self._make_names(stage)
        return self._named[asked]

    @staticmethod
    def _make_names(stage: Stage) -> tuple[str, str, str]:
        work = "|".join((stage.kind, stage.fn, *stage.code))
        settings = {name: stage.params[name] for name in ("method", "task", "part") if name in stage.params}
        digest = hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]
        return intern(f"{work}|{digest}"), intern(work), stage.kind

    def add(self, stage: Stage, seconds: float) -> None:
        for name in self._names(stage):
            count, mean = self.seen.get(name, (0, 0.0))
            count = min(count + 1, 20)  # older machines and sizes fade out
            self.seen[name] = (count, mean + (seconds - mean) / count)
        if iterations := trained(stage):
            self.seen[_rate(stage)] = (1, seconds / iterations)

    def estimate(self, stage: Stage) -> float:
        """Expected seconds of a stage: of the same work with the same settings, else by its number of iterations."""
        exact, *vague = self._names(stage)
        if exact in self.seen:
            return self.seen[exact][1]
        if iterations := trained(stage):
            return iterations * self.seen.get(_rate(stage), (0, PER_ITERATION))[1]
        for name in vague:
            if name in self.seen:
                return self.seen[name][1]
        return DEFAULTS.get(stage.kind, 5.0)

    def known(self, stages: Iterable[Stage]) -> bool:
        """Whether every stage's estimate rests on recorded durations of the same work with the same settings."""
        return all(self._names(stage)[0] in self.seen for stage in stages)

    def save(self) -> None:
        with contextlib.suppress(OSError):
            write_atomically(self.path, json.dumps(self.seen))


def _rate(stage: Stage) -> str:
    return "|".join((stage.kind, stage.fn, *stage.code, str(stage.params.get("part", "")), "iteration"))


def trained(stage: Stage) -> int:
    """Iterations that a stage trains for, 0 where nothing is trained."""
    return _iterations(stage.params) if stage.kind in ("train", "fit") else 0


def _iterations(params: Any) -> int:
    """Sum of all settings called "iterations"."""
    if not isinstance(params, Mapping):
        return 0
    return sum(v if k == "iterations" and isinstance(v, int) else _iterations(v) for k, v in params.items())

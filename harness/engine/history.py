"""How long stages took, so that plans can be priced and the longest path goes first."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from harness.engine.plan import Stage, canonical
from harness.engine.store import write_atomically

DEFAULTS = {"images": 2.5, "labels": 2.5, "train": 65.0, "fit": 1.0, "apply": 0.5, "predict": 0.5, "score": 0.2}
"""Seconds assumed for a kind of stage before any was seen (ours, from the small benchmark on two cores)."""


class History:
    """Mean seconds by kind of work, kept in the store's root. Losing it loses nothing but estimates."""

    def __init__(self, root: Path):
        self.path = root / "durations.json"
        self.seen: dict[str, tuple[int, float]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.seen = {k: (int(n), float(m)) for k, (n, m) in json.loads(self.path.read_text()).items()}

    @staticmethod
    def _names(stage: Stage) -> tuple[str, str, str]:
        """From exact to vague: the same work with the same settings, the same work, the same kind."""
        work = "|".join((stage.kind, stage.fn, *stage.code))
        settings = {name: stage.params[name] for name in ("method", "task", "part") if name in stage.params}
        digest = hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]
        return f"{work}|{digest}", work, stage.kind

    def add(self, stage: Stage, seconds: float) -> None:
        for name in self._names(stage):
            count, mean = self.seen.get(name, (0, 0.0))
            count = min(count + 1, 20)  # older machines and sizes fade out
            self.seen[name] = (count, mean + (seconds - mean) / count)

    def estimate(self, stage: Stage) -> float:
        """Expected seconds of a stage."""
        for name in self._names(stage):
            if name in self.seen:
                return self.seen[name][1]
        return DEFAULTS.get(stage.kind, 5.0)

    def known(self, stages: Iterable[Stage]) -> bool:
        """Whether every stage's estimate rests on recorded durations of the same work with the same settings."""
        return all(self._names(stage)[0] in self.seen for stage in stages)

    def save(self) -> None:
        with contextlib.suppress(OSError):
            write_atomically(self.path, json.dumps(self.seen))

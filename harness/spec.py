"""A benchmark file → a resolved benchmark and its plan, or every mistake in it at once."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from harness.derived import read_derived
from harness.problems import Problem, UserError, did_you_mean
from harness.tracks.base import Benchmark
from harness.yamlfile import Document

TRACKS = {
    "anomaly": "harness.tracks.anomaly",
    "brain_age": "harness.tracks.brain_age",
    "cross_site": "harness.tracks.cross_site",
}
"""Evaluation protocols: the value of `track:` → the package with spec.resolve, collect.records and collect.exhibit.

A track may also have spec.validated (sweeps can compare its rows on validation scans) and collect.cell_means (its
leaderboard's means are not over subjects).
"""


def load(path: str | Path, overrides: Iterable[str] = (), *, cache: Path, root: Path | None = None) -> Benchmark:
    """Read, override, check and plan a benchmark file.

    overrides: `key.sub=value` assignments, checked like the file itself. cache: folder for fingerprints.
    root: where the data lies, in place of `data.root`. Raises UserError with every problem found.
    """
    document = read_derived(path)
    for assignment in overrides:
        document.override(assignment)
    return resolve(document, cache=cache, root=root)


def resolve(document: Document, *, cache: Path, root: Path | None = None) -> Benchmark:
    """Check and plan a benchmark file that is already read. Raises UserError with every problem found."""
    module = importlib.import_module(f"{TRACKS[_track(document)]}.spec")
    benchmark: Benchmark = module.resolve(document, cache, root)
    return benchmark


def _track(document: Document) -> str:
    name = document.data.get("track")
    if not isinstance(name, str) or name not in TRACKS:
        if "track" not in document.data:
            raise UserError(Problem(document.where(()), f"track is missing; one of: {', '.join(TRACKS)}"))
        raise UserError(document.problem(("track",), f"unknown track {name!r}{did_you_mean(str(name), TRACKS)}"))
    return name

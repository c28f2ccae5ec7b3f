"""What happens on a worker: read inputs, call the stage's function, commit what it wrote.

Never raises for a stage's own failure: it returns an `Outcome`, so nothing depends on whether an exception
can be pickled. A worker that dies is the executor's business.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.engine import code, guard
from harness.engine.store import CorruptArtifact, Manifest, Store, open_store


@dataclass(frozen=True)
class StageRun:
    """All that a stage function is handed.

    params:  the stage's parameters.
    inputs:  name → folder of the input's artifact, verified, read-only.
    out:     an empty folder; what is written there becomes the artifact.
    scratch: survives a kill; the next attempt of the same key finds it again. Removed after the commit.
    seed:    of the stage. device: "cpu" or "cuda".
    local:   where things lie on this machine.
    """

    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out: Path
    scratch: Path
    seed: int
    device: str
    local: Mapping[str, Any]
    curves: list[tuple[str, int, float]] = field(default_factory=list)

    def log(self, name: str, step: int, value: float) -> None:
        """Keep one point of a curve; written to curves.json of the artifact."""
        self.curves.append((name, int(step), float(value)))

    def save_json(self, name: str, value: Any) -> None:
        (self.out / name).write_text(json.dumps(value, indent=1, allow_nan=False))


@dataclass(frozen=True)
class Job:
    """A stage as shipped to a worker: plain values only."""

    key: str
    kind: str
    title: str
    fn: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: tuple[str, ...]
    components: Mapping[str, Any]
    seed: int
    local: Mapping[str, Any]
    store: str
    run: str
    cuda: bool
    protected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `error` is one line; `trace` the worker's own traceback.

    `corrupt` names an input that is missing or fails its checksum: not the stage's fault.
    """

    ok: bool
    seconds: float = 0.0
    error: str = ""
    trace: str = ""
    corrupt: str = ""


def run_job(job: Job) -> Outcome:
    """Run one stage to its commit. Idempotent: a key that is already committed is left alone."""
    store = _store(job.store)
    try:
        if store.manifest(job.key) is not None:
            return Outcome(ok=True)
    except CorruptArtifact as error:
        store.set_aside(job.key, error.reason)
    inputs: dict[str, Path] = {}
    for name, key in job.inputs.items():
        try:
            inputs[name] = store.read(key)
        except (KeyError, CorruptArtifact) as error:
            return Outcome(ok=False, corrupt=key, error=str(getattr(error, "reason", "is missing")))
    out = store.begin(job.key, job.run)
    run = StageRun(job.params, inputs, out, store.scratch(job.key), job.seed, "cuda" if job.cuda else "cpu", job.local)
    started = time.perf_counter()
    try:
        module, _, name = job.fn.partition(":")
        function = getattr(importlib.import_module(module), name)
        allowed = (*map(str, inputs.values()), str(out), str(run.scratch))
        with guard.only(allowed, job.protected):
            function(run)
        if run.curves:
            (out / "curves.json").write_text(json.dumps(run.curves))
        seconds = time.perf_counter() - started
        store.commit(out, _manifest(job, seconds))
    except (Exception, SystemExit) as error:
        shutil.rmtree(out, ignore_errors=True)
        return Outcome(False, time.perf_counter() - started, one_line(error), traceback.format_exc())
    return Outcome(ok=True, seconds=seconds)


def one_line(error: BaseException) -> str:
    """An exception in one line: its type and the first line of its message."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    name = type(error).__name__
    return f"{name}: {first}" if first else name


def _manifest(job: Job, seconds: float) -> Manifest:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
    return Manifest(
        key=job.key,
        kind=job.kind,
        title=job.title,
        components=job.components,
        code=code.symbols(tuple(dict.fromkeys((job.fn, *job.code)))),
        seconds=seconds,
        peak_mib=peak,
        made={
            "python": platform.python_version(),
            "machine": platform.machine(),
            "host": platform.node(),
            "pid": os.getpid(),
            **_versions(),
        },
    )


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in ("mri-harness", "torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@lru_cache(maxsize=8)
def _store(url: str) -> Store:
    return open_store(url, create=False)

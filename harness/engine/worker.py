"""What happens on a worker: read inputs, call the stage's function, commit what it wrote.

Never raises for a stage's own failure: it returns an `Outcome`, so nothing depends on whether an exception
can be pickled. A worker that dies is the executor's business.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.distributed import ALONE, Group, WorkerLost
from harness.engine import code, guard
from harness.engine.store import LAST_WORDS, CorruptArtifact, Manifest, Store, open_store

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says when there is no room."""


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
    """A stage as shipped to a worker: plain values only.

    workers: processes that run it together, each with `cpus`, `gpus` and `memory` (bytes). limit_s: the longest that
    an attempt may take.
    """

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
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    memory: float = 0.0
    limit_s: float | None = None
    protected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `error` is one line; `trace` the worker's own traceback.

    `corrupt` names an input that is missing or fails its checksum, and `full` tells of a disk without room: neither is
    the stage's fault.
    """

    ok: bool
    seconds: float = 0.0
    error: str = ""
    trace: str = ""
    corrupt: str = ""
    full: bool = False
    host: str = field(default_factory=platform.node)


def run_job(job: Job) -> Outcome:
    """Run one stage to its commit. Idempotent: a key that is already committed is left alone.

    Raises only for what is no fault of the stage, such as a folder that cannot be reached: worth another attempt.
    """
    try:
        if job.workers > 1:
            from harness.engine import parallel

            return parallel.run(job)
        return run_here(job)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return Outcome(ok=False, full=True, error=one_line(error))


def run_here(job: Job, group: Group = ALONE, aside: Path | None = None) -> Outcome:
    """Run one stage in this process: alone, or as one rank of a group, in which rank 0 keeps checkpoints and commits.

    aside: where any other rank writes, to be thrown away. Raises WorkerLost when a rank died.
    """
    store = _store(job.store)
    if group.share(group.leads and _committed(store, job.key)):
        return Outcome(ok=True)
    inputs = _inputs(store, job)
    if isinstance(inputs, Outcome):
        return inputs
    if aside is None:
        out, scratch = store.begin(job.key, job.run), store.scratch(job.key)
    else:
        out, scratch = aside / "out", aside / "scratch"
        out.mkdir()
        scratch.mkdir()
    device = "cuda" if job.gpus else "cpu"
    run = StageRun(job.params, inputs, out, scratch, job.seed, device, job.local)
    started = time.perf_counter()
    try:
        module, _, name = job.fn.partition(":")
        function = getattr(importlib.import_module(module), name)
        allowed = (*map(str, inputs.values()), str(out), str(run.scratch))
        with guard.only(allowed, job.protected), _limited(job.limit_s, run.scratch / LAST_WORDS), _one_process():
            function(run)
        if run.curves:
            (out / "curves.json").write_text(json.dumps(run.curves))
        seconds = time.perf_counter() - started
        group.check()
        if group.leads:
            store.commit(out, _manifest(job, seconds))
    except WorkerLost:
        shutil.rmtree(out, ignore_errors=True)
        raise
    except (Exception, SystemExit) as error:
        full = _out_of_space(error, out)
        trace = traceback.format_exc()
        shutil.rmtree(out, ignore_errors=True)
        # What vanished or rotted while the stage was reading it is not the stage's fault.
        again = _inputs(store, job)
        if isinstance(again, Outcome):
            return again
        return Outcome(False, time.perf_counter() - started, one_line(error), trace, full=full)
    return Outcome(ok=True, seconds=seconds)


def _inputs(store: Store, job: Job) -> dict[str, Path] | Outcome:
    """Folders of the inputs, verified; or how the job ends because one is not whole."""
    found: dict[str, Path] = {}
    for name, key in job.inputs.items():
        try:
            found[name] = store.read(key)
        except (KeyError, CorruptArtifact) as error:
            return Outcome(ok=False, corrupt=key, error=str(getattr(error, "reason", "is missing")))
    return found


def _committed(store: Store, key: str) -> bool:
    try:
        return store.manifest(key) is not None or store.recover(key)
    except CorruptArtifact as error:
        store.set_aside(key, error.reason)
        return False


@contextmanager
def _limited(seconds: float | None, note: Path) -> Iterator[None]:
    """End this process if the block takes longer, leaving in `note` where each thread was. No lock can hold it up."""
    if seconds is None:
        yield
        return
    with note.open("w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    note.unlink(missing_ok=True)


@contextmanager
def _one_process() -> Iterator[None]:
    """What a stage forked ends with it: a copy of this process here, for what follows must happen once; others too.

    What this process had started before is left alone: outside of a worker that may be Ray itself.
    """
    own = os.getpid()
    before = set(_children().get(own, ()))
    try:
        yield
    finally:
        copied = os.getpid() != own
        _end_descendants(spared=set() if copied else before)  # those of a copy would become nobody's
        if copied:
            os._exit(0)


def _end_descendants(spared: set[int]) -> None:
    """Kill all descendants of this process that are left, which would outlive even the run."""
    children = _children()
    doomed = [pid for pid in children.get(os.getpid(), ()) if pid not in spared]
    for pid in doomed:  # grows as it goes
        doomed += children.get(pid, ())
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for pid in doomed:
        with suppress(OSError):
            os.waitpid(pid, 0)


def _children() -> dict[int, list[int]]:
    """Every process of the machine and its children; nothing where this process has none, as nearly always."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return {}
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    return children


def _out_of_space(error: BaseException, folder: Path) -> bool:
    """Whether it failed for want of room. Compiled writers (torch.save) do not say so: then the disk is looked at."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in FULL:
            return True
        link = link.__cause__ or link.__context__
    try:
        return shutil.disk_usage(folder).free < 2**20
    except OSError:
        return False


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

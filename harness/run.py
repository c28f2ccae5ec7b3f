"""One run of a benchmark file: check everything, execute the plan, collect, project. Used by the CLI.

Every mistake of the user is found before any work starts; whatever happens later, what was computed is in the
store and the same command continues.
"""

from __future__ import annotations

import importlib
import json
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.engine.executor import Execution, Progress, cluster, survey, to_do
from harness.engine.history import History
from harness.engine.plan import Plan, Stage
from harness.engine.store import Store, open_store
from harness.home import Home
from harness.problems import Problem, UserError
from harness.spec import TRACKS, load
from harness.tracks.base import Benchmark


@dataclass(frozen=True)
class RunResult:
    """How a run ended, and where its results lie."""

    benchmark: str
    executed: int
    cached: int
    failed: int
    blocked: int
    seconds: float
    interrupted: bool
    folder: Path
    tracking: str
    warnings: tuple[str, ...] = ()
    failures: tuple[dict[str, str], ...] = ()
    executed_stages: tuple[str, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 all well, 1 something failed or is blocked, 130 interrupted."""
        return 130 if self.interrupted else 1 if self.failed or self.blocked else 0

    def as_json(self) -> dict[str, Any]:
        complete = not self.interrupted
        return {
            "benchmark": self.benchmark,
            "executed": self.executed,
            "cached": self.cached,
            "failed": self.failed,
            "blocked": self.blocked,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
            "records": str(self.folder / "records.parquet") if complete else None,
            "report": str(self.folder / "report.html") if complete else None,
            "tracking_uri": self.tracking,
            "warnings": list(self.warnings),
            "failures": list(self.failures),
            "executed_stages": list(self.executed_stages),
        }


def prepare(file: Path, overrides: Iterable[str], home: Home, root: Path | None) -> tuple[Benchmark, Store]:
    """Benchmark and store, everything checked: file, data, store, tracking. Raises UserError."""
    from harness.results.tracking import check_uri

    home.create()
    benchmark = load(file, overrides, cache=home.cache, root=root)
    problems = audit(benchmark)
    if problems:
        raise UserError(problems)
    store = open_store(home.store)
    if home.tracking != "none":
        trouble = check_uri(home.tracking)
        if trouble:
            what = f"{trouble}; use --tracking none to run without it, and `harness sync` later"
            raise UserError(Problem(home.tracking, what))
    return benchmark, store


def audit(benchmark: Benchmark) -> list[Problem]:
    """Everything wrong with the data of the benchmark's sites."""
    missing = benchmark.dataset.missing()
    if missing:
        return [Problem(benchmark.spec.data.card, line) for line in missing]
    return benchmark.dataset.audit(benchmark.sites)


def run(
    file: Path,
    overrides: Iterable[str],
    home: Home,
    *,
    root: Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunResult:
    """Run a benchmark file to its report. Raises UserError before any work if something is wrong."""
    from harness.results.tracking import project

    started = time.time()
    benchmark, store = prepare(file, list(overrides), home, root)
    home.remember(benchmark.spec.benchmark, file)
    execution = Execution(benchmark.plan, store, benchmark.spec.resources, progress)
    whole, corrupt = survey(benchmark.plan, store)
    if to_do(benchmark.plan, whole, corrupt):
        with cluster(workers, address):
            summary = execution.run()
    else:
        summary = execution.run()
    folder = home.results(benchmark.spec.benchmark)
    warnings: list[str] = []
    if not summary.interrupted and not _up_to_date(folder, benchmark.plan, summary.executed, bool(summary.failures)):
        say("collecting results")
        _collect(benchmark, store, execution, folder, file, started)
    if not summary.interrupted and home.tracking != "none":
        if not _synced(folder, home.tracking):
            say("logging to MLflow")
            outcome = project(folder, home.tracking)
            warnings += [outcome.warning] if outcome.warning else []
    return RunResult(
        benchmark=benchmark.spec.benchmark,
        executed=summary.executed,
        cached=summary.cached,
        failed=summary.count("failed"),
        blocked=summary.count("blocked"),
        seconds=time.time() - started,
        interrupted=summary.interrupted,
        folder=folder,
        tracking=home.tracking,
        warnings=tuple(warnings),
        failures=tuple(
            {"stage": f.title, "status": f.status, "error": f.error, "traceback": f.trace}
            for f in summary.failures.values()
        ),
        executed_stages=tuple(summary.executed_titles),
    )

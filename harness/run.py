"""One run of a benchmark file: check everything, execute the plan, collect, project. Used by the CLI.

Every mistake of the user is found before any work starts; whatever happens later, what was computed is in the
store and the same command continues.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from harness import cards
from harness.anomaly import AnomalyDetector
from harness.api import Harmonizer
from harness.brain_age import AgeEstimator
from harness.engine.cluster import check_store, cluster
from harness.engine.executor import Execution, Progress, Summary, survey, to_do
from harness.engine.plan import Plan, uncollected
from harness.engine.shipping import packages
from harness.engine.store import Store, open_store
from harness.home import Home
from harness.problems import Problem, UserError
from harness.results.connection import shown
from harness.spec import TRACKS, load
from harness.tracks.base import Benchmark, Row

if TYPE_CHECKING:
    from harness.results.runinfo import MethodInfo, RunInfo, SweepInfo


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
    stopped: str = ""
    warnings: tuple[str, ...] = ()
    failures: tuple[dict[str, str], ...] = ()
    executed_stages: tuple[str, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        """0 all well, 1 something failed, is blocked or could not go on, 130 interrupted."""
        return 130 if self.interrupted else 1 if self.failed or self.blocked or self.stopped else 0

    @property
    def complete(self) -> bool:
        """Whether it came to its end, with whatever failures, and so has results."""
        return not (self.interrupted or self.stopped)

    def as_json(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "executed": self.executed,
            "cached": self.cached,
            "failed": self.failed,
            "blocked": self.blocked,
            "interrupted": self.interrupted,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
            "records": str(self.folder / "records.parquet") if self.complete else None,
            "report": str(self.folder / "report.html") if self.complete else None,
            "tracking_uri": self.tracking,
            "warnings": list(self.warnings),
            "failures": list(self.failures),
            "executed_stages": list(self.executed_stages),
        }


def prepare(file: Path, overrides: Iterable[str], home: Home, root: Path | None) -> tuple[Benchmark, Store]:
    """Benchmark and store, everything checked: file, data, store, tracking. Raises UserError."""
    home.create()
    with uncollected():
        benchmark = load(file, overrides, cache=home.cache, root=root)
    return benchmark, ready(benchmark, home)


def ready(benchmark: Benchmark, home: Home) -> Store:
    """The store to run a benchmark with, its data and the tracking address checked. Raises UserError."""
    problems = audit(benchmark)
    if problems:
        raise UserError(problems)
    store = open_store(home.store)
    if home.tracking != "none":
        from harness.results.tracking import check_uri

        trouble = check_uri(home.tracking)
        if trouble:
            what = f"{trouble}; use --tracking none to run without it, and `harness sync` later"
            raise UserError(Problem(shown(home.tracking), what))
    return store


def audit(benchmark: Benchmark) -> list[Problem]:
    """Everything wrong with the data of the benchmark's sites, and with files that its methods are to read."""
    missing = benchmark.dataset.missing()
    if missing:
        return [Problem(benchmark.spec.data.card, line) for line in missing]
    problems = [
        Problem(path, "a method is to read it, but there is no such file or folder; mend the path or drop the field")
        for path in benchmark.extra.get("files", ())
        if not Path(path).expanduser().exists()
    ]
    problems += benchmark.dataset.audit(benchmark.sites)
    for site, part, choice in () if problems else benchmark.extra.get("choices", ()):
        problems += benchmark.dataset.audit_choice(site, part, choice)
    return problems


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
    started, clock = time.time(), time.monotonic()
    benchmark, store = prepare(file, list(overrides), home, root)
    home.remember(benchmark.spec.benchmark, file)
    execution = Execution(benchmark.plan, store, benchmark.spec.resources, progress)
    whole, corrupt = survey(benchmark.plan, store)
    if to_do(benchmark.plan, whole, corrupt):
        with session(benchmark.plan, store, workers, address):
            summary = execution.run()
    else:
        summary = execution.run()
    folder = home.results(benchmark.spec.benchmark)
    warnings: list[str] = []
    if summary.complete and not up_to_date(folder, benchmark.plan, summary.executed, bool(summary.failures)):
        say("collecting results")
        collect(benchmark, store, summary, folder, file, started)
    if summary.complete and home.tracking != "none":
        warnings += project(folder, home.tracking, say)
    return RunResult(
        benchmark=benchmark.spec.benchmark,
        executed=summary.executed,
        cached=summary.cached,
        failed=summary.count("failed"),
        blocked=summary.count("blocked"),
        seconds=time.monotonic() - clock,
        interrupted=summary.interrupted,
        folder=folder,
        tracking=shown(home.tracking),
        stopped=summary.stopped,
        warnings=tuple(warnings),
        failures=tuple(
            {"stage": f.title, "status": f.status, "error": f.error, "traceback": f.trace}
            for f in summary.failures.values()
        ),
        executed_stages=tuple(summary.executed_titles),
    )


@contextmanager
def session(plan: Plan, store: Store, workers: int | None, address: str | None) -> Iterator[None]:
    """A Ray session in which the plan can run: of this machine, or a cluster whose nodes all reach the store."""
    with cluster(workers, address, packages(plan)), ended_like_ctrl_c():
        if address is not None:
            check_store(store.url, store.root)
        yield


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """A scheduler's SIGTERM ends a run as Ctrl-C does: what is finished is kept, and it says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ------------------------------------------------------------------------------------------- results


def project(folder: Path, tracking: str, say: Callable[[str], None]) -> list[str]:
    """Log the results to MLflow unless they are there; a warning, never an error, if it cannot be done."""
    from harness.results import tracking as mlflow_side

    if mlflow_side.is_synced(folder, tracking):
        return []
    say("logging to MLflow")
    warning = mlflow_side.project(folder, tracking).warning
    return [warning] if warning else []


def up_to_date(folder: Path, plan: Plan, executed: int, failed: bool, sweep: SweepInfo | None = None) -> bool:
    """Whether the results folder already says what this plan's artifacts say."""
    from harness.results import runinfo

    if executed or failed or not (folder / "report.html").is_file():
        return False
    try:
        info = runinfo.read(folder)
    except UserError:
        return False
    return info.environment.get("plan") == digest(plan) and info.sweep == sweep


def digest(plan: Plan) -> str:
    """Identity of everything the results show: names, matrix and keys."""
    rows = [[c.method, c.source, c.target, c.seed, sorted(s.key for s in c.finals.values())] for c in plan.cells]
    return hashlib.sha256(json.dumps([plan.benchmark, rows]).encode()).hexdigest()[:16]


def collect(
    benchmark: Benchmark,
    store: Store,
    summary: Summary,
    folder: Path,
    file: Path,
    started: float,
    sweep: SweepInfo | None = None,
) -> None:
    """Fill the results folder from the store; leaves records, exhibits, run.json and the report."""
    from harness.results import records
    from harness.results.html import write_report

    track = importlib.import_module(f"{TRACKS[benchmark.spec.track]}.collect")
    failures = summary.failures
    folder.mkdir(parents=True, exist_ok=True)
    rows = track.records(benchmark, store, failures)
    records.write(folder, records.to_frame(records.Record(**row) for row in rows))
    track.exhibit(benchmark, store, failures, folder)
    _info(benchmark, summary, file, started, sweep).write(folder)
    write_report(folder, folder / "report.html")


def _info(
    benchmark: Benchmark, summary: Summary, file: Path, started: float, sweep: SweepInfo | None = None
) -> RunInfo:
    from harness.results.runinfo import Counts, DatasetInfo, RunInfo

    spec = benchmark.spec
    return RunInfo(
        run_id=uuid.uuid4().hex[:12],
        benchmark=spec.benchmark,
        track=spec.track,
        description=spec.description,
        dataset=DatasetInfo(**benchmark.dataset.summary(), label_names=benchmark.dataset.label_names),
        sites=benchmark.places,
        unlabelled_sites=tuple(s for s in benchmark.sites if s not in benchmark.extra["reference_sites"]),
        baseline=spec.report.baseline,
        metrics=tuple(spec.metrics),
        headline=benchmark.headline,
        seeds=tuple(spec.seeds),
        methods=tuple(_method_info(row, benchmark.extra["traits"].get(row.name, {})) for row in benchmark.rows),
        task=_method_info(benchmark.extra["task"]) if "task" in benchmark.extra else None,
        counts=Counts(
            executed=summary.executed,
            cached=summary.cached,
            failed=summary.count("failed"),
            blocked=summary.count("blocked"),
        ),
        seconds=summary.seconds,
        started=datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        version=version("mri-harness"),
        commit=_commit(file.absolute().parent),
        sweep=sweep,
        published=spec.report.published,
        rank_metrics=tuple(spec.report.rank_metrics),
        processing=benchmark.extra.get("processing", ()),
        environment={"plan": digest(benchmark.plan), "file": file.name, **_machine()},
    )


def _method_info(row: Row, traits: Mapping[str, bool] = MappingProxyType({})) -> MethodInfo:
    from harness.results.runinfo import MethodInfo

    return MethodInfo(
        name=row.name,
        id=row.method.id,
        family=row.method.family,
        reference=row.method.reference,
        traits=traits,
        fields=row.method.model_dump(mode="json"),
        doc=cards.summary(type(row.method)),
        oracle=isinstance(row.method, Harmonizer) and row.method.is_oracle(),
        deviations=row.method.deviations() if isinstance(row.method, AnomalyDetector | AgeEstimator) else (),
    )


def _machine() -> dict[str, str]:
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return found | {package: version(package) for package in ("torch", "numpy", "ray", "monai")}


def _commit(folder: Path) -> str | None:
    """The git commit of the benchmark file's checkout, marked where files are changed."""
    import subprocess

    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

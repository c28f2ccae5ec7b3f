"""`harness sweep`: the trials of a sweep file, then one results folder with all of them.

First the trials and the kept rows run on Ray Tune. Then the whole is collected like any benchmark: records,
leaderboard, report and MLflow know nothing of trials but their rows.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness import run as running
from harness.api import Harmonizer
from harness.engine.executor import Execution, Failure, Progress, Summary, survey, to_do
from harness.engine.plan import Plan, canonical
from harness.engine.store import Store, open_store
from harness.home import Home
from harness.problems import UserError
from harness.results.connection import shown
from harness.sweep.file import Sweep, load
from harness.sweep.trials import KEPT, Journal, Outcome, kept_rows, objectives, run_trials

if TYPE_CHECKING:
    from harness.results.runinfo import SweepInfo


@dataclass(frozen=True)
class SweepResult:
    """How a sweep ended. `info.trials` tells of each trial; stages are those of trials and kept rows together.

    oracles: trials that choose by the target's labels; none of them is the best.
    """

    name: str
    info: SweepInfo
    executed: int
    cached: int
    failures: tuple[Failure, ...]
    seconds: float
    interrupted: bool
    folder: Path
    tracking: str
    stopped: str = ""
    oracles: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    executed_stages: tuple[str, ...] = ()

    @property
    def best(self) -> str | None:
        """Name of the best trial that finished; the first of equals."""
        found = self.info.best(lambda trial: trial.name not in self.oracles)
        return found.name if found else None

    @property
    def exit_code(self) -> int:
        """0 all well, 1 something failed, 130 interrupted. A trial that was stopped early has not failed."""
        return 130 if self.interrupted else 1 if self.failures or self.stopped else 0

    @property
    def complete(self) -> bool:
        """Whether it came to its end, with whatever failures, and so has results."""
        return not (self.interrupted or self.stopped)

    def as_json(self) -> dict[str, Any]:
        return {
            "sweep": self.name,
            "best": self.best,
            **self.info.model_dump(mode="json"),
            "executed": self.executed,
            "cached": self.cached,
            "failed": sum(failure.status == "failed" for failure in self.failures),
            "blocked": sum(failure.status == "blocked" for failure in self.failures),
            "interrupted": self.interrupted,
            "stopped": self.stopped,
            "seconds": round(self.seconds, 3),
            "records": str(self.folder / "records.parquet") if self.complete else None,
            "report": str(self.folder / "report.html") if self.complete else None,
            "tracking_uri": self.tracking,
            "warnings": list(self.warnings),
            "failures": [asdict(failure) for failure in self.failures],
            "executed_stages": list(self.executed_stages),
        }


def prepare(
    files: Iterable[Path], overrides: Iterable[str], home: Home, root: Path | None, *, to_run: bool = True
) -> list[Sweep]:
    """Every file resolved and checked, before any work; where none is `to_run`, the data may be absent.

    Raises UserError with the problems of all.
    """
    home.create()
    sweeps: list[Sweep] = []
    problems = []
    overrides = list(overrides)
    for file in files:
        try:
            sweep = load(file, overrides, cache=home.cache, root=root)
            if to_run:
                running.ready(sweep.benchmark, home)
            sweeps.append(sweep)
        except UserError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    names = [sweep.spec.sweep for sweep in sweeps]
    for name in sorted({name for name in names if names.count(name) > 1}):
        where = ", ".join(str(sweep.file) for sweep in sweeps if sweep.spec.sweep == name)
        problems += UserError(f"{where}: both are called {name!r}; sweeps need names of their own").problems
    if problems:
        raise UserError(problems)
    return sweeps


def run(
    sweep: Sweep,
    home: Home,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> SweepResult:
    """Run a prepared sweep to its report. The same command continues one that was interrupted or killed."""
    started, clock = time.time(), time.monotonic()
    store, benchmark = open_store(home.store), sweep.benchmark
    name, folder = sweep.spec.sweep, home.results(sweep.spec.sweep)
    home.remember(name, sweep.base)
    scratch = home.root / "sweeps" / f"{name}-{_identity(sweep)[:12]}"
    journal = Journal(scratch)
    outcome, stopped, summary = _compute(sweep, store, journal, scratch, workers, address, progress, say)
    summary.executed += len(outcome.executed)
    summary.executed_titles[:0] = outcome.executed
    failures = outcome.failures | summary.failures
    failures |= {key: failure for key, failure in stopped.items() if failure.status == "failed"}
    summary.failures = failures | stopped
    summary.cached = max(0, len(benchmark.plan.stages) - summary.executed - len(summary.failures))
    summary.seconds = time.monotonic() - clock
    info = _info(sweep, store, journal, outcome, summary)
    warnings: list[str] = []
    if summary.complete:
        if not running.up_to_date(folder, benchmark.plan, summary.executed, bool(failures), info):
            say("collecting results")
            running.collect(benchmark, store, summary, folder, sweep.file, started, info)
        if home.tracking != "none":
            warnings = running.project(folder, home.tracking, say)
    return SweepResult(
        name=name,
        info=info,
        executed=summary.executed,
        cached=summary.cached,
        failures=tuple(failures.values()),
        seconds=time.monotonic() - clock,
        interrupted=summary.interrupted,
        stopped=summary.stopped,
        folder=folder,
        tracking=shown(home.tracking),
        oracles=frozenset(
            row.name for row in benchmark.rows if isinstance(row.method, Harmonizer) and row.method.is_oracle()
        ),
        warnings=tuple(warnings),
        executed_stages=tuple(summary.executed_titles),
    )


def _compute(
    sweep: Sweep,
    store: Store,
    journal: Journal,
    scratch: Path,
    workers: int | None,
    address: str | None,
    progress: Progress | None,
    say: Callable[[str], None],
) -> tuple[Outcome, dict[str, Failure], Summary]:
    """Run the trials that have not ended, then what they left; (trials, stages never to be run, what was left)."""
    benchmark, name = sweep.benchmark, sweep.spec.sweep
    waiting = [trial.name for trial in sweep.trials if trial.name not in journal.ended]
    outcome = Outcome()
    with ExitStack() as session:
        if waiting:
            say(f"{name}: {len(waiting)} of {len(sweep.trials)} trials to run")
            session.enter_context(running.session(benchmark.plan, store, workers, address))
            kept = kept_rows(benchmark, [trial.name for trial in sweep.trials])
            first = [KEPT] if to_do(kept, *survey(kept, store)) else []
            outcome = run_trials(sweep, first + waiting, store, journal, scratch, say)
        if outcome.interrupted:
            return outcome, {}, Summary(interrupted=True)
        stopped = _never_run(sweep, store, journal, outcome)
        lost = outcome.failures | stopped
        cells = [cell for cell in benchmark.plan.cells if not any(s.key in lost for s in cell.finals.values())]
        rest = Plan.of(name, cells)
        todo = to_do(rest, *survey(rest, store))
        if todo and not waiting:
            session.enter_context(running.session(rest, store, workers, address))
        return outcome, stopped, Execution(rest, store, benchmark.spec.resources, progress if todo else None).run()


def _identity(sweep: Sweep) -> str:
    """Hash of the resolved sweep: what is computed, and by what trials are stopped."""
    scheduler = sweep.spec.scheduler.model_dump(mode="json") if sweep.spec.scheduler else None
    parts = [running.digest(sweep.benchmark.plan), sweep.spec.objective.metric, sweep.mode, scheduler]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


def _never_run(sweep: Sweep, store: Store, journal: Journal, outcome: Outcome) -> dict[str, Failure]:
    """Final stages that are not to be computed, and why: those of trials that were stopped, or whose process ended."""
    present = store.keys()
    found: dict[str, Failure] = {}
    status: Literal["failed", "blocked"]
    for trial in sweep.trials:
        every, reports = sweep.rungs(trial.name), journal.reports.get(trial.name, {})
        if trial.name in outcome.crashed:
            status, why = "failed", f"the trial ended: {outcome.crashed[trial.name]}"
        elif journal.ended.get(trial.name) == "stopped":
            status, why = "blocked", f"stopped early by ASHA after {len(reports)} of {len(every)} rungs"
        else:
            continue
        cells = [cell for rung in every[len(reports) :] for cell in rung]
        for stage in (stage for cell in cells for stage in cell.finals.values()):
            if stage.key not in present:
                found[stage.key] = Failure(stage.title, status, why)
    return found


def _info(sweep: Sweep, store: Store, journal: Journal, outcome: Outcome, summary: Summary) -> SweepInfo:
    from harness.results.runinfo import SweepDomain, SweepInfo, SweepObjective, SweepTrial

    states: dict[str, Literal["finished", "stopped", "failed", "pending"]] = {}
    for trial in sweep.trials:
        finals = {stage.key for rung in sweep.rungs(trial.name) for cell in rung for stage in cell.finals.values()}
        bad = {key for key in finals & summary.failures.keys() if not _is_stop(summary.failures[key])}
        if bad or trial.name in outcome.crashed:
            states[trial.name] = "failed"
        elif trial.name in journal.ended:
            states[trial.name] = journal.ended[trial.name]
        else:
            states[trial.name] = "pending"
    metric, split = sweep.spec.objective.metric, sweep.spec.objective.split
    judged = {name for name, state in states.items() if state in ("finished", "stopped")}
    cells = [] if not summary.complete else [c for c in sweep.benchmark.plan.cells if c.method in judged]
    values = objectives(sweep.benchmark, store, summary.failures, cells, metric, split)
    tested = {} if split == "test" else objectives(sweep.benchmark, store, summary.failures, cells, metric)
    return SweepInfo(
        method=sweep.method,
        base=sweep.spec.base,
        objective=SweepObjective(metric=metric, mode=sweep.mode, split=split),
        space={
            name: SweepDomain(type=domain.kind, values=tuple(domain.values), low=domain.ends[0], high=domain.ends[1])
            for name, domain in sweep.spec.space.items()
        },
        defaults=sweep.defaults,
        trials=tuple(
            SweepTrial(
                name=trial.name,
                config=trial.config,
                state=states[trial.name],
                objective=values.get(trial.name),
                test=tested.get(trial.name),
            )
            for trial in sweep.trials
        ),
    )


def _is_stop(failure: Failure) -> bool:
    return failure.status == "blocked" and failure.error.startswith("stopped early")

"""The trials of a sweep on Ray Tune: each submits ordinary stages, rung by rung, and reports its objective.

A trial is a run of its own on the common store. It takes no CPU: it only schedules, and its stages ask the cluster
for what they need, outside the trial's placement group. Leases see to it that what trials share is computed once.

What trials reported is kept in a journal. A sweep that goes on after a kill starts Tune with the trials that have
not ended; a scheduler first hears what the others reported, which Tune itself does not keep.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from harness.engine.executor import Execution, Failure, Summary
from harness.engine.plan import Cell, Plan
from harness.engine.store import Store, open_store
from harness.quiet import quietly
from harness.spec import TRACKS
from harness.sweep.file import VALIDATION, Asha, Split, Sweep, rungs
from harness.tracks.base import Benchmark

if TYPE_CHECKING:
    from ray.tune.schedulers import ASHAScheduler

End = Literal["finished", "stopped"]
KEPT = ""
"""In place of a trial's name: the kept rows, which run beside the trials."""
MOST_TRIALS = 8
"""Trials at a time unless the file says otherwise: each is a process, and early stopping learns from those before."""


def objectives(
    benchmark: Benchmark,
    store: Store,
    failures: Mapping[str, Failure],
    cells: Iterable[Cell],
    metric: str,
    split: Split = "test",
) -> dict[str, float]:
    """Row → the mean of a metric over those of the cells that have it, as the leaderboard takes it.

    split: whose scores; those of validation scans take the place of the test scans'.
    """
    from harness.results import aggregate, records

    track = import_module(f"{TRACKS[benchmark.spec.track]}.collect")
    spec = benchmark.spec.model_copy(update={"metrics": [metric]})
    if split == VALIDATION:
        cells = [replace(c, finals={"scores": c.finals[VALIDATION]}) for c in cells if VALIDATION in c.finals]
    part = replace(benchmark, spec=spec, plan=Plan(benchmark.plan.benchmark, (), tuple(cells)))
    table = records.to_frame(records.Record(**row) for row in track.records(part, store, failures))
    table = records.of_processing(table, benchmark.extra.get("processing", ()))
    means = aggregate.means_of(getattr(track, "cell_means", aggregate.cell_means)(table))
    return {row["method"]: row["mean"] for row in means.iter_rows(named=True)}


# ------------------------------------------------------------------------------------------- one trial


def _trial(
    config: Mapping[str, Any], benchmark: Benchmark, store_url: str, metric: str, split: Split, names: list[str]
) -> None:
    """What runs as a trial: its rungs in turn. After each it reports, and may be stopped."""
    from ray import tune

    name, store = config["trial"], open_store(store_url, create=False)
    if name == KEPT:
        summary = Execution(kept_rows(benchmark, names), store, benchmark.spec.resources).run()
        tune.report({"rung": 0, "objective": math.nan, **_report(summary)})  # before any rung: never compared
        return
    failures: dict[str, Failure] = {}
    done: list[Cell] = []
    for number, rung in enumerate(rungs(benchmark, name), 1):
        execution = Execution(Plan.of(name, rung), store, benchmark.spec.resources)
        summary = execution.run()
        if summary.stopped:
            raise RuntimeError(summary.stopped)
        failures |= summary.failures
        done += rung
        value = objectives(benchmark, store, failures, done, metric, split).get(name)
        tune.report({"rung": number, "objective": math.nan if value is None else value, **_report(summary)})


def _report(summary: Summary) -> dict[str, Any]:
    failures = {key: asdict(failure) for key, failure in summary.failures.items()}
    return {"executed": summary.executed_titles, "failures": failures}


def kept_rows(benchmark: Benchmark, trials: Iterable[str]) -> Plan:
    """The plan of the rows that are no trials."""
    left_out = set(trials)
    return Plan.of(benchmark.spec.benchmark, [cell for cell in benchmark.plan.cells if cell.method not in left_out])


# ------------------------------------------------------------------------------------------- all trials


@dataclass
class Outcome:
    """What the trials did in this session. `crashed`: trial → why its process ended."""

    executed: list[str] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False


class Journal:
    """What trials reported and how they ended, line by line; survives a kill at any moment."""

    def __init__(self, folder: Path):
        self.path = folder / "trials.jsonl"
        self.reports: dict[str, dict[int, float]] = {}
        self.ended: dict[str, End] = {}
        for line in self.path.read_text().splitlines() if self.path.is_file() else ():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                continue  # torn by a kill: that report is made again

    def report(self, trial: str, rung: int, objective: float) -> None:
        value = None if math.isnan(objective) else objective
        self._add({"trial": trial, "rung": rung, "objective": value})

    def end(self, trial: str, state: End) -> None:
        self._add({"trial": trial, "end": state})

    def _take(self, entry: Mapping[str, Any]) -> None:
        if "end" in entry:
            self.ended[entry["trial"]] = "stopped" if entry["end"] == "stopped" else "finished"
        else:
            value = entry["objective"]
            self.reports.setdefault(entry["trial"], {})[int(entry["rung"])] = math.nan if value is None else value

    def _add(self, entry: Mapping[str, Any]) -> None:
        self._take(entry)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write("\n" + json.dumps(entry))  # the newline first: a torn line spoils no other
            file.flush()
            os.fsync(file.fileno())


def run_trials(
    sweep: Sweep, names: list[str], store: Store, journal: Journal, folder: Path, say: Callable[[str], None]
) -> Outcome:
    """Run the named trials, and `KEPT`, in the Ray session that is there. Returns early when interrupted."""
    outcome = Outcome()
    every = [trial.name for trial in sweep.trials]
    total = len(sweep.rungs(every[0]))
    with _quiet():
        from ray import tune
        from ray.tune.search.basic_variant import BasicVariantGenerator

        metric, split = sweep.spec.objective.metric, sweep.spec.objective.split
        asha = sweep.spec.scheduler.asha if sweep.spec.scheduler else None
        work = tune.with_parameters(
            _trial, benchmark=sweep.benchmark, store_url=store.url, metric=metric, split=split, names=every
        )
        # A bundle must ask for something; a megabyte of memory is to be had where every CPU is taken.
        nothing = tune.PlacementGroupFactory([{"CPU": 0, "memory": 2**20}])
        shutil.rmtree(folder / "tune", ignore_errors=True)
        tuner = tune.Tuner(
            tune.with_resources(work, nothing),
            param_space={"trial": tune.grid_search(names)},
            tune_config=tune.TuneConfig(
                search_alg=BasicVariantGenerator(max_concurrent=_concurrent(sweep, len(names))),
                scheduler=_halving(asha, sweep.mode, total, journal) if asha else None,
                reuse_actors=True,
                trial_dirname_creator=_dirname,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_watch(outcome, journal, total, f"{metric} ", say)],
            ),
        )
        try:
            tuner.fit()
        except KeyboardInterrupt:
            outcome.interrupted = True
        shutil.rmtree(folder / "tune", ignore_errors=True)
    return outcome


def _dirname(trial: Any) -> str:
    return str(trial.trial_id)


def _concurrent(sweep: Sweep, trials: int) -> int:
    import ray

    slots = int(ray.cluster_resources().get("CPU", 1))
    return sweep.spec.concurrent or max(1, min(trials, slots, MOST_TRIALS))


def _halving(asha: Asha, mode: str, total: int, journal: Journal) -> ASHAScheduler:
    """ASHA that knows what trials of earlier sessions reported."""
    from ray.tune.schedulers import ASHAScheduler

    scheduler = ASHAScheduler(
        time_attr="rung",
        metric="objective",
        mode=mode,
        max_t=total,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
    )
    for name in journal.ended:
        stand_in = SimpleNamespace(trial_id=f"earlier {name}")
        scheduler.on_trial_add(None, stand_in)
        for rung, value in sorted(journal.reports.get(name, {}).items()):
            scheduler.on_trial_result(None, stand_in, {"rung": rung, "objective": value})
        scheduler.on_trial_remove(None, stand_in)
    return scheduler


def _watch(outcome: Outcome, journal: Journal, total: int, metric: str, say: Callable[[str], None]) -> Any:
    """Tune's callback, which runs in the driver: keeps what trials report and tells the user."""
    from ray.tune import Callback

    class Watch(Callback):
        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            name = trial.config["trial"]
            outcome.executed += result["executed"]
            outcome.failures |= {key: Failure(**each) for key, each in result["failures"].items()}
            if name == KEPT:
                say("kept rows: done")
            else:
                journal.report(name, result["rung"], result["objective"])
                if result["rung"] == total:
                    journal.end(name, "finished")
                say(f"{name}: {result['rung']}/{total}, {metric}{result['objective']:.4g}")
            for each in result["failures"].values():
                if each["status"] == "failed":
                    say(f"! failed: {each['title']}: {each['error']}")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            name = trial.config["trial"]
            if name != KEPT and name not in journal.ended:
                journal.end(name, "stopped")
                say(f"{name}: stopped early")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            lines = [line for line in str(trial.get_error() or "no reason given").splitlines() if line.strip()]
            outcome.crashed[trial.config["trial"]] = lines[-1].strip()
            say(f"! {trial.config['trial'] or 'kept rows'}: {lines[-1].strip()}")

    return Watch()


def _quiet() -> AbstractContextManager[None]:
    """Tune without banners, tables, loggers of its own, changes of folder, or a hand on Ctrl-C."""
    environment = {
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": "16",
    }
    return quietly("ray.tune", environment, ("ray.tune", "ray.train", "ray.air", "ray.data"), logging.CRITICAL)

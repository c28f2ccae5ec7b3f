"""What a user sees of a sweep: beforehand its trials and what they share, afterwards how they did."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from harness.engine.executor import survey, to_do
from harness.engine.history import History
from harness.engine.plan import Plan
from harness.engine.store import open_store
from harness.home import Home
from harness.metrics.catalogue import METRICS
from harness.planning import estimate
from harness.progress import duration
from harness.sweep.file import VALIDATION, Sweep
from harness.sweep.run import SweepResult

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Overview:
    """What a sweep would do. `alone` counts stages had every row its own; seconds are an estimate."""

    sweep: str
    base: str
    trials: tuple[Mapping[str, Any], ...]
    kept: tuple[str, ...]
    rungs: int
    stages: int
    alone: int
    cached: int
    todo: int
    trainings_saved: int
    seconds: float
    missing: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def overview(sweep: Sweep, home: Home, workers: int | None) -> Overview:
    """Compare a prepared sweep with the store. Runs nothing."""
    plan, store = sweep.benchmark.plan, open_store(home.store, create=False)
    whole, corrupt = survey(plan, store)
    pending = to_do(plan, whole, corrupt)
    names = [row.name for row in sweep.benchmark.rows]
    each = [Plan.of(name, [cell for cell in plan.cells if cell.method == name]) for name in names]
    trials = {trial.name for trial in sweep.trials}
    return Overview(
        sweep=sweep.spec.sweep,
        base=sweep.spec.base,
        trials=tuple({"name": trial.name, "config": trial.config} for trial in sweep.trials),
        kept=tuple(name for name in names if name not in trials),
        rungs=len(sweep.rungs(sweep.trials[0].name)),
        stages=len(plan.stages),
        alone=sum(len(one.stages) for one in each),
        cached=len(whole),
        todo=len(pending),
        trainings_saved=plan.trainings_saved(),
        seconds=estimate(plan, pending, History(store.root), workers or os.cpu_count() or 1),
        missing=tuple(sweep.benchmark.dataset.missing()),
    )


def show_overview(view: Overview, console: Console) -> None:
    console.print(f"[bold]{view.sweep}[/]  {len(view.trials)} trials on {view.base}", highlight=False)
    for trial in view.trials:
        console.print(f"  {trial['name']}", highlight=False, markup=False)
    console.print(f"beside: {', '.join(view.kept)}", highlight=False, markup=False)
    console.print(
        f"{view.stages} stages in all, {view.alone} if nothing were shared; {view.cached} cached, {view.todo} to do"
        + (f", about {duration(view.seconds)}" if view.todo else ""),
        highlight=False,
    )
    for line in view.missing:
        console.print(f"[yellow]{line}", highlight=False, soft_wrap=True)


def show(result: SweepResult, console: Console) -> None:
    """Every trial with its values, state and objective, best first."""
    from rich.table import Table
    from rich.text import Text

    metric = METRICS[result.info.objective.metric]
    table = Table(box=None, pad_edge=False, header_style="dim")
    fields = list(result.info.space)
    for field in fields:
        table.add_column(field.rpartition(".")[2])
    chosen_by = result.info.objective.split == VALIDATION
    table.add_column(f"{metric.heading} {metric.arrow}{' validation' if chosen_by else ''}", justify="right")
    if chosen_by:
        table.add_column("test", justify="right")
    table.add_column("")
    sign = -1 if result.info.objective.mode == "max" else 1
    order = {"finished": 0, "stopped": 1, "failed": 2, "pending": 3}

    def place(trial: Any) -> tuple[int, float]:
        return order[trial.state], 0.0 if trial.objective is None else sign * trial.objective

    for trial in sorted(result.info.trials, key=place):
        numbers = [trial.objective, trial.test] if chosen_by else [trial.objective]
        shown = ["–" if number is None else metric.text(number) for number in numbers]
        notes = {"finished": "oracle" if trial.name in result.oracles else "", "stopped": "stopped early"}
        note = "best" if trial.name == result.best else notes.get(trial.state, trial.state)
        values = [json.dumps(v) if not isinstance(v, str) else v for v in (trial.config[f] for f in fields)]
        style = "bold green" if note == "best" else "red" if trial.state == "failed" else ""
        table.add_row(*values, *shown, note, style=style)
    console.print(Text.assemble((result.name, "bold"), f"  {result.info.method} on {result.info.base}"))
    console.print(table)
    counts = f"{result.executed} stages executed, {result.cached} cached in {duration(result.seconds)}"
    console.print(counts + ("; continue with the same command" if result.interrupted else ""), highlight=False)

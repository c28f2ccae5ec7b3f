"""What a user sees while a plan runs: one live line per kind on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any, TextIO

from harness.engine.executor import Execution, Progress

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.live import Live

EVERY = 0.25
"""Seconds between two looks of a live progress."""
SHARE = 0.02
"""Part of a run's time that it may take at most: it looks at every stage, so in a large plan it looks less often."""
KINDS = (
    "images", "labels", "volumes", "regions", "scans", "ages", "train", "fit", "segment", "overlap", "features",
    "adapt", "apply", "detect", "threshold", "predict", "trace", "importance", "score", "examples", "illustrate",
)  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def remaining(run: Execution) -> float:
    """Expected seconds to the end: the longer of the critical path and the work shared by the busy workers."""
    now = time.monotonic()
    spent = {stage.key: now - run.since[stage.key] for stage in run.running.values()}
    work = path = 0.0
    for stage in run.plan.stages:
        if run.state[stage.key] in ("pending", "running"):
            already = spent.get(stage.key, 0.0)
            work += max(run.history.estimate(stage) - already, 0.5)
            path = max(path, run.rest[stage.key] - already)
    return max(path, work / max(1.0, run.workers()))


def in_flight(run: Execution, most: int = 4) -> str:
    """Titles of some stages that run, and how many more do."""
    titles = [stage.title for stage in islice(run.running.values(), most)]
    more = len(run.running) - len(titles)
    return ", ".join([*titles, f"{more} more"] if more else titles)


class PlainProgress(Progress):
    """A line now and then: at the start, every `every` seconds, for each failure, at the end."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0):
        self.stream = stream or sys.stderr
        self.every = every
        self.last = 0.0

    def _say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def start(self, run: Execution) -> None:
        todo = sum(state == "pending" for state in run.state.values())
        self._say(f"{run.plan.benchmark}: {todo} stages to run, {run.summary.cached} cached")
        self.last = time.monotonic()

    def update(self, run: Execution) -> None:
        if time.monotonic() - self.last < self.every:
            return
        self.last = time.monotonic()
        open_count = sum(state in ("pending", "running") for state in run.state.values())
        done = run.summary.executed
        left = duration(remaining(run))
        self._say(f"  {done} done, {open_count} to go, about {left} left; running: {in_flight(run)}")

    def finish(self, run: Execution) -> None:
        self._say(f"{run.plan.benchmark}: {closing_line(run)}")

    def note(self, text: str, *, bad: bool = False) -> None:
        self._say(f"  {'! ' if bad else ''}{text}")


class LiveProgress(Progress):
    """A live table on a terminal; failures scroll above it as they happen."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Live | None = None
        self.next = 0.0

    def start(self, run: Execution) -> None:
        from rich.live import Live

        if any(state == "pending" for state in run.state.values()):
            self.live = Live(self._table(run), console=self.console, refresh_per_second=4, transient=True)
            self.live.start()

    def update(self, run: Execution) -> None:
        started = time.monotonic()
        if self.live and started >= self.next:
            self.live.update(self._table(run))
            self.next = started + max(EVERY, (time.monotonic() - started) / SHARE)

    def finish(self, run: Execution) -> None:
        if self.live:
            self.live.stop()
            self.live = None
        self.console.print(closing_line(run), highlight=False)

    def note(self, text: str, *, bad: bool = False) -> None:
        from rich.text import Text

        self.console.print(Text(text, style="red" if bad else ""))

    def _table(self, run: Execution) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        counts: dict[str, Counter[str]] = {}
        for stage in run.plan.stages:
            counts.setdefault(stage.kind, Counter())[run.state[stage.key]] += 1
        for kind in sorted(counts, key=lambda k: KINDS.index(k) if k in KINDS else len(KINDS)):
            states = counts[kind]
            total = sum(states.values()) - states["idle"]
            if total:
                bad = states["failed"] + states["blocked"]
                parts: list[Any] = [kind, ProgressBar(total, states["done"], width=30), f"{states['done']}/{total}"]
                parts.append(f"{states['running']} running" if states["running"] else "")
                parts.append(Text(f"{bad} failed or blocked", style="red") if bad else "")
                table.add_row(*parts)
        elapsed = time.monotonic() - run.started
        line = f"{duration(elapsed)} elapsed, about {duration(remaining(run))} left"
        return Group(table, Text(f"{line}   {in_flight(run, 16)}"[: self.console.width - 1], style="dim"))


def closing_line(run: Execution) -> str:
    """Counts of a run in one line."""
    summary = run.summary
    parts = [f"{summary.executed} executed", f"{summary.cached} cached"]
    parts += [f"{summary.count(status)} {status}" for status in ("failed", "blocked") if summary.count(status)]
    end = f" in {duration(summary.seconds)}"
    if summary.interrupted:
        return f"interrupted: {', '.join(parts)}{end}; run the same command again to continue"
    if summary.stopped:
        return f"stopped: {', '.join(parts)}{end}; {summary.stopped}"
    return f"{', '.join(parts)}{end}"

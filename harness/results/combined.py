"""One ranking over several benchmarks: each benchmark gives a setting for each of its ranked metrics.

Published comparisons rank methods so (the mean rank over segmentation and age benchmarks). A method's value in a
setting is its mean over source–target pairs, as the benchmark's own leaderboard shows it; incomplete means do not
count, and oracles never do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.metrics.catalogue import METRICS, ranked
from harness.problems import UserError
from harness.results import leaderboard
from harness.results.leaderboard import Leaderboard
from harness.results.significance import RankTest, ranks_of


@dataclass(frozen=True)
class Setting:
    """One column: a metric of a benchmark."""

    benchmark: str
    metric: str

    @property
    def heading(self) -> str:
        info = METRICS[self.metric]
        return f"{self.benchmark} {info.heading} {info.arrow}"


@dataclass(frozen=True)
class Combined:
    """Means of every method in every setting, and the ranks over them.

    values[method][i]: in setting i, None without a complete mean. order: methods by mean rank, then by the mean
    rank over the settings they have. ranks: over methods that have all settings; None with fewer than two.
    available: the mean rank of every method over the settings it has, among those present in each. simulated: names
    of the benchmarks whose data are. remarks: what else must be said beside the table.
    """

    settings: tuple[Setting, ...]
    values: dict[str, tuple[float | None, ...]]
    order: tuple[str, ...]
    ranks: RankTest | None
    available: dict[str, float]
    simulated: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def benchmarks(self) -> tuple[str, ...]:
        """Names of the benchmarks, in order."""
        return tuple(dict.fromkeys(setting.benchmark for setting in self.settings))

    @property
    def partial(self) -> tuple[str, ...]:
        """Methods without a complete mean in some setting, in order."""
        return tuple(name for name in self.order if None in self.values[name])

    @property
    def notes(self) -> tuple[str, ...]:
        lines = list(self.ranks.notes) if self.ranks else ["no ranks: fewer than two methods have every setting"]
        if self.partial:
            lines.append(
                "not in every setting, so without a mean rank, and ranked only among those present in each: "
                + ", ".join(self.partial)
            )
        lines += self.remarks
        if self.simulated:
            lines.append(f"simulated data: {', '.join(self.simulated)}")
        return tuple(lines)

    def best(self, index: int) -> frozenset[str]:
        """Methods with the best value in a setting."""
        having = {name: row[index] for name, row in self.values.items()}
        known = {name: value for name, value in having.items() if value is not None}
        if not known:
            return frozenset()
        top = (min if METRICS[self.settings[index].metric].lower_is_better else max)(known.values())
        return frozenset(name for name, value in known.items() if value == top)

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "settings": [asdict(setting) for setting in self.settings],
            "values": {name: list(row) for name, row in self.values.items()},
            "order": list(self.order),
            "ranks": asdict(self.ranks) if self.ranks else None,
            "available_ranks": self.available,
            "notes": list(self.notes),
        }


def build(folders: Sequence[Path]) -> Combined:
    """The ranking over results folders. Raises UserError where two are of one benchmark, or files are damaged."""
    return build_from([leaderboard.build(folder) for folder in folders])


def build_from(boards: Sequence[Leaderboard]) -> Combined:
    """The ranking over leaderboards."""
    names = [board.info.benchmark for board in boards]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice} is named twice; name each benchmark once")
    settings, columns = [], []
    for board in boards:
        for metric in board.info.rank_metrics or ranked(board.metrics):
            settings.append(Setting(board.info.benchmark, metric))
            columns.append({row.method: _mean(row, metric) for row in board.rows if not row.oracle})
    methods = list(dict.fromkeys(name for column in columns for name in column))
    values = {name: tuple(column.get(name) for column in columns) for name in methods}
    values = {name: row for name, row in values.items() if any(value is not None for value in row)}
    simulated = tuple(board.info.benchmark for board in boards if board.info.dataset.simulated)
    return of(tuple(settings), values, simulated, _remarks(boards, [name for name in methods if name not in values]))


def _remarks(boards: Sequence[Leaderboard], empty: Sequence[str]) -> tuple[str, ...]:
    """empty: methods without a complete mean anywhere."""
    lines = []
    if empty:
        lines.append(f"left out, without a complete mean in any setting: {', '.join(empty)}")
    if oracles := dict.fromkeys(row.method for board in boards for row in board.rows if row.oracle):
        lines.append(f"left out, oracles chosen by the labels they are scored on: {', '.join(oracles)}")
    ids: dict[str, set[str]] = {}
    for row in (row for board in boards for row in board.rows):
        ids.setdefault(row.method, set()).add(row.id)
    if several := [f"{name} ({', '.join(sorted(own))})" for name, own in ids.items() if len(own) > 1]:
        lines.append(f"one name, several methods: {', '.join(several)}")
    return tuple(lines)


def of(
    settings: tuple[Setting, ...],
    values: dict[str, tuple[float | None, ...]],
    simulated: tuple[str, ...] = (),
    remarks: tuple[str, ...] = (),
) -> Combined:
    """The ranking of a table of means."""
    metrics = [setting.metric for setting in settings]
    whole = [name for name, row in values.items() if None not in row]
    ranks = ranks_of(_table(values, whole), whole, metrics, unit="benchmark, metric") if len(whole) > 1 else None
    everyone = list(values)
    available = ranks_of(_table(values, everyone), everyone, metrics).available_ranks if len(everyone) > 1 else {}
    mean = ranks.mean_ranks if ranks else {}
    order = sorted(everyone, key=lambda name: (name not in mean, mean.get(name, 0.0), available.get(name, 0.0)))
    return Combined(settings, values, tuple(order), ranks, dict(available), simulated, remarks)


def _mean(row: leaderboard.Row, metric: str) -> float | None:
    score = row.scores.get(metric)
    return score.mean if score is not None and score.complete else None


def _table(values: dict[str, tuple[float | None, ...]], names: Sequence[str]) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in values[name]] for name in names], np.float64)

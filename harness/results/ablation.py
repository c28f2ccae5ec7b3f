"""The figure of a sweep: its objective against each of the fields that it varied."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from harness.metrics.catalogue import METRICS
from harness.results.effects import reach
from harness.results.figures import COLOURS, shortened, styled
from harness.results.leaderboard import Leaderboard
from harness.results.runinfo import SweepDomain, SweepInfo

ACROSS = 3
SPREAD = 0.5
"""Width that the trials of one listed value share, where values are 1 apart."""


@styled
def ablation(sweep: SweepInfo, board: Leaderboard) -> Figure:
    """The objective against each field of a sweep, a point for each trial, with its 95 % interval over test subjects.

    Listed values stand side by side, each with the mean of its whole trials as a bar; numbers of a range stand at
    themselves. Open points are trials that were not run to the end, diamonds are oracles, which enter no mean; the
    base's own value is marked. What was compared on validation scans has no interval.
    """
    info = board.metric(sweep.objective.metric)
    fields, points = list(sweep.space), _points(sweep, board)
    columns = min(ACROSS, len(fields))
    lines = math.ceil(len(fields) / columns)
    figure = Figure(figsize=(max(4.4, 3.4 * columns + 0.6), 3.1 * lines + 0.1), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, field in zip(axes.ravel(), fields, strict=False):
        places = _field(axis, sweep.space[field], field, points)
        _scale(axis, sweep.space[field], places)
        if field in sweep.defaults:
            _mark_default(axis, places, sweep.defaults[field])
        axis.set_xlabel(shortened(field, 40))
    for axis in axes.ravel()[len(fields) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        scans = ", validation scans" if sweep.objective.split == "validation" else ""
        axis.set_ylabel(f"{info.heading}{scans}  ({info.arrow} better)")
    return figure


def caption(sweep: SweepInfo) -> str:
    """What stands below the figure."""
    tested = sweep.objective.split == "test"
    interval = " with its 95 % interval over subjects" if tested else ""
    return (
        f"The objective against each field: a point for each trial{interval}, a bar for the mean of the trials that "
        "share a value. Open points were not run to the end; diamonds are oracles."
        + ("" if tested else " Trials are compared on validation scans; tables are of test scans.")
    )


@dataclass(frozen=True)
class _Point:
    """A trial as tables show it: mean and interval scaled, whether it ran to the end, and whether it is an oracle."""

    config: Mapping[str, Any]
    mean: float
    interval: tuple[float, float] | None
    whole: bool
    oracle: bool


def _points(sweep: SweepInfo, board: Leaderboard) -> list[_Point]:
    """A point for each trial that has a mean."""
    info = METRICS[sweep.objective.metric]
    rows = {row.method: row for row in board.rows}
    found = []
    for trial in sweep.trials:
        row = rows.get(trial.name)
        score = row.scores.get(info.id) if row is not None and sweep.objective.split == "test" else None
        mean = score.mean if score is not None and score.mean is not None else trial.objective
        if mean is None:
            continue
        interval = None
        whole = trial.state == "finished"
        if whole and score is not None and score.low is not None and score.high is not None:
            interval = (score.low * info.scale, score.high * info.scale)
        found.append(_Point(trial.config, mean * info.scale, interval, whole, row is not None and row.oracle))
    return found


def _field(axis: Axes, domain: SweepDomain, field: str, points: Sequence[_Point]) -> dict[str, float]:
    """Draw the points; returns the places of listed values, none for a range."""
    values = [point.config[field] for point in points]
    places = _places(domain, values) if domain.type in ("grid", "choice") else {}
    groups: dict[str, list[_Point]] = {}
    for point, value in zip(points, values, strict=True):
        groups.setdefault(_text(value), []).append(point)
    for text, group in groups.items():
        middle = places[text] if places else float(text)
        for number, point in enumerate(group):
            # Trials with one value stand side by side around its place, in order of the sweep.
            step = min(0.15, SPREAD / len(group)) if places else 0.0
            _draw(axis, middle + (number - (len(group) - 1) / 2) * step, point)
        fair = [point.mean for point in group if point.whole and not point.oracle]
        if places and len(fair) > 1:
            axis.plot([middle - 0.35, middle + 0.35], [np.mean(fair)] * 2, color="#222222", lw=1.2, zorder=1)
    return places


def _draw(axis: Axes, at: float, point: _Point) -> None:
    colour = COLOURS[3] if point.oracle else COLOURS[0]
    if point.interval is not None:
        axis.errorbar(at, point.mean, reach(point.mean, *point.interval), color=colour, lw=1, capsize=2)
    face = colour if point.whole else "white"
    axis.plot(at, point.mean, "D" if point.oracle else "o", ms=5, color=colour, mfc=face)


def _places(domain: SweepDomain, values: Sequence[Any]) -> dict[str, float]:
    """Value as text → place along the axis, in the order of the sweep file."""
    texts = dict.fromkeys([*map(_text, domain.values), *map(_text, values)])
    return {text: float(place) for place, text in enumerate(texts)}


def _scale(axis: Axes, domain: SweepDomain, places: Mapping[str, float]) -> None:
    if places:
        labels = [shortened(text, 18) for text in places]
        slanted = sum(map(len, labels)) > 34
        axis.set_xticks(list(places.values()), labels, fontsize=8)
        if slanted:
            axis.tick_params(axis="x", rotation=30)
        axis.set_xlim(-0.5, len(places) - 0.5)
        return
    if domain.type == "loguniform":
        axis.set_xscale("log")
        # The ordinary labels of such an axis are formulas, and formulas are switched off.
        axis.xaxis.set_major_locator(LogLocator(10, subs=(1, 3), numticks=8))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    if domain.low is not None and domain.high is not None:
        axis.set_xlim(*_margin(domain.low, domain.high, logarithmic=domain.type == "loguniform"))
    axis.tick_params(axis="x", labelsize=8)


def _margin(low: float, high: float, *, logarithmic: bool) -> tuple[float, float]:
    """The range with 4 % of it added at both ends."""
    if logarithmic:
        factor = (high / low) ** 0.04
        return low / factor, high * factor
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


def _mark_default(axis: Axes, places: Mapping[str, float], default: Any) -> None:
    number = float(default) if isinstance(default, int | float) else None
    at = places.get(_text(default)) if places else number
    if at is None:
        return
    # Whether listed or not, the base's value belongs on the axis.
    left, right = axis.get_xlim()
    axis.set_xlim(min(left, at), max(right, at))
    axis.axvline(at, color="#999999", lw=1, ls=":", zorder=0)
    axis.annotate(
        "default", (at, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
        fontsize=7, color="#666666",
    )  # fmt: skip


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)

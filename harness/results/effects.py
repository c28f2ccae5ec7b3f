"""Figures about what does what: components of a method, stopping rules, distance against performance, ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.metrics.catalogue import METRICS
from harness.results.figures import COLOURS, styled
from harness.results.leaderboard import Leaderboard, Row
from harness.results.runinfo import SweepDomain, SweepInfo

BEFORE = "#9a9a9a"
MARKERS = "osD^v*"


def families(board: Leaderboard) -> list[tuple[str, list[Row]]]:
    """(method id, its rows) for each method that the benchmark runs in two or more variants, oracles left out."""
    found: dict[str, list[Row]] = {}
    for row in board.rows:
        if not row.oracle and row.method != board.info.baseline and row.scores[board.info.headline].mean is not None:
            found.setdefault(row.id, []).append(row)
    return [(method, rows) for method, rows in found.items() if len(rows) > 1]


@styled
def components(board: Leaderboard, rows: Sequence[Row]) -> Figure:
    """Bars of the baseline and of one method's variants, with the in-domain level as the ceiling."""
    metric = board.info.headline
    info = METRICS[metric]
    baseline = [row for row in board.rows if row.method == board.info.baseline]
    better = sorted(rows, key=lambda row: row.scores[metric].mean or 0.0, reverse=info.lower_is_better)
    shown = [*baseline, *better]
    figure = Figure(figsize=(1.6 + 1.25 * len(shown), 3.2), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(shown):
        score = row.scores[metric]
        mean = (score.mean or 0.0) * info.scale
        colour = BEFORE if row.method == board.info.baseline else COLOURS[0]
        axis.bar(place, mean, width=0.62, color=colour)
        top = mean
        if score.low is not None and score.high is not None:
            low, high = sorted((score.low * info.scale, score.high * info.scale))
            axis.errorbar(place, mean, _reach(mean, low, high), color="#222222", lw=1, capsize=3)
            top = high
        axis.annotate(info.text(score.mean), (place, top), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    ceiling = next((row.scores[metric].in_domain for row in baseline if row.scores[metric].in_domain is not None), None)
    if ceiling is not None:
        axis.axhline(ceiling * info.scale, color="#222222", lw=1, ls=(0, (4, 3)))
        axis.annotate(
            f"in-domain {info.text(ceiling)}", (0, ceiling * info.scale), (4, 3), ha="left", fontsize=8,
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
        axis.set_ylim(top=max(axis.get_ylim()[1], ceiling * info.scale * 1.08))
    axis.set_xticks(range(len(shown)), [_wrapped(row.method) for row in shown], fontsize=8)
    axis.set_ylabel(f"{info.heading}  ({info.arrow} better)")
    axis.tick_params(axis="x", length=0)
    return figure


@styled
def stopping(curves: pl.DataFrame, rules: Sequence[str]) -> Figure:
    """What an adaptation does step by step, and where each rule stops.

    curves: rows of `exhibits.CURVES` of the variants `rules`, which share one adaptation. Left: bits per dimension
    above the source's level; right: entropy of the task model's predictions; each beside the change of the task's
    score since step 0. Thin lines are source–target pairs and seeds, bold ones their mean; a mark for each rule stands
    on each pair's line at the step that it chose.
    """
    one = curves.filter(pl.col("method") == rules[0])
    score = next((name for name in ("dsc", "mae") if name in set(one["name"])), "dsc")
    bpd, source = _lines(one, "bpd", "adapt"), _lines(one, "source_bpd", "adapt")
    above = {pair: [(s, v - dict(source.get(pair, [])).get(s, np.nan)) for s, v in line] for pair, line in bpd.items()}
    gain = {
        pair: [(step, (value - line[0][1]) * METRICS[score].scale) for step, value in line]
        for pair, line in _lines(one, score, "trace").items()
    }
    entropy = _lines(one, "entropy", "trace")
    left = (above, "BPD above the source's level", COLOURS[0])
    panels = [left, (entropy, "entropy, nats", COLOURS[2])] if entropy else [left]
    figure = Figure(figsize=(4.6 * len(panels) + 0.6, 3.3), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (lines, label, colour) in zip(axes, panels, strict=True):
        _bundle(axis, lines, colour)
        axis.set_xlabel("epoch of adaptation")
        axis.set_ylabel(label, color=colour)
        beside = axis.twinx()
        _bundle(beside, gain, COLOURS[1])
        beside.set_ylabel(f"change of {METRICS[score].heading}", color=COLOURS[1])
        beside.spines["right"].set_visible(True)
        _mark_choices(axis, lines, curves, rules)
    axes[0].axhline(0, color="#222222", lw=0.8, ls=":")
    return figure


def _lines(curves: pl.DataFrame, name: str, stage: str) -> dict[tuple[Any, ...], list[tuple[int, float]]]:
    """(source, target, seed) → points of a curve, by step."""
    rows = curves.filter((pl.col("name") == name) & (pl.col("stage") == stage)).sort("step")
    found: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault((row["source"], row["target"], row["seed"]), []).append((row["step"], row["value"]))
    return found


def _bundle(axis: Axes, lines: Mapping[Any, Sequence[tuple[int, float]]], colour: str) -> None:
    for line in lines.values():
        axis.plot(*zip(*line, strict=True), color=colour, lw=0.6, alpha=0.3)
    steps = sorted({step for line in lines.values() for step, _ in line})
    means = [float(np.mean([dict(line)[step] for line in lines.values() if step in dict(line)])) for step in steps]
    axis.plot(steps, means, color=colour, lw=2)


def _mark_choices(
    axis: Axes, lines: Mapping[Any, Sequence[tuple[int, float]]], curves: pl.DataFrame, rules: Sequence[str]
) -> None:
    chosen = curves.filter((pl.col("name") == "chosen_step") & (pl.col("stage") == "apply"))
    for number, rule in enumerate(rules):
        points = []
        for row in chosen.filter(pl.col("method") == rule).iter_rows(named=True):
            line = dict(lines.get((row["source"], row["target"], row["seed"]), ()))
            if round(row["value"]) in line:
                points.append((round(row["value"]), line[round(row["value"])]))
        if points:
            marker = MARKERS[number % len(MARKERS)]
            look: dict[str, Any] = {"ls": "", "ms": 6, "mfc": "none", "mec": "#222222", "zorder": 5}
            axis.plot(*zip(*points, strict=True), marker=marker, label=rule, **look)
    if axis.get_legend_handles_labels()[1]:
        axis.legend(fontsize=7, loc="best")


@styled
def distance_against_performance(board: Leaderboard, x: str, y: str) -> Figure:
    """Methods by two metrics, bars of one population SD over pairs; names stand in a column at the right."""
    rows = [row for row in board.rows if row.scores[x].mean is not None and row.scores[y].mean is not None]
    across, up = METRICS[x], METRICS[y]
    figure = Figure(figsize=(7.2, max(3.2, 0.27 * len(rows) + 1.2)), layout="constrained")
    axis = figure.subplots()
    points = []
    for number, row in enumerate(rows):
        px, py = (row.scores[x].mean or 0.0) * across.scale, (row.scores[y].mean or 0.0) * up.scale
        spread = [[(row.scores[m].sd or 0.0) * METRICS[m].scale] for m in (x, y)]
        colour = BEFORE if row.method == board.info.baseline else COLOURS[number % len(COLOURS)]
        axis.errorbar(px, py, spread[1], spread[0], fmt="o", ms=5, color=colour, lw=0.7, alpha=0.9)
        points.append((py, px, row.method, colour))
    axis.set(xlabel=f"{across.heading}  ({across.arrow} better)", ylabel=f"{up.heading}  ({up.arrow} better)")
    low, high = axis.get_ylim()
    for place, (py, px, name, colour) in enumerate(sorted(points)):
        level = (place + 0.5) / len(points)
        axis.annotate(
            name, (px, py), (1.04, level), textcoords="axes fraction", va="center", fontsize=8, color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.6}, annotation_clip=False,
        )  # fmt: skip
    axis.set_ylim(low, high)
    return figure


@styled
def ablation(sweep: SweepInfo, board: Leaderboard) -> Figure:
    """The objective against each field of a sweep, a point for each trial with its 95 % interval."""
    info = METRICS[sweep.objective.metric]
    fields = list(sweep.space)
    figure = Figure(figsize=(max(3.6, 3.3 * len(fields)) + 0.6, 3.2), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False, sharey=True)[0]
    scores = {row.method: row.scores[sweep.objective.metric] for row in board.rows}
    for axis, field in zip(axes, fields, strict=True):
        positions = _positions(sweep.space[field], [trial.config[field] for trial in sweep.trials])
        for trial in sweep.trials:
            score = scores.get(trial.name)
            value = score.mean if score is not None and score.mean is not None else trial.objective
            if value is None:
                continue
            at, mean = positions[repr(trial.config[field])], value * info.scale
            whole = trial.state == "finished"
            if score is not None and score.low is not None and score.high is not None and whole:
                low, high = sorted((score.low * info.scale, score.high * info.scale))
                axis.errorbar(at, mean, _reach(mean, low, high), color=COLOURS[0], lw=1, capsize=3)
            axis.plot(at, mean, "o", ms=6, color=COLOURS[0], mfc=COLOURS[0] if whole else "white")
        _name_axis(axis, sweep.space[field], positions, field)
    axes[0].set_ylabel(f"{info.heading}  ({info.arrow} better)")
    return figure


def _positions(domain: SweepDomain, values: Sequence[Any]) -> dict[str, float]:
    """Where values stand along the axis: numbers of a range at themselves, all else side by side."""
    if domain.type in ("uniform", "loguniform"):
        return {repr(value): float(value) for value in values}
    listed = list(dict.fromkeys([*map(repr, domain.values), *map(repr, values)]))
    return {value: float(place) for place, value in enumerate(listed)}


def _name_axis(axis: Axes, domain: SweepDomain, positions: Mapping[str, float], field: str) -> None:
    axis.set_xlabel(field)
    if domain.type == "loguniform":
        axis.set_xscale("log")
    elif domain.type != "uniform":
        axis.set_xticks(list(positions.values()), [text.strip("'") for text in positions], fontsize=8)
        axis.set_xlim(-0.5, len(positions) - 0.5)


def _reach(mean: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an error bar; a bootstrap interval need not contain the mean."""
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]


def _wrapped(name: str) -> str:
    return name.replace("_", "_\n", 1) if len(name) > 14 else name

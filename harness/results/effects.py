"""Figures about what does what: components of a method, stopping rules, distance against performance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.metrics.catalogue import METRICS
from harness.results.figures import COLOURS, shortened, styled
from harness.results.leaderboard import Leaderboard, Row

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
    """Bars of the baseline and of one method's variants, best below, with the in-domain level as the ceiling."""
    metric = board.info.headline
    info = board.metric(metric)
    baseline = [row for row in board.rows if row.method == board.info.baseline]
    better = sorted(rows, key=lambda row: row.scores[metric].mean or 0.0, reverse=info.lower_is_better)
    shown = [*baseline, *better]
    figure = Figure(figsize=(7.2, 0.9 + 0.36 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(shown):
        score = row.scores[metric]
        mean = (score.mean or 0.0) * info.scale
        colour = BEFORE if row.method == board.info.baseline else COLOURS[0]
        axis.barh(place, mean, height=0.62, color=colour)
        end = mean
        if score.low is not None and score.high is not None:
            low, high = sorted((score.low * info.scale, score.high * info.scale))
            axis.errorbar(mean, place, xerr=reach(mean, low, high), color="#222222", lw=1, capsize=3)
            end = max(mean, high)
        axis.annotate(info.text(score.mean), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    ceiling = next((row.scores[metric].in_domain for row in baseline if row.scores[metric].in_domain is not None), None)
    if ceiling is not None:
        axis.axvline(ceiling * info.scale, color="#222222", lw=1, ls=(0, (4, 3)))
        axis.annotate(
            f"in-domain {info.text(ceiling)}", (ceiling * info.scale, 1), (0, 3), ha="center", fontsize=8,
            xycoords=("data", "axes fraction"), textcoords="offset points",
        )  # fmt: skip
    # Room for the numbers beside the bars.
    axis.set_xlim(right=axis.get_xlim()[1] * 1.06)
    axis.set_yticks(range(len(shown)), [shortened(row.method, 44) for row in shown], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(f"{info.heading}  ({info.arrow} better)")
    axis.tick_params(axis="y", length=0)
    return figure


def adaptations(board: Leaderboard, curves: pl.DataFrame) -> list[tuple[str, list[str]]]:
    """(method id, names of its rows) for each traced adaptation; rows share one where their "bpd" agree throughout."""
    traced = set(curves.filter(pl.col("stage") == "trace")["method"])
    found: list[tuple[str, list[str], dict[tuple[Any, ...], float]]] = []
    for row in board.rows:
        if row.method not in traced:
            continue
        own = curves.filter((pl.col("method") == row.method) & (pl.col("stage") == "adapt") & (pl.col("name") == "bpd"))
        key = pl.struct("source", "target", "seed", "step")
        points = {tuple(k.values()): v for k, v in own.select(key, "value").iter_rows()}
        for method, names, known in found:
            common = points.keys() & known.keys()
            if method == row.id and common and all(points[k] == known[k] for k in common):
                names.append(row.method)
                # An oracle lacks the pairs whose target has no labels: the next row may have them again.
                known.update(points)
                break
        else:
            found.append((row.id, [row.method], points))
    return [(method, names) for method, names, _ in found]


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
    figure = Figure(figsize=(5 * len(panels), 3.3 + 0.18 * len(rules)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.12})[0]
    for axis, (lines, label, colour) in zip(axes, panels, strict=True):
        _bundle(axis, lines, colour)
        axis.set_xlabel("epoch of adaptation")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylabel(label, color=colour)
        beside = axis.twinx()
        _bundle(beside, gain, COLOURS[1])
        beside.set_ylabel(f"change of {METRICS[score].heading}", color=COLOURS[1])
        beside.spines["right"].set_visible(True)
        _mark_choices(axis, lines, curves, rules)
    axes[0].axhline(0, color="#222222", lw=0.8, ls=":")
    handles, labels = axes[0].get_legend_handles_labels()
    if labels:
        # Below: the lines leave no corner free.
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if len(max(labels, key=len)) > 30 else 3)
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
            look: dict[str, Any] = {"ls": "", "ms": 5, "mfc": "none", "mec": "#222222", "mew": 0.8, "zorder": 5}
            axis.plot(*zip(*points, strict=True), marker=marker, label=shortened(rule, 60), **look)


@styled
def distance_against_performance(board: Leaderboard, x: str, y: str) -> Figure:
    """Methods by two metrics, bars of one population SD over pairs; names stand in a column at the right.

    The baseline is grey; oracles are open points, and named so.
    """
    rows = [row for row in board.rows if row.scores[x].mean is not None and row.scores[y].mean is not None]
    across, up = METRICS[x], METRICS[y]
    figure = Figure(figsize=(7.2, max(3.2, 0.27 * len(rows) + 1.2)), layout="constrained")
    axis = figure.subplots()
    points = []
    for number, row in enumerate(rows):
        px, py = (row.scores[x].mean or 0.0) * across.scale, (row.scores[y].mean or 0.0) * up.scale
        spread = [[(row.scores[m].sd or 0.0) * METRICS[m].scale] for m in (x, y)]
        colour = BEFORE if row.method == board.info.baseline else COLOURS[number % len(COLOURS)]
        face = "white" if row.oracle else colour
        axis.errorbar(px, py, spread[1], spread[0], fmt="o", ms=5, color=colour, mfc=face, lw=0.7, alpha=0.9)
        points.append((py, px, shortened(row.shown_name, 40), colour))
    axis.set(xlabel=f"{across.heading}  ({across.arrow} better)", ylabel=f"{up.heading}  ({up.arrow} better)")
    low, high = axis.get_ylim()
    points.sort()
    levels = _apart([(py - low) / (high - low) for py, *_ in points], min(0.22 / (figure.get_figheight() * 0.8), 1.0))
    for level, (py, px, name, colour) in zip(levels, points, strict=True):
        axis.annotate(
            name, (px, py), (1.04, level), textcoords="axes fraction", va="center", fontsize=8, color=colour,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": colour, "alpha": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )  # fmt: skip
    axis.set_ylim(low, high)
    return figure


def _apart(levels: Sequence[float], gap: float) -> list[float]:
    """Ascending levels in [0, 1], moved as little as it takes to keep `gap` between them, from the top down."""
    moved: list[float] = []
    for level in levels:
        moved.append(max(level, moved[-1] + gap) if moved else level)
    top = 1.0
    for place in reversed(range(len(moved))):
        moved[place] = min(moved[place], top)
        top = moved[place] - gap
    return moved


def reach(mean: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an error bar; a bootstrap interval need not contain the mean."""
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]

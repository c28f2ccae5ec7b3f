"""Figures of the anomaly track: precision against recall, score against cost; and all that its report shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from harness.metrics.catalogue import METRICS
from harness.results import anomaly_pictures, detections
from harness.results.figures import COLOURS, shortened, styled
from harness.results.leaderboard import Leaderboard
from harness.results.shown import Shown

DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)))
MARKERS = "osD^v*"
ACROSS = 3
MOST_LINES = 16
"""Methods in one plot of curves: best first, the others are left out."""


def all_figures(folder: Path, board: Leaderboard) -> Iterator[Shown]:
    """Every figure of this track that the folder's data allow, in the order of the report."""
    if board.anomaly is None:
        return
    names = [row.method for row in board.rows]
    curves = detections.read_precision_recall(folder)
    curves = curves.filter(pl.col("processing").is_in(board.anomaly.processing[:1]))
    settings = [setting for setting in board.anomaly.settings if setting in set(curves["target"])]
    if settings:
        drawn = [name for name in names if name in set(curves["method"])]
        more = f" Shown are the first {MOST_LINES} of {len(drawn)} methods." if len(drawn) > MOST_LINES else ""
        caption = (
            "Precision against recall of the pixels of all slices pooled; a line for each seed. Points are the highest "
            "Dice of a line, grey lines join points of one Dice, and the dotted line is the share of lesion pixels, "
            f"which a map that says nothing reaches.{more}"
        )
        figure = precision_recall(curves, settings, drawn[:MOST_LINES])
        yield Shown("precision-recall", "precision-recall", caption, figure)
    if score_against_cost_known(board):
        caption = (
            f"Mean {METRICS[board.info.headline].name} over settings against the network evaluations and the time of "
            "one slice; cheap is at the left. The area of a point grows with the parameters of all networks."
        )
        yield Shown("score-cost", "cost", caption, score_against_cost(board))
    yield from anomaly_pictures.all_pictures(folder, board.anomaly.settings, names)


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour, dashes and marker of each method: colours are used again with other dashes and markers."""
    return {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "ls": DASHES[number // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
        }
        for number, name in enumerate(names)
    }


# ------------------------------------------------------------------------------------------- precision, recall


@styled
def precision_recall(curves: pl.DataFrame, settings: Sequence[str], methods: Sequence[str]) -> Figure:
    """A plot for each setting, a line for each method and seed; `curves` as `detections.PRECISION_RECALL`."""
    columns = 2 if len(settings) == 4 else min(ACROSS, len(settings))
    lines = math.ceil(len(settings) / columns)
    wide = 3.5 if columns > 2 else 4.2
    figure = Figure(
        figsize=(wide * columns + 0.2, 3.1 * lines + 0.2 * math.ceil(len(methods) / 5)), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    known = looks(methods)
    for axis, setting in zip(axes.ravel(), settings, strict=False):
        _same_dice(axis)
        own = curves.filter(pl.col("target") == setting)
        share = prevalence(own)
        if share is not None:
            axis.axhline(share, color="#222222", lw=0.9, ls=":")
            axis.annotate(f"{100 * share:.2g} %", (0, share), (3, 2), textcoords="offset points", fontsize=7)
        for name in methods:
            for _, line in own.filter(pl.col("method") == name).group_by("seed", maintain_order=True):
                _curve(axis, line, known[name])
        axis.set(title=shortened(setting, 30), xlim=(0, 1), ylim=(0, 1.02))
    for axis in axes.ravel()[len(settings) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("precision")
    for number, axis in enumerate(axes.ravel()[: len(settings)]):
        if number + columns >= len(settings):
            axis.set_xlabel("recall")
            axis.tick_params(labelbottom=True)
    handles = [Line2D([], [], **known[name], ms=4, lw=1.4, label=shortened(name, 26)) for name in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(methods)), fontsize=8)
    return figure


def prevalence(curves: pl.DataFrame) -> float | None:
    """The share of lesion pixels: the precision of whatever finds everything by calling everything abnormal."""
    return curves.filter(pl.col("recall") >= 1)["precision"].min()  # type: ignore[return-value]


def _curve(axis: Axes, line: pl.DataFrame, look: dict[str, Any]) -> None:
    line = line.sort("recall", "precision", descending=[False, True])
    recall, precision = line["recall"].to_numpy(), line["precision"].to_numpy()
    axis.plot(recall, precision, color=look["color"], ls=look["ls"], lw=1.2)
    total = recall + precision
    dice = np.divide(2 * recall * precision, total, out=np.zeros_like(total), where=total > 0)
    best = int(dice.argmax())
    axis.plot(recall[best], precision[best], color=look["color"], marker=look["marker"], ms=4.5, mec="white", mew=0.5)


def _same_dice(axis: Axes) -> None:
    """Faint lines of equal Dice, named at the right."""
    for dice in (0.2, 0.4, 0.6, 0.8):
        recall = np.linspace(dice / (2 - dice), 1, 100)
        axis.plot(recall, dice * recall / (2 * recall - dice), color="#d5d5d5", lw=0.7, zorder=0)
        end = dice / (2 - dice)
        axis.annotate(
            f"{100 * dice:.0f}", (1, end), (3, 0), textcoords="offset points", va="center", fontsize=6.5,
            color="#999999", annotation_clip=False,
        )  # fmt: skip


# ------------------------------------------------------------------------------------------- cost


def score_against_cost_known(board: Leaderboard) -> bool:
    """Whether two methods or more have both a score and a cost to set it against."""
    return bool(_costs(board)) and len(_scored(board)) > 1


def _costs(board: Leaderboard) -> list[str]:
    having = board.anomaly.costs() if board.anomaly else []
    return [metric for metric in ("evaluations", "seconds_per_slice") if metric in having]


def _scored(board: Leaderboard) -> list[str]:
    headline, costs = board.info.headline, _costs(board)
    return [
        row.method
        for row in board.rows
        if row.scores[headline].mean is not None and any(row.scores[m].mean is not None for m in costs)
    ]


@styled
def score_against_cost(board: Leaderboard) -> Figure:
    """Methods by the headline metric and what a slice costs, a plot for each cost; areas grow with parameters."""
    headline, costs = board.info.headline, _costs(board)
    info = METRICS[headline]
    names = _scored(board)
    rows = {row.method: row for row in board.rows}
    known = looks([row.method for row in board.rows])
    figure = Figure(figsize=(3.7 * len(costs) + 2.2, max(3.2, 0.2 * len(names) + 0.6)), layout="constrained")
    axes = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axis, metric in zip(axes, costs, strict=True):
        for name in names:
            scores = rows[name].scores
            cost, score = scores[metric].mean, scores[headline].mean
            if cost is None or score is None:
                continue
            parameters = scores["parameters"].mean if "parameters" in scores else None
            look = known[name]
            axis.scatter(
                cost, score * info.scale, s=24 + 2 * (parameters or 0) / 1e6, color=look["color"],
                marker=look["marker"], alpha=0.85, linewidths=0.6, edgecolors="white", zorder=3,
            )  # fmt: skip
        if metric == "evaluations":
            # Methods that call no network have a place of their own, left of one evaluation.
            axis.set_xscale("symlog", linthresh=1, linscale=0.4)
            axis.set_xlim(left=-0.4)
            axis.set_xlabel("network evaluations for one slice")
        else:
            axis.set_xscale("log")
            axis.set_xlabel("seconds for one slice")
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(color="#ececec", lw=0.6, zorder=0)
        axis.margins(0.08)
    axes[0].set_ylabel(f"{info.heading}  ({info.arrow} better)")
    handles = [
        Line2D([], [], ls="", color=known[name]["color"], marker=known[name]["marker"], ms=6, label=shortened(name, 30))
        for name in names
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure

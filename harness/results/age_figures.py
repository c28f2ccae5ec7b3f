"""Figures of the brain-age track: predicted against true age, errors by age, gaps, and what more scans bring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.results import age_regions, ages
from harness.results.age_entries import first_seed
from harness.results.age_groups import SEX_NAMES
from harness.results.age_tables import SHOWN, Z95, AgeEntry, AgeTables, named
from harness.results.anomaly_figures import looks
from harness.results.effects import reach
from harness.results.figures import COLOURS, shortened, styled
from harness.results.leaderboard import Leaderboard
from harness.results.shown import Shown

ACROSS = 3
MOST = 12
"""Methods in one figure: best first, the others are left out."""
FAR = 2.0
"""So many times the middle of all methods' extents is too far for one scale."""
MOST_POINTS = 2000
"""Points of a plot beyond which they are drawn as pixels."""
SEX_LOOKS = {"F": (COLOURS[1], "o"), "M": (COLOURS[0], "s"), "": ("#777777", "D")}
WITHIN, OUT = COLOURS[0], COLOURS[1]


def all_figures(folder: Path, board: Leaderboard) -> Iterator[Shown]:
    """Every figure of this track that the folder's data allow, in the order of the report."""
    tables = board.ages
    if tables is None or not tables.sources:
        return
    names = [row.method for row in board.rows]
    rows = ages.read(folder).predictions.filter(pl.col("source") == tables.largest)
    present = set(rows["method"].unique())
    drawn = [name for name in names if name in present]
    more = f" Shown are the first {MOST} of {len(drawn)} methods." if len(drawn) > MOST else ""
    drawn, known = drawn[:MOST], looks(names)
    if len(tables.sources) > 1:
        caption = (
            "What more training scans bring; the scored scans are the same. Bars are 95 % intervals over people. Sets "
            "of training scans stand in the order of their size, at equal distances."
        )
        yield Shown("training-size", "sizes", caption, training_size(board, names[:MOST], known))
    if tables.bins and drawn:
        caption = (
            "Left: mean absolute error of the scans in each interval of true age; right: mean of predicted less true "
            f"age, above 0 where predictions are too old. Bars are 95 % intervals over people; n counts scans.{more}"
        )
        far = far_off({name: _largest_error(tables, name) for name in drawn})
        if far:
            caption += f" Left out, as they would flatten the others: {', '.join(far)}; the table has them."
        yield Shown(
            "error-by-age", "age", caption, error_by_age(tables, [name for name in drawn if name not in far], known)
        )
    if drawn:
        seeds = " of the first seed" if len(board.info.seeds) > 1 else ""
        caption = (
            f"Predicted against true age{seeds}, a point for each scan, trained on {named(tables.largest)}. On the "
            f"dashed line both agree.{more}"
        )
        yield Shown("predicted-true", "predictions", caption, predicted_against_true(rows, tables, drawn))
        caption = f"Gaps of all scans{seeds}, sorted; the largest at either end and the smallest are named."
        if has_sds(rows):
            caption += " Bars are the methods' own 95 % intervals; orange ones leave the true age out."
        if far := far_off(_largest_gaps(rows, drawn)):
            caption += f" Scales of their own: {', '.join(far)}."
        yield Shown("age-gaps", "gaps", caption + more, gaps(rows, tables, drawn))
    yield from age_regions.all_regions(folder, board)


def has_sds(rows: pl.DataFrame) -> bool:
    """Whether any method says how sure it is."""
    return rows["sd"].null_count() < len(rows)


def far_off(extents: Mapping[str, float]) -> list[str]:
    """Those whose extent would flatten the others on one scale."""
    middle = float(np.median(list(extents.values()))) if extents else 0.0
    return [name for name, extent in extents.items() if extent > FAR * middle]


def _largest_error(tables: AgeTables, method: str) -> float:
    found = [tables.entry("mae", method, kind="age", group=each.name) for each in tables.bins]
    return max((entry.value for entry in found if entry is not None and entry.value is not None), default=0.0)


def _largest_gaps(rows: pl.DataFrame, methods: Sequence[str]) -> dict[str, float]:
    """The largest distance from 0 of each method's gaps and their intervals, of the first seed."""
    reached = (pl.col("predicted") - pl.col("age")).abs() + Z95 * pl.col("sd").fill_null(0)
    return {name: first_seed(rows.filter(pl.col("method") == name)).select(reached.max()).item() for name in methods}


def _evenly(count: int) -> int:
    """Columns of a legend of that many entries, whose lines are of nearly one length."""
    return math.ceil(count / math.ceil(count / 5))


def _grid(count: int, wide: float, high: float, across: int = ACROSS) -> tuple[Figure, list[Axes], int]:
    """A figure of that many plots of one size, its axes, and how many stand beside one another."""
    columns = min(across, count)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(wide * columns + 0.3, high * lines + 0.4), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, list(axes[:count]), columns


def _outer_labels(axes: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Names of the axes where nothing stands below, or left."""
    for number, axis in enumerate(axes):
        if number % columns == 0:
            axis.set_ylabel(y)
        if number + columns >= len(axes):
            axis.set_xlabel(x)
            axis.tick_params(labelbottom=True)


# ------------------------------------------------------------------------------------------- predicted, gaps


@styled
def predicted_against_true(rows: pl.DataFrame, tables: AgeTables, methods: Sequence[str]) -> Figure:
    """A plot for each method, a point for each scan, coloured by sex; `rows` as `ages.Prediction`."""
    figure, axes, columns = _grid(len(methods), 3.1, 3.1)
    low, high = (float(f([rows["age"], rows["predicted"]])) for f in (_least, _most))
    margin = 0.04 * (high - low) + 0.1
    limits = (low - margin, high + margin)
    sexes = [sex for sex in SEX_LOOKS if sex in set(rows["sex"].unique())]
    for axis, name in zip(axes, methods, strict=True):
        own = first_seed(rows.filter(pl.col("method") == name))
        axis.plot(limits, limits, color="#777777", lw=0.9, ls=(0, (4, 3)), zorder=1)
        for sex in sexes:
            part = own.filter(pl.col("sex") == sex)
            colour, marker = SEX_LOOKS[sex]
            axis.scatter(
                part["age"], part["predicted"], s=13, color=colour, marker=marker, alpha=0.7, linewidths=0, zorder=2,
                rasterized=len(own) > MOST_POINTS,
            )  # fmt: skip
        axis.set(xlim=limits, ylim=limits, aspect="equal", title=shortened(name, 30))
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(5, integer=True))
        axis.annotate(
            "\n".join(_summary(tables, name)), (1, 0), (-4, 5), xycoords="axes fraction", textcoords="offset points",
            ha="right", va="bottom", fontsize=7.5, color="#333333",
        )  # fmt: skip
    _outer_labels(axes, columns, f"true age, {tables.unit}", f"predicted age, {tables.unit}")
    if sexes != [""]:
        handles = [
            Line2D([], [], ls="", color=SEX_LOOKS[sex][0], marker=SEX_LOOKS[sex][1], ms=4, label=SEX_NAMES[sex])
            for sex in sexes
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)
    return figure


def _least(columns: Sequence[pl.Series]) -> float:
    return min(float(np.min(column.to_numpy())) for column in columns)


def _most(columns: Sequence[pl.Series]) -> float:
    return max(float(np.max(column.to_numpy())) for column in columns)


def _summary(tables: AgeTables, method: str) -> Iterator[str]:
    for metric in ("mae", "r2"):
        entry = tables.entry(metric, method)
        if entry is not None and entry.value is not None:
            yield f"{SHOWN[metric].name} {entry.text}"


@styled
def gaps(rows: pl.DataFrame, tables: AgeTables, methods: Sequence[str]) -> Figure:
    """A plot for each method, its scans sorted by predicted less true age, with its own intervals where it has any."""
    figure, axes, columns = _grid(len(methods), 4.7, 2.5, across=2)
    reached = _largest_gaps(rows, methods)
    far = far_off(reached)
    common = max([reached[name] for name in methods if name not in far], default=0.0)
    for axis, name in zip(axes, methods, strict=True):
        own = first_seed(rows.filter(pl.col("method") == name)).with_columns(gap=pl.col("predicted") - pl.col("age"))
        own = own.sort("gap", "scan")
        gap, sd = own["gap"].to_numpy(), own["sd"].fill_null(0).to_numpy()
        places = np.arange(len(gap))
        out = (sd > 0) & (np.abs(gap) > Z95 * sd)
        axis.axhline(0, color="#777777", lw=0.9, ls=(0, (4, 3)), zorder=1)
        for inside, colour in ((~out, WITHIN), (out, OUT)):
            low, high, pixels = (gap - Z95 * sd)[inside], (gap + Z95 * sd)[inside], len(gap) > MOST_POINTS
            axis.vlines(places[inside], low, high, color=colour, lw=0.7, alpha=0.4, rasterized=pixels)
            look: dict[str, Any] = {"ls": "", "marker": ".", "ms": 3.5, "mew": 0, "rasterized": pixels}
            axis.plot(places[inside], gap[inside], color=colour, **look)
        ends = ((0, (8, -1), "left"), (len(gap) - 1, (-8, 1), "right"), (int(np.abs(gap).argmin()), (0, -22), "center"))
        for place, shift, side in {end[0]: end for end in ends}.values():
            axis.annotate(
                shortened(own["scan"][place], 24), (place, gap[place]), shift, textcoords="offset points", ha=side,
                va="center", fontsize=7, color="#333333",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "#777777"} if side == "center" else None,
            )  # fmt: skip
        top = 1.08 * (reached[name] if name in far else common) + 0.01
        axis.set(title=shortened(name, 34), xticks=[], ylim=(-top, top))
        axis.margins(x=0.02)
    _outer_labels(axes, columns, "scans, by gap", f"gap, {tables.unit}")
    return figure


# ------------------------------------------------------------------------------------------- by age, by size


@styled
def error_by_age(tables: AgeTables, methods: Sequence[str], known: Mapping[str, dict[str, Any]]) -> Figure:
    """Mean absolute and mean signed error in each interval of age, methods beside one another as they look."""
    wide = max(4.2, 0.18 * len(methods) * len(tables.bins) + 1)
    figure = Figure(figsize=(2 * min(wide, 6.5), 3.1 + 0.2 * math.ceil(len(methods) / 5)), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, (metric, label) in zip(
        axes, (("mae", f"MAE, {tables.unit}"), ("bias", f"bias, {tables.unit}")), strict=True
    ):
        for number, name in enumerate(methods):
            found = [tables.entry(metric, name, kind="age", group=each.name) for each in tables.bins]
            shift = 0.7 * ((number + 0.5) / len(methods) - 0.5)
            _points(axis, [(place + shift, entry) for place, entry in enumerate(found)], known[name])
        for edge in range(len(tables.bins) - 1):
            axis.axvline(edge + 0.5, color="#e6e6e6", lw=0.8, zorder=0)
        axis.set_xticks(
            range(len(tables.bins)),
            [f"{b.name}\nn = {tables.count('age', b.name)[0]}" for b in tables.bins],
            fontsize=7.5,
        )
        axis.set(xlabel=f"true age, {tables.unit}", ylabel=label, xlim=(-0.5, len(tables.bins) - 0.5))
        axis.tick_params(axis="x", length=0)
    axes[0].set_ylim(bottom=0)
    axes[1].axhline(0, color="#777777", lw=0.9, ls=(0, (4, 3)), zorder=0)
    handles = [Line2D([], [], **{**known[name], "ls": ""}, ms=4.5, label=shortened(name, 26)) for name in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=_evenly(len(methods)), fontsize=8)
    return figure


def _points(
    axis: Axes, points: Sequence[tuple[float, AgeEntry | None]], look: dict[str, Any], line: bool = False
) -> None:
    """A point with its interval for each entry that has a value, joined where `line` says so."""
    known = [(place, entry, entry.value) for place, entry in points if entry is not None and entry.value is not None]
    if line and known:
        x, y = zip(*((place, value * SHOWN[entry.metric].scale) for place, entry, value in known), strict=True)
        axis.plot(x, y, color=look["color"], ls=look["ls"], lw=1.1)
    for place, entry, value in known:
        scale = SHOWN[entry.metric].scale
        bars = None
        if entry.low is not None and entry.high is not None:
            bars = reach(value * scale, entry.low * scale, entry.high * scale)
        face = look["color"] if entry.complete else "white"
        axis.errorbar(
            place, value * scale, bars, fmt=look["marker"], ms=4, color=look["color"], mfc=face, lw=0.9, capsize=0
        )


@styled
def training_size(board: Leaderboard, methods: Sequence[str], look: Mapping[str, dict[str, Any]]) -> Figure:
    """The headline metric, R² and DSC against the number of training scans, as far as they are known."""
    tables = board.ages
    assert tables is not None
    known = tables.columns(board.metrics)
    metrics = [m for m in dict.fromkeys((board.info.headline, "r2", "dsc")) if m in known]
    sources = tables.rising
    figure = Figure(figsize=(max(4.4, 3.6 * len(metrics)), 3 + 0.2 * math.ceil(len(methods) / 5)), layout="constrained")
    axes = figure.subplots(1, max(1, len(metrics)), squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=False):
        for number, name in enumerate(methods):
            shift = 0.3 * ((number + 0.5) / len(methods) - 0.5)
            found = [tables.entry(metric, name, source) for source in sources]
            _points(axis, [(place + shift, entry) for place, entry in enumerate(found)], look[name], line=True)
        info = SHOWN[metric].in_unit(tables.unit)
        axis.set_xticks(range(len(sources)), [source.removesuffix(" scans") for source in sources])
        axis.set(xlabel="training scans", ylabel=f"{info.heading}  ({info.arrow} better)")
        axis.grid(axis="y", color="#ececec", lw=0.6, zorder=0)
    handles = [Line2D([], [], **look[name], ms=4, lw=1.2, label=shortened(name, 26)) for name in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=_evenly(len(methods)), fontsize=8)
    return figure

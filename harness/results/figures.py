"""Figures of the report, as matplotlib figures without pyplot, and as PNG or SVG bytes.

Colours are the Okabe–Ito set and cividis: told apart with any colour vision, and in grey print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.metrics.catalogue import METRICS
from harness.results.aggregate import Matrix
from harness.results.significance import RankTest

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#000000")
STYLE = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    # Names come from users: a "$" in one is no formula.
    "text.parse_math": False,
    # The same figure gives the same bytes.
    "svg.hashsalt": "harness",
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the one style, whatever the user's matplotlibrc says."""

    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context({**mpl.rcParamsDefault, **STYLE, "backend": mpl.rcParams["backend"]}):
            figure = draw(*args, **kwargs)
            if figure.get_layout_engine() is not None:
                # Lay out once, not again for each format the figure is saved in.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
            return figure

    wrapped.__doc__ = draw.__doc__
    return wrapped


def svg(figure: Figure) -> bytes:
    """The figure as SVG, text as outlines."""
    return _saved(figure, "svg", {"Date": None})


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG."""
    return _saved(figure, "png", {"Software": None}, dpi)


def _saved(figure: Figure, kind: str, metadata: dict[str, None], dpi: int = 100) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- matrices


@styled
def matrices(matrices: Sequence[Matrix]) -> Figure:
    """Source × target heat maps of one metric, one per method, on one colour scale.

    Brighter is better. A cell without a value is hatched and says why; a cell that was not planned is blank.
    """
    info = METRICS[matrices[0].metric]
    high, wide = len(matrices[0].sources), len(matrices[0].targets)
    # Wider than this, the report would shrink the numbers beyond reading.
    columns = min(len(matrices), max(1, int(12 / (0.72 * wide + 1.1))), 3)
    lines = math.ceil(len(matrices) / columns)
    figure = Figure(
        figsize=(columns * (0.72 * wide + 1.1) + 0.9, lines * (0.42 * high + 0.95) + 0.3), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    finite = np.concatenate([m.values[np.isfinite(m.values)] for m in matrices]) * info.scale
    low, top = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    colours = "cividis_r" if info.lower_is_better else "cividis"
    scale = ScalarMappable(Normalize(low, top if top > low else low + 1), colours)
    for axis, shown in zip(axes, matrices, strict=False):
        _heat_map(axis, shown, scale)
    for axis in axes[len(matrices) :]:
        axis.set_visible(False)
    if finite.size:
        bar = figure.colorbar(scale, ax=list(axes), shrink=0.8, pad=0.02)
        bar.set_label(f"{info.heading}  ({info.arrow} better)")
        bar.outline.set_visible(False)
    return figure


def _heat_map(axis: Axes, shown: Matrix, scale: ScalarMappable) -> None:
    info = METRICS[shown.metric]
    axis.set(xlim=(-0.5, len(shown.targets) - 0.5), ylim=(len(shown.sources) - 0.5, -0.5))

    def cell(i: int, j: int, **look: Any) -> None:
        axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **look))

    for i in range(len(shown.sources)):
        for j in range(len(shown.targets)):
            value, state = shown.values[i, j] * info.scale, shown.states[i][j]
            if np.isfinite(value):
                colour = scale.to_rgba(value)
                cell(i, j, facecolor=colour, edgecolor="white")
                light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 0.5
                text = info.text(value / info.scale) + ("†" if state == "partial" else "")
                axis.text(j, i, text, ha="center", va="center", fontsize=8, color="black" if light else "white")
            elif state in ("failed", "blocked", "absent", "partial"):
                cell(i, j, facecolor="#fbe9e7", edgecolor="#b3261e", hatch="////")
                label = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                axis.text(j, i, state, ha="center", va="center", fontsize=7, color="#b3261e", bbox=label)
            else:
                cell(i, j, facecolor="#f4f4f4", edgecolor="white")
                axis.text(j, i, "–" if state else "", ha="center", va="center", fontsize=8, color="#777777")
    axis.set_xticks(range(len(shown.targets)), [shortened(t, 10) for t in shown.targets], fontsize=8)
    axis.set_yticks(range(len(shown.sources)), [shortened(s, 10) for s in shown.sources], fontsize=8)
    axis.set(title=shortened(shown.method, 30), xlabel="target", ylabel="source")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


# ------------------------------------------------------------------------------------------- ranks


@styled
def critical_difference(ranks: RankTest) -> Figure:
    """Mean ranks on a line, best left; a bar joins methods that differ by less than the critical difference."""
    ordered = sorted(ranks.mean_ranks.items(), key=lambda item: item[1])
    count = len(ordered)
    half = math.ceil(count / 2)
    groups = ranks.groups
    figure = Figure(figsize=(8, 1.1 + 0.26 * half + 0.12 * len(groups)))
    axis = figure.subplots()
    first_label = -0.55 - 0.35 * len(groups)
    beside = 0.42 * (count - 1) + 0.2
    axis.set(xlim=(1 - beside, count + beside), ylim=(first_label - 0.75 * half, 1.9))
    axis.axis("off")
    axis.plot([1, count], [0, 0], color="#222222", lw=1.2)
    for tick in range(1, count + 1):
        axis.plot([tick, tick], [0, 0.18], color="#222222", lw=1)
        axis.text(tick, 0.28, str(tick), ha="center", va="bottom", fontsize=8)
    for place, (name, rank) in enumerate(ordered):
        left = place < half
        level = first_label - 0.75 * (place if left else count - 1 - place)
        end = 1 - 0.08 * (count - 1) if left else count + 0.08 * (count - 1)
        axis.plot([rank, rank, end], [0, level, level], color="#888888", lw=0.8)
        text = f"{shortened(name, 26)}  {rank:.2f}" if left else f"{rank:.2f}  {shortened(name, 26)}"
        gap = 0.02 * (count - 1)
        axis.text(end - gap if left else end + gap, level, text, ha="right" if left else "left", va="center")
    for number, group in enumerate(groups):
        span = [ranks.mean_ranks[name] for name in group]
        level = -0.35 - 0.35 * number
        axis.plot([min(span) - 0.03, max(span) + 0.03], [level, level], color="#D55E00", lw=4, solid_capstyle="butt")
    if ranks.critical_difference is not None:
        axis.plot([1, 1 + ranks.critical_difference], [1.25, 1.25], color="#222222", lw=1.2, marker="|")
        axis.text(1, 1.42, f"critical difference {ranks.critical_difference:.2f}", ha="left", va="bottom", fontsize=8)
    return figure


# ------------------------------------------------------------------------------------------- curves, histograms


@styled
def histograms(table: pl.DataFrame, source: str, methods: Sequence[str]) -> Figure:
    """Brain intensities of each target before and after each method, beside those of one source site."""
    of_source = table.filter((pl.col("source") == source) & (pl.col("site") != source))
    sites = of_source["site"].unique(maintain_order=True).to_list()
    shown = [m for m in methods if m in set(of_source.filter(pl.col("kind") == "after")["method"])]
    figure = Figure(figsize=(2.5 * max(len(sites), 2) + 1, 1.05 * max(len(shown), 1) + 0.9), layout="constrained")
    axes = figure.subplots(max(len(shown), 1), len(sites), squeeze=False, sharex=True, sharey="col")
    for i, method in enumerate(shown):
        for j, site in enumerate(sites):
            axis = axes[i, j]
            _density(axis, of_source, site, method)
            if i == 0:
                axis.set_title(f"target {shortened(site, 18)}")
            if j == 0:
                axis.set_ylabel(shortened(method, 20), rotation=0, ha="right", va="center")
            if i == len(shown) - 1:
                axis.set_xlabel("grey level")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    labels = [f"source {source}" if label == "source" else label for label in labels]
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _density(axis: Axes, table: pl.DataFrame, site: str, method: str) -> None:
    looks: dict[str, dict[str, Any]] = {
        "before": {"color": "#9a9a9a", "lw": 1},
        "source": {"color": "#000000", "lw": 1, "ls": (0, (4, 2))},
        "after": {"color": COLOURS[1], "lw": 1.3},
    }
    tops = []
    for kind, look in looks.items():
        rows = table.filter((pl.col("site") == site) & (pl.col("kind") == kind))
        own = rows.filter(pl.col("method") == method)
        rows = (own if len(own) else rows.filter(pl.col("method") == "")).sort("bin")
        axis.plot(rows["bin"], rows["density"], label=kind, **look)
        tops.append(np.quantile(rows["density"], 0.995) if len(rows) else 0)
    # Empty bins and spikes of quantised images would flatten everything else.
    axis.set(xlim=(0, 255), ylim=(0, max(max(tops) * 1.1, 1e-6)), yticks=[])
    axis.spines["left"].set_visible(False)


@styled
def curves(table: pl.DataFrame) -> Figure:
    """Training curves: one plot per method and curve, a line per source, target and seed."""
    keys = table.select("method", "stage", "name").unique(maintain_order=True).rows()
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 1.9 * lines + 0.3), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (method, stage, name) in zip(axes, keys, strict=False):
        rows = table.filter((pl.col("method") == method) & (pl.col("stage") == stage) & (pl.col("name") == name))
        for number, (_, line) in enumerate(rows.group_by(["source", "target", "seed"], maintain_order=True)):
            line = line.sort("step")
            source, target = line["source"][0], line["target"][0]
            seed = f" #{line['seed'][0]}" if rows["seed"].n_unique() > 1 else ""
            label = (f"{source}→{target}" if target else source or "all sites") + seed
            point = "." if len(line) == 1 else ""
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(line["step"], line["value"], lw=1, label=label, color=colour, marker=point)
        axis.set(title=f"{shortened(method, 32)}\n{both_ends(name, 32)}", xlabel="step")
        if len(axis.lines) <= 8:
            axis.legend(fontsize=7)
    for axis in axes[len(keys) :]:
        axis.set_visible(False)
    return figure


def shortened(text: str, most: int) -> str:
    """The text, cut where it is longer than `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def both_ends(text: str, most: int) -> str:
    """The text, cut in its middle where it is longer than `most` characters: names may differ at the end alone."""
    if len(text) <= most:
        return text
    tail = most // 2
    return f"{text[: most - 1 - tail].rstrip()}…{text[-tail:].lstrip()}"

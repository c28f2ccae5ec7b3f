"""Figures of the brain-age track about regions: how important each is, where it lies, and how it changes with age."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from harness.results import ages
from harness.results.age_entries import first_seed
from harness.results.ages import AtlasSlice
from harness.results.figures import COLOURS, both_ends, shortened, styled
from harness.results.leaderboard import Leaderboard
from harness.results.shown import Shown

MOST_REGIONS = 15
MOST_METHODS = 8
"""Methods whose importance is shown, and whose features are: best first."""
ACROSS = 3
COLOUR_MAP = "plasma"
MARGIN = 3
"""Pixels around the head that are kept."""


def all_regions(folder: Path, board: Leaderboard) -> Iterator[Shown]:
    """Bars and maps of each method that has importance, and its features by age."""
    tables = board.ages
    assert tables is not None
    names = [row.method for row in board.rows]
    importance = ages.read_importance(folder).filter(pl.col("source") == tables.largest)
    correlations, atlas = ages.read_correlations(folder), ages.read_atlas(folder)
    having = [name for name in names if name in set(importance["method"].unique())]
    for name in having[:MOST_METHODS]:
        own = _one_cell(importance.filter(pl.col("method") == name))
        r = {(row["family"], row["region"]): row["r"] for row in _of(correlations, name).iter_rows(named=True)}
        known = (
            " |r| is its correlation with age in the training scans." if any(v is not None for v in r.values()) else ""
        )
        caption = (
            f"{name}: the most important regions of each family. A bar is the mean rise of the squared error, with its "
            f"SD over permutations; beside it stands its share of the largest.{known}"
        )
        yield Shown(f"importance-{name}", "importance", caption, importance_bars(own, r, tables.unit))
        if atlas and not own.filter(pl.col("label").is_not_null()).is_empty():
            caption = (
                f"{name}: regions of a scan coloured by their share of the largest importance of the family; what has "
                f"none is not coloured.{_whose(atlas)}"
            )
            yield Shown(f"importance-map-{name}", "importance", caption, importance_map(own, atlas), raster=True)
    values = ages.read_feature_values(folder)
    for name in [name for name in ("", *names) if name in set(values["method"].unique())][: MOST_METHODS + 1]:
        of = f"{name}: features" if name else "Features"
        caption = (
            f"{of} of high importance against true age, a point for each scan. |r| is the correlation in the training "
            "scans, by which features are chosen."
        )
        shown = features(values.filter(pl.col("method") == name), _of(correlations, name), tables.unit)
        yield Shown(f"features-{name}" if name else "features", "features", caption, shown)


def _whose(atlas: Sequence[AtlasSlice]) -> str:
    """The captions of the slices as a sentence, each once."""
    found = "; ".join(dict.fromkeys(each.caption.rstrip(".") for each in atlas if each.caption))
    return f" {found[0].upper()}{found[1:]}." if found else ""


def _one_cell(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of the first seed and site."""
    own = first_seed(rows)
    return own.filter(pl.col("target") == own["target"].first())


def _of(rows: pl.DataFrame, method: str) -> pl.DataFrame:
    """The rows of a method, or those that all share where it has none of its own."""
    own = rows.filter(pl.col("method") == method)
    return rows.filter(pl.col("method") == "") if own.is_empty() else own


# ------------------------------------------------------------------------------------------- bars


@styled
def importance_bars(rows: pl.DataFrame, r: Mapping[tuple[str, str], float | None], unit: str) -> Figure:
    """A plot for each family, its regions from the most important down; `rows` as `ages.Importance`, of one cell.

    r: |r| with age of (family, region).
    """
    families = rows["family"].unique(maintain_order=True).to_list()
    parts = [
        rows.filter(pl.col("family") == family).sort("mean", "region", descending=[True, False]).head(MOST_REGIONS)
        for family in families
    ]
    columns = min(2, len(families))
    lines = math.ceil(len(families) / columns)
    most = max(len(part) for part in parts)
    figure = Figure(figsize=(5.6 * columns, (0.21 * most + 0.85) * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, family, part in zip(axes, families, parts, strict=False):
        _bars(axis, family, part, r)
        axis.set_ylim(most - 0.4, -0.6)
        axis.set_xlabel(f"rise of the squared error, {unit}²")
    for axis in axes[len(families) :]:
        axis.set_visible(False)
    return figure


def _bars(axis: Axes, family: str, part: pl.DataFrame, r: Mapping[tuple[str, str], float | None]) -> None:
    places = range(len(part))
    axis.barh(places, part["mean"], height=0.66, color=COLOURS[0])
    axis.errorbar(part["mean"], list(places), xerr=part["sd"], fmt="none", ecolor="#222222", lw=0.8)
    for place, row in enumerate(part.iter_rows(named=True)):
        known = r.get((family, row["region"]))
        share = f"{round(row['share'], 2) + 0.0:.2f}".replace("-", "−") if math.isfinite(row["share"]) else ""
        text = share + ("" if known is None else f"   |r| {known:.2f}")
        axis.annotate(
            text, (max(row["mean"] + row["sd"], 0), place), (5, 0), textcoords="offset points", va="center", fontsize=7,
            color="#333333",
        )  # fmt: skip
    axis.set_yticks(places, [both_ends(name, 46) for name in part["region"]], fontsize=7.5)
    axis.tick_params(axis="y", length=0)
    # Room for the numbers beside the bars.
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, 0), high + 0.28 * (high - low))
    axis.set_title(shortened(family, 40))


# ------------------------------------------------------------------------------------------- map


@styled
def importance_map(rows: pl.DataFrame, atlas: Sequence[AtlasSlice]) -> Figure:
    """A line for each family, a picture for each slice: regions of a label map coloured by their share.

    `rows` as `ages.Importance`, of one cell. Shares below 0 count as 0.
    """
    families = rows["family"].unique(maintain_order=True).to_list()
    cut = [_cut(each) for each in atlas]
    wide = [2.3 * (c.image.shape[1] * c.spacing[1]) / (c.image.shape[0] * c.spacing[0]) for c in cut]
    figure = Figure(figsize=(sum(wide) + 1.3, 2.45 * len(families) + 0.25), layout="constrained")
    axes = figure.subplots(len(families), len(cut), squeeze=False, gridspec_kw={"width_ratios": wide})
    scale = ScalarMappable(Normalize(0, 1), COLOUR_MAP)
    for line, family in zip(axes, families, strict=True):
        own = rows.filter((pl.col("family") == family) & pl.col("label").is_not_null())
        share = dict(zip(own["label"].to_list(), own["share"].to_list(), strict=True))
        for axis, each in zip(line, cut, strict=True):
            look = {"interpolation": "nearest", "aspect": each.spacing[0] / each.spacing[1]}
            axis.imshow(each.image, cmap="gray", vmin=0, vmax=1, **look)
            axis.imshow(coloured(each.labels, share), **look)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(shortened(family, 26))
    for axis, each in zip(axes[0], cut, strict=True):
        axis.set_title(shortened(each.plane, 20), loc="center", fontweight="normal")
    bar = figure.colorbar(scale, ax=axes[:, -1].tolist(), fraction=0.06, aspect=24)
    bar.set_label("share of the largest importance")
    bar.outline.set_visible(False)
    return figure


def coloured(labels: np.ndarray, share: Mapping[int, float]) -> np.ndarray:
    """RGBA float [H, W, 4] of a label map: clearer with the share, and transparent where there is none."""
    table = np.zeros((256, 4))
    for label, value in share.items():
        clipped = float(np.clip(value, 0, 1))
        if 0 < label < len(table) and clipped > 0:
            table[label] = (*mpl.colormaps[COLOUR_MAP](clipped)[:3], 0.25 + 0.6 * clipped)
    return table[labels]


def _cut(each: AtlasSlice) -> AtlasSlice:
    """The slice without the empty space around the head."""
    filled = (each.image > 0) | (each.labels > 0)
    spans = []
    for axis, length in ((1, filled.shape[0]), (0, filled.shape[1])):
        places = np.flatnonzero(filled.any(axis=axis))
        start, stop = (int(places[0]), int(places[-1]) + 1) if places.size else (0, length)
        spans.append(slice(max(0, start - MARGIN), min(length, stop + MARGIN)))
    box = (spans[0], spans[1])
    return AtlasSlice(each.plane, each.image[box], each.labels[box], each.spacing, each.caption)


# ------------------------------------------------------------------------------------------- features


@styled
def features(values: pl.DataFrame, correlations: pl.DataFrame, unit: str) -> Figure:
    """A plot for each feature: its values against age; `values` as `ages.FeatureValue`."""
    shown = values.select("family", "region").unique(maintain_order=True).rows()
    r = {(row["family"], row["region"]): row["r"] for row in correlations.iter_rows(named=True)}
    columns = min(ACROSS, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(3.5 * columns + 0.2, 2.4 * lines + 0.2), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for number, (axis, (family, region)) in enumerate(zip(axes, shown, strict=False)):
        own = values.filter((pl.col("family") == family) & (pl.col("region") == region)).drop_nulls("value")
        axis.scatter(
            own["age"], own["value"], s=10, color=COLOURS[0], alpha=0.6, linewidths=0, rasterized=len(own) > 2000
        )
        axis.set(title=both_ends(region, 40), ylabel=shortened(family, 30))
        known = r.get((family, region))
        if known is not None:
            _beside_points(axis, own, f"|r| {known:.2f}")
        if number + columns >= len(shown):
            axis.set_xlabel(f"true age, {unit}")
            axis.tick_params(labelbottom=True)
    for axis in axes[len(shown) :]:
        axis.set_visible(False)
    return figure


def _beside_points(axis: Axes, own: pl.DataFrame, text: str) -> None:
    """Text in the upper corner that a trend leaves free."""
    slope = own.select(pl.cov("age", "value")).item()
    x, shift, side = (0, 5, "left") if slope is not None and slope > 0 else (1, -3, "right")
    axis.annotate(
        text, (x, 1), (shift, -3), xycoords="axes fraction", textcoords="offset points", ha=side, va="top", fontsize=8
    )

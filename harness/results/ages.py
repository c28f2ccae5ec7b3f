"""What a report of brain ages shows beside the records: predictions, what they rest on, and where that lies.

    predictions.parquet      one row per method, training size, site, seed and scan
    importance.parquet       permutation importance of every feature
    correlations.parquet     |r| of every feature with age, and whether it was chosen by it
    feature_values.parquet   a few features of the scored scans, by age
    atlas.json, .npz         slices of one scan and its label map, to colour regions in
    warnings.json            what has to be known about the data

Each is optional: a reader finds nothing where a file was never written.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from harness.results.arrayfile import read_entries, write_entries
from harness.results.records import read_optional, write_parquet
from harness.results.remarks import read_lines, write_lines

PREDICTIONS, IMPORTANCE = "predictions.parquet", "importance.parquet"
CORRELATIONS, VALUES = "correlations.parquet", "feature_values.parquet"
WARNINGS = "warnings.json"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The age that one method predicts for one scan.

    source: how many scans it was trained on, "all" or such as "20 scans". target: the site. sd: the method's own
    standard deviation, None where it has none. birth_age: None where unknown. All ages are in `unit`.
    """

    method: str
    source: str
    target: str
    seed: int
    scan: str
    subject: str
    sex: Literal["F", "M", ""]
    birth_age: float | None
    age: float
    predicted: float
    sd: float | None
    unit: Literal["weeks", "years"]


@dataclass(frozen=True, slots=True)
class Importance:
    """By how much the squared error of a method rises when one feature is permuted, in the unit of ages squared.

    mean, sd: over permutations. share: mean over the largest mean of the family. label: the region's value in label
    maps, None where it has none.
    """

    method: str
    source: str
    target: str
    seed: int
    family: str
    region: str
    label: int | None
    mean: float
    sd: float
    share: float


@dataclass(frozen=True, slots=True)
class Correlation:
    """|r|: absolute Pearson correlation of a feature with the ages of the training scans. None where undefined.

    chosen: whether the method reads the feature. method: "" where methods share it.
    """

    family: str
    region: str
    label: int | None
    r: float | None
    chosen: bool = True
    method: str = ""


@dataclass(frozen=True, slots=True)
class FeatureValue:
    """One feature of one scan; None where it is undefined. method: as of `Correlation`."""

    scan: str
    subject: str
    age: float
    family: str
    region: str
    value: float | None
    method: str = ""


@dataclass(frozen=True, eq=False)
class AtlasSlice:
    """A slice of one scan as it is to be seen, its first line on top.

    plane: such as "axial". image: float32 [H, W] in 0..1. labels: uint8 [H, W], 0 = background. spacing: mm between
    lines, and between columns. caption: whose scan it is, one for all slices or one for each.
    """

    plane: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float]
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """What tables of ages are made of, beside the records. predictions: columns as `Prediction`."""

    predictions: pl.DataFrame
    warnings: tuple[str, ...] = ()


def _schema(row: type) -> pl.Schema:
    known = {
        "int": pl.Int64(), "int | None": pl.Int64(), "float": pl.Float64(), "float | None": pl.Float64(),
        "bool": pl.Boolean(),
    }  # fmt: skip
    return pl.Schema({field.name: known.get(str(field.type), pl.String()) for field in fields(row)})


NONE = Found(pl.DataFrame(schema=_schema(Prediction)))
"""A folder without any of it."""


def write_predictions(folder: Path, rows: Iterable[Prediction]) -> None:
    """Replace the predictions. Raises ValueError for ages that are not finite, or a scan predicted twice."""
    found = list(rows)
    known = set()
    for row in found:
        key = (row.method, row.source, row.target, row.seed, row.scan)
        if key in known:
            raise ValueError(f"the age of {row.scan} is predicted twice: {key}")
        if not (math.isfinite(row.age) and math.isfinite(row.predicted) and math.isfinite(row.sd or 0)):
            raise ValueError(f"the age of {row.scan}, its prediction or the SD of it is not finite: {row}")
        known.add(key)
    _write(folder / PREDICTIONS, Prediction, found)


def write_importance(folder: Path, rows: Iterable[Importance]) -> None:
    """Replace the importance of features."""
    _write(folder / IMPORTANCE, Importance, rows)


def write_correlations(folder: Path, rows: Iterable[Correlation]) -> None:
    """Replace the correlations of features with age."""
    _write(folder / CORRELATIONS, Correlation, rows)


def write_feature_values(folder: Path, rows: Iterable[FeatureValue]) -> None:
    """Replace the features that are shown by age."""
    _write(folder / VALUES, FeatureValue, rows)


def write_atlas(folder: Path, slices: Iterable[AtlasSlice]) -> None:
    """Replace the slices in which regions are coloured."""
    write_entries(folder, "atlas", list(slices), ("image", "labels"))


def write_warnings(folder: Path, lines: Sequence[str]) -> None:
    """Replace what has to be known about the data, a line each."""
    write_lines(folder / WARNINGS, lines)


def read(folder: Path) -> Found:
    """Predictions and warnings of a results folder. Raises UserError where the files are damaged."""
    return Found(read_optional(folder / PREDICTIONS, _schema(Prediction)), read_lines(folder / WARNINGS))


def read_importance(folder: Path) -> pl.DataFrame:
    """Columns as `Importance`. Raises UserError, as all readers here, where the file is damaged."""
    return read_optional(folder / IMPORTANCE, _schema(Importance))


def read_correlations(folder: Path) -> pl.DataFrame:
    """Columns as `Correlation`."""
    return read_optional(folder / CORRELATIONS, _schema(Correlation)).with_columns(pl.col("r").fill_nan(None))


def read_feature_values(folder: Path) -> pl.DataFrame:
    """Columns as `FeatureValue`."""
    return read_optional(folder / VALUES, _schema(FeatureValue)).with_columns(pl.col("value").fill_nan(None))


def read_atlas(folder: Path) -> tuple[AtlasSlice, ...]:
    """The slices in which regions are coloured."""
    return tuple(AtlasSlice(**{**row, "spacing": tuple(row["spacing"])}) for row in read_entries(folder, "atlas"))


def _write(path: Path, row: type, rows: Iterable[Any]) -> None:
    write_parquet(path, pl.DataFrame([astuple(each) for each in rows], schema=_schema(row), orient="row"))

"""What a report of anomaly maps shows beside the records: maps of a few slices, how methods came to them, curves.

    detections.json, .npz      example slices: input, lesion, and of each method map and reconstruction
    pictures.json, .npz        what a method shows of its way to a map, in order
    precision_recall.parquet   method, target, seed, processing, recall, precision

Each is optional: a reader finds nothing where a file was never written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.results.arrayfile import read_entries, write_entries
from harness.results.records import read_parquet, write_parquet

PRECISION_RECALL = pl.Schema(
    {
        "method": pl.String(),
        "target": pl.String(),
        "seed": pl.Int64(),
        "processing": pl.String(),
        "recall": pl.Float64(),
        "precision": pl.Float64(),
    }
)


@dataclass(frozen=True, eq=False)
class Detection:
    """One slice and what one method says of it. Arrays are [H, W].

    input, reconstruction: uint8 grey levels, None where the method has no reconstruction. lesion: bool.
    map: float16, after the first processing listed. threshold: the one fixed on healthy slices.
    best: the threshold of the global max Dice of the method's setting, which the labels chose; nan where undefined.
    """

    method: str
    target: str
    subject: str
    number: int
    threshold: float
    best: float
    input: np.ndarray
    lesion: np.ndarray
    map: np.ndarray
    reconstruction: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Pictures:
    """A method's way to the map of one slice: captions, and uint8 [K, H, W] in the same order."""

    method: str
    target: str
    subject: str
    number: int
    captions: tuple[str, ...]
    images: np.ndarray


def write_detections(folder: Path, found: Iterable[Detection]) -> None:
    """Replace the example slices of a results folder."""
    write_entries(folder, "detections", list(found), ("input", "lesion", "map", "reconstruction"))


def read_detections(folder: Path) -> tuple[Detection, ...]:
    """The example slices of a results folder. Raises UserError where the files are damaged."""
    return tuple(Detection(**row) for row in read_entries(folder, "detections"))


def write_pictures(folder: Path, found: Iterable[Pictures]) -> None:
    """Replace the pictures of a results folder."""
    write_entries(folder, "pictures", list(found), ("images",))


def read_pictures(folder: Path) -> tuple[Pictures, ...]:
    """The pictures of a results folder. Raises UserError where the files are damaged."""
    return tuple(Pictures(**{**row, "captions": tuple(row["captions"])}) for row in read_entries(folder, "pictures"))


def write_precision_recall(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the precision-recall curves of a results folder; a row is one point."""
    write_parquet(folder / "precision_recall.parquet", pl.DataFrame(list(rows), schema=PRECISION_RECALL))


def read_precision_recall(folder: Path) -> pl.DataFrame:
    """The precision-recall curves of a results folder. Raises UserError where the file is damaged."""
    path = folder / "precision_recall.parquet"
    return (
        read_parquet(path).select(PRECISION_RECALL.names()) if path.is_file() else pl.DataFrame(schema=PRECISION_RECALL)
    )

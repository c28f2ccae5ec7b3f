"""What a report of anomaly maps shows beside the records: maps of a few slices, how methods came to them, curves.

    detections.json, .npz      example slices: input, lesion, and of each method map and reconstruction
    pictures.json, .npz        what a method shows of its way to a map, in order
    precision_recall.parquet   method, target, seed, processing, recall, precision

Each is optional: a reader finds nothing where a file was never written.
"""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError
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
    _write(folder, "detections", list(found), ("input", "lesion", "map", "reconstruction"))


def read_detections(folder: Path) -> tuple[Detection, ...]:
    """The example slices of a results folder. Raises UserError where the files are damaged."""
    return tuple(Detection(**row) for row in _read(folder, "detections"))


def write_pictures(folder: Path, found: Iterable[Pictures]) -> None:
    """Replace the pictures of a results folder."""
    _write(folder, "pictures", list(found), ("images",))


def read_pictures(folder: Path) -> tuple[Pictures, ...]:
    """The pictures of a results folder. Raises UserError where the files are damaged."""
    return tuple(Pictures(**{**row, "captions": tuple(row["captions"])}) for row in _read(folder, "pictures"))


def write_precision_recall(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the precision-recall curves of a results folder; a row is one point."""
    write_parquet(folder / "precision_recall.parquet", pl.DataFrame(list(rows), schema=PRECISION_RECALL))


def read_precision_recall(folder: Path) -> pl.DataFrame:
    """The precision-recall curves of a results folder. Raises UserError where the file is damaged."""
    path = folder / "precision_recall.parquet"
    return (
        read_parquet(path).select(PRECISION_RECALL.names()) if path.is_file() else pl.DataFrame(schema=PRECISION_RECALL)
    )


def _write(folder: Path, name: str, found: list[Any], arrays: tuple[str, ...]) -> None:
    """The entries' plain values as JSON, their arrays as one compressed file; equal arrays are kept once."""
    kept: dict[str, np.ndarray] = {}
    known: dict[bytes, str] = {}
    index = []
    for item in found:
        places = {}
        for array in arrays:
            value = getattr(item, array)
            if value is None:
                continue
            identity = value.tobytes() + f"{value.dtype}{value.shape}".encode()
            places[array] = known.setdefault(identity, str(len(known)))
            kept.setdefault(places[array], value)
        plain = {key: value for key, value in asdict(item).items() if key not in arrays}
        index.append({**plain, "arrays": places})
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}-{uuid.uuid4().hex[:8]}.npz"
    try:
        np.savez_compressed(temporary, allow_pickle=False, **kept)
        os.replace(temporary, folder / f"{name}.npz")
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(folder / f"{name}.json", json.dumps(index, indent=1))


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.json"
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text())
        with np.load(folder / f"{name}.npz", allow_pickle=False) as arrays:
            loaded = {key: arrays[key] for key in arrays.files}
        return [
            {**{k: v for k, v in row.items() if k != "arrays"}, **{k: loaded[at] for k, at in row["arrays"].items()}}
            for row in index
        ]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        what = f"is damaged ({error}); the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what)) from None

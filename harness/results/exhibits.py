"""What a report shows beside the records: training curves, intensity histograms, pictures.

    curves.parquet      method (or "task"), source, target ("" if none), seed, stage, name, step, value
    histograms.parquet  source, site, method, kind (source | before | after), bin 0..255, density
    panels.json, .npz   slices of one scan: input, harmonised, prediction, label

Each is optional: a reader finds an empty table where a file was never written.
"""

from __future__ import annotations

import json
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError
from harness.results.records import read_optional, write_parquet

CURVES = pl.Schema(
    {
        "method": pl.String(),
        "source": pl.String(),
        "target": pl.String(),
        "seed": pl.Int64(),
        "stage": pl.String(),
        "name": pl.String(),
        "step": pl.Int64(),
        "value": pl.Float64(),
    }
)
HISTOGRAMS = pl.Schema(
    {
        "source": pl.String(),
        "site": pl.String(),
        "method": pl.String(),
        "kind": pl.String(),
        "bin": pl.Int64(),
        "density": pl.Float64(),
    }
)
ARRAYS = ("input", "harmonised", "prediction", "label")


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice as one method saw it and left it. Arrays are uint8 [H, W]; None where there is none.

    input, harmonised: grey levels. prediction, label: label ids, 0 = background. `slice` counts within the scan.
    """

    method: str
    source: str
    target: str
    subject: str
    slice: int
    input: np.ndarray | None = None
    harmonised: np.ndarray | None = None
    prediction: np.ndarray | None = None
    label: np.ndarray | None = None


def write_curves(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the curves of a results folder; a row is one point, with the columns of `CURVES`."""
    write_parquet(folder / "curves.parquet", pl.DataFrame(list(rows), schema=CURVES))


def read_curves(folder: Path) -> pl.DataFrame:
    """The curves of a results folder, empty if there are none. Raises UserError where the file is damaged."""
    return read_optional(folder / "curves.parquet", CURVES)


def write_histograms(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the histograms of a results folder; a row is one bin, with the columns of `HISTOGRAMS`."""
    write_parquet(folder / "histograms.parquet", pl.DataFrame(list(rows), schema=HISTOGRAMS))


def read_histograms(folder: Path) -> pl.DataFrame:
    """The histograms of a results folder, empty if there are none. Raises UserError where the file is damaged."""
    return read_optional(folder / "histograms.parquet", HISTOGRAMS)


def write_panels(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the pictures of a results folder; a row has the fields of `Panel`."""
    panels = [Panel(**row) for row in rows]
    arrays: dict[str, np.ndarray] = {}
    index = []
    for number, panel in enumerate(panels):
        present = [name for name in ARRAYS if getattr(panel, name) is not None]
        arrays |= {f"{number}-{name}": np.asarray(getattr(panel, name), np.uint8) for name in present}
        index.append(
            {
                "method": panel.method,
                "source": panel.source,
                "target": panel.target,
                "subject": panel.subject,
                "slice": int(panel.slice),
                "arrays": present,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".panels-{uuid.uuid4().hex[:8]}.npz"
    try:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, folder / "panels.npz")
    finally:
        temporary.unlink(missing_ok=True)
    write_atomically(folder / "panels.json", json.dumps(index, indent=1))


def read_panels(folder: Path) -> tuple[Panel, ...]:
    """The pictures of a results folder, empty if there are none. Raises UserError where the files are damaged."""
    path = folder / "panels.json"
    if not path.is_file():
        return ()
    try:
        index = json.loads(path.read_text())
        with np.load(folder / "panels.npz", allow_pickle=False) as arrays:
            return tuple(_panel(row, number, arrays) for number, row in enumerate(index))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        what = f"is damaged ({error}); the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what)) from None


def _panel(row: Mapping[str, Any], number: int, arrays: Mapping[str, np.ndarray]) -> Panel:
    pixels = {name: arrays[f"{number}-{name}"] for name in row["arrays"]}
    return Panel(row["method"], row["source"], row["target"], row["subject"], row["slice"], **pixels)

"""Records and exhibits of a finished brain-age run, gathered from the store.

Everything is read through the plan. A cell whose stages failed gives a row per metric that says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from harness import registry
from harness.engine.executor import Failure
from harness.engine.plan import Cell, Stage, canonical
from harness.engine.store import Store
from harness.metrics.catalogue import METRICS
from harness.results.ages import AtlasSlice, Correlation, FeatureValue, Importance, Prediction
from harness.tracks import curves as logged
from harness.tracks.base import Benchmark, head_of
from harness.tracks.brain_age.protocol import SEGMENTATION, Protocol, segmenter_of

Row = dict[str, Any]
Failures = Mapping[str, Failure]

SHOWN = 6
"""Features of each method that are drawn against age: the most important ones, over all families."""


def records(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Row]:
    """The long table, row by row; what a cell could not deliver appears with a status, never as a gap."""
    spec, protocol = benchmark.spec, benchmark.extra["protocol"]
    for cell in benchmark.plan.cells:
        head = head_of(benchmark, cell)
        metrics = [m for m in spec.metrics if m not in SEGMENTATION or _segmented(benchmark, cell)]
        stage = cell.finals["scores"]
        if stage.key in failures:
            failure = failures[stage.key]
            for metric in metrics:
                fate = {"value": None, "status": failure.status, "note": failure.error}
                unit = METRICS[metric].in_unit(protocol.unit).unit
                yield {**head, "subject": "", "label": "", "metric": metric, "unit": unit, **fate}
        else:
            found = json.loads((store.read(stage.key) / "records.json").read_text())
            yield from ({**head, **row} for row in found if row["metric"] in metrics)


def _segmented(benchmark: Benchmark, cell: Cell) -> bool:
    """Whether the cell's row makes label maps of its own, of scans that have true ones."""
    row = next(row for row in benchmark.rows if row.name == cell.method)
    return benchmark.dataset.labelled(cell.target) and segmenter_of(benchmark.dataset, row, cell.target) is not None


def cell_means(table: pl.DataFrame) -> pl.DataFrame:
    """One value per cell of long records, as this track's leaderboard takes it: errors are means over scans."""
    from harness.results import age_entries

    return age_entries.cell_means(table)


def exhibit(benchmark: Benchmark, store: Store, failures: Failures, folder: Path) -> None:
    """Leave what the report shows beside the records."""
    from harness.results import ages, exhibits

    exhibits.write_curves(folder, curves(benchmark, store, failures))
    ages.write_predictions(folder, predictions(benchmark, store, failures))
    important = list(importance(benchmark, store, failures))
    ages.write_importance(folder, important)
    ages.write_correlations(folder, correlations(benchmark, store, failures))
    ages.write_feature_values(folder, values(benchmark, store, failures, important))
    ages.write_atlas(folder, atlas(benchmark, store, failures))
    ages.write_warnings(folder, benchmark.extra["warnings"])


def curves(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Row]:
    """Every curve that a stage logged: of a segmenter under its id, which rows may share, else of the row.

    Segmenters that differ in their settings are numbered.
    """
    own = {row.name: (row.target,) for row in benchmark.rows}
    names: dict[str, str] = {}

    def owner(cell: Cell, stage: Stage) -> str:
        if stage.code == own[cell.method]:
            return cell.method
        settings = canonical(stage.needs.get("state", stage).params["method"])
        if settings not in names:
            known = registry.load_class(stage.code[0]).id
            others = sum(name.partition(" (")[0] == known for name in names.values())
            names[settings] = f"{known} ({others + 1})" if others else known
        return names[settings]

    return logged.curves(benchmark.plan, store, failures, owner)


def predictions(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Prediction]:
    """The age of every scored scan, true and predicted."""
    protocol: Protocol = benchmark.extra["protocol"]
    for cell in benchmark.plan.cells:
        stage = cell.finals["scores"]
        if stage.key in failures:
            continue
        for row in json.loads((store.read(stage.key) / "ages.json").read_text()):
            yield Prediction(
                method=cell.method,
                source=cell.source,
                target=cell.target,
                seed=cell.seed,
                unit="years" if protocol.unit == "years" else "weeks",
                **row,
            )


def importance(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Importance]:
    """Permutation importance of every feature, of the first seed and the largest training size."""
    for cell, folder in _explained(benchmark, store, failures):
        for row in json.loads((folder / "importance.json").read_text()):
            yield Importance(cell.method, cell.source, cell.target, cell.seed, **row)


def correlations(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Correlation]:
    """|r| of every feature with age among the scans that were learnt from, and whether the method chose it."""
    seen: set[str] = set()
    for cell, folder in _explained(benchmark, store, failures):
        if cell.method in seen:
            continue
        seen.add(cell.method)
        described = json.loads((folder / "features.json").read_text())
        for column in described["columns"]:
            yield Correlation(
                column["family"], column["region"], column["label"], column["r"], column["chosen"], cell.method
            )


def values(
    benchmark: Benchmark, store: Store, failures: Failures, important: list[Importance]
) -> Iterator[FeatureValue]:
    """The most important features of each method, of the scans of the first test site."""
    seen: set[str] = set()
    for cell, folder in _explained(benchmark, store, failures):
        if cell.method in seen:
            continue
        seen.add(cell.method)
        own = [row for row in important if (row.method, row.target) == (cell.method, cell.target)]
        best = {(row.family, row.region) for row in sorted(own, key=lambda row: -row.share)[:SHOWN]}
        described = json.loads((folder / "features.json").read_text())
        for column in described["columns"]:
            if (column["family"], column["region"]) not in best:
                continue
            rows = zip(described["scans"], described["subjects"], described["ages"], column["values"], strict=True)
            for scan, subject, age, value in rows:
                yield FeatureValue(scan, subject, age, column["family"], column["region"], value, cell.method)


def atlas(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[AtlasSlice]:
    """Slices of one head and its label map."""
    stage = benchmark.extra["shown"].get("atlas")
    if stage is None or stage.key in failures:
        return
    folder = store.read(stage.key)
    index = json.loads((folder / "atlas.json").read_text())
    for plane, (rows, columns) in index["spacing"].items():
        image, labels = (np.load(folder / f"{plane}.{what}.npy", allow_pickle=False) for what in ("image", "labels"))
        yield AtlasSlice(plane, image, labels, (rows, columns), f"slices of {index['scan']}")


def _explained(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[tuple[Cell, Path]]:
    """Cells whose features were judged, and where."""
    for cell in benchmark.plan.cells:
        stage = cell.finals.get("importance")
        if stage is not None and stage.key not in failures:
            yield cell, store.read(stage.key)

"""Records, histograms, panels and curves of a finished cross-site run, gathered from the store.

Everything is read through the plan. A cell whose stages failed gives a row per metric that says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import arrays
from harness.engine.executor import Failure
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.store import Store
from harness.metrics.catalogue import METRICS
from harness.tracks.base import Benchmark
from harness.tracks.cross_site.plan import LABEL_METRICS, PAIRED_METRICS

Row = dict[str, Any]


def records(benchmark: Benchmark, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """The long table, row by row; what a cell could not deliver appears with a status, never as a gap."""
    spec = benchmark.spec
    for cell in benchmark.plan.cells:
        head = {
            "benchmark": spec.benchmark,
            "track": spec.track,
            "method": cell.method,
            "seed": cell.seed,
            "source": cell.source,
            "target": cell.target,
        }
        for metric in spec.metrics:
            stage = cell.finals.get("labels" if metric in LABEL_METRICS else "images")
            if stage is None or metric not in stage.params["metrics"]:
                if not (cell.source == cell.target and metric in PAIRED_METRICS):
                    yield {
                        **head,
                        **_empty(metric),
                        "status": "not_applicable",
                        "note": _why_not(benchmark, cell, metric),
                    }
            elif stage.key in failures:
                failure = failures[stage.key]
                yield {**head, **_empty(metric), "status": failure.status, "note": failure.error}
            else:
                found = json.loads((store.read(stage.key) / "records.json").read_text())
                yield from ({**head, **row} for row in found if row["metric"] == metric)


def _empty(metric: str) -> Row:
    return {"subject": "", "label": "", "metric": metric, "value": None, "unit": METRICS[metric].unit}


def _why_not(benchmark: Benchmark, cell: Cell, metric: str) -> str:
    if metric in LABEL_METRICS:
        return f"{cell.target} has no labels"
    if "images" not in cell.finals:
        return "the method returns predictions, no images"
    return "the data set has no image of the same subject at the source"


def histograms(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """Intensity histograms (256 bins, sum 1) of the source, and of each target before and after."""
    for cell in plan.cells:
        stage = cell.finals.get("images")
        if stage is None or stage.key in failures or cell.seed != plan.cells[0].seed:
            continue
        with np.load(store.read(stage.key) / "histograms.npz", allow_pickle=False) as found:
            for kind in ("source", "before", "after"):
                for level, density in enumerate(found[kind]):
                    yield {
                        "source": cell.source,
                        "site": cell.target,
                        "method": cell.method,
                        "kind": kind,
                        "bin": level,
                        "density": float(density),
                    }


def panels(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """For one target of each source a slice: input, harmonised (where there is one), prediction and label.

    Scan and slice are the same for all methods of a target: the first test scan's slice with most labels.
    """
    shown: dict[str, str] = {}
    for cell in plan.cells:
        stage = cell.finals.get("labels")
        if stage is None or stage.key in failures or cell.source == cell.target or cell.seed != plan.cells[0].seed:
            continue
        if shown.setdefault(cell.source, cell.target) != cell.target:
            continue
        labels = arrays.load_labels(store.read(stage.needs["labels"].key))
        scan = labels.scans[0]
        chosen = max(range(scan.start, scan.stop), key=lambda i: len(np.unique(labels.labels[i])))
        predicted = stage.needs["predictions"]
        images = predicted.needs.get("images")
        raw = (images or predicted).needs["target"]
        yield {
            "method": cell.method,
            "source": cell.source,
            "target": cell.target,
            "subject": scan.subject,
            "slice": chosen - scan.start,
            "input": _slice(store, raw, chosen),
            "harmonised": _slice(store, images, chosen) if images else None,
            "prediction": np.array(arrays.load_predictions(store.read(predicted.key))[chosen]),
            "label": np.array(labels.labels[chosen]),
        }


def _slice(store: Store, stage: Stage, index: int) -> np.ndarray:
    image = arrays.load_images(store.read(stage.key)).floats(index)
    return np.rint(image * 255).astype(np.uint8)


def curves(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """Every curve that a stage logged, once, under the cells' names (method "task" for task training)."""
    seen: set[str] = set()
    for cell in plan.cells:
        for key in sorted({k for final in cell.finals.values() for k in (*plan.ancestors(final), final.key)}):
            stage = plan.by_key[key]
            path = None if key in seen or key in failures else _curves_file(store, stage)
            seen.add(key)
            if path is None:
                continue
            shared = stage.kind == "train"
            per_pair = shared or stage.title.partition("→")[1] == ""
            for name, step, value in json.loads(path.read_text()):
                yield {
                    "method": "task" if shared else cell.method,
                    "source": cell.source,
                    "target": "" if per_pair else cell.target,
                    "seed": cell.seed,
                    "stage": stage.kind,
                    "name": name,
                    "step": step,
                    "value": value,
                }


def _curves_file(store: Store, stage: Stage) -> Path | None:
    if stage.kind not in ("train", "fit", "apply"):
        return None
    try:
        path = store.read(stage.key) / "curves.json"
    except KeyError:
        return None
    return path if path.is_file() else None

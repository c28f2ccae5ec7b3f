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
from harness.tracks import curves as logged
from harness.tracks.base import Benchmark, head_of
from harness.tracks.cross_site.plan import PAIRED_METRICS, metric_role

Row = dict[str, Any]


def records(benchmark: Benchmark, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """The long table, row by row; what a cell could not deliver appears with a status, never as a gap."""
    spec = benchmark.spec
    for cell in benchmark.plan.cells:
        head = head_of(benchmark, cell)
        scored: dict[str, list[Row]] = {}
        for metric in spec.metrics:
            stage = cell.finals.get(metric_role(metric))
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
                if stage.key not in scored:
                    scored[stage.key] = json.loads((store.read(stage.key) / "records.json").read_text())
                yield from ({**head, **row} for row in scored[stage.key] if row["metric"] == metric)


def _empty(metric: str) -> Row:
    return {"subject": "", "label": "", "metric": metric, "value": None, "unit": METRICS[metric].unit}


def _why_not(benchmark: Benchmark, cell: Cell, metric: str) -> str:
    if metric_role(metric) != "images":
        return f"{cell.target} has no {metric_role(metric)}"
    if "images" not in cell.finals:
        return "the method returns predictions, no images"
    return "the data set has no image of the same subject at the source"


def exhibit(benchmark: Benchmark, store: Store, failures: Mapping[str, Failure], folder: Path) -> None:
    """Leave what the report shows beside the records."""
    from harness.results import exhibits

    plan = benchmark.plan
    exhibits.write_histograms(folder, histograms(plan, store, failures))
    exhibits.write_panels(folder, panels(plan, store, failures))
    exhibits.write_curves(folder, curves(plan, store, failures))


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
    """For each method, source and target a slice: input, harmonised, prediction and label, as far as there are.

    Scan and slice are the same for all methods and sources of a target: the first test scan's slice with most
    labels, or with most brain where there are none.
    """
    chosen: dict[str, int] = {}
    for cell in plan.cells:
        if cell.source == cell.target or cell.seed != plan.cells[0].seed:
            continue
        finals = {role: stage for role, stage in cell.finals.items() if stage.key not in failures}
        shown = _shown(finals)
        if shown is None:
            continue
        raw, harmonised, predicted, reference = shown
        images = arrays.load_images(store.read(raw.key))
        scan = images.scans[0]
        labels = arrays.load_labels(store.read(reference.key)).labels if reference else None
        if cell.target not in chosen:
            content = labels if labels is not None else images.mask
            counts = [len(np.unique(c)) if labels is not None else int(c.sum()) for c in content[scan.slices]]
            chosen[cell.target] = scan.start + int(np.argmax(counts))
        index = chosen[cell.target]
        yield {
            "method": cell.method,
            "source": cell.source,
            "target": cell.target,
            "subject": scan.subject,
            "slice": index - scan.start,
            "input": _slice(store, raw, index),
            "harmonised": _slice(store, harmonised, index) if harmonised else None,
            "prediction": np.array(arrays.load_predictions(store.read(predicted.key))[index]) if predicted else None,
            "label": np.array(labels[index]) if labels is not None else None,
        }


def _shown(finals: Mapping[str, Stage]) -> tuple[Stage, Stage | None, Stage | None, Stage | None] | None:
    """Stages of a cell's raw images, harmonised images, predicted labels and labels; None if there is nothing."""
    if "labels" in finals:
        predicted = finals["labels"].needs["predictions"]
        images = predicted.needs.get("images") or predicted.needs["target"]
        harmonised = images if images.kind == "apply" else None
        raw = images.needs["target"] if harmonised else images
        return raw, harmonised, predicted, finals["labels"].needs["labels"]
    if "images" in finals:
        harmonised = finals["images"].needs["harmonised"]
        return harmonised.needs["target"], harmonised, None, None
    return None


def _slice(store: Store, stage: Stage, index: int) -> np.ndarray:
    image = arrays.load_images(store.read(stage.key)).floats(index)
    return np.rint(image * 255).astype(np.uint8)


def curves(plan: Plan, store: Store, failures: Mapping[str, Failure]) -> Iterator[Row]:
    """Every curve that a stage logged, under the names of the rows it serves (task training: once, as "task")."""
    return logged.curves(plan, store, failures, lambda cell, stage: "task" if stage.kind == "train" else cell.method)

"""Records and exhibits of a finished anomaly run, gathered from the store.

Everything is read through the plan. A cell whose stages failed gives a row per metric that says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness import registry
from harness.anomaly import Processing
from harness.api import ImageSet
from harness.data import arrays
from harness.engine.executor import Failure
from harness.engine.plan import Cell, Stage
from harness.engine.store import Store
from harness.metrics.catalogue import METRICS
from harness.results.detections import Detection, Pictures
from harness.tracks import curves as logged
from harness.tracks.anomaly.plan import COSTS
from harness.tracks.base import Benchmark, head_of

Row = dict[str, Any]
Failures = Mapping[str, Failure]


def records(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Row]:
    """The long table, row by row; what a cell could not deliver appears with a status, never as a gap."""
    spec = benchmark.spec
    for cell in benchmark.plan.cells:
        head = head_of(benchmark, cell)
        stage = cell.finals["scores"]
        if stage.key in failures:
            failure = failures[stage.key]
            for metric in spec.metrics:
                for processing in [""] if metric in COSTS else benchmark.extra["processing"]:
                    fate = {"status": failure.status, "note": failure.error, "processing": processing}
                    yield {**head, **_empty(metric), **fate}
        else:
            found = json.loads((store.read(stage.key) / "records.json").read_text())
            yield from ({**head, **row} for row in found if row["metric"] in spec.metrics)


def _empty(metric: str) -> Row:
    return {"subject": "", "label": "", "metric": metric, "value": None, "unit": METRICS[metric].unit}


def exhibit(benchmark: Benchmark, store: Store, failures: Failures, folder: Path) -> None:
    """Leave what the report shows beside the records."""
    from harness.results import detections, exhibits
    from harness.results.remarks import REMARKS, write_lines

    exhibits.write_curves(folder, curves(benchmark, store, failures))
    detections.write_precision_recall(folder, precision_recall(benchmark, store, failures))
    detections.write_detections(folder, shown_slices(benchmark, store, failures))
    detections.write_pictures(folder, pictures(benchmark, store, failures))
    write_lines(folder / REMARKS, remarks(benchmark, store, failures))


def curves(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Row]:
    """Every curve that a stage logged: of a component under its id, which rows may share, else of the row."""
    own = {row.name: (row.target,) for row in benchmark.rows}

    def owner(cell: Cell, stage: Stage) -> str:
        if stage.code == own[cell.method]:
            return cell.method
        return registry.load_class(stage.code[0]).id

    trains = {setting.name: setting.train for setting in benchmark.extra["settings"]}
    return logged.curves(benchmark.plan, store, failures, owner, lambda cell: trains[cell.target])


def precision_recall(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Row]:
    """Precision and recall of pooled pixels, of every cell and processing."""
    for cell in benchmark.plan.cells:
        stage = cell.finals["scores"]
        if stage.key in failures:
            continue
        for processing, points in json.loads((store.read(stage.key) / "curves_pr.json").read_text()).items():
            for recall, precision in points:
                yield {
                    "method": cell.method,
                    "target": cell.target,
                    "seed": cell.seed,
                    "processing": processing,
                    "recall": recall,
                    "precision": precision,
                }


def remarks(benchmark: Benchmark, store: Store, failures: Failures) -> list[str]:
    """What bounds the scores: lesions that erosion takes from the maps, and maps that say nothing."""
    eroded: dict[str, dict[str, float]] = {}
    blank: dict[str, dict[str, list[int]]] = {}
    for cell in benchmark.plan.cells:
        stage = cell.finals["scores"]
        if stage.key in failures:
            continue
        lost = json.loads((store.read(stage.key) / "lost.json").read_text())
        for processing, share in lost["eroded"].items():
            if share:
                name = f"{processing} of {cell.method}" if processing == "published" else processing
                eroded.setdefault(name, {})[cell.target] = share
        counts = blank.setdefault(cell.method, {}).setdefault(cell.target, [0, 0])
        counts[:] = counts[0] + lost["blank"], counts[1] + lost["slices"]
    lines = []
    for name, shares in eroded.items():
        of = ", ".join(f"{target} {_percent(share)}" for target, share in shares.items())
        lines.append(f"lesion pixels that no map can find, eroded by the processing {name}: {of}")
    for method, targets in blank.items():
        if said := [f"{_part(n, all_of)} slices of {target}" for target, (n, all_of) in targets.items() if n]:
            lines.append(f"{method} says the same of every pixel in {', '.join(said)}")
    return lines


def _part(n: int, all_of: int) -> str:
    return "all" if n == all_of else f"{_percent(n / all_of)} of the"


def _percent(share: float) -> str:
    """A share as lines have it: what is more than nothing is not called 0, what is not all not 100."""
    if 0 < share < 0.01:
        return "below 1 %"
    return "above 99 %" if 0.99 < share < 1 else f"{100 * share:.0f} %"


def shown_slices(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Detection]:
    """The example slices of each setting with every method's maps, of the first seed and processing."""
    processing = benchmark.extra["processing"][0]
    for cell in benchmark.plan.cells:
        stage = cell.finals["scores"]
        chosen = _examples(benchmark, store, failures, cell.target)
        if cell.seed != benchmark.spec.seeds[0] or stage.key in failures or not chosen:
            continue
        from harness.tracks.anomaly.processing import process

        folder = store.read(stage.needs["maps"].key)
        images = arrays.load_images(store.read(stage.needs["images"].key))
        lesions = arrays.load_labels(store.read(stage.needs["labels"].key)).labels
        settings = Processing.model_validate(stage.params["processing"][processing])
        maps = np.load(folder / "maps.npy", mmap_mode="r", allow_pickle=False)
        image = folder / "reconstruction.npy"
        rebuilt = np.load(image, mmap_mode="r", allow_pickle=False) if image.is_file() else None
        thresholds = json.loads((store.read(stage.needs["threshold"].key) / "thresholds.json").read_text())
        best = json.loads((store.read(stage.key) / "best.json").read_text())[processing]
        for index in chosen:
            scan, number = _place(images, index)
            mask = np.asarray(images.mask[index])[None]
            yield Detection(
                method=cell.method,
                target=cell.target,
                subject=scan,
                number=number,
                threshold=thresholds[processing],
                best=math.nan if best is None else best,
                input=np.rint(images.floats(index) * 255).astype(np.uint8),
                lesion=np.asarray(lesions[index]) > 0,
                map=process(np.asarray(maps[index])[None], mask, settings)[0].astype(np.float16),
                reconstruction=None if rebuilt is None else np.array(rebuilt[index]),
            )


def pictures(benchmark: Benchmark, store: Store, failures: Failures) -> Iterator[Pictures]:
    """What methods show of their way to a map."""
    for cell in benchmark.plan.cells:
        stage = cell.finals.get("pictures")
        if stage is None or stage.key in failures:
            continue
        folder = store.read(stage.key)
        index = json.loads((folder / "pictures.json").read_text())
        images = arrays.load_images(store.read(stage.needs["images"].key))
        with np.load(folder / "pictures.npz", allow_pickle=False) as found:
            shown = [found[str(number)] for number in range(len(index["captions"]))]
        for i, slice_index in enumerate(index["slices"] if shown else ()):
            scan, number = _place(images, slice_index)
            stack = np.stack([picture[i] for picture in shown])
            yield Pictures(cell.method, cell.target, scan, number, tuple(index["captions"]), stack)


def _examples(benchmark: Benchmark, store: Store, failures: Failures, target: str) -> list[int]:
    """Indices of the slices to show of a setting."""
    stage = benchmark.extra["examples"].get(target)
    if stage is None or stage.key in failures:
        return []
    found: list[int] = json.loads((store.read(stage.key) / "examples.json").read_text())
    return found


def _place(images: ImageSet, index: int) -> tuple[str, int]:
    """Whose slice it is, and its number within the scan."""
    scan = next(scan for scan in images.scans if scan.start <= index < scan.stop)
    return scan.subject, index - scan.start

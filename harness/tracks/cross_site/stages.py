"""Stage functions of the cross-site track: what runs on workers.

Methods are called here, and only here; what they return is checked before anything is kept. Scoring happens in
stages of its own, so predictions outlive every metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.api import (
    Adaptive,
    ApplyData,
    Context,
    Harmonizer,
    ImageSet,
    Scan,
    TaskData,
    TaskHandle,
    TaskModel,
    TestTimeAdapter,
)
from harness.contract import check_harmonized, check_predictions, grant_apply, grant_fit
from harness.data import arrays
from harness.engine.worker import StageRun
from harness.tracks.base import build_method

PSNR_CAP = 100.0
"""dB (ours), far above the 59 dB that 8-bit rounding alone leaves."""

Record = dict[str, Any]
"""subject, label, metric, value, unit, status and note: the part of a record that a score stage knows."""


def train_task(run: StageRun) -> None:
    """Train the task model of a source site; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, TaskModel)
    data = TaskData(
        arrays.load_images(run.inputs["images"]),
        arrays.load_labels(run.inputs["labels"]),
        arrays.load_images(run.inputs["validation_images"]),
        arrays.load_labels(run.inputs["validation_labels"]),
    )
    arrays.save_state(run.out, method.train(data, _context(run)))


def fit(run: StageRun) -> None:
    """Fit a method on the image sets that the plan granted it; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, Adaptive)
    available = {name: arrays.load_images(folder) for name, folder in run.inputs.items()}
    arrays.save_state(run.out, method.fit(grant_fit(type(method), available), _context(run)))


def harmonize(run: StageRun) -> None:
    """Harmonise target test images; leaves an image set, checked, masked and quantised."""
    method = build_method(run.params["method"])
    assert isinstance(method, Harmonizer)
    images = arrays.load_images(run.inputs["target"])
    result = method.harmonize(_state(run), _apply_data(run, method, images), _context(run))
    pixels = check_harmonized(result, images)
    arrays.save_images(run.out, images.with_pixels(_quantize(pixels, run.params["quantize"]["mode"])))


def adapt(run: StageRun) -> None:
    """Adapt the task model to target test images; leaves predictions."""
    method = build_method(run.params["method"])
    assert isinstance(method, TestTimeAdapter)
    images = arrays.load_images(run.inputs["target"])
    result = method.adapt(_state(run), _apply_data(run, method, images), _context(run))
    arrays.save_predictions(run.out, check_predictions(result, images, run.params["labels"]["count"]))


def predict(run: StageRun) -> None:
    """Run the frozen task model on harmonised images; leaves predictions."""
    task = build_method(run.params["task"])
    assert isinstance(task, TaskModel)
    images = arrays.load_images(run.inputs["images"])
    result = task.predict(arrays.load_state(run.inputs["task"]), images, _context(run))
    arrays.save_predictions(run.out, check_predictions(result, images, run.params["labels"]["count"]))


def score_labels(run: StageRun) -> None:
    """Score predictions against labels, per scan and label."""
    labels = arrays.load_labels(run.inputs["labels"])
    predictions = arrays.load_predictions(run.inputs["predictions"])
    wanted = set(run.params["metrics"])
    records = [
        record
        for scan in labels.scans
        for record in _label_records(scan, labels.labels[scan.slices], predictions[scan.slices], labels.names, wanted)
    ]
    run.save_json("records.json", records)


def score_images(run: StageRun) -> None:
    """Score harmonised images: histogram distance to the source site, and paired error where truth exists."""
    from harness.metrics.intensity import site_histogram, wasserstein

    harmonised = arrays.load_images(run.inputs["harmonised"])
    before = arrays.load_images(run.inputs["before"])
    source = arrays.load_images(run.inputs["source"])
    histograms = {
        name: site_histogram(_by_subject(images))
        for name, images in (("source", source), ("before", before), ("after", harmonised))
    }
    records: list[Record] = []
    if "wasserstein" in run.params["metrics"]:
        value = wasserstein(histograms["after"], histograms["source"])
        records.append(_record(None, "", "wasserstein", value))
    if "truth" in run.inputs:
        truth = arrays.load_images(run.inputs["truth"])
        records += _paired_records(harmonised, truth, set(run.params["metrics"]))
    run.save_json("records.json", records)
    np.savez(run.out / "histograms.npz", allow_pickle=False, **histograms)


# ------------------------------------------------------------------------------------------- handing over


def _context(run: StageRun) -> Context:
    return Context(seed=run.seed, device=run.device, scratch=run.scratch, log=run.log)


def _state(run: StageRun) -> dict[str, Any]:
    return arrays.load_state(run.inputs["state"]) if "state" in run.inputs else {}


def _apply_data(run: StageRun, method: Adaptive, images: ImageSet) -> ApplyData:
    available: dict[str, Any] = {"target": images}
    if "source" in run.inputs:
        available["source"] = arrays.load_images(run.inputs["source"])
    if "task" in run.inputs:
        task = build_method(run.params["task"])
        assert isinstance(task, TaskModel)
        available["task"] = TaskHandle(task, arrays.load_state(run.inputs["task"]), run.device)
    return grant_apply(type(method), available)


def _quantize(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Float [0, 1] to 8-bit grey levels, as the originals are; `none` leaves float32."""
    if mode == "none":
        return pixels
    levels = pixels.astype(np.float64) * 255
    # The small addend keeps k/255 at level k under truncation: float32 may land just below it.
    return (np.rint(levels) if mode == "round" else np.floor(levels + 1e-4)).astype(np.uint8)


# ------------------------------------------------------------------------------------------- scoring


def _label_records(
    scan: Scan, truth: np.ndarray, predicted: np.ndarray, names: tuple[str, ...], wanted: set[str]
) -> Iterator[Record]:
    from harness.metrics import overlap, surface

    truth, predicted = np.ascontiguousarray(truth), np.ascontiguousarray(predicted)
    if "dsc" in wanted:
        values = overlap.dsc(overlap.joint_counts(truth, predicted, len(names)))
        for label in range(1, len(names)):
            yield _record(scan, names[label], "dsc", values[label])
    if wanted - {"dsc"}:
        for result in surface.hd95_records(truth, predicted, len(names), scan.spacing):
            if result.metric in wanted:
                yield _record(scan, names[result.label], result.metric, result.value, result.status)


def _paired_records(images: ImageSet, truth: ImageSet, wanted: set[str]) -> Iterator[Record]:
    from harness.metrics import intensity

    for (scan, ours, mask), (_, true, _) in zip(images.volumes(), truth.volumes(), strict=True):
        if "psnr" in wanted:
            # identical images have no finite PSNR; a cap keeps them in the mean
            yield _record(scan, "", "psnr", min(intensity.psnr(true, ours, mask), PSNR_CAP))
        if "ssim" in wanted:
            yield _record(scan, "", "ssim", intensity.ssim(true, ours, mask))


def _by_subject(images: ImageSet) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels and mask of each subject, all scans together, so that subjects weigh the same."""
    for subject in dict.fromkeys(scan.subject for scan in images.scans):
        index = np.concatenate([np.arange(s.start, s.stop) for s in images.scans if s.subject == subject])
        yield images.floats(index), np.asarray(images.mask[index])


def _record(scan: Scan | None, label: str, metric: str, value: float, status: str = "ok") -> Record:
    """A record of one scan, or of the whole site where `scan` is None."""
    from harness.metrics.catalogue import METRICS

    number = float(value)
    if not np.isfinite(number):
        status = "empty" if status == "ok" else status
    return {
        "subject": scan.subject if scan else "",
        "label": label,
        "metric": metric,
        "value": number if np.isfinite(number) else None,
        "unit": METRICS[metric].unit,
        "status": status,
        "note": f"scan {scan.id}" if scan and scan.id != scan.subject else "",
    }

"""Stage functions of the cross-site track: what runs on workers.

Methods are called here, and only here; what they return is checked before anything is kept. Scoring happens in
stages of its own, so predictions outlive every metric.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from harness.api import (
    Adaptive,
    AgeSet,
    ApplyData,
    Context,
    Generalizer,
    Harmonizer,
    ImageSet,
    LabelSet,
    Scan,
    State,
    TaskData,
    TaskHandle,
    TaskModel,
    TestTimeAdapter,
)
from harness.contract import (
    check_ages,
    check_harmonized,
    check_predictions,
    grant_adapt,
    grant_apply,
    grant_fit,
    merge,
)
from harness.data import arrays
from harness.engine.worker import StageRun
from harness.tracks.base import build_method

PSNR_CAP = 100.0
"""dB (ours), far above the 59 dB that 8-bit rounding alone leaves."""

Record = dict[str, Any]
"""subject, label, metric, value, unit, status and note: the part of a record that a score stage knows."""


def train_task(run: StageRun) -> None:
    """Train the task model of a source site, as a generalizer wants it if there is one; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, TaskModel)
    data = TaskData(
        arrays.load_images(run.inputs["images"]),
        _reference(run, "reference", method),
        arrays.load_images(run.inputs["validation_images"]),
        _reference(run, "validation_reference", method),
    )
    if "generalizer" not in run.params:
        arrays.save_state(run.out, method.train(data, _context(run)))
        return
    generalizer = build_method(run.params["generalizer"])
    assert isinstance(generalizer, Generalizer)
    arrays.save_state(run.out, method.train(data, _context(run), generalizer.augment))


def fit(run: StageRun) -> None:
    """Fit a method, or a part of one, on the image sets that the plan granted it; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, Adaptive)
    available: dict[str, Any] = {name: arrays.load_images(folder) for name, folder in run.inputs.items()}
    sites = {name.partition(".")[2]: images for name, images in available.items() if name.startswith("sites.")}
    data = grant_fit(method, {**available, "sites": sites})
    part = run.params.get("part")
    state = method.fit_part(part, data, _context(run)) if part else method.fit(data, _context(run))
    arrays.save_state(run.out, state)


def adapt_harmonizer(run: StageRun) -> None:
    """Adapt a harmoniser to unlabelled target images; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, Harmonizer)
    available = {name: arrays.load_images(run.inputs[name]) for name in ("target", "source") if name in run.inputs}
    arrays.save_state(run.out, method.adapt(_state(run), grant_adapt(method, available), _context(run)))


def harmonize(run: StageRun) -> None:
    """Harmonise target test images; leaves an image set, checked, masked and quantised."""
    method = build_method(run.params["method"])
    assert isinstance(method, Harmonizer)
    images = arrays.load_images(run.inputs["target"])
    state = _state(run)
    if "choice" in run.inputs:  # an oracle: the step was chosen outside the method, by labels
        state = method.at(state, json.loads((run.inputs["choice"] / "best.json").read_text())["step"])
    result = method.harmonize(state, _apply_data(run, method, images), _context(run))
    arrays.save_images(run.out, images.with_pixels(_as_kept(run, result, images)))


def adapt(run: StageRun) -> None:
    """Adapt the task model to target test images; leaves predictions."""
    method = build_method(run.params["method"])
    assert isinstance(method, TestTimeAdapter)
    images = arrays.load_images(run.inputs["target"])
    result = method.adapt(_state(run), _apply_data(run, method, images), _context(run))
    arrays.save_predictions(run.out, _checked(run, result, images))


def predict(run: StageRun) -> None:
    """Run the frozen task model on harmonised images; leaves predictions."""
    task = _task(run)
    images = arrays.load_images(run.inputs["images"])
    result = task.model.predict(task.state, images, _context(run))
    arrays.save_predictions(run.out, _checked(run, result, images))


def trace(run: StageRun) -> None:
    """Harmonise and predict with every step of an adaptation; leaves predictions and logs their entropy."""
    method = build_method(run.params["method"])
    assert isinstance(method, Harmonizer)
    images, state, task = arrays.load_images(run.inputs["target"]), _state(run), _task(run)
    data, steps = grant_apply(method, {"target": images}), method.steps(state)
    # The rule that picks a step is no part of the trace: what the method logs while it shows one is dropped.
    quiet = replace(_context(run), log=lambda name, step, value: None)
    for step in steps:
        pixels = _as_kept(run, method.harmonize(method.at(state, step), data, quiet), images)
        shown = images.with_pixels(pixels)
        predicted = _checked(run, task.model.predict(task.state, shown, quiet), shown)
        np.savez_compressed(run.out / f"step-{step}.npz", allow_pickle=False, predictions=predicted)
        if task.outcome == "labels":
            run.log("entropy", step, _mean_entropy(task, shown))
    run.save_json("steps.json", list(steps))


def score_trace(run: StageRun) -> None:
    """Score every step of a trace against labels or ages; logs the curve and leaves the best step."""
    from harness.metrics import overlap, regression

    folder = run.inputs["trace"]
    curve: dict[int, float] = {}
    labelled = (run.inputs["reference"] / "labels.npy").is_file()
    for step in json.loads((folder / "steps.json").read_text()):
        with np.load(folder / f"step-{step}.npz", allow_pickle=False) as found:
            predicted = found["predictions"]
        if labelled:
            labels = arrays.load_labels(run.inputs["reference"])
            counts = [
                overlap.joint_counts(labels.labels[s.slices], predicted[s.slices], len(labels.names))
                for s in labels.scans
            ]
            curve[step] = float(np.nanmean([np.nanmean(overlap.dsc(count)[1:]) for count in counts]))
        else:
            curve[step] = regression.mae(arrays.load_ages(run.inputs["reference"]).ages, predicted)
        run.log("dsc" if labelled else "mae", step, curve[step])
    run.save_json("best.json", {"step": (max if labelled else min)(curve, key=lambda step: curve[step])})


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


def score_ages(run: StageRun) -> None:
    """Score predicted ages, per scan: absolute and squared error, whose means are MAE and MSE."""
    reference = arrays.load_ages(run.inputs["ages"])
    errors = arrays.load_predictions(run.inputs["predictions"]) - reference.ages
    values = {"mae": np.abs(errors), "mse": errors**2}
    run.save_json(
        "records.json",
        [
            _record(scan, "", metric, values[metric][i])
            for i, scan in enumerate(reference.scans)
            for metric in run.params["metrics"]
        ],
    )


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


def _state(run: StageRun) -> State:
    if "state" in run.inputs:
        return arrays.load_state(run.inputs["state"])
    parts = {name: folder for name, folder in run.inputs.items() if name.startswith("state.")}
    return merge({name.partition(".")[2]: arrays.load_state(folder) for name, folder in parts.items()})


def _reference(run: StageRun, name: str, task: TaskModel) -> LabelSet | AgeSet:
    load = arrays.load_labels if task.outcome == "labels" else arrays.load_ages
    return load(run.inputs[name])


def _task(run: StageRun) -> TaskHandle:
    model = build_method(run.params["task"])
    assert isinstance(model, TaskModel)
    return TaskHandle(model, arrays.load_state(run.inputs["task"]), run.device)


def _apply_data(run: StageRun, method: Adaptive, images: ImageSet) -> ApplyData:
    available: dict[str, Any] = {"target": images}
    if "source" in run.inputs:
        available["source"] = arrays.load_images(run.inputs["source"])
    if "task" in run.inputs:
        available["task"] = _task(run)
    return grant_apply(method, available)


def _checked(run: StageRun, predicted: np.ndarray, images: ImageSet) -> np.ndarray:
    """Predictions as they are kept; raises MethodError for what no scoring could read."""
    if "ages" in run.params:
        return check_ages(predicted, images)
    return check_predictions(predicted, images, run.params["labels"]["count"])


def _as_kept(run: StageRun, harmonised: np.ndarray, images: ImageSet) -> np.ndarray:
    """Harmonised pixels as they are kept: checked, masked, quantised."""
    return _quantize(check_harmonized(harmonised, images), run.params["quantize"]["mode"])


def _mean_entropy(task: TaskHandle, images: ImageSet) -> float:
    """Mean over all pixels of the entropy of the predicted labels, nats."""
    import torch

    network, total = task.network(), 0.0
    with torch.inference_mode():
        for start in range(0, len(images), 32):
            pixels = torch.from_numpy(images.floats(slice(start, start + 32)))[:, None].to(task.device)
            log_p = network(pixels).float().log_softmax(1)
            total -= float((log_p.exp() * log_p).sum())
    return total / images.pixels.size


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

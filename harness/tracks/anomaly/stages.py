"""Stage functions of the anomaly track: what runs on workers.

Methods are called in `fit`, `detect` and `illustrate`, and only there; none of them has an input that holds a label.
Maps are kept, so a new metric or processing scores them anew without any network.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, NormalData, Processing
from harness.api import Context, ImageSet, MethodError, State
from harness.contract import check_maps, merge
from harness.cost import measured
from harness.data import arrays
from harness.engine.worker import StageRun
from harness.tracks.anomaly.processing import process
from harness.tracks.base import build_method


def fit(run: StageRun) -> None:
    """Fit a detector or a component on healthy slices; leaves its state."""
    method = build_method(run.params["method"])
    assert isinstance(method, AnomalyDetector | Component)
    data = NormalData(
        arrays.load_images(run.inputs["images"]), arrays.load_images(run.inputs["validation"]), _components(run)
    )
    arrays.save_state(run.out, method.fit(data, _context(run)))


def detect(run: StageRun) -> None:
    """Map images; leaves maps, image scores, reconstructions where there are any, and what it cost."""
    method = build_method(run.params["method"])
    assert isinstance(method, AnomalyDetector)
    images, state = arrays.load_images(run.inputs["images"]), _state(run)
    with measured(run.device) as meter:
        found = method.detect(state, images, _context(run))
    own_scores = isinstance(found, AnomalyMaps) and found.image_scores is not None
    checked = check_maps(found, images)
    assert checked.image_scores is not None
    np.save(run.out / "maps.npy", checked.maps, allow_pickle=False)
    np.save(run.out / "scores.npy", checked.image_scores, allow_pickle=False)
    if checked.reconstruction is not None:
        levels = np.rint(checked.reconstruction * 255).astype(np.uint8)
        np.save(run.out / "reconstruction.npy", levels, allow_pickle=False)
    run.save_json("detection.json", {"cost": meter.summary(len(images)), "own_scores": own_scores})


def fix_threshold(run: StageRun) -> None:
    """The threshold of each processing, from maps of healthy validation slices; no label is an input."""
    from harness.metrics.max_dice import operating_threshold

    images = arrays.load_images(run.inputs["images"])
    found = {
        name: operating_threshold(_processed(run, "maps", images, name), run.params["rate"], np.asarray(images.mask))
        for name in run.params["processing"]
    }
    run.save_json("thresholds.json", found)


def score(run: StageRun) -> None:
    """Score the maps of one cell, with each processing; leaves records, curves, the best threshold."""
    from harness.tracks.anomaly.processing import eroded_share
    from harness.tracks.anomaly.scoring import Scored, best_threshold, costs, precision_recall, records

    images, healthy_images = arrays.load_images(run.inputs["images"]), arrays.load_images(run.inputs["healthy_images"])
    lesions = np.asarray(arrays.load_labels(run.inputs["labels"]).labels) > 0
    thresholds = json.loads((run.inputs["threshold"] / "thresholds.json").read_text())
    metrics = run.params["metrics"]
    rows: list[dict[str, Any]] = []
    curves: dict[str, Any] = {}
    shares: dict[str, float | None] = {}
    best: dict[str, float | None] = {}
    for name, settings in run.params["processing"].items():
        maps, healthy = (_processed(run, "maps", images, name), _processed(run, "healthy_maps", healthy_images, name))
        scored = Scored(
            maps=maps,
            lesions=lesions,
            images=images,
            scores=_image_scores(run.inputs["maps"], maps),
            threshold=thresholds[name],
            healthy=healthy,
            healthy_images=healthy_images,
            healthy_scores=_image_scores(run.inputs["healthy_maps"], healthy),
        )
        found = records(scored, metrics, run.params["size_bins"], run.seed)
        rows += [{**row, "processing": name} for row in found]
        curves[name] = precision_recall(scored)
        best[name] = best_threshold(scored)
        share = eroded_share(lesions, scored.mask, Processing.model_validate(settings))
        shares[name] = None if np.isnan(share) else share
    # What it cost is the same whatever is done to the maps afterwards.
    rows += [{**row, "processing": ""} for row in costs(_detection(run.inputs["maps"])["cost"], metrics)]
    run.save_json("records.json", rows)
    run.save_json("curves_pr.json", curves)
    run.save_json("lost.json", {"eroded": shares, "blank": _blank(run.inputs["maps"], images), "slices": len(images)})
    run.save_json("best.json", best)


def choose_examples(run: StageRun) -> None:
    """Slices to show, of those with a lesion, evenly spread from large to small; leaves their indices."""
    labels = arrays.load_labels(run.inputs["labels"])
    sizes = np.count_nonzero(labels.labels, axis=(1, 2))
    by_size = [int(i) for i in np.argsort(-sizes, kind="stable") if sizes[i]]
    count = min(run.params["count"], len(by_size))
    # The middles of equal parts: neither the largest nor the smallest lesion of all, which show least.
    chosen = [by_size[int((k + 0.5) / count * len(by_size))] for k in range(count)]
    run.save_json("examples.json", chosen)


def illustrate(run: StageRun) -> None:
    """Pictures of how a method came to its maps of the examples; leaves pictures.npz, in the order to be shown."""
    method = build_method(run.params["method"])
    assert isinstance(method, AnomalyDetector)
    chosen = json.loads((run.inputs["examples"] / "examples.json").read_text())
    images = slices_of(arrays.load_images(run.inputs["images"]), chosen)
    pictures = method.illustrate(_state(run), images, _context(run)) if chosen else {}
    kept = {}
    for caption, picture in pictures.items():
        values = np.asarray(picture)
        if values.shape != images.pixels.shape:
            raise MethodError(f"the picture {caption!r} has shape {values.shape}, the slices {images.pixels.shape}")
        kept[caption] = np.rint(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    arrays_by_number = {str(number): picture for number, picture in enumerate(kept.values())}
    np.savez_compressed(run.out / "pictures.npz", allow_pickle=False, **arrays_by_number)
    run.save_json("pictures.json", {"captions": list(kept), "slices": chosen})


def slices_of(images: ImageSet, index: list[int]) -> ImageSet:
    """The slices with these indices, in their order, each with what is known of its scan.

    Scans are cut short to the slices that are left: a slice's place within its scan is not kept.
    """
    scans = [
        replace(next(scan for scan in images.scans if scan.start <= i < scan.stop), start=at, stop=at + 1)
        for at, i in enumerate(index)
    ]
    return ImageSet(np.asarray(images.pixels[index]), np.asarray(images.mask[index]), tuple(scans))


# ------------------------------------------------------------------------------------------- handing over


def _context(run: StageRun) -> Context:
    return Context(seed=run.seed, device=run.device, scratch=run.scratch, log=run.log)


def _components(run: StageRun) -> dict[str, State]:
    found = {name: folder for name, folder in run.inputs.items() if name.startswith("component.")}
    return {name.partition(".")[2]: arrays.load_state(folder) for name, folder in found.items()}


def _state(run: StageRun) -> State:
    own = arrays.load_state(run.inputs["state"]) if "state" in run.inputs else {}
    return {**own, **merge(_components(run))}


def _processed(run: StageRun, name: str, images: ImageSet, processing: str) -> np.ndarray:
    maps = np.load(run.inputs[name] / "maps.npy", mmap_mode="r", allow_pickle=False)
    settings = Processing.model_validate(run.params["processing"][processing])
    return process(maps, np.asarray(images.mask), settings)


def _blank(folder: Path, images: ImageSet) -> int:
    """Slices whose map, as it comes, says the same of every pixel of the mask."""
    maps = np.load(folder / "maps.npy", mmap_mode="r", allow_pickle=False)
    within = (one[mask] for one, mask in zip(maps, np.asarray(images.mask), strict=True))
    return sum(not values.size or bool((values == values[0]).all()) for values in within)


def _image_scores(folder: Path, maps: np.ndarray) -> np.ndarray:
    """The method's own scores of the slices, or the largest value of each map as it is scored."""
    if _detection(folder)["own_scores"]:
        return np.load(folder / "scores.npy", allow_pickle=False)
    return maps.reshape(len(maps), -1).max(axis=1).astype(np.float64)


def _detection(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "detection.json").read_text())
    return found

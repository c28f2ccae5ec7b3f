"""What a method may read and what it must hand back, as code: called by the stages of a run and by the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.anomaly import AnomalyMaps
from harness.api import Adaptive, ApplyData, Context, FitData, ImageSet, MethodError, State

ROUNDING = 1e-6  # ours: how far beyond [0, 1] float32 arithmetic may carry a method that stays inside


def fit_inputs(method: Adaptive) -> frozenset[str]:
    """Which image sets a fit is handed, among "source", "validation", "target" and "sites". The plan wires these."""
    if method.unknown_domains:
        wanted = {"source"}
    elif method.fit_scope == "sites":
        wanted = {"sites"}
    else:
        wanted = {"target"} if method.source_free else {"source", "target"}
    if method.validates and "source" in wanted:
        wanted.add("validation")
    return frozenset(wanted)


def adapt_inputs(method: Adaptive) -> frozenset[str]:
    """What `Harmonizer.adapt` is handed: "target", and "source" unless the method is source_free."""
    return frozenset({"target"} if method.source_free else {"target", "source"})


def apply_inputs(method: Adaptive) -> frozenset[str]:
    """What `harmonize` and `TestTimeAdapter.adapt` are handed: "target", and "source" and "task" where needed."""
    return adapt_inputs(method) | ({"task"} if method.uses_task() else set())


def grant_fit(method: Adaptive, available: Mapping[str, Any]) -> FitData:
    """What a fit may read of what is available; reading anything else says which trait withholds it."""
    reasons = {
        "source": f"{method.id} is source_free and fits on the target: no source image is handed to it",
        "validation": f"{method.id} does not declare `validates`: no validation image is handed to it",
        "target": f"{method.id} has unknown_domains: its fit is handed no image of the target",
        "sites": f'{method.id} has no fit_scope "sites": its fit is not handed all sites',
    }
    return FitData({name: available[name] for name in fit_inputs(method) if name in available}, reasons)


def grant_adapt(method: Adaptive, available: Mapping[str, Any]) -> ApplyData:
    """What `Harmonizer.adapt` may read of what is available; see `grant_fit`."""
    return ApplyData({n: available[n] for n in adapt_inputs(method) if n in available}, _withheld(method))


def grant_apply(method: Adaptive, available: Mapping[str, Any]) -> ApplyData:
    """What `harmonize` and `TestTimeAdapter.adapt` may read of what is available; see `grant_fit`."""
    return ApplyData({n: available[n] for n in apply_inputs(method) if n in available}, _withheld(method))


def _withheld(method: Adaptive) -> dict[str, str]:
    return {
        "source": f"{method.id} is source_free: no source image is handed to it once fitted",
        "task": f"{method.id} is task_agnostic: the task model is not handed to it",
    }


def learn(method: Adaptive, data: FitData, contexts: Mapping[str, Context]) -> State:
    """The whole fit of a method outside a plan: its parts one after the other, merged as the stages of a run do.

    contexts: a context for each part, or one under "" for a method without parts.
    """
    parts = method.fit_parts()
    if not parts:
        return method.fit(data, contexts[""])
    return merge({part: method.fit_part(part, data, contexts[part]) for part in parts})


def merge(states: Mapping[str, State]) -> State:
    """One state from those of the parts: entry E of part P becomes "P.E"."""
    return {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}


def check_harmonized(array: Any, images: ImageSet) -> np.ndarray:
    """`array` as float32 [N, H, W] in [0, 1], exactly 0 outside the mask of `images`.

    Raises MethodError for another type or shape, and for values inside the mask that are not finite or leave
    [0, 1] by more than rounding. What a method writes outside the mask does not matter.
    """
    values = _require_array(array, images, "harmonised images", kinds="fiu", wanted="numbers")
    mask = np.asarray(images.mask)
    bad = mask & ~np.isfinite(values)
    if bad.any():
        raise MethodError(
            f"harmonised images: {int(np.isnan(values[mask]).sum())} NaN and {int(np.isinf(values[mask]).sum())} "
            f"infinite of {int(mask.sum())} brain pixels, first in {_first(bad, images)}"
        )
    bad = mask & ((values < -ROUNDING) | (values > 1 + ROUNDING))
    if bad.any():
        brain = values[mask]
        raise MethodError(
            f"harmonised images must lie in [0, 1]; {int(bad.sum())} of {brain.size} brain pixels do not, values "
            f"run from {brain.min():.4g} to {brain.max():.4g}, first in {_first(bad, images)}"
        )
    return np.clip(np.where(mask, values, 0), 0, 1).astype(np.float32)


def check_predictions(array: Any, images: ImageSet, n_labels: int) -> np.ndarray:
    """`array` as uint8 [N, H, W], each label in 0..n_labels-1. Any integer type is taken.

    Raises MethodError for another type or shape, and for labels outside the range.
    """
    values = _require_array(array, images, "predictions", kinds="iu", wanted="integer labels")
    bad = (values < 0) | (values >= n_labels)
    if bad.any():
        raise MethodError(
            f"predictions must lie in 0..{n_labels - 1}; {int(bad.sum())} of {values.size} pixels do not, labels "
            f"run from {values.min()} to {values.max()}, first in {_first(bad, images)}"
        )
    return values.astype(np.uint8)


def check_ages(array: Any, images: ImageSet) -> np.ndarray:
    """Predicted ages as float64 [number of scans], finite. Raises MethodError otherwise."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise MethodError(f"predicted ages must be an array of numbers, not {type(array).__name__}")
    if array.shape != (len(images.scans),):
        raise MethodError(f"predicted ages have shape {array.shape}, there are {len(images.scans)} scans")
    if not np.isfinite(array).all():
        first = images.scans[int((~np.isfinite(array)).argmax())].id
        raise MethodError(f"predicted ages must be finite; that of scan {first} is not")
    return array.astype(np.float64)


def check_maps(found: Any, images: ImageSet) -> AnomalyMaps:
    """What a detector returned, as it is kept: maps float32 [N, H, W], exactly 0 outside the mask of `images`, and one
    float64 score for each slice.

    Raises MethodError for another type or shape, for maps that are not finite or negative inside the mask, for scores
    that are not finite, and for a reconstruction that is no image.
    """
    if not isinstance(found, AnomalyMaps):
        raise MethodError(f"a detector must return AnomalyMaps, not {type(found).__name__}")
    maps, mask = _require_array(found.maps, images, "maps", kinds="fiu", wanted="numbers"), np.asarray(images.mask)
    for bad, what in ((mask & ~np.isfinite(maps), "finite"), (mask & (maps < 0), "0 or more")):
        if bad.any():
            raise MethodError(
                f"maps must be {what}; {int(bad.sum())} of {int(mask.sum())} brain pixels are not, first in "
                f"{_first(bad, images)}"
            )
    maps = np.where(mask, maps, 0).astype(np.float32)
    if not np.isfinite(maps).all():
        raise MethodError("maps leave the range of float32; scale them")
    image = found.reconstruction
    if image is not None:
        image = _require_array(image, images, "reconstructions", kinds="fiu", wanted="numbers")
        image = np.clip(np.nan_to_num(np.where(mask, image, 0)), 0, 1).astype(np.float32)
    return AnomalyMaps(maps, image, _image_scores(found.image_scores, maps))


def _image_scores(scores: Any, maps: np.ndarray) -> np.ndarray:
    if scores is None:
        return maps.reshape(len(maps), -1).max(axis=1).astype(np.float64)
    if not isinstance(scores, np.ndarray) or scores.shape != (len(maps),) or scores.dtype.kind not in "fiu":
        shape = getattr(scores, "shape", type(scores).__name__)
        raise MethodError(f"image scores must be one number for each of {len(maps)} slices, not {shape}")
    if not np.isfinite(scores).all():
        raise MethodError("image scores must be finite")
    return scores.astype(np.float64)


def _require_array(array: Any, images: ImageSet, what: str, kinds: str, wanted: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise MethodError(f"{what} must be a numpy array, not {type(array).__name__}")
    if array.shape != images.pixels.shape:
        raise MethodError(f"{what} have shape {array.shape}, the images {images.pixels.shape} (slices, rows, columns)")
    if array.dtype.kind not in kinds:
        raise MethodError(f"{what} must be {wanted}, not {array.dtype}")
    return array


def _first(bad: np.ndarray, images: ImageSet) -> str:
    """Which scan and slice the first True of `bad` [N, H, W] lies in."""
    index = int(bad.any(axis=(1, 2)).argmax())
    for scan in images.scans:
        if scan.start <= index < scan.stop:
            return f"scan {scan.id}, slice {index - scan.start} of {scan.stop - scan.start}"
    return f"slice {index}"

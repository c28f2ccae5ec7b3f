"""What a method may read and what it must hand back, as code: called by the stages of a run and by the checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.api import Adaptive, ApplyData, FitData, ImageSet, MethodError

ROUNDING = 1e-6  # ours: how far beyond [0, 1] float32 arithmetic may carry a method that stays inside


def fit_inputs(cls: type[Adaptive]) -> frozenset[str]:
    """Which image sets `fit` is handed: "source", "target" or both. The plan wires exactly these."""
    if cls.unknown_domains:
        return frozenset({"source"})
    return frozenset({"target"} if cls.source_free else {"source", "target"})


def apply_inputs(cls: type[Adaptive]) -> frozenset[str]:
    """What `harmonize` and `adapt` are handed: "target", and "source" and "task" as the traits allow."""
    wanted = {"target"}
    if not cls.source_free:
        wanted.add("source")
    if not cls.task_agnostic:
        wanted.add("task")
    return frozenset(wanted)


def grant_fit(cls: type[Adaptive], available: Mapping[str, Any]) -> FitData:
    """What `fit` may read of what is available; reading anything else says which trait withholds it."""
    reasons = {
        "source": f"{cls.id} is source_free and fits on the target: no source image is handed to it",
        "target": f"{cls.id} has unknown_domains: its fit is handed no image of the target",
    }
    return FitData({name: available[name] for name in fit_inputs(cls) if name in available}, reasons)


def grant_apply(cls: type[Adaptive], available: Mapping[str, Any]) -> ApplyData:
    """What `harmonize` and `adapt` may read of what is available; see `grant_fit`."""
    reasons = {
        "source": f"{cls.id} is source_free: no source image is handed to it once fitted",
        "task": f"{cls.id} is task_agnostic: the task model is not handed to it",
    }
    return ApplyData({name: available[name] for name in apply_inputs(cls) if name in available}, reasons)


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

"""What estimators of age and segmenters must hand back, as code: for the stages of a run and for the checks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from harness.api import MethodError
from harness.brain_age import AgePredictions, VolumeScan, VolumeSet


def check_label_maps(
    found: Iterable[Any], volumes: VolumeSet, n_labels: int, who: str
) -> Iterator[tuple[VolumeScan, np.ndarray]]:
    """The label maps of `volumes` in turn as they are kept: uint8 [X, Y, Z], set to 0 outside the brain.

    found: what `VolumeSegmenter.segment` returned. who: the segmenter's id, for messages. Raises MethodError for too
    few or too many, another type or shape, and labels beyond n_labels - 1. One map is held at a time.
    """
    maps = iter(found)
    for index, scan in enumerate(volumes.scans):
        where, made = f"{who}: the label map of {scan.id}", next(maps, None)
        if made is None:
            raise MethodError(f"{where} is missing: {index} of {len(volumes)} volumes were segmented")
        labels = np.asarray(made)
        if labels.shape != scan.shape or labels.dtype != np.uint8:
            raise MethodError(f"{where} must be uint8 {list(scan.shape)}, got {labels.dtype} {list(labels.shape)}")
        if int(labels.max()) >= n_labels:
            raise MethodError(f"{where} holds {int(labels.max())}; labels go from 0 to {n_labels - 1}")
        yield scan, np.where(volumes[index].mask, labels, np.uint8(0))
    if next(maps, None) is not None:
        raise MethodError(f"{who}: there are more label maps than the {len(volumes)} volumes")


def check_ages(found: object, scans: int) -> AgePredictions:
    """Predictions as promised. Raises MethodError for another type, shape, or a value that cannot be."""
    if not isinstance(found, AgePredictions):
        raise MethodError(f"predict must return AgePredictions, got {type(found).__name__}")
    ages = np.asarray(found.ages, np.float64)
    sds = None if found.sds is None else np.asarray(found.sds, np.float64)
    for name, values in (("ages", ages), ("sds", sds)):
        if values is not None and values.shape != (scans,):
            raise MethodError(f"{name} must be of {scans} scans, [{scans}], got {list(values.shape)}")
        if values is not None and not np.isfinite(values).all():
            raise MethodError(f"{name} are not finite for {int((~np.isfinite(values)).sum())} of {scans} scans")
    if sds is not None and (sds < 0).any():
        raise MethodError("sds must not be negative")
    return AgePredictions(ages, sds)

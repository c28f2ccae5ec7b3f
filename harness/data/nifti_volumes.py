"""Whole volumes and label maps of real scans: the stage functions.

Files are read in closest-canonical orientation, one scan at a time, and cropped to the brain; nothing is resampled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.brain_age import Volume, VolumeScan
from harness.data import volumes
from harness.data.schema import Intensity, Shift
from harness.data.shift import apply_shift
from harness.data.volume_sets import Box, cropped, kept_box, save_regions, save_volumes
from harness.engine.plan import seed_of
from harness.engine.worker import StageRun


def nifti_volumes(run: StageRun) -> None:
    """Scale and crop the scans of a chunk; leaves a volume set."""
    save_volumes(run.out, _scaled(run))


def nifti_regions(run: StageRun) -> None:
    """Group and crop the label maps of a chunk; leaves a region set on the voxels of its volumes."""
    save_regions(run.out, run.params["names"], run.params["ignored"], _grouped(run))


def outside(labels: npt.NDArray[np.uint8], box: Box, ignored: Sequence[int]) -> int:
    """Voxels of regions that `box` cuts off: where there are any, features of the kept ones are wrong."""
    regions = ~np.isin(np.arange(256), [0, *ignored])[labels]
    return int(regions.sum() - regions[box].sum())


def _scaled(run: StageRun) -> Iterator[tuple[VolumeScan, Volume]]:
    params = run.params
    percentile = Intensity.model_validate(params["intensity"]).percentile
    shift = Shift.model_validate(params["shift"]) if params["shift"] else None
    for who in params["scans"]:
        head = _head(run, who)
        unit = volumes.to_unit(head.image, head.mask, percentile)
        if shift is not None:
            seeds = [seed_of("shift", params["site"], shift.seed, *more) for more in ((), (who["id"],))]
            unit = apply_shift(unit, head.mask, head.scan.spacing, shift, *seeds)
            # A scanner's scale is its own: the percentile becomes 1 again, as for any real scan.
            if percentile is not None:
                unit = volumes.to_unit(unit, head.mask, percentile)
        yield head.scan, Volume(unit, head.mask)


def _grouped(run: StageRun) -> Iterator[tuple[VolumeScan, npt.NDArray[np.uint8]]]:
    params = run.params
    for who in params["scans"]:
        head = _head(run, who)
        path = _path(run.local, who["id"], "label")
        labels, unknown = volumes.group_labels(volumes.read_integers(path, run.local["most_voxels"]), params["groups"])
        if unknown or labels.shape != head.scan.whole:
            raise ValueError(f"{path}: labels do not fit the table or the image; audit the data set again")
        lost = outside(labels, head.box, params["ignored"])
        if lost:
            raise ValueError(f"{path}: {lost} voxels of regions lie beyond the margin; audit the data set again")
        yield head.scan, labels[head.box]


@dataclass(frozen=True, eq=False)
class _Head:
    """Image and mask within the box that is kept, and what the scan is."""

    scan: VolumeScan
    image: volumes.Float
    mask: volumes.Bool
    box: Box


def _head(run: StageRun, who: Mapping[str, Any]) -> _Head:
    local, most = run.local, run.local["most_voxels"]
    image, voxel = volumes.read_image(_path(local, who["id"], "image"), most)
    masked = "mask" in local["files"][who["id"]]
    mask = volumes.read_mask(_path(local, who["id"], "mask"), most) if masked else image > 0
    if mask.shape != image.shape:
        raise ValueError(f"{who['id']}: mask {mask.shape} and image {image.shape} differ; audit the data set again")
    box = kept_box(mask, run.params["margin"])
    known = {**who, "site": run.params["site"], "modality": run.params["modality"]}
    return _Head(cropped(known, box, image.shape, voxel), image[box], mask[box], box)


def _path(local: Mapping[str, Any], scan: str, role: str) -> Path:
    return Path(local["root"]) / local["files"][scan][role]

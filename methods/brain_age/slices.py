"""Slices through the middle of the brain, cut from volumes at a fixed size: what networks on slices read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.api import MethodError
from harness.brain_age import Volume, VolumeScan, VolumeSet

Plane = Literal["sagittal", "coronal", "axial"]

ACROSS: dict[str, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
IN_PLANE: dict[str, tuple[int, int]] = {"sagittal": (2, 1), "coronal": (2, 0), "axial": (0, 1)}
"""Axes of a volume (x, y, z) along the rows and the columns of a slice: the longer side of a head is a row's."""


@dataclass(frozen=True)
class Cut:
    """How slices are cut from a volume, all about the middle of the box that holds its brain.

    planes:   each gives `slices` slices, in this order.
    size:     rows and columns; what lies outside is cut off, what is missing is 0.
    pixel_mm: slices are resampled to this, linearly, and averaged over a pixel where voxels are smaller; None takes
              the voxels as they are.
    apart_mm: between two slices, each the voxels' own that is nearest; None: neighbours. Those that would lie
              beyond the brain are its last.
    """

    planes: tuple[Plane, ...]
    slices: int
    size: tuple[int, int]
    pixel_mm: float | None = None
    apart_mm: float | None = None

    @property
    def count(self) -> int:
        """Slices of a scan."""
        return len(self.planes) * self.slices

    def of(self, volume: Volume, scan: VolumeScan) -> np.ndarray:
        """float16 [planes × slices, rows, columns] in 0..1. Raises MethodError for a scan without a brain."""
        box = brain_box(volume.mask)
        if box is None:
            raise MethodError(f"scan {scan.id} has no brain voxel; leave it out, or mend its mask")
        found = np.empty((self.count, *self.size), np.float16)
        for number, plane in enumerate(self.planes):
            axis, (rows, columns) = ACROSS[plane], IN_PLANE[plane]
            along_rows, along_columns = (
                line_weights(volume.mask.shape[a], box[a], scan.spacing[a], count, self.pixel_mm)
                for a, count in zip((rows, columns), self.size, strict=True)
            )
            step = 1.0 if self.apart_mm is None else self.apart_mm / scan.spacing[axis]
            for offset, place in enumerate(central(box[axis], self.slices, step)):
                slab = np.take(volume.image, place, axis=axis)  # its axes are in the volume's order
                image = slab if rows < columns else slab.T
                found[number * self.slices + offset] = np.clip(along_rows @ image @ along_columns.T, 0, 1)
        return found


def cut_all(volumes: VolumeSet, cut: Cut) -> np.ndarray:
    """Slices of all scans, float16 [scans, planes × slices, rows, columns]; one volume is in memory at a time."""
    found = np.empty((len(volumes), cut.count, *cut.size), np.float16)
    for index, scan in enumerate(volumes.scans):
        found[index] = cut.of(volumes[index], scan)
    return found


def in_chunks(volumes: VolumeSet, cut: Cut, scans: int) -> Iterator[tuple[slice, np.ndarray]]:
    """`cut_all` of so many scans at a time, and which they are."""
    for start in range(0, len(volumes), scans):
        chosen = slice(start, min(start + scans, len(volumes)))
        yield chosen, cut_all(volumes.take(range(chosen.start, chosen.stop)), cut)


def brain_box(mask: np.ndarray) -> tuple[tuple[int, int], ...] | None:
    """First and last voxel of the brain along each axis of a mask [X, Y, Z]; None where there is none."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(inside):
            return None
        box.append((int(inside[0]), int(inside[-1])))
    return tuple(box)


def central(extent: tuple[int, int], count: int, step: float) -> list[int]:
    """`count` places about the middle of `extent` (first, last), `step` apart before rounding, none beyond it."""
    first, last = extent
    places = (first + last) / 2 + (np.arange(count) - (count - 1) / 2) * step
    # Halves go up, all alike: rounding to even would take one slice twice and leave out its neighbour.
    return [int(place) for place in np.clip(np.floor(places + 0.5), first, last)]


def line_weights(
    length: int, extent: tuple[int, int], spacing: float, count: int, pixel_mm: float | None
) -> np.ndarray:
    """Weights [count, length] that make `count` pixels about the middle of `extent` of `length` voxels.

    A pixel is the mean of the voxels within one pixel, or one voxel where those are larger, of its centre, weighted by
    a triangle. Voxels beyond the line count as 0. Without `pixel_mm` each pixel is one voxel.
    """
    step = 1.0 if pixel_mm is None else pixel_mm / spacing
    places = sum(extent) / 2 + (np.arange(count) - (count - 1) / 2) * step
    if pixel_mm is None:
        places = np.floor(places)  # a middle between two voxels would blur them
    radius = max(step, 1.0)
    voxels = np.arange(int(np.floor(places[0] - radius)), int(np.ceil(places[-1] + radius)) + 1)
    weights = np.clip(1 - np.abs(places[:, None] - voxels) / radius, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    inside = (voxels >= 0) & (voxels < length)
    found = np.zeros((count, length), np.float32)
    found[:, voxels[inside]] = weights[:, inside]
    return found

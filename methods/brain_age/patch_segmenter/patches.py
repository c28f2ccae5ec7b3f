"""Cubic patches of volumes and their label maps, read where they lie: no volume is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from harness.api import MethodError
from harness.brain_age import RegionSet, Volume, VolumeSet

TRIES = 1000  # patches in a row that hold too little before training gives up

Patch = tuple[np.ndarray, np.ndarray]
"""Image float32 [P, P, P], labels uint8 [P, P, P]."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Where patches lie: cubes of `size` voxels a side, `stride` apart, the first up to `jitter` before the brain.

    least: what the labels of a patch must add up to for it to be learnt from.
    """

    size: int
    stride: int
    jitter: int
    least: int

    def counts(self, extents: np.ndarray) -> np.ndarray:
        """Patches along each axis that reach the end of boxes of these extents, int64 of the same shape."""
        return 1 + np.maximum(0, -(-(extents - self.size) // self.stride))


class PatchSource:
    """The patches of some scans. Reads every mask once, for the brain's box.

    Raises MethodError where no scan has a brain, and later where a label map does not fit its volume.
    """

    def __init__(self, volumes: VolumeSet, regions: RegionSet, grid: Grid, split: str):
        if len(volumes) != len(regions):
            raise MethodError(f"there are {len(volumes)} {split} volumes, but {len(regions)} label maps")
        self.volumes, self.regions, self.grid, self.split = volumes, regions, grid, split
        self.known = np.arange(256, dtype=np.uint8)
        self.known[list(regions.ignored)] = 0
        boxes = [brain_box(volume.mask) for volume in volumes]
        self.starts = np.array([box[0] for box in boxes], np.int64).reshape(-1, 3)
        self.extents = np.array([box[1] for box in boxes], np.int64).reshape(-1, 3)
        self.per_scan = np.where(self.extents.all(1), grid.counts(self.extents).prod(1), 0)
        if not len(self):
            raise MethodError(f"no {split} volume has a brain; give that split scans with a brain mask")

    def __len__(self) -> int:
        """Patches of a grid that starts where the brain does."""
        return int(self.per_scan.sum())

    def draw(self, rng: np.random.Generator) -> Patch:
        """One patch, all of the grid alike: its scan by how many it has, then the grid's start, then its place.

        Drawn again while it holds no brain or too few labels.
        """
        for _ in range(TRIES):
            index = int(np.searchsorted(self.per_scan.cumsum(), rng.integers(len(self)), side="right"))
            start, counts = self._shifted(rng, index)
            place = start + self.grid.stride * rng.integers(counts)
            patch = self._read(index, self.volumes[index], self.regions[index], place)
            if patch is not None:
                return patch
        raise MethodError(
            f"of {TRIES} {self.split} patches none has labels that add up to {self.grid.least}; lower least_labels, or "
            "give that split scans with labels"
        )

    def every(self, rng: np.random.Generator) -> Iterator[Patch]:
        """All patches that can be learnt from, scan by scan, each scan's grid shifted once."""
        for index in np.flatnonzero(self.per_scan):
            start, counts = self._shifted(rng, int(index))
            volume, labels = self.volumes[int(index)], self.regions[int(index)]
            for cell in product(*map(range, counts)):
                patch = self._read(int(index), volume, labels, start + self.grid.stride * np.array(cell))
                if patch is not None:
                    yield patch

    def _shifted(self, rng: np.random.Generator, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the scan's grid starts this time, and its patches along each axis."""
        shift = rng.integers(self.grid.jitter + 1, size=3)
        return self.starts[index] - shift, self.grid.counts(self.extents[index] + shift)

    def _read(self, index: int, volume: Volume, labels: np.ndarray, start: np.ndarray) -> Patch | None:
        name, n = self.volumes.scans[index].id, len(self.regions.names)
        if labels.shape != volume.mask.shape:
            raise MethodError(f"scan {name}: its label map is {labels.shape} voxels, its volume {volume.mask.shape}")
        mask = window(volume.mask, start, self.grid.size)
        if not mask.any():
            return None
        found = self.known[window(labels, start, self.grid.size)]
        if int(found.max()) >= n:
            raise MethodError(f"scan {name}: label {found.max()} has no name; there are names for 0..{n - 1}")
        if int(found.sum(dtype=np.int64)) < self.grid.least:
            return None
        return window(volume.image, start, self.grid.size) * mask, found


def brain_box(mask: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(first voxel, extent) of the box around what is True in `mask` [X, Y, Z]; extents are 0 where nothing is."""
    found = []
    for axis in range(3):
        places = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        found.append((int(places[0]), int(places[-1] - places[0] + 1)) if len(places) else (0, 0))
    return tuple(start for start, _ in found), tuple(extent for _, extent in found)


def window(array: np.ndarray, start: np.ndarray | tuple[int, ...], size: int | tuple[int, ...]) -> np.ndarray:
    """A copy of so many voxels of `array` [X, Y, Z] from `start` on, which may lie outside: there it is 0."""
    sizes = (size,) * 3 if isinstance(size, int) else size
    out = np.zeros(sizes, array.dtype)
    first = [max(0, int(s)) for s in start]
    last = [min(n, int(s) + p) for n, s, p in zip(array.shape, start, sizes, strict=True)]
    if all(a < b for a, b in zip(first, last, strict=True)):
        into = tuple(slice(a - int(s), b - int(s)) for a, b, s in zip(first, last, start, strict=True))
        out[into] = array[tuple(slice(a, b) for a, b in zip(first, last, strict=True))]
    return out

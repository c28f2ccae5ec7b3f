"""Volumes into slices: closest-canonical orientation, label grouping, cutting, and 8-bit grey levels.

Volumes are [X, Y, Z] with x to the right, y anterior, z superior. Slices are [n, H, W] with superior (axial:
anterior) at row 0 and the subject's left (sagittal: posterior) at column 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.imagefile import canonical, open_image, read_voxels
from harness.data.schema import MOST_VOXELS, Slices

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Ranges = Sequence[Sequence[int]]
"""(lowest id, highest id, label), later entries before earlier ones."""

SAME = 1e-3
"""Pixels whose size differs by less than this fraction are the same: nothing is resampled."""


def read_image(path: Path, most_voxels: int = MOST_VOXELS) -> tuple[Float, tuple[float, float, float]]:
    """Intensities [X, Y, Z], and the voxel's size in mm. Raises BadImage, as the next two do."""
    image = canonical(open_image(path, most_voxels))
    x, y, z = (float(size) for size in image.header.get_zooms()[:3])
    return read_voxels(image, np.float32), (x, y, z)


def read_mask(path: Path, most_voxels: int = MOST_VOXELS) -> Bool:
    """A brain mask [X, Y, Z]: above 0.5, so that 0/1, 0/255 and probabilities all read as meant."""
    return read_voxels(canonical(open_image(path, most_voxels))) > 0.5


def read_integers(path: Path, most_voxels: int = MOST_VOXELS) -> npt.NDArray[np.int64]:
    """Label ids [X, Y, Z]. Raises ValueError for values that are no whole numbers, or too large for one."""
    values = read_voxels(canonical(open_image(path, most_voxels)))
    if not are_integers(values):
        raise ValueError(f"{path}: labels must be whole numbers")
    return values.astype(np.int64)


def are_integers(values: npt.NDArray[Any]) -> bool:
    """Whether all values are whole numbers that int64 holds."""
    if values.dtype.kind == "f":
        return bool(np.all((np.abs(values) < 2**63) & (values == np.rint(values))))
    return values.dtype != np.uint64 or int(values.max()) < 2**63


def group_labels(ids: npt.NDArray[np.integer], ranges: Ranges) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """Ids to labels 0..254, and the ids that no range holds (their voxels become background)."""
    values, inverse = np.unique(ids, return_inverse=True)
    labels = np.full(len(values), 255, np.uint8)
    for low, high, label in ranges:
        labels[(values >= low) & (values <= high)] = label
    unknown = [int(value) for value in values[labels == 255]]
    labels[labels == 255] = 0
    return labels[inverse].reshape(ids.shape), unknown


def to_unit(image: Float, mask: Bool, percentile: float | None) -> Float:
    """Intensities in 0..1, 0 outside the brain: its given percentile becomes 1; None means 8-bit levels, 255 is 1.

    Raises ValueError where the brain is black.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # levels of any size: what overflows is clipped
        top = 255.0 if percentile is None else float(np.percentile(image[mask], percentile))
        if not 0 < top < np.inf:
            raise ValueError(f"the brain's {percentile:g}th percentile is {top:g}: the image is empty")
        return np.where(mask, np.clip(image / np.float32(top), 0, 1), np.float32(0))


def eight_bits(unit: Float, mask: Bool) -> npt.NDArray[np.uint8]:
    """0..1 to grey levels 0..255, exactly 0 outside the mask."""
    return np.where(mask, np.rint(np.clip(unit, 0, 1) * np.float32(255)), 0).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ cutting

_AXES = {
    # plane: (slice axis, row axis, column axis); rows are then reversed
    "coronal": (1, 2, 0),
    "axial": (2, 1, 0),
    "sagittal": (0, 2, 1),
}


@dataclass(frozen=True)
class Cut:
    """How one scan is cut: fixed by its brain mask, applied alike to image, mask and labels.

    plane: key of the axes. indexes: slices taken, along the slice axis. middle: the brain's middle along (row,
    column), in voxels, rows still counted upwards. scale: voxels per pixel along (row, column); (1, 1) copies
    voxels. spacing: mm along (slice, row, column). extent: the brain's rows and columns, in pixels.
    """

    plane: str
    size: int
    indexes: tuple[int, ...]
    middle: tuple[float, float]
    scale: tuple[float, float]
    spacing: tuple[float, float, float]
    extent: tuple[float, float]

    @classmethod
    def of(cls, mask: Bool, voxel: tuple[float, float, float], slices: Slices, start: Sequence[int] = (0, 0, 0)) -> Cut:
        """The cut of a volume. start: place of the mask's first voxel in its file, which `slices.at` counts from.

        Raises ValueError for an empty mask, or where `slices.at` misses the brain.
        """
        axis, row, column = _AXES[slices.plane]
        low, high = brain_box(mask)
        before = start[axis]
        taken = tuple(i - before for i in _indexes(low[axis] + before, high[axis] + before, slices))
        step = (taken[-1] - taken[0]) / max(len(taken) - 1, 1) or 1.0
        pixel = [slices.pixel_mm or voxel[a] for a in (row, column)]
        scale = [p / voxel[a] for p, a in zip(pixel, (row, column), strict=True)]
        if all(abs(s - 1) < SAME for s in scale):
            scale, pixel = [1.0, 1.0], [voxel[row], voxel[column]]
        middle = [(low[a] + high[a] - 1) / 2 for a in (row, column)]
        extent = [(high[a] - low[a]) / s for s, a in zip(scale, (row, column), strict=True)]
        return cls(
            slices.plane,
            slices.size,
            taken,
            (middle[0], middle[1]),
            (scale[0], scale[1]),
            (step * voxel[axis], pixel[0], pixel[1]),
            (extent[0], extent[1]),
        )

    def labels(self, volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Slices [n, size, size] of labels or of a mask: nearest voxel, 0 where the volume ends."""
        return self._cut(volume, 0)

    def image(self, volume: Float) -> Float:
        """Slices [n, size, size] of intensities: copied, or linear where resampled.

        Before shrinking, a Gaussian of (scale - 1) / 2 voxels keeps fine detail from aliasing (as
        scikit-image does).
        """
        return self._cut(volume, 1)

    def _cut(self, volume: npt.NDArray[Any], order: int) -> npt.NDArray[Any]:
        planes = np.transpose(volume, _AXES[self.plane])[list(self.indexes), ::-1]
        middle = (planes.shape[1] - 1 - self.middle[0], self.middle[1])
        if self.scale == (1.0, 1.0):
            return _window(planes, middle, self.size)
        from scipy import ndimage

        start = [m - (self.size - 1) / 2 * s for m, s in zip(middle, self.scale, strict=True)]
        out = np.zeros((len(planes), self.size, self.size), planes.dtype)
        for index, plane in enumerate(planes):
            if order == 1:
                plane = ndimage.gaussian_filter(plane, [max(0.0, (s - 1) / 2) for s in self.scale], mode="constant")
            flat = plane.astype(np.uint8) if plane.dtype == np.bool_ else plane
            out[index] = ndimage.affine_transform(
                flat, self.scale, offset=start, output_shape=out.shape[1:], order=order, mode="constant"
            )
        return out


def brain_box(mask: Bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First and one past the last index of the mask along each axis. Raises ValueError if it is empty."""
    low, high = [], []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(inside):
            raise ValueError("the brain mask is empty")
        low.append(int(inside[0]))
        high.append(int(inside[-1]) + 1)
    return tuple(low), tuple(high)


def _indexes(low: int, high: int, slices: Slices) -> tuple[int, ...]:
    """Slices taken from low..high-1: those in the middle of `count` equal parts of the range, each once."""
    if slices.at is not None:
        first, last = float(max(low, slices.at[0])), float(min(high, slices.at[1] + 1))
        if first >= last:
            raise ValueError(f"slices.at {list(slices.at)} lies outside the brain, {low} to {high - 1}")
    else:
        first = low + slices.range[0] * (high - low)
        last = low + slices.range[1] * (high - low)
    if slices.count == "all":
        return tuple(range(int(np.ceil(first - 0.5)), int(np.ceil(last - 0.5)))) or (int((first + last) / 2),)
    middles = first + (np.arange(slices.count) + 0.5) * (last - first) / slices.count
    return tuple(dict.fromkeys(int(m) for m in middles))


def _window(planes: npt.NDArray[Any], middle: tuple[float, float], size: int) -> npt.NDArray[Any]:
    """Crop or pad to size × size about the middle, voxel for voxel."""
    out = np.zeros((len(planes), size, size), planes.dtype)
    target: list[slice] = [slice(None)]
    source: list[slice] = [slice(None)]
    for length, centre in zip(planes.shape[1:], middle, strict=True):
        start = int(np.floor(centre - (size - 1) / 2 + 0.5))
        target.append(slice(max(0, -start), max(0, min(size, length - start))))
        source.append(slice(max(0, start), max(0, min(length, start + size))))
    out[tuple(target)] = planes[tuple(source)]
    return out

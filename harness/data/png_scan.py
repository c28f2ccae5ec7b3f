"""A scan's slices as one volume, so that all that is done to volumes is done to them: grey levels, shifts, cutting.

A volume is [X, Y, Z] as in `harness.data.volumes`. How slices lie in it is said by the card: their plane, row 0
superior (axial: anterior), column 0 left (sagittal: posterior), and their order rises along the third axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import volumes
from harness.data.imagefile import BadImage
from harness.data.png_reader import read_slice
from harness.data.schema import MOST_VOXELS


@dataclass(frozen=True, eq=False)
class Head:
    """The image [X, Y, Z] of a scan, and where its brain is."""

    image: volumes.Float
    mask: volumes.Bool


def voxel_size(spacing: Sequence[float], plane: str) -> tuple[float, float, float]:
    """Size in mm along x, y and z of voxels whose spacing is given along (slice, row, column)."""
    along = dict(zip(volumes._AXES[plane], spacing, strict=True))
    return along[0], along[1], along[2]


def stack(slices: Sequence[npt.NDArray[Any]], plane: str) -> npt.NDArray[Any]:
    """Slices [H, W] of one scan as a volume [X, Y, Z]."""
    upwards = np.stack(slices)[:, ::-1]
    return np.transpose(upwards, np.argsort(volumes._AXES[plane]))


def read_volume(
    root: Path, paths: Sequence[str], plane: str, most_voxels: int = MOST_VOXELS
) -> npt.NDArray[np.uint8 | np.uint16]:
    """Slices, each a file below the root, as a volume of the values that are stored.

    A file that serves several slices is read once. Raises FileNotFoundError, or BadImage for what is no grey image, for
    slices of different sizes, and for more than `most_voxels` in all.
    """
    read: dict[str, npt.NDArray[Any]] = {}
    for path in paths:
        if path in read:
            continue
        try:
            pixels = read_slice(root / path).pixels
        except BadImage as error:
            raise BadImage(f"{path}: {error}") from None
        if pixels.size * len(paths) > most_voxels:
            raise BadImage(f"{path}: {len(paths)} slices of its size have more than {most_voxels:,} pixels")
        if read and pixels.shape != read[paths[0]].shape:
            ours, first = (" × ".join(map(str, shape)) for shape in (pixels.shape, read[paths[0]].shape))
            raise BadImage(f"{path}: it has {ours} pixels, the scan's first slice {first}")
        read[path] = pixels
    return stack([read[path] for path in paths], plane)


def read_head(root: Path, files: Mapping[str, Sequence[str]], plane: str, most_voxels: int = MOST_VOXELS) -> Head:
    """The image of a scan, and its brain: where the mask is above 0, or without one the image. Raises BadImage."""
    image = read_volume(root, files["image"], plane, most_voxels)
    inside = read_volume(root, files["mask"], plane, most_voxels) if files.get("mask") else image
    if inside.shape != image.shape:
        raise BadImage(f"{files['mask'][0]}: masks and images of the scan differ in size; audit the data set again")
    return Head(image.astype(np.float32), inside > 0)

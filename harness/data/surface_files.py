"""Numbers and labels of the vertices of a cortical surface, from GIFTI and CIFTI files; nibabel decodes them.

Files are untrusted: their size is judged first, and a GIFTI file that refers to another file is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.data.imagefile import BadImage, decoding
from harness.untrusted import open_regular

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")

LARGEST_FILE = 256 * 2**20
"""Bytes. A map of the finest surfaces in use, 330,000 vertices, takes 4 MB as text."""

MOST_VERTICES = 2**22

_STRUCTURE = {"left": "CIFTI_STRUCTURE_CORTEX_LEFT", "right": "CIFTI_STRUCTURE_CORTEX_RIGHT"}

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class OnSurface:
    """What a file says of one hemisphere.

    values: float64 [vertices]. there: bool [vertices], for CIFTI files leave the medial wall out. names: labels' by
    value.
    """

    values: Floats
    there: Bools
    names: dict[int, str]


def read_surface(path: Path, side: Side) -> OnSurface:
    """A map of one hemisphere. Raises FileNotFoundError, or BadImage with what is wrong with the file."""
    with decoding():
        found = _cifti(path, side) if path.name.lower().endswith(".nii") else _gifti(path)
    if not 0 < len(found.values) <= MOST_VERTICES:
        raise BadImage(f"it has {len(found.values):,} vertices, which no hemisphere has")
    return found


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST_FILE:
            raise BadImage(f"it has {size / 2**20:.0f} MiB, more than any map of a cortex")
        return file.read()


def _gifti(path: Path) -> OnSurface:
    import nibabel as nib

    # From memory, so that a reference to another file leads nowhere.
    image = nib.GiftiImage.from_bytes(_content(path))
    maps = [array.data for array in image.darrays]
    if len(maps) != 1 or maps[0].ndim != 1:
        raise BadImage(f"it holds {len(maps)} arrays, where one number for each vertex is needed")
    names = {int(key): str(name) for key, name in image.labeltable.get_labels_as_dict().items()}
    values = np.asarray(maps[0], np.float64)
    return OnSurface(values, np.ones(len(values), bool), names)


def _cifti(path: Path, side: Side) -> OnSurface:
    import nibabel as nib

    image = nib.Cifti2Image.from_bytes(_content(path))
    axes = [image.header.get_axis(i) for i in range(image.ndim)]
    if len(axes) != 2 or not isinstance(axes[1], nib.cifti2.BrainModelAxis):
        raise BadImage("it holds no map of the cortex: a dscalar or dlabel file is needed")
    maps, models = axes
    if len(maps) != 1:
        raise BadImage(f"it holds {len(maps)} maps, where one number for each vertex is needed")
    data = np.asarray(image.dataobj, np.float64)[0]
    for structure, place, model in models.iter_structures():
        if structure == _STRUCTURE[side]:
            return _spread(data[place], model, structure, _names(maps))
    raise BadImage(f"it does not hold the {side} cortex")


def _spread(data: Floats, model: Any, structure: str, names: dict[int, str]) -> OnSurface:
    """Numbers of some vertices on the whole hemisphere."""
    length = int(model.nvertices[structure])
    if length > MOST_VERTICES:
        raise BadImage(f"it claims {length:,} vertices, which no hemisphere has")
    values, there = np.zeros(length), np.zeros(length, bool)
    values[model.vertex], there[model.vertex] = data, True
    return OnSurface(values, there, names)


def _names(maps: Any) -> dict[int, str]:
    labels = getattr(maps, "label", None)
    return {} if labels is None else {int(key): str(entry[0]) for key, entry in labels[0].items()}

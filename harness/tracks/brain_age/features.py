"""Regional features of a label volume.

Two numbers per region. Its relational volume is its share of all counted voxels. Its surface-to-volume ratio is the
share of its voxels that are not interior, where a voxel is interior if all 26 neighbours lie in the same region. The
published code finds interior voxels by an average over 3 × 3 × 3 voxels without padding, so a voxel on the volume's
border, some of whose neighbours are unknown, is never interior. Here all regions are counted together, in whole
numbers: one pass over the volume sorts its voxels into regions and a second finds the interior ones. Flips and
permutations of the axes therefore leave every feature as it is, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from harness.data.volumes import SAME, are_integers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NAMED = 5
"""How many labels or columns a message lists by number."""


@dataclass(frozen=True)
class Regions:
    """Which labels are regions, in the order of their features.

    ids: labels of the regions, distinct and positive. ignored: labels that count as background, as 0 always does.
    Any other label in a volume is refused: it was made with another table, or should be named here.
    names: one per id, distinct; "label 7" and so on where none are given. Raises ValueError.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...] = ()
    ignored: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        both = (*self.ids, *self.ignored)
        if not self.ids:
            raise ValueError("a table of regions needs at least one label id")
        if min(both) < 1 or max(both) >= 2**63:
            raise ValueError(f"label ids of regions lie in 1..2**63-1, not {min(both) if min(both) < 1 else max(both)}")
        if len(set(both)) < len(both):
            twice = sorted({i for i in both if both.count(i) > 1})
            raise ValueError(f"label ids stand twice in the table of regions: {_listed(twice)}")
        names = self.names or tuple(f"label {i}" for i in self.ids)
        if len(names) != len(self.ids):
            raise ValueError(f"{len(names)} names for {len(self.ids)} regions: give one for each, or none")
        if len(set(names)) < len(names):
            raise ValueError(f"regions share a name: {sorted({n for n in names if names.count(n) > 1})[0]!r}")
        object.__setattr__(self, "names", names)


PUBLISHED = Regions(ids=tuple(i for i in range(1, 88) if i != 84), ignored=(84,))
"""The 87 neonatal labels without 84, the background outside of the head: 86 regions, 172 features.

The paper speaks of 87 structures; its code sets 84 to background first. 83 and 85, fluid and the background within
the head, are no brain tissue, yet count as regions and in every relational volume.
"""


@dataclass(frozen=True, eq=False)
class RegionalFeatures:
    """Features of one volume, in the order of its table of regions.

    relational_volume: float64 [regions], voxels of the region over the voxels of all regions; sums to 1.
    surface_ratio: float64 [regions], the share of its voxels that are not interior, in 0..1.
    A region without voxels has the relational volume 0, which is its size, and the surface ratio nan, for it has no
    surface to speak of; what stands in for it is for whoever fits the regression to choose (1 is what a region
    shrinks towards).
    spacing: the voxel's size in mm where it was given. It enters no feature, but the surface ratio depends on it:
    compare volumes of one voxel size only.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    relational_volume: Floats
    surface_ratio: Floats
    spacing: tuple[float, float, float] | None = None

    def vector(self) -> Floats:
        """float64 [2 × regions]: all relational volumes, then all surface ratios."""
        return np.concatenate([self.relational_volume, self.surface_ratio])

    def columns(self) -> tuple[str, ...]:
        """What the entries of `vector` are called."""
        return tuple(f"{kind} of {name}" for kind in ("relational volume", "surface ratio") for name in self.names)


def regional_features(
    labels: NDArray[Any],
    regions: Regions = PUBLISHED,
    spacing: Sequence[float] | None = None,
) -> RegionalFeatures:
    """Relational volume and surface-to-volume ratio of every region of a label volume [X, Y, Z].

    labels: whole numbers of any type, at least 0. spacing: the voxel's size in mm along the axes; None: not checked.
    The published features ignore the voxel's size, as all volumes there have cubes of 0.5 mm; of voxels that are no
    cubes, the surface ratio would depend on how a region is turned.
    Raises ValueError, in one line, for other shapes, types, values or voxels, for labels that the table does not
    name, and where no voxel lies in any region.
    """
    size = _checked_spacing(spacing)
    volume = _whole_numbers(labels)
    known = np.array((0, *regions.ids, *regions.ignored), np.int64)
    order = np.argsort(known)
    known = known[order]
    region_of = np.where((order >= 1) & (order <= len(regions.ids)), order - 1, -1)
    voxels, interior = np.zeros((2, len(regions.ids)), np.int64)
    placed = np.empty(volume.shape, np.int32)
    if not _place(volume.reshape(-1), known, region_of, placed.reshape(-1), voxels):
        others = [int(value) for value in np.setdiff1d(volume, known)]
        raise ValueError(
            f"labels that are in the table of regions neither as counted nor as ignored: {_listed(others)}"
        )
    total = int(voxels.sum())
    if total == 0:
        raise ValueError(f"none of the {len(regions.ids)} regions has a voxel: the volume is empty")
    _count_interior(placed, interior)
    ratio = np.divide(voxels - interior, voxels, out=np.full(len(voxels), np.nan), where=voxels > 0)
    return RegionalFeatures(regions.ids, regions.names, voxels / total, ratio, size)


# ------------------------------------------------------------------------------------------------ parts


def _checked_spacing(spacing: Sequence[float] | None) -> tuple[float, float, float] | None:
    if spacing is None:
        return None
    sizes = tuple(float(size) for size in spacing)
    if len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise ValueError(f"a voxel has three sizes in mm above 0, not {', '.join(f'{size:g}' for size in sizes)}")
    if max(sizes) > (1 + SAME) * min(sizes):
        shown = " × ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"voxels of {shown} mm are no cubes: resample the labels")
    return sizes[0], sizes[1], sizes[2]


def _whole_numbers(labels: NDArray[Any]) -> Ints:
    """The volume as contiguous int64, its axes reversed where that saves a copy: no feature sees their order."""
    values = np.asarray(labels)
    if values.ndim != 3:
        raise ValueError(f"a label volume has 3 dimensions, not {values.ndim} ({' × '.join(map(str, values.shape))})")
    if values.size == 0:
        raise ValueError(f"the label volume has no voxel ({' × '.join(map(str, values.shape))})")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"labels must be whole numbers, not {values.dtype}")
    if not are_integers(values):
        raise ValueError(f"labels must be whole numbers below 2**63; some of these {values.dtype} are not")
    if (lowest := values.min()) < 0:
        raise ValueError(f"labels must be at least 0, not {int(lowest)}")
    if values.flags.f_contiguous:
        values = values.T
    return np.ascontiguousarray(values, np.int64)


def _listed(values: Sequence[int]) -> str:
    shown = ", ".join(map(str, values[:NAMED]))
    return shown if len(values) <= NAMED else f"{shown} and {len(values) - NAMED} more"


@numba.njit(cache=True)
def _place(labels, known, region_of, placed, voxels):  # type: ignore[no-untyped-def]
    """Fill `placed` with the region of each voxel, -1 for background, and count; False at a label not in `known`.

    known: sorted labels; region_of: the region of each, or -1.
    """
    last, region = np.int64(0), np.int64(-1)
    for i in range(labels.size):
        label = labels[i]
        if label != last:  # mostly a neighbour's
            low, high = 0, known.size
            while low < high:
                middle = (low + high) // 2
                if known[middle] < label:
                    low = middle + 1
                else:
                    high = middle
            if low == known.size or known[low] != label:
                return False
            last, region = label, region_of[low]
        placed[i] = region
        if region >= 0:
            voxels[region] += 1
    return True


@numba.njit(cache=True)
def _count_interior(placed, interior):  # type: ignore[no-untyped-def]
    """Add to `interior` the voxels of each region whose 26 neighbours all lie within the volume and the region.

    Along each line of voxels: the middle of three whose 3 × 3 cross-sections are all of one region is interior.
    """
    for x in range(1, placed.shape[0] - 1):
        for y in range(1, placed.shape[1] - 1):
            run, last = 0, -1
            for z in range(placed.shape[2]):
                region = placed[x, y, z]
                if (
                    region < 0
                    or placed[x, y - 1, z] != region
                    or placed[x, y + 1, z] != region
                    or placed[x - 1, y, z] != region
                    or placed[x + 1, y, z] != region
                    or placed[x - 1, y - 1, z] != region
                    or placed[x - 1, y + 1, z] != region
                    or placed[x + 1, y - 1, z] != region
                    or placed[x + 1, y + 1, z] != region
                ):
                    run = 0
                    continue
                run = run + 1 if run > 0 and region == last else 1
                last = region
                if run >= 3:
                    interior[region] += 1

"""The regions of a newborn's brain: names and numbers of DRAW-EM's 87, and a fixed parcellation of the template.

DRAW-EM (Makropoulos 2014, on the ALBERT atlases of Gousias 2012) numbers 87 structures; left comes first up to 19 and
in the temporal white matter and the ventricles, right first elsewhere. 84, outside the skull, does not exist here; the
other 86 do. Tissue and parcel decide a voxel's region: cortex and white matter of the cerebrum are divided among 16
parcels a side, each the points of the template nearest to its seeds. Seeds are places of gyri in MNI space, from memory
of common atlases; so the parcels resemble DRAW-EM's, and their borders are ours. Also ours: the third and fourth
ventricle count as CSF, the ventral diencephalon as the subthalamic nucleus, and intra-cranial background is the
outermost fluid along the venous sinuses and the skull base.

    1, 2     hippocampus                40, 41  caudate                       51-62  white matter of 5-16
    3, 4     amygdala                   42, 43  thalamus, bright in T2w       63-82  white matter of 20-39
    5-16     cortex of parcels 1 to 6   44, 45  subthalamic nucleus           83     CSF
    17, 18   cerebellum                 46, 47  lentiform nucleus             85     intra-cranial background
    19       brainstem                  48      corpus callosum               86, 87 thalamus, dark in T2w
    20-39    cortex of parcels 7 to 16  49, 50  lateral ventricle
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.phantom.template import MIDLINE_VENTRICLES, Point, template
from harness.phantom.warping import Float

Side = Literal["left", "right", ""]
Ids = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Region:
    """One structure: DRAW-EM's number, name, side ("" on the midline) and tissue (`GROUPS`, or intracranial)."""

    id: int
    name: str
    side: Side
    group: str


PARCELS: tuple[str, ...] = (
    "anterior_temporal_medial",
    "anterior_temporal_lateral",
    "parahippocampal_anterior",
    "superior_temporal_middle",
    "inferior_temporal_anterior",
    "fusiform_anterior",
    "insula",
    "occipital",
    "parahippocampal_posterior",
    "fusiform_posterior",
    "inferior_temporal_posterior",
    "superior_temporal_posterior",
    "cingulate_anterior",
    "cingulate_posterior",
    "frontal",
    "parietal",
)
"""Parcels of a cerebral hemisphere in the order of their numbers; "inferior_temporal" is the middle and inferior
gyrus, "parahippocampal_anterior" holds the gyrus ambiens."""

LEFT_FIRST = 6
"""So many of `PARCELS` are numbered left, right; the others right, left."""


def _pair(first: int, name: str, group: str, left_first: bool) -> tuple[Region, Region]:
    sides: tuple[Side, Side] = ("left", "right") if left_first else ("right", "left")
    return Region(first, name, sides[0], group), Region(first + 1, name, sides[1], group)


def _table() -> tuple[Region, ...]:
    grey = [5 + 2 * k if k < LEFT_FIRST else 20 + 2 * (k - LEFT_FIRST) for k in range(len(PARCELS))]
    regions = [
        *_pair(1, "hippocampus", "hippocampus_amygdala", True),
        *_pair(3, "amygdala", "hippocampus_amygdala", True),
        *_pair(17, "cerebellum", "cerebellum", True),
        Region(19, "brainstem", "", "brainstem"),
        *_pair(40, "caudate", "deep_GM", False),
        *_pair(42, "thalamus_high_T2", "deep_GM", False),
        *_pair(44, "subthalamic", "deep_GM", False),
        *_pair(46, "lentiform", "deep_GM", False),
        Region(48, "corpus_callosum", "", "WM"),
        *_pair(49, "lateral_ventricle", "ventricles", True),
        Region(83, "CSF", "", "CSF"),
        Region(85, "intracranial_background", "", "intracranial"),
        *_pair(86, "thalamus_low_T2", "deep_GM", False),
    ]
    for k, name in enumerate(PARCELS):
        regions += _pair(grey[k], f"{name}_GM", "cortical_GM", k < LEFT_FIRST)
        regions += _pair(51 + 2 * k, f"{name}_WM", "WM", k < LEFT_FIRST)
    return tuple(sorted(regions, key=lambda region: region.id))


REGIONS: tuple[Region, ...] = _table()
"""The 86 regions by number: 1 to 87 without 84."""

_ID: Mapping[tuple[str, Side], int] = {(region.name, region.side): region.id for region in REGIONS}


def region(name: str, side: Side = "") -> int:
    """Number of a region; raises KeyError for what is not in `REGIONS`."""
    return _ID[name, side]


def label_names() -> tuple[str, ...]:
    """Names by number, 0 to 87, as label tables have them: "left_hippocampus". 84 is there too, outside the skull."""
    names = {one.id: f"{one.side}_{one.name}" if one.side else one.name for one in REGIONS}
    return tuple({0: "background", 84: "extracranial_background", **names}[number] for number in range(88))


# ------------------------------------------------------------------------------------------- parcellation

SEEDS: Mapping[str, tuple[Point, ...]] = {
    "anterior_temporal_medial": ((29, 8, -36), (26, 2, -38), (34, 14, -36), (34, 4, -30)),
    "anterior_temporal_lateral": ((44, 14, -28), (40, 10, -30), (50, 10, -22)),
    "parahippocampal_anterior": ((22, -9, -28), (18, -4, -24), (24, -16, -26), (30, -4, -25), (29, -14, -25)),
    "superior_temporal_middle": ((55, 0, -8), (50, -10, 0), (57, -12, 0), (45, -8, -10)),
    "inferior_temporal_anterior": ((54, -4, -26), (48, -8, -38), (58, -12, -22), (44, -6, -24)),
    "fusiform_anterior": ((36, -14, -34), (34, -22, -28), (38, -14, -29), (38, -24, -24)),
    "insula": ((38, 5, 0), (36, 17, -5), (38, -8, 6), (35, 18, 5), (37, -16, 2)),
    "occipital": (
        (10, -82, 25), (12, -76, 8), (15, -74, -6), (24, -84, 28), (36, -84, 15), (36, -84, -8), (15, -97, 2),
        (24, -78, 10), (38, -74, 4),
    ),
    "parahippocampal_posterior": ((20, -32, -15), (16, -42, -6), (24, -28, -20)),
    "fusiform_posterior": ((34, -40, -20), (36, -58, -17), (30, -50, -14)),
    "inferior_temporal_posterior": ((60, -30, -10), (56, -42, -18), (52, -60, 2), (48, -34, -10), (44, -52, -4)),
    "superior_temporal_posterior": ((60, -26, 8), (60, -40, 14), (46, -28, 10), (44, -42, 12)),
    "cingulate_anterior": ((6, 38, 12), (6, 25, 25), (6, 10, 34), (5, 34, -5), (10, 34, 14), (10, 14, 32)),
    "cingulate_posterior": ((6, -12, 38), (6, -32, 38), (7, -46, 24), (10, -22, 38), (11, -44, 28)),
    "frontal": (
        (14, 56, 20), (18, 35, 45), (15, 10, 62), (22, -5, 62), (40, 33, 28), (38, 15, 48), (35, 55, 5), (50, 15, 15),
        (48, 30, 5), (38, -10, 54), (54, 0, 30), (14, -20, 70), (15, 45, -18), (30, 35, -16), (10, 24, -22),
        (42, 38, -12), (7, 58, 5), (7, 55, 28), (7, 40, 40), (6, 15, 56), (6, -8, 62), (22, 36, 12), (25, 15, 32),
        (25, -5, 40), (24, 20, 4), (26, 4, 22), (12, 10, -16),
    ),
    "parietal": (
        (42, -26, 52), (56, -18, 32), (20, -36, 68), (25, -58, 62), (15, -70, 52), (48, -46, 48), (56, -36, 34),
        (46, -62, 38), (8, -56, 52), (8, -66, 38), (25, -40, 40), (25, -56, 36), (28, -24, 34), (30, -36, 24),
    ),
}  # fmt: skip
"""Points of every parcel, right side, mm RAS of the template."""

CALLOSUM: tuple[tuple[float, float], ...] = (
    (25, -2), (29, 5), (26, 13), (18, 19), (8, 23), (-4, 25.5), (-16, 26), (-27, 22), (-35, 17), (-39, 10),
)  # fmt: skip
"""Where the midline's white matter is corpus callosum: (y, z) of the chain from rostrum to splenium, mm."""

CALLOSUM_RADII = (12.0, 7.0)
"""To the side and in the plane of the chain, mm."""

LOW_THALAMUS: tuple[Point, Point] = ((15.0, -18.0, 3.0), (7.5, 9.0, 7.0))
"""Centre and radii of the ventrolateral thalamus, which myelinates first and is dark in T2w."""

RIM_MM = 2.0
"""Depth from the outer border to which fluid is intra-cranial background; gives about .02 of the volume."""

CALLOSAL, LOW, MIDLINE, RIM = 16, 32, 64, 128
"""Flags of a zone; its lower four bits are the parcel."""


@functools.lru_cache(maxsize=1)
def zones() -> Ids:
    """Zone of every voxel of the template's grid, [X, Y, Z]: place in `PARCELS`, plus flags."""
    from scipy import ndimage

    painted = template()
    shape = painted.memberships.shape[1:]
    axes = [(np.arange(n) + o).astype(np.float32) for n, o in zip(shape, painted.origin, strict=True)]
    middle = int(np.flatnonzero(axes[0] == 0)[0])
    side, y, z = np.meshgrid(axes[0][middle:], axes[1], axes[2], indexing="ij", sparse=True)
    owner = np.full((len(axes[0]) - middle, *shape[1:]), 255, dtype=np.uint8)
    for parcel, name in enumerate(PARCELS):
        for seed in SEEDS[name]:
            x_, y_, z_ = (round(at - first) for at, first in zip(seed, (0.0, *painted.origin[1:]), strict=True))
            owner[x_, y_, z_] = parcel
    nearest = ndimage.distance_transform_edt(owner == 255, return_distances=False, return_indices=True)
    found = owner[tuple(nearest)]

    lateral, planar = CALLOSUM_RADII
    arch = np.zeros(found.shape, dtype=bool)
    for centre_y, centre_z in CALLOSUM:
        arch |= (side / lateral) ** 2 + ((y - centre_y) / planar) ** 2 + ((z - centre_z) / planar) ** 2 < 1
    found += np.uint8(CALLOSAL) * arch
    found += np.uint8(LOW) * _within(LOW_THALAMUS, side, y, z)
    slots = np.any([_within(shape, side, y, z) for shape in MIDLINE_VENTRICLES], axis=0)
    found += np.uint8(MIDLINE) * slots
    brain = painted.memberships[:, middle:].max(axis=0) > 0
    depth = ndimage.distance_transform_edt(brain)  # the other half is its mirror image: no border is nearer there
    sinus = (side < 8) | (z < -24) | (np.abs(z + 14 + 0.35 * (np.minimum(side, 45) - 10)) < 4) & (y < -40)
    found += np.uint8(RIM) * ((depth <= RIM_MM) & sinus)
    return np.concatenate([found[:0:-1], found])


def zones_at(points: Float) -> Ids:
    """Zone at points [3, N] mm of the template; 0 outside its grid. [N]"""
    grid = zones()
    cells = np.rint(points - np.array(template().origin, dtype=np.float32)[:, None]).astype(np.int32)
    inside = ((cells >= 0) & (cells < np.array(grid.shape)[:, None])).all(axis=0)
    cells[:, ~inside] = 0
    return np.where(inside, grid[tuple(cells)], 0).astype(np.uint8)


def _within(shape: tuple[Point, Point], side: Float, y: Float, z: Float) -> npt.NDArray[np.bool_]:
    centre, radii = shape
    x_, y_, z_ = (((a - c) / r) ** 2 for a, c, r in zip((side, y, z), centre, radii, strict=True))
    return x_ + y_ + z_ < 1


# ----------------------------------------------------------------------------------- from tissue to region

CLASSES: tuple[str, ...] = (
    "CSF",
    "cortex",
    "white",
    "ventricle",
    "cerebellum",
    "brainstem",
    "thalamus",
    "hippocampus",
    "lentiform",
    "caudate",
    "amygdala",
    "subthalamic",
)
"""What a voxel is told apart by before place decides the region."""

CLASS_OF: Mapping[str, str] = {
    "cerebral_GM": "cortex",
    "cerebral_WM": "white",
    "early_WM": "white",
    "cerebellum_GM": "cerebellum",
    "cerebellum_WM": "cerebellum",
    "CSF": "CSF",
    "ventricles": "ventricle",
    "brainstem": "brainstem",
    "thalamus": "thalamus",
    "hippocampus": "hippocampus",
    "putamen": "lentiform",
    "pallidum": "lentiform",
    "caudate": "caudate",
    "amygdala": "amygdala",
    "ventral_DC": "subthalamic",
}
"""Class of every compartment of a newborn (`newborn.COMPARTMENTS`)."""


@functools.lru_cache(maxsize=1)
def region_table() -> Ids:
    """Region number by class (place in `CLASSES`), side (0 left, 1 right) and zone: [12, 2, 256]."""
    out = np.zeros((len(CLASSES), 2, 256), dtype=np.uint8)
    zone = np.arange(256)
    parcel = zone & 15
    sides: tuple[Side, Side] = ("left", "right")
    for which, side in enumerate(sides):
        for name in ("cerebellum", "hippocampus", "lentiform", "caudate", "amygdala", "subthalamic"):
            out[CLASSES.index(name), which] = region(name, side)
        grey, white = (np.array([region(f"{p}_{kind}", side) for p in PARCELS]) for kind in ("GM", "WM"))
        out[CLASSES.index("cortex"), which] = grey[parcel]
        out[CLASSES.index("white"), which] = np.where(zone & CALLOSAL, region("corpus_callosum"), white[parcel])
        low, high = region("thalamus_low_T2", side), region("thalamus_high_T2", side)
        out[CLASSES.index("thalamus"), which] = np.where(zone & LOW, low, high)
        ventricle = region("lateral_ventricle", side)
        out[CLASSES.index("ventricle"), which] = np.where(zone & MIDLINE, region("CSF"), ventricle)
        out[CLASSES.index("CSF"), which] = np.where(zone & RIM, region("intracranial_background"), region("CSF"))
        out[CLASSES.index("brainstem"), which] = region("brainstem")
    return out

"""A newborn's cerebral cortex: a ribbon of even thickness around white matter that folds with age.

The template's cortex is a mean of 152 adults': too thick at term, and there is one of it. So cortex is made anew for
every person. White matter is what exceeds a threshold in a field that starts from the template's white matter, blurred
as far as folding has not come (primary folds before secondary), and that a person's own sulci cut into from outside;
cortex is what lies within a distance of it, and fluid the rest. Threshold and distance give white matter and cortex
their volumes; the depth of the person's sulci and the width to which they open are set by age, so that ratios of
surface to volume on voxels of 0.5 mm follow those of the 558 released scans.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.phantom.cohort import Subject
from harness.phantom.growth import Growth
from harness.phantom.newborn import CORTEX, cortex_stages
from harness.phantom.newborn_regions import CALLOSAL, PARCELS, zones
from harness.phantom.physics import LABELS
from harness.phantom.template import Template
from harness.phantom.warping import Float, stream

MEASURED_SVR: Mapping[str, tuple[float, ...]] = {
    "cortical_GM": (0.846, 0.831, 0.798, 0.766, 0.738, 0.723, 0.705),
    "WM": (0.316, 0.340, 0.379, 0.413, 0.448, 0.477, 0.513),
    "cerebellum": (0.282, 0.243, 0.219, 0.204, 0.194, 0.186, 0.176),
}
"""Mean share of a tissue's voxels (0.5 mm) at the border of their region, by bin of age (`growth.BINS`), as released.
Cortex: the ribbon thickens. White matter: it folds. The cerebellum: it grows."""

FOLDS: Mapping[str, tuple[float, ...]] = {
    "weeks": (30.0, 33.0, 37.0, 41.0, 44.0),
    "shape": (0.18, 0.30, 0.55, 0.85, 1.00),
    "sulci": (0.035, 0.06, 0.20, 0.50, 1.00),
    "opening": (4.0, 4.0, 2.0, 1.0, 1.0),
}
"""How far the cortex has folded by age; fitted by measuring (ours).

shape: how much of the template's own folds is there, 0 to 1. sulci: how deep a person's own cut, in units of the
field, where white matter is 1. opening: mm of the template by which fluid gains on cortex in a closed sulcus."""

DELAY: Mapping[str, float] = {
    "insula": -1.5,
    "cingulate_anterior": -0.5,
    "cingulate_posterior": -1.0,
    "parietal": -1.0,
    "occipital": -0.5,
    "frontal": 0.5,
    "anterior_temporal_medial": 1.5,
    "anterior_temporal_lateral": 1.5,
    "inferior_temporal_anterior": 1.5,
    "inferior_temporal_posterior": 1.0,
    "fusiform_anterior": 1.0,
    "fusiform_posterior": 0.5,
}
"""Weeks by which a parcel's folds come later than the mean (ours, after the order in which sulci appear)."""

BLURS = (5.0, 2.5, 1.2, 0.0)
"""Blur (sigma, mm of the template) of an unfolded cortex and of its steps to the template's. All lengths below are mm
of the template too, and ours."""

SULCUS_MM, SULCUS_WIDTH, UNEVEN_MM, UNEVEN = 4.0, 0.4, 2.6, 0.25
"""A person's sulci: where noise smoothed by sigma `SULCUS_MM` is near 0, within `SULCUS_WIDTH` of its SD: curved sheets
some 12 mm apart. To them comes noise of `UNEVEN_MM`, with `UNEVEN` of their depth."""

CORE_MM = 3.0
"""Cortex deeper than this in a gyrus whose white matter the template has averaged away becomes white matter."""

STEM_MM = (3.5, 4.0)
"""From this depth of white matter on, sulci stop; over so many more it gains 1."""

SOFT_MM = 0.8
"""A border's softness: memberships are logistic in the distance to it by this scale."""


def fold(kind: str, weeks: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A column of `FOLDS` at the given weeks, linear between them and constant beyond."""
    return np.interp(np.asarray(weeks, dtype=np.float64), FOLDS["weeks"], FOLDS[kind])


def folded(subject: Subject, weeks: float, growth: Growth) -> Template:
    """The template with this person's cortex at `weeks` of maturity; the sulci of a person keep their places.

    White matter and cortex fill `growth`'s shares of the template; a warp moves that by some percent.
    """
    from scipy import ndimage

    known = _known()
    field = _field(subject, weeks, known)
    domain = known.free > 0.5
    total = known.base.memberships.sum(dtype=np.float64) / 255
    white = domain & (field > _exceeded(field[domain], growth.shares["WM"] * total))
    pieces, _ = ndimage.label(white)
    white = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])

    # Deep grey matter and ventricles are no cortical border; nor does cortex grow from the corpus callosum.
    inwards = ndimage.distance_transform_edt(white | ~domain).astype(np.float32)
    outwards = ndimage.distance_transform_edt(~white | known.callosum).astype(np.float32)
    depth = ndimage.gaussian_filter(inwards - outwards, 0.7)
    # Half-way between two banks the distance has a ridge: its gradient falls from 1 to 0.
    ridge = np.clip(1 - np.sqrt(sum(np.gradient(depth, axis=axis) ** 2 for axis in range(3))), 0, 1)
    away = -depth + fold("opening", weeks).astype(np.float32) * ridge * (depth < 0)
    rest = away[domain & ~white]
    thickness = -_exceeded(-rest, growth.shares["cortical_GM"] * total)

    odds = {
        "cerebral_GM": np.float32(0),
        "cerebral_WM": np.where(known.callosum, np.float32(6), np.clip(depth / SOFT_MM, -6, 6)),
        "CSF": np.clip((away - thickness) / SOFT_MM, -6, 6),
    }
    weights = {name: np.exp(value) for name, value in odds.items()}
    scale = 255 * known.free / sum(weights.values())
    memberships = known.base.memberships.copy()
    for name in CORTEX:
        memberships[LABELS.index(name) - 1] = np.rint(scale * weights[name])
    return Template(memberships, known.base.origin)


def _field(subject: Subject, weeks: float, known: _Known) -> Float:
    """The field whose higher values are white matter: the template's as folded by its delay, cut by own sulci."""
    last = len(known.levels) - 1
    # A week is some .06 of the folding.
    level = np.clip(last * (fold("shape", weeks).astype(np.float32) - 0.06 * known.delay), 0, last)
    field = known.stem.copy()
    for index, values in enumerate(known.levels):
        field += values * np.clip(1 - np.abs(level - index), 0, 1)
    rng = stream(subject, "sulci")
    sulci = np.exp(-((_wave(rng, field.shape, SULCUS_MM) / SULCUS_WIDTH) ** 2))
    uneven = UNEVEN * _wave(rng, field.shape, UNEVEN_MM)
    field += fold("sulci", weeks).astype(np.float32) * (uneven - sulci)
    field[known.callosum] = 9
    return field


def _wave(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Float:
    """Smooth noise of SD 1 on the template's grid, made on cells of 2 mm."""
    from scipy import ndimage

    coarse = rng.standard_normal([-(-n // 2) for n in shape], dtype=np.float32)
    coarse = ndimage.gaussian_filter(coarse, sigma / 2)
    fine = ndimage.zoom(coarse / coarse.std(), 2, order=1)
    return fine[tuple(slice(n) for n in shape)]


def _exceeded(values: Float, count: float) -> np.float32:
    """The value that `count` of `values` exceed."""
    place = int(np.clip(len(values) - count, 0, len(values) - 1))
    return np.partition(values, place)[place]


@dataclass(frozen=True, eq=False)
class _Known:
    """What all persons share, on the template's grid.

    base: the template with soft deep structures. free: what these leave, 0..1. levels: share of white matter in the
    cortex, unfolded first. stem: gain of deep white matter. delay: weeks by which folds come late. callosum: where.
    """

    base: Template
    free: Float
    levels: tuple[Float, ...]
    stem: Float
    delay: Float
    callosum: npt.NDArray[np.bool_]


@functools.lru_cache(maxsize=1)
def _known() -> _Known:
    from scipy import ndimage

    base, sharp, _ = cortex_stages()
    # The template is symmetric: one half says all, and blurring mirrors it at its middle plane.
    middle = sharp.shape[1] // 2
    parts = dict(zip(CORTEX, sharp[:, middle:], strict=True))
    zone = zones()[middle:]

    def blurred(values: Float, sigma: float) -> Float:
        padded = ndimage.gaussian_filter(values, sigma, mode=("mirror", "nearest", "nearest")) if sigma else values
        return padded.astype(np.float32)

    free: Float = np.stack(list(parts.values())).sum(axis=0)
    outside = base.memberships[:, middle:].sum(axis=0, dtype=np.int32) < 128
    fluid = outside | (parts["CSF"] > 128)
    white = parts["cerebral_WM"]
    lost = np.minimum(ndimage.distance_transform_edt(white < 100), ndimage.distance_transform_edt(~fluid))
    core = np.clip(lost - CORE_MM + 0.5, 0, 1).astype(np.float32) * parts["cerebral_GM"]
    white = white + blurred(core, 0.7)
    levels = tuple(_halves(blurred(white, sigma) / np.maximum(blurred(free, sigma), 1e-1)) for sigma in BLURS)
    solid = (white > 100) | ((free < 128) & ~fluid)
    start, over = STEM_MM
    stem = np.clip((ndimage.distance_transform_edt(solid) - start) / over, 0, 2).astype(np.float32)
    weeks = np.array([DELAY.get(name, 0.0) for name in PARCELS], dtype=np.float32)
    delay = blurred(weeks[zone & 15], 6.0)
    callosum = (zone & CALLOSAL > 0) & (white > 128)
    return _Known(base, _halves(free / np.float32(255)), levels, _halves(stem), _halves(delay), _halves(callosum))


def _halves(right: npt.NDArray) -> npt.NDArray:
    """Both halves of what is known of the right one."""
    return np.concatenate([right[:0:-1], right])

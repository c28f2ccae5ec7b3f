"""An individual brain: the painted template, warped for one subject and cut into coronal slices.

A subject's point p is looked up in the template at q = exp(v)(A^-1 p): an affine head (size, pose, the
brain's usual torque) and a diffeomorphism, the exponential of a stationary velocity field v (scaling and
squaring). v sums a smooth field, a shorter-waved one near the cortex, and one push per deep structure that
makes it larger or smaller. Folding is made individual by noise on the tissue odds, which opens and closes
sulci and thickens or thins gyri where the template is undecided. Numbers are ours unless a source is named;
they were set so that volumes and their spread match those measured on 35 real OASIS-1 scans.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.physics import LABELS
from harness.phantom.template import TISSUES, Point, Template, template

Float = npt.NDArray[np.float32]

COARSE = 4
"""Edge of the velocity grid's cells, mm; the shortest deformation is smoothed over 5 mm."""

MARGIN = 4
"""Cells of the velocity grid around the template, so that nothing is pushed over its edge."""

RESIZED: tuple[tuple[str, ...], ...] = (
    ("ventricles",),
    ("thalamus",),
    ("hippocampus",),
    ("putamen",),
    ("caudate",),
    ("pallidum",),
    ("amygdala",),
    ("ventral_DC", "brainstem"),
    ("cerebellum_GM", "cerebellum_WM"),
)
"""Structures with a size of their own, left and right separately."""


# ------------------------------------------------------------------------------------------ geometry


@dataclass(frozen=True)
class Geometry:
    """Where a subject is sampled: square coronal slices, evenly spread from posterior to anterior.

    size: rows = columns, pixels. pixel_mm: pixel edge. slices: count, back to front. posterior_mm and
    anterior_mm: y of the first and last slice; the anterior commissure is at y = 0, the occipital pole of a
    mean brain near -98 and its frontal pole near 64. Row 0 is superior, column 0 the subject's left.

    Raises ValueError when the field of view (size * pixel_mm) is under 150 mm and would cut brains off, or
    the range is empty.
    """

    size: int = 256
    pixel_mm: float = 1.0
    slices: int = 163
    posterior_mm: float = -98.0
    anterior_mm: float = 64.0

    def __post_init__(self) -> None:
        if self.size * self.pixel_mm < 150:
            raise ValueError(
                f"{self.size} pixels of {self.pixel_mm} mm see {self.size * self.pixel_mm:g} mm; "
                "a brain needs 150 mm or more"
            )
        if self.slices < 1 or self.anterior_mm <= self.posterior_mm:
            raise ValueError(f"no slices between {self.posterior_mm} and {self.anterior_mm} mm: {self}")

    @property
    def positions(self) -> npt.NDArray[np.float64]:
        """y of every slice, mm, [slices]; a single slice lies in the middle of the range."""
        if self.slices == 1:
            return np.array([(self.posterior_mm + self.anterior_mm) / 2])
        return np.linspace(self.posterior_mm, self.anterior_mm, self.slices)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(slice, row, column) distance in mm."""
        span = self.anterior_mm - self.posterior_mm
        return span / max(self.slices - 1, 1), self.pixel_mm, self.pixel_mm


FULL = Geometry()
"""The paper's size: 256 x 256 at 1 mm, every slice of the brain."""

SMALL = Geometry(size=96, pixel_mm=2.0, slices=12, posterior_mm=-60.0, anterior_mm=28.0)
"""Two-core size: 12 slices through cerebellum, brainstem and deep grey matter."""


@dataclass(frozen=True, eq=False)
class AnatomySlices:
    """One brain on a geometry, before any scanner has seen it.

    labels: [n, H, W] uint8, 0..14 as in `LABELS`. fractions: [15, n, H, W] float16, each label's share of
    the pixel (background first), summing to 1. mask: [n, H, W] bool, labels > 0. spacing: (slice, row,
    column) in mm.
    """

    labels: npt.NDArray[np.uint8]
    fractions: npt.NDArray[np.float16]
    mask: npt.NDArray[np.bool_]
    spacing: tuple[float, float, float]


def render_anatomy(subject: Subject, geometry: Geometry) -> AnatomySlices:
    """The subject's brain on the geometry. Depends on the subject's seed, age and sex only."""
    return _slices(template(), _head(subject), warp(subject), _folding(subject), geometry)


def anatomy_from_labels(path: str | Path, geometry: Geometry) -> AnatomySlices:
    """A real individual's anatomy from a NIfTI label map in the 15 groups of `LABELS`, 1 mm voxels.

    The map's brain is centred where the template's is, so one geometry serves both. CSF outside the closed
    brain hull (orbits, spine) is dropped and holes inside it become CSF. Partial volume: labels blurred by
    0.55 voxel. Raises ValueError for unknown label values or voxels that are not 1 mm.
    """
    return _slices(_template_from_labels(Path(path)), _IDENTITY, None, None, geometry)


# -------------------------------------------------------------------------------------------- the head


@dataclass(frozen=True, eq=False)
class Head:
    """Affine from subject to template about the template's centre: q - c = matrix @ (p - c - shift), mm."""

    matrix: npt.NDArray[np.floating]
    shift: npt.NDArray[np.floating]


_IDENTITY = Head(np.eye(3), np.zeros(3))


def _head(subject: Subject) -> Head:
    """Size, pose and torque of a subject's head.

    The ICBM152 brain (1.88 l) is a quarter larger than the real OASIS mean: 0.94 (M) and 0.905 (F) bring
    volumes to those of the 35 OASIS scans. At 5 years a brain has some 94 % of its adult volume.
    """
    rng = _rng(subject, "head")
    size = 0.94 if subject.sex == "M" else 0.905
    size *= 1 - 0.02 * np.clip((14 - subject.age) / 9, 0, 1)
    scale = size * (1 + 0.025 * _bounded(rng, 1)) * (1 + 0.018 * _bounded(rng, 3))
    pitch, roll, yaw = np.deg2rad(2.5 * _bounded(rng, 3))
    forward = np.diag(scale)
    # Yakovlev's torque: the right frontal and left occipital poles reach further.
    forward[1, 0] += 0.02 + 0.015 * _bounded(rng, 1)[0]
    matrix = np.linalg.inv(_rotation(pitch, 0) @ _rotation(roll, 1) @ _rotation(yaw, 2) @ forward)
    return Head(matrix, 2.0 * _bounded(rng, 3))


def _rotation(angle: float, axis: int) -> npt.NDArray[np.float64]:
    """Rotation by `angle` radians in the plane of the other two axes."""
    a, b = (i for i in range(3) if i != axis)
    out = np.eye(3)
    out[a, a] = out[b, b] = np.cos(angle)
    out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


# -------------------------------------------------------------------------------------------- the warp


@dataclass(frozen=True, eq=False)
class Warp:
    """A displacement field on the velocity grid: [3, X, Y, Z] mm; cell (0, 0, 0) is centred at `origin`."""

    displacement: Float
    origin: Point

    def at(self, points: Float) -> Float:
        """Displacement in mm at points [3, N] in mm; [3, N]."""
        return np.stack([_interpolate(d, self.origin, COARSE, points) for d in self.displacement])


def warp(subject: Subject) -> Warp:
    """The subject's diffeomorphism, template coordinates to template coordinates.

    Smooth part: white noise smoothed with sigma 12 mm, SD 2.6 mm. Cortical part: sigma 5 mm, SD 1.8 mm.
    """
    pushes = _pushes()
    shape = pushes.cortex.shape
    velocity = 2.6 * _smooth_noise(_rng(subject, "warp"), (3, *shape), 12.0)
    velocity += 1.8 * pushes.cortex * _smooth_noise(_rng(subject, "gyri"), (3, *shape), 5.0)
    for (left, right), push in zip(_size_changes(subject), pushes.grow, strict=True):
        velocity += push * np.where(pushes.x < 0, np.float32(left), np.float32(right))[:, None, None]
    return Warp(exponential(velocity), pushes.origin)


def exponential(velocity: Float, squarings: int = 5) -> Float:
    """Displacement of exp(velocity) by scaling and squaring; [3, X, Y, Z] mm on `COARSE` mm cells."""
    displacement = velocity / 2**squarings
    cells = np.indices(velocity.shape[1:], dtype=np.float32)
    for _ in range(squarings):
        moved = cells + displacement / COARSE
        displacement = displacement + np.stack([_linear(d, moved) for d in displacement])
    return displacement


@dataclass(frozen=True, eq=False)
class _Pushes:
    """Velocity building blocks on the coarse grid.

    cortex: [X, Y, Z] 0..1, where the short waves act. grow: [structure, 3, X, Y, Z], at most 1 mm long;
    a positive multiple makes the structure larger. x: [X] mm. origin: centre of cell (0, 0, 0), mm.
    """

    cortex: Float
    grow: Float
    x: Float
    origin: Point


@functools.lru_cache(maxsize=1)
def _pushes() -> _Pushes:
    from scipy import ndimage

    painted = template()
    whole = [-n % COARSE for n in painted.memberships.shape[1:]]
    pad = [(0, 0), *((MARGIN * COARSE, MARGIN * COARSE + extra) for extra in whole)]
    fine = np.pad(painted.memberships, pad)
    x, y, z = (n // COARSE for n in fine.shape[1:])
    blocks = fine.reshape(len(TISSUES), x, COARSE, y, COARSE, z, COARSE)
    coarse = blocks.mean(axis=(2, 4, 6), dtype=np.float32) / 255

    cortex = ndimage.gaussian_filter(coarse[TISSUES.index("cerebral_GM")], 1.0)
    grow = []
    for names in RESIZED:
        soft = np.sum([coarse[TISSUES.index(name)] for name in names], axis=0)
        gradient = np.stack(np.gradient(ndimage.gaussian_filter(soft, 1.2)))
        grow.append(gradient / np.sqrt((gradient**2).sum(axis=0)).max())
    first = [o - MARGIN * COARSE + (COARSE - 1) / 2 for o in painted.origin]
    origin = (first[0], first[1], first[2])
    xs = (first[0] + COARSE * np.arange(x)).astype(np.float32)
    return _Pushes(np.clip(2 * cortex, 0, 1), np.stack(grow).astype(np.float32), xs, origin)


def _size_changes(subject: Subject) -> tuple[tuple[float, float], ...]:
    """mm by which each structure of `RESIZED` grows, (left, right); with age, ventricles grow, nuclei shrink.

    Real OASIS: ventricles 24 +- 17 ml over 18-96 years; nuclei vary by 10-15 %.
    """
    rng = _rng(subject, "sizes")
    late = max(subject.age - 40.0, 0.0)
    out = []
    for names in RESIZED:
        common, sides = _bounded(rng, 1)[0], _bounded(rng, 2)
        ventricles = names == ("ventricles",)
        mean = 0.11 * late if ventricles else -0.008 * late
        spread = 1.2 if ventricles else 0.3
        left, right = mean + spread * (0.9 * common + 0.4 * sides)
        out.append((float(left), float(right)))
    return tuple(out)


# ----------------------------------------------------------------------------------------- the folding


@dataclass(frozen=True, eq=False)
class Folding:
    """Noise on the log-odds of white matter and of sulcal CSF, [2, X, Y, Z] on the velocity grid."""

    log_odds: Float
    origin: Point


def _folding(subject: Subject) -> Folding:
    """Individual gyri: noise of 5 mm waves, plus the thinner white matter of children and old age's sulci."""
    pushes = _pushes()
    noise = _smooth_noise(_rng(subject, "folding"), (2, *pushes.cortex.shape), 4.0)
    person = _bounded(_rng(subject, "atrophy"), 2)
    white = -0.10 * np.clip((20 - subject.age) / 15, 0, 1) + 0.05 * person[0]
    csf = 0.25 + 0.007 * max(subject.age - 20.0, 0.0) + 0.10 * person[1]
    log_odds = np.stack([0.45 * noise[0] + np.float32(white), 0.40 * noise[1] + np.float32(csf)])
    return Folding(log_odds.astype(np.float32), pushes.origin)


# ---------------------------------------------------------------------------------------- the sampling


def _slices(
    source: Template, head: Head, deform: Warp | None, folding: Folding | None, geometry: Geometry
) -> AnatomySlices:
    """Sample the template slice by slice, at about 1 mm, and average down to the pixels."""
    n, size, fold = geometry.slices, geometry.size, max(1, round(geometry.pixel_mm))
    fractions = np.zeros((len(LABELS), n, size, size), dtype=np.float16)
    centre = np.array(template().centre)
    step = geometry.pixel_mm / fold
    ticks = (np.arange(size * fold) - (size * fold - 1) / 2) * step
    x, z = np.meshgrid(centre[0] + ticks, centre[2] - ticks)  # row 0 is superior
    for index, y in enumerate(geometry.positions):
        points = np.stack([x.ravel(), np.full(x.size, y), z.ravel()])
        q = (head.matrix @ (points - centre[:, None] - head.shift[:, None]) + centre[:, None]).astype(np.float32)
        near = source.near(q)
        q = q[:, near]
        share = _shares(source, q if deform is None else q + deform.at(q), q, folding)
        fine = np.zeros((len(LABELS), x.size), dtype=np.float32)
        fine[0] = 1
        fine[:, near] = share
        fractions[:, index] = _average(fine.reshape(len(LABELS), size * fold, size * fold), fold)
    mask = fractions[0] < 0.5
    labels = np.where(mask, 1 + fractions[1:].argmax(axis=0), 0).astype(np.uint8)
    return AnatomySlices(labels, fractions, mask, geometry.spacing)


def _average(image: Float, fold: int) -> Float:
    """Mean over fold x fold blocks of the last two axes."""
    total = np.zeros((len(image), image.shape[1] // fold, image.shape[2] // fold), dtype=np.float32)
    for row in range(fold):
        for column in range(fold):
            total += image[:, row::fold, column::fold]
    total /= fold**2
    return total


def _shares(source: Template, points: Float, undeformed: Float, folding: Folding | None) -> Float:
    """Share of every label, background first, at points [3, N] mm; [15, N], summing to 1.

    The template is a mean of 152 brains and its borders are several mm wide. An individual's are sharp:
    raising the memberships to the third power leaves about one voxel of partial volume.
    """
    share = np.empty((len(LABELS), points.shape[1]), dtype=np.float32)
    for label, (membership, box) in enumerate(zip(source.memberships, source.boxes, strict=True), start=1):
        # Most labels fill a small part of the brain: look no further than their own box.
        low, high = (np.array(side, dtype=np.float32)[:, None] for side in box)
        inside = ((points > low) & (points < high)).all(axis=0)
        share[label] = 0
        share[label, inside] = _interpolate(membership, source.origin, 1, points[:, inside])
    share[1:] /= 255
    share[0] = np.clip(1 - share[1:].sum(axis=0), 0, 1)
    if folding is None:
        return share / share.sum(axis=0)
    white, csf = (_interpolate(f, folding.origin, COARSE, undeformed) for f in folding.log_odds)
    share[LABELS.index("cerebral_WM")] *= np.exp(white)
    share[LABELS.index("cerebellum_WM")] *= np.exp(0.5 * white)
    share[LABELS.index("CSF")] *= np.exp(csf)
    share *= share * share
    share /= np.maximum(share.sum(axis=0), 1e-12)
    return share


def _template_from_labels(path: Path) -> Template:
    """One-hot memberships of a label map, blurred by 0.55 voxel, its brain centred like the template's."""
    import nibabel as nib
    from scipy import ndimage

    image = nib.as_closest_canonical(nib.load(path))
    if not np.allclose(image.header.get_zooms()[:3], 1, atol=0.01):
        raise ValueError(f"{path}: voxels are {image.header.get_zooms()[:3]} mm; resample the labels to 1 mm")
    labels = np.asarray(image.dataobj)
    unknown = sorted(set(np.unique(labels).tolist()) - set(range(len(LABELS))))
    if unknown:
        raise ValueError(f"{path}: label values {unknown[:5]} are none of the {len(LABELS)} groups 0..14")
    labels = np.pad(labels.astype(np.uint8), 8)
    csf = LABELS.index("CSF")
    tissue = (labels > 0) & (labels != csf)
    pieces, _ = ndimage.label(tissue)
    tissue = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    # Grown 6 mm, shrunk 4: sulci close and a thin rim of fluid stays.
    hull = ndimage.binary_erosion(ndimage.binary_dilation(tissue, iterations=6), iterations=4)
    hull = ndimage.binary_fill_holes(hull | tissue)
    labels = np.where(hull, np.where(labels == 0, csf, labels), 0)

    box = ndimage.find_objects(hull.astype(np.uint8))[0]
    labels = np.pad(labels[box], 2)
    memberships = np.zeros((len(TISSUES), *labels.shape), dtype=np.uint8)
    for index, found in enumerate(ndimage.find_objects(labels, max_label=len(TISSUES))):
        if found is not None:
            around = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in found)
            soft = ndimage.gaussian_filter((labels[around] == index + 1).astype(np.float32), 0.55)
            memberships[index][around] = np.rint(255 * soft)
    middle = [c - (n - 1) / 2 for c, n in zip(template().centre, labels.shape, strict=True)]
    return Template(memberships, (middle[0], middle[1], middle[2]))


# ---------------------------------------------------------------------------------------------- helpers


def _rng(subject: Subject, purpose: str) -> np.random.Generator:
    """A stream of its own for every purpose: a change to one leaves the others as they were."""
    return np.random.default_rng(derive_seed("anatomy", purpose, subject.seed))


def _bounded(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Standard normal, cut at 2.4: no monsters in a small cohort. [n]"""
    return np.clip(rng.standard_normal(n), -2.4, 2.4)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_mm: float) -> Float:
    """White noise smoothed over the last three axes of the coarse grid, SD 1."""
    from scipy import ndimage

    noise = rng.standard_normal(shape, dtype=np.float32)
    sigma = (0.0, *(3 * (sigma_mm / COARSE,)))
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return smooth / smooth.std()


def _interpolate(grid: npt.NDArray, origin: Point, step: int, points: Float) -> Float:
    """Linear interpolation of a grid [X, Y, Z] at mm points [3, N]; 0 outside. [N]"""
    return _linear(grid, (points - np.array(origin, dtype=np.float32)[:, None]) / np.float32(step))


def _linear(grid: npt.NDArray, cells: Float) -> Float:
    from scipy import ndimage

    return ndimage.map_coordinates(grid, cells, output=np.float32, order=1, mode="constant", prefilter=False)

"""An individual adult's brain: the painted template, warped for one subject and cut into slices.

Head and warp are those of `warping`; the head adds the brain's usual torque. Folding is made individual by noise on
the tissue odds, which opens and closes sulci and thickens or thins gyri where the template is undecided. Numbers are
ours unless a source is named; they were set so that volumes and their spread match those measured on 35 real OASIS-1
scans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.phantom import warping
from harness.phantom.cohort import Subject
from harness.phantom.geometry import FULL, SMALL, AnatomySlices, Geometry
from harness.phantom.physics import LABELS
from harness.phantom.template import TISSUES, Point, Template, template
from harness.phantom.warping import (
    COARSE,
    IDENTITY,
    RESIZED,
    Head,
    Warp,
    bounded,
    interpolate,
    push_fields,
    rotation,
    smooth_noise,
    stream,
)

__all__ = ["FULL", "SMALL", "AnatomySlices", "Geometry", "anatomy_from_labels", "cut", "render_anatomy", "warp"]

Float = npt.NDArray[np.float32]


def render_anatomy(subject: Subject, geometry: Geometry) -> AnatomySlices:
    """The subject's brain on the geometry. Depends on the subject's seed, age and sex only."""
    person = Individual.of(subject)
    return cut(template(), person.head, person.shares, geometry)


def anatomy_from_labels(path: str | Path, geometry: Geometry) -> AnatomySlices:
    """A real individual's anatomy from a NIfTI label map in the 15 groups of `LABELS`, 1 mm voxels.

    The map's brain is centred where the template's is, so one geometry serves both. CSF outside the closed
    brain hull (orbits, spine) is dropped and holes inside it become CSF. Partial volume: labels blurred by
    0.55 voxel. Raises ValueError for unknown label values or voxels that are not 1 mm.
    """
    source = _template_from_labels(Path(path))
    return cut(source, IDENTITY, lambda q: _shares(source, q, q, None), geometry)


# ------------------------------------------------------------------------------------------ head and warp


def _head(subject: Subject) -> Head:
    """Size, pose and torque of a subject's head.

    The ICBM152 brain (1.88 l) is a quarter larger than the real OASIS mean: 0.94 (M) and 0.905 (F) bring
    volumes to those of the 35 OASIS scans. At 5 years a brain has some 94 % of its adult volume.
    """
    rng = stream(subject, "head")
    size = 0.94 if subject.sex == "M" else 0.905
    size *= 1 - 0.02 * np.clip((14 - subject.age) / 9, 0, 1)
    scale = size * (1 + 0.025 * bounded(rng, 1)) * (1 + 0.018 * bounded(rng, 3))
    pitch, roll, yaw = np.deg2rad(2.5 * bounded(rng, 3))
    forward = np.diag(scale)
    # Yakovlev's torque: the right frontal and left occipital poles reach further.
    forward[1, 0] += 0.02 + 0.015 * bounded(rng, 1)[0]
    matrix = np.linalg.inv(rotation(pitch, 0) @ rotation(roll, 1) @ rotation(yaw, 2) @ forward)
    return Head(matrix, 2.0 * bounded(rng, 3))


def warp(subject: Subject) -> Warp:
    """The subject's diffeomorphism; see `warping.warp`."""
    return warping.warp(subject, _size_changes(subject))


def _size_changes(subject: Subject) -> tuple[tuple[float, float], ...]:
    """mm by which each structure of `RESIZED` grows, (left, right); with age, ventricles grow, nuclei shrink.

    Real OASIS: ventricles 24 +- 17 ml over 18-96 years; nuclei vary by 10-15 %.
    """
    rng = stream(subject, "sizes")
    late = max(subject.age - 40.0, 0.0)
    out = []
    for names in RESIZED:
        common, sides = bounded(rng, 1)[0], bounded(rng, 2)
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
    pushes = push_fields()
    noise = smooth_noise(stream(subject, "folding"), (2, *pushes.cortex.shape), 4.0)
    person = bounded(stream(subject, "atrophy"), 2)
    white = -0.10 * np.clip((20 - subject.age) / 15, 0, 1) + 0.05 * person[0]
    csf = 0.25 + 0.007 * max(subject.age - 20.0, 0.0) + 0.10 * person[1]
    log_odds = np.stack([0.45 * noise[0] + np.float32(white), 0.40 * noise[1] + np.float32(csf)])
    return Folding(log_odds.astype(np.float32), pushes.origin)


@dataclass(frozen=True, eq=False)
class Individual:
    """One adult's brain before it is cut: head, warp and folding."""

    head: Head
    deform: Warp
    folding: Folding

    @classmethod
    def of(cls, subject: Subject) -> Individual:
        return cls(_head(subject), warp(subject), _folding(subject))

    def shares(self, points: Float) -> Float:
        """Share of every label, background first, at points [3, N] in mm of the template, before the warp; [15, N]."""
        return _shares(template(), points + self.deform.at(points), points, self.folding)


# ---------------------------------------------------------------------------------------- the sampling


def cut(
    source: Template,
    head: Head,
    shares: Callable[[Float], Float],
    geometry: Geometry,
    groups: npt.NDArray[np.uint8] | None = None,
) -> AnatomySlices:
    """Sample a brain slice by slice, at about 1 mm, and average down to the pixels.

    shares: compartments' shares [C, N], background first, at points [3, N] in mm of the template, before the warp.
    groups: label of every compartment, [C]; None where compartments are the labels.
    """
    n, size, fold = geometry.slices, geometry.size, max(1, round(geometry.pixel_mm))
    fractions: npt.NDArray[np.float16] | None = None
    centre = np.array(template().centre)
    step = geometry.pixel_mm / fold
    ticks = (np.arange(size * fold) - (size * fold - 1) / 2) * step
    for index, position in enumerate(geometry.positions):
        points = geometry.points(float(position), ticks, centre)
        q = (head.matrix @ (points - centre[:, None] - head.shift[:, None]) + centre[:, None]).astype(np.float32)
        near = source.near(q)
        share = shares(q[:, near])
        if fractions is None:
            fractions = np.zeros((len(share), n, size, size), dtype=np.float16)
        fine = np.zeros((len(share), points.shape[1]), dtype=np.float32)
        fine[0] = 1
        fine[:, near] = share
        fractions[:, index] = _average(fine.reshape(len(share), size * fold, size * fold), fold)
    assert fractions is not None
    mask = fractions[0] < 0.5
    merged = fractions[1:] if groups is None else _merged(fractions, groups)
    labels = np.where(mask, 1 + merged.argmax(axis=0), 0).astype(np.uint8)
    return AnatomySlices(labels, fractions, mask, geometry.spacing, geometry.plane)


def _merged(fractions: npt.NDArray[np.float16], groups: npt.NDArray[np.uint8]) -> Float:
    """Shares of labels 1, 2, ... from those of compartments."""
    out = np.zeros((int(groups.max()), *fractions.shape[1:]), dtype=np.float32)
    for compartment, label in enumerate(groups):
        if label:
            out[label - 1] += fractions[compartment]
    return out


def _average(image: Float, fold: int) -> Float:
    """Mean over fold x fold blocks of the last two axes."""
    total = np.zeros((len(image), image.shape[1] // fold, image.shape[2] // fold), dtype=np.float32)
    for row in range(fold):
        for column in range(fold):
            total += image[:, row::fold, column::fold]
    total /= fold**2
    return total


def sampled(source: Template, points: Float) -> Float:
    """Memberships of a template at points [3, N] mm, and what is left as background first; [15, N]."""
    share = np.empty((len(LABELS), points.shape[1]), dtype=np.float32)
    for label, (membership, box) in enumerate(zip(source.memberships, source.boxes, strict=True), start=1):
        # Most labels fill a small part of the brain: look no further than their own box.
        low, high = (np.array(side, dtype=np.float32)[:, None] for side in box)
        inside = ((points > low) & (points < high)).all(axis=0)
        share[label] = 0
        share[label, inside] = interpolate(membership, source.origin, 1, points[:, inside])
    share[1:] /= 255
    share[0] = np.clip(1 - share[1:].sum(axis=0), 0, 1)
    return share


def _shares(source: Template, points: Float, undeformed: Float, folding: Folding | None) -> Float:
    """Share of every label, background first, at points [3, N] mm; [15, N], summing to 1.

    The template is a mean of 152 brains and its borders are several mm wide. An individual's are sharp:
    raising the memberships to the third power leaves about one voxel of partial volume.
    """
    share = sampled(source, points)
    if folding is None:
        return share / share.sum(axis=0)
    white, csf = (interpolate(f, folding.origin, COARSE, undeformed) for f in folding.log_odds)
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

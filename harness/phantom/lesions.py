"""Patients: an adult's brain with a tumour, an old stroke, or changes of the white matter.

A lesion grows in three dimensions in the person's brain before it is cut, so neighbouring slices agree and slices
without a lesion remain. It takes its share of the pixel from the tissues that it replaces; ventricles are pushed, never
rewritten. Its tissues have relaxation times of their own, and all contrasts follow from the signal equations: nothing
is painted onto an image. One person has one lesion, whatever the contrast it is imaged at.

Relaxation times are ours, near published ones; ratios of lesions to normal brain follow real scans (tests/phantom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from harness.phantom.anatomy import Individual, cut
from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.geometry import AnatomySlices, Geometry
from harness.phantom.lesion_models import Lesion, Stroke, Tumour, WhiteMatter
from harness.phantom.physics import LABELS, Tissue
from harness.phantom.sites import Site
from harness.phantom.template import template
from harness.phantom.warping import stream

Float = npt.NDArray[np.float32]

Disease = Literal["none", "stroke", "tumour", "wmh", "mixed"]

LESIONS: tuple[str, ...] = ("background", "necrosis", "oedema", "enhancing", "stroke", "wmh")
"""Labels of patients, by value. Necrosis also stands for solid tumour that does not enhance, as in BraTS; stroke for
the cavity and its gliotic rim."""

AGES: dict[Disease, tuple[tuple[float, float], tuple[float, float] | None]] = {
    "none": ((20, 86), None),
    "tumour": ((20, 85), (58, 14)),
    "stroke": ((25, 90), (61, 13)),
    "wmh": ((45, 90), (68, 10)),
    "mixed": ((25, 90), (61, 13)),
}
"""Range of ages, and mean and SD where they are normal, by disease; ours."""

# 3 T, ms and PD by CSF; the last column is T1 after gadolinium. Enhancing tissue is where the barrier is open.
_TISSUES: dict[str, tuple[float, float, float, float, float]] = {
    "necrosis": (2600, 450, 200, 0.95, 2300),
    "solid": (1700, 150, 80, 0.88, 1600),
    "enhancing": (1500, 110, 60, 0.85, 420),
    "oedema": (1500, 160, 80, 0.85, 1500),
    # With T1 2800 and T2 500, FLAIR shows the cavity as bright as brain.
    "cavity": (3600, 1000, 450, 0.97, 3600),
    "gliosis": (1300, 150, 80, 0.80, 1300),
    "wmh": (1300, 130, 70, 0.80, 1300),
}

_LABEL = {"solid": "necrosis", "cavity": "stroke", "gliosis": "stroke"}

LESION_SPREAD = 0.10
"""A patient's lesion has T1 and T2 longer or shorter by up to this fraction, drawn evenly; ours."""

AT_LOWER_FIELD = 0.8
"""T1 of lesions at 1.5 T, as a fraction of that at 3 T; ours."""


def disease_of(subject: Subject, disease: Disease) -> Disease:
    """What this patient has, where a cohort is mixed."""
    if disease != "mixed":
        return disease
    kinds: tuple[Disease, ...] = ("stroke", "tumour", "wmh")
    return kinds[int(stream(subject, "disease").integers(len(kinds)))]


def render_patient(subject: Subject, disease: Disease, geometry: Geometry) -> AnatomySlices:
    """The patient's brain on the geometry. Depends on the subject's seed, age and sex and on the disease only.

    Compartments are the adult's 15 and those of the lesion (`patient_tissues` says in which order); labels are
    `LESIONS`, 0 where the lesion has less than half of the pixel.
    """
    lesions = grow(subject, disease)
    names = compartments(lesions)
    person = Individual.of(subject)

    def shares(points: Float) -> Float:
        source = points
        for lesion in lesions:
            source = lesion.pushed(source)
        share = np.concatenate([person.shares(source), np.zeros((len(names), points.shape[1]), np.float32)])
        for lesion in lesions:
            _invade(share, lesion, names, points, source + person.deform.at(source))
        return share

    anatomy = cut(template(), person.head, shares, geometry)
    return replace(anatomy, labels=_labels(anatomy, names))


def grow(subject: Subject, disease: Disease) -> tuple[Lesion, ...]:
    """The lesions of a patient, from the seed alone; none where there is no disease."""
    which = disease_of(subject, disease)
    rng = stream(subject, f"lesion {which}")
    if which == "tumour":
        return (Tumour.grown(rng),)
    if which == "stroke":
        # Every third has a second, older infarct.
        return tuple(Stroke.grown(rng) for _ in range(1 if rng.random() < 0.67 else 2))
    return (WhiteMatter.grown(rng, subject.age),) if which == "wmh" else ()


def compartments(lesions: Sequence[Lesion]) -> tuple[str, ...]:
    """Names of the compartments that the lesions add to an adult's."""
    return tuple(dict.fromkeys(name for lesion in lesions for name in lesion.compartments))


def patient_tissues(subject: Subject, disease: Disease, site: Site, gadolinium: bool) -> tuple[Tissue, ...]:
    """Relaxation times of a patient's compartments at a site: the site's own, then the lesion's."""
    names = compartments(grow(subject, disease))
    rng = np.random.default_rng(derive_seed("lesion tissue", subject.seed))
    longer = {name: 1 + LESION_SPREAD * float(rng.uniform(-1, 1)) for name in _TISSUES}
    field = 1.0 if site.field_t >= 3 else AT_LOWER_FIELD
    found = []
    for name in names:
        t1, t2, t2_star, pd, enhanced = _TISSUES[name]
        found.append(
            Tissue(
                name,
                field * (enhanced if gadolinium else t1) * longer[name],
                t2 * longer[name],
                t2_star * longer[name],
                pd,
            )
        )
    return (*site.tissues, *found)


def _invade(share: Float, lesion: Lesion, names: Sequence[str], points: Float, template_points: Float) -> None:
    """Let a lesion take its part of each tissue, in place; [C + lesion compartments, N]."""
    near = lesion.near(points)
    if not near.any():
        return
    here = share[:, near]
    for name, hosts, part in lesion.parts(points[:, near], template_points[:, near], here):
        taken = part * here[hosts]
        here[hosts] -= taken
        here[len(LABELS) + names.index(name)] += taken.sum(axis=0)
    share[:, near] = here


def _labels(anatomy: AnatomySlices, names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Values of `LESIONS`: where lesions have half of a pixel, the label that has most of it."""
    if not names:
        return np.zeros(anatomy.mask.shape, np.uint8)
    values = [LESIONS.index(_LABEL.get(name, name)) for name in names]
    parts = np.zeros((len(LESIONS), *anatomy.mask.shape), np.float32)
    for value, fraction in zip(values, anatomy.fractions[len(LABELS) :], strict=True):
        parts[value] += fraction
    lesion = (parts.sum(axis=0) >= 0.5) & anatomy.mask
    return cast(npt.NDArray[np.uint8], np.where(lesion, parts.argmax(axis=0), 0).astype(np.uint8))

"""A newborn's brain, made of the adult template: smaller, smoother, with other shares of tissue.

The template is warped as an adult's is. Its cortex is blurred as far as folding has not yet come, so that sulci are
shallow and few; and every tissue gets the log-odds with which its volume is what `growth` says for this person. So
volumes are right by construction, while shapes are those of a small adult: a phantom.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.phantom.anatomy import cut, sampled
from harness.phantom.cohort import Subject
from harness.phantom.geometry import AnatomySlices, Geometry
from harness.phantom.growth import GROUPS, Growth, grow
from harness.phantom.physics import LABELS
from harness.phantom.template import Point, Template, template
from harness.phantom.warping import (
    COARSE,
    RESIZED,
    Head,
    Warp,
    bounded,
    interpolate,
    push_fields,
    rotation,
    smooth_noise,
    stream,
    warp,
)

Float = npt.NDArray[np.float32]

GROUP_OF: dict[str, str] = {
    "cerebral_GM": "cortical_GM",
    "cerebral_WM": "WM",
    "cerebellum_GM": "cerebellum",
    "cerebellum_WM": "cerebellum",
    "CSF": "CSF",
    "ventricles": "ventricles",
    "brainstem": "brainstem",
    "thalamus": "deep_GM",
    "hippocampus": "hippocampus_amygdala",
    "putamen": "deep_GM",
    "caudate": "deep_GM",
    "pallidum": "deep_GM",
    "amygdala": "hippocampus_amygdala",
    "ventral_DC": "deep_GM",
}
"""The template's tissues by the newborn's group. The ventral diencephalon holds the subthalamic nucleus: deep grey."""

COMPARTMENTS: tuple[str, ...] = (*LABELS[1:], "early_WM")
"""What a newborn's pixel is made of, background apart; early_WM is the white matter that myelinates first."""

LABEL_OF = np.array([0, *(1 + GROUPS.index(GROUP_OF.get(name, "WM")) for name in COMPARTMENTS)], dtype=np.uint8)
"""Label of every compartment, background first."""

SHARPNESS = 3
"""Power of the memberships; see `anatomy`. About one pixel of partial volume is left."""

SMOOTH_MM = 5.0
"""Blur (sigma, mm of the template) of a cortex that has not folded at all."""

DEEP_MM = 2.0
"""Blur of the painted structures' borders."""

PROBE_MM = 4
"""Spacing of the points on which volumes are measured."""

EARLY = (((22.0, -9.0, 6.0), 11.0), ((24.0, -16.0, 22.0), 9.0), ((22.0, -22.0, 44.0), 9.0))
"""Balls (centre, right side; radius, mm) of the posterior limb of the internal capsule and the corona radiata above."""


def render_newborn(subject: Subject, geometry: Geometry) -> AnatomySlices:
    """The newborn's brain on the geometry; `subject.age` in weeks. Labels 1 to 8 are `GROUPS`, fractions are of the
    compartments. Depends on the subject's seed, age and sex only. Raises ValueError outside 28-46 weeks."""
    person = newborn(subject)
    return cut(person.source, person.head, person.shares, geometry, LABEL_OF)


@dataclass(frozen=True, eq=False)
class Newborn:
    """One newborn: growth, template as far as it has folded, warp, log-odds of noise and of tissue [C], and head."""

    growth: Growth
    source: Template
    deform: Warp
    noise: Float
    origin: Point
    odds: Float
    head: Head

    def shares(self, q: Float) -> Float:
        """Shares of the compartments, background first, at points [3, N] mm of the unwarped template."""
        return _split(_weighted(self._soft(q), self.odds), q)

    def _soft(self, q: Float) -> Float:
        """Memberships with this person's noise on the odds of white matter and CSF, background first. [15, N]"""
        share = sampled(self.source, q + self.deform.at(q))
        white, csf = (np.exp(interpolate(noise, self.origin, COARSE, q)) for noise in self.noise)
        share[LABELS.index("cerebral_WM")] *= white
        share[LABELS.index("CSF")] *= csf
        return share


def newborn(subject: Subject) -> Newborn:
    """Everything of a person that does not depend on where the brain is cut."""
    growth = grow(subject.age, subject.sex, stream(subject, "growth"))
    pushes = push_fields()
    noise = smooth_noise(stream(subject, "folding"), (2, *pushes.cortex.shape), 4.0)
    strength = np.array([0.45, 0.40], dtype=np.float32)[:, None, None, None] * np.float32(growth.folding)
    deform = warp(subject, size_changes(subject), gyral=1.8 * growth.folding)
    draft = Newborn(
        growth, _unfolded(growth.folding), deform, strength * noise, pushes.origin, np.zeros(len(LABELS), np.float32),
        Head(np.eye(3), np.zeros(3)),
    )  # fmt: skip
    odds, volume = fit_odds(draft)
    return Newborn(
        growth, draft.source, deform, draft.noise, pushes.origin, odds, head_of(subject, (growth.total_ml / volume))
    )


def head_of(subject: Subject, shrink: float) -> Head:
    """Pose and proportions; `shrink`: the newborn's volume by the warped template's."""
    rng = stream(subject, "head")
    aspect = 1 + 0.025 * bounded(rng, 3)
    scale = np.cbrt(shrink) * aspect / np.cbrt(aspect.prod())
    pitch, roll, yaw = np.deg2rad(3.0 * bounded(rng, 3))
    forward = rotation(pitch, 0) @ rotation(roll, 1) @ rotation(yaw, 2) @ np.diag(scale)
    return Head(np.linalg.inv(forward), 1.5 * bounded(rng, 3))


_RESIZE = {"cerebellum_GM": -5.0, "ventral_DC": 0.0, "thalamus": 1.5, "putamen": 1.5, "caudate": 1.0}


def size_changes(subject: Subject) -> tuple[tuple[float, float], ...]:
    """mm (of the template) by which structures of `RESIZED` grow, (left, right): what makes an adult's posterior fossa
    a newborn's, and what people differ by. The tissue odds do the rest."""
    rng = stream(subject, "sizes")
    out = []
    for names in RESIZED:
        mean = _RESIZE.get(names[0], 0.0)
        common, sides = bounded(rng, 1)[0], bounded(rng, 2)
        left, right = mean + 0.3 * (0.9 * common + 0.4 * sides)
        out.append((float(left), float(right)))
    return tuple(out)


# --------------------------------------------------------------------------------------------- the cortex


CORTEX = ("cerebral_GM", "cerebral_WM", "CSF")


@functools.lru_cache(maxsize=1)
def cortex_stages() -> tuple[Template, Float, Float]:
    """The template with soft deep structures, and its cortex folded and unfolded, [3, X, Y, Z] 0..255 as in `CORTEX`.

    The painted structures have borders of 2 mm, which tissue odds could not move: they are blurred, and what they
    leave or take goes to or from the tissues around them.
    """
    from scipy import ndimage

    painted = template()
    cortex = [LABELS.index(name) - 1 for name in CORTEX]
    deep = [index for index in range(len(LABELS) - 1) if index not in cortex]
    soft = painted.memberships.astype(np.float32)
    whole = soft.sum(axis=0)
    for index in deep:
        soft[index] = ndimage.gaussian_filter(soft[index], DEEP_MM)
    taken = soft[deep].sum(axis=0)
    free = np.clip(whole - taken, 0, None)
    soft[deep] *= np.minimum(1, whole / np.maximum(taken, 1e-3))  # nothing leaks out of the brain
    parts = soft[cortex]

    def proportions(values: Float) -> Float:
        return values / np.maximum(values.sum(axis=0), 1e-3)

    near = proportions(np.stack([ndimage.gaussian_filter(part, 1.5) for part in parts]))
    sharp = proportions(parts)
    known = np.clip(parts.sum(axis=0) / 64, 0, 1)
    far = proportions(np.stack([ndimage.gaussian_filter(part, SMOOTH_MM) for part in parts]))
    base = Template(np.rint(soft).astype(np.uint8), painted.origin)
    return base, free * (known * sharp + (1 - known) * near), free * far


def _unfolded(folding: float) -> Template:
    """The template with a cortex that has folded to the given degree, 0..1."""
    base, folded, smooth = cortex_stages()
    memberships = base.memberships.copy()
    blend = np.rint(np.float32(folding) * folded + np.float32(1 - folding) * smooth).astype(np.uint8)
    memberships[[LABELS.index(name) - 1 for name in CORTEX]] = blend
    return Template(memberships, base.origin)


# --------------------------------------------------------------------------------------------- the volumes


def fit_odds(draft: Newborn, rounds: int = 30) -> tuple[Float, float]:
    """Log-odds [15] that give every group its share, and the volume they leave the warped template, in ml."""
    box = np.array(draft.source.boxes)
    low, high = box[:, 0].min(axis=0) - 8, box[:, 1].max(axis=0) + 8
    axes = [np.arange(a, b, PROBE_MM, dtype=np.float32) for a, b in zip(low, high, strict=True)]
    points = np.stack([grid.ravel() for grid in np.meshgrid(*axes, indexing="ij")])
    soft = draft._soft(points[:, draft.source.near(points)])
    soft = soft[:, soft[0] < 1]
    target = np.array([draft.growth.shares[name] for name in GROUPS])
    groups = np.array([0, *(1 + GROUPS.index(GROUP_OF[name]) for name in LABELS[1:])])
    member = np.equal.outer(np.arange(1, len(GROUPS) + 1), groups).astype(np.float32)
    odds = np.zeros(len(GROUPS) + 1, dtype=np.float32)
    for _ in range(rounds):
        found = member @ (_weighted(soft, odds[groups], 4 * SHARPNESS)).sum(axis=1)  # nearly labels, as are counted
        # A tissue's volume answers to its odds about one to one; the background's odds stay 0.
        odds[1:] = np.clip(odds[1:] + 0.6 * np.log(target / (found / found.sum())), -4, 4)
    volume = float(_weighted(soft, odds[groups])[1:].sum()) * PROBE_MM**3 / 1000
    return odds[groups], volume


def _weighted(soft: Float, odds: Float, power: int = SHARPNESS) -> Float:
    """Sharpened memberships under log-odds, summing to 1. [15, N]"""
    share = soft * np.exp(odds)[:, None]
    share = share / np.maximum(share.max(axis=0), 1e-12)
    share = share**power
    return share / np.maximum(share.sum(axis=0), 1e-12)


def _split(share: Float, q: Float) -> Float:
    """Divide white matter into what myelinates early and the rest. [15, N] to [16, N]"""
    white = LABELS.index("cerebral_WM")
    side = np.abs(q[0])
    early = np.zeros_like(side)
    for (x, y, z), radius in EARLY:
        distance = np.sqrt((side - x) ** 2 + (q[1] - y) ** 2 + (q[2] - z) ** 2)
        early = np.maximum(early, np.clip(1.5 * (1 - distance / radius), 0, 1))
    part = share[white] * early
    out = np.concatenate([share, part[None]])
    out[white] -= part
    return out

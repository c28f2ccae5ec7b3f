"""Three lesions, each a field over the brain: tumour with oedema, old stroke, hyperintense white matter.

Lengths are in mm of the template before the warp, which is within a few per cent of a person's own. Shapes are
distances to an ellipsoid, roughened by smooth noise. All numbers are ours unless a source is named.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.phantom.physics import LABELS
from harness.phantom.template import TISSUES, Point, template
from harness.phantom.warping import bounded, interpolate, rotation

Float = npt.NDArray[np.float32]
Part = tuple[str, npt.NDArray[np.intp], Float]
"""(compartment, rows of the shares it takes from, fraction of each that it takes, [N])"""

CELL = 2
"""Edge of the cells of noise and distance maps, mm."""


def _rows(*names: str) -> npt.NDArray[np.intp]:
    return np.array([LABELS.index(name) for name in names], dtype=np.intp)


WHITE = _rows("cerebral_WM")
TISSUE = _rows(*(name for name in TISSUES if name not in ("CSF", "ventricles")))
CEREBRUM = _rows(
    *(
        name
        for name in TISSUES
        if name not in ("CSF", "ventricles", "brainstem", "ventral_DC", "cerebellum_GM", "cerebellum_WM")
    )
)
"""What lesions replace; never ventricles, which a lesion pushes only."""
FLUID = _rows("CSF")


class Lesion(ABC):
    """One lesion. `compartments`: the names of its tissues."""

    compartments: ClassVar[tuple[str, ...]]

    def near(self, points: Float) -> npt.NDArray[np.bool_]:
        """Which points [3, N] it may reach; [N]."""
        return np.ones(points.shape[1], np.bool_)

    def pushed(self, points: Float) -> Float:
        """Where the anatomy at points [3, N] lay before the lesion moved it; [3, N]."""
        return points

    @abstractmethod
    def parts(self, points: Float, template_points: Float, share: Float) -> Iterator[Part]:
        """What it takes at points [3, N], in order. template_points: the same after the warp; share: [C, N] so far."""


# ------------------------------------------------------------------------------------------ building blocks


@dataclass(frozen=True, eq=False)
class Noise:
    """Smooth noise of SD 1 on a grid of `CELL` mm around a place; 0 outside."""

    grid: Float
    origin: Point

    @classmethod
    def around(cls, rng: np.random.Generator, centre: npt.NDArray, reach: float, sigma: float) -> Noise:
        half = int(np.ceil(reach / CELL))
        return cls.filling(rng, (2 * half + 1,) * 3, centre - half * CELL, sigma)

    @classmethod
    def filling(cls, rng: np.random.Generator, shape: tuple[int, ...], origin: npt.NDArray, sigma: float) -> Noise:
        from scipy import ndimage

        noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma / CELL, mode="wrap")
        x, y, z = (float(value) for value in origin)
        return cls(noise / noise.std(), (x, y, z))

    def at(self, points: Float) -> Float:
        return interpolate(self.grid, self.origin, CELL, points)


def inside(depth: npt.NDArray[np.floating], edge: float) -> Float:
    """1 well inside (depth > 0), 0 well outside, over about four times `edge` mm."""
    return (0.5 + 0.5 * np.tanh(depth / np.float32(2 * edge))).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """A turned ellipsoid about `centre`; axes: rows, each an axis' direction over its length, 1 / mm."""

    centre: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]
    radius: float

    @classmethod
    def drawn(cls, rng: np.random.Generator, centre: npt.NDArray, radius: float, spread: float) -> Ellipsoid:
        """Of the volume of a ball of `radius`; spread: SD of the logarithm of its axes' lengths."""
        stretch = np.exp(spread * bounded(rng, 3))
        stretch /= stretch.prod() ** (1 / 3)
        turn = (
            rotation(rng.uniform(0, np.pi), 0) @ rotation(rng.uniform(0, np.pi), 1) @ rotation(rng.uniform(0, np.pi), 2)
        )
        return cls(np.asarray(centre, np.float64), turn / (radius * stretch)[:, None], radius)

    def outside(self, points: Float) -> Float:
        """About the distance to the surface, mm, negative inside; [N]."""
        relative = (points - self.centre[:, None]).astype(np.float32)
        scaled = np.sqrt(((self.axes.astype(np.float32) @ relative) ** 2).sum(axis=0))
        return ((scaled - 1) * np.float32(self.radius)).astype(np.float32)


@dataclass(frozen=True)
class Push:
    """Tissue moved away from a centre by `far` mm at `radius`, less at greater distances, none at the skull.

    Negative: drawn towards it, as after a loss of tissue.
    """

    centre: Point
    radius: float
    far: float

    REACH: ClassVar[float] = 22.0  # the displacement falls to 1/e over this distance, mm
    SKULL: ClassVar[float] = 16.0  # it grows from 0 at the brain's surface to its whole over this depth, mm

    def source(self, points: Float) -> Float:
        relative = points - np.array(self.centre, np.float32)[:, None]
        distance = np.sqrt((relative**2).sum(axis=0))
        beyond = np.maximum(distance - self.radius, 0) / self.REACH
        moved = self.far * np.minimum(distance / self.radius, 1) * np.exp(-(beyond**2))
        moved = moved * np.clip(depth_below_surface(points) / self.SKULL, 0, 1)
        return (points - relative * (moved / np.maximum(distance, 1e-3))).astype(np.float32)


@functools.lru_cache(maxsize=1)
def _maps() -> tuple[Float, Float, Point]:
    """On cells of `CELL` mm: depth below the brain's surface, distance to the lateral ventricles, both mm; origin."""
    from scipy import ndimage

    painted = template()
    odd = [(0, -n % CELL) for n in painted.memberships.shape[1:]]

    def coarse(membership: npt.NDArray[np.uint8]) -> Float:
        padded = np.pad(membership, odd).astype(np.float32)
        x, y, z = (n // CELL for n in padded.shape)
        return padded.reshape(x, CELL, y, CELL, z, CELL).mean(axis=(1, 3, 5)) / 255

    brain = np.pad(coarse(painted.memberships.max(axis=0)) > 0.2, 1)
    depth = CELL * ndimage.distance_transform_edt(ndimage.binary_closing(brain, iterations=3))[1:-1, 1:-1, 1:-1]
    ventricles = coarse(painted.memberships[TISSUES.index("ventricles")]) > 0.5
    heights = painted.origin[2] + CELL * np.arange(ventricles.shape[2])
    ventricles &= heights > -4  # the third and fourth have no periventricular white matter
    distance = CELL * ndimage.distance_transform_edt(~ventricles)
    first = [o + (CELL - 1) / 2 for o in painted.origin]
    return depth.astype(np.float32), distance.astype(np.float32), (first[0], first[1], first[2])


def depth_below_surface(points: Float) -> Float:
    """mm from points [3, N] of the template to the brain's surface; 0 outside. [N]"""
    depth, _, origin = _maps()
    return interpolate(depth, origin, CELL, points)


def to_ventricles(points: Float) -> Float:
    """mm from points [3, N] of the template to the lateral ventricles; [N]."""
    _, distance, origin = _maps()
    return interpolate(distance, origin, CELL, points)


@functools.lru_cache(maxsize=1)
def _white_matter() -> Float:
    """Places in the cerebral white matter, mm, [3, M]: every fourth voxel well within it."""
    painted = template()
    white = painted.memberships[TISSUES.index("cerebral_WM"), ::4, ::4, ::4] > 200
    return (4 * np.argwhere(white).T + np.array(painted.origin)[:, None]).astype(np.float32)


# ------------------------------------------------------------------------------------------------- tumour


@dataclass(frozen=True, eq=False)
class Tumour(Lesion):
    """A glioma: necrosis within an enhancing rim, oedema along the white matter around it, and a push outwards.

    A fifth are of low grade: solid, without necrosis or enhancement, with little oedema.
    """

    compartments: ClassVar[tuple[str, ...]] = ("necrosis", "solid", "enhancing", "oedema")

    core: Ellipsoid
    high_grade: bool
    rim_mm: float
    halo_mm: float
    push: Push
    shape: Noise
    detail: Noise
    spread: Noise

    @classmethod
    def grown(cls, rng: np.random.Generator) -> Tumour:
        high_grade = bool(rng.random() < 0.8)
        radius = float(np.clip(np.exp(np.log(15) + 0.35 * rng.standard_normal()), 7, 27))
        places = _white_matter()
        x, _, z = places
        # All heights alike, or hardly a slice through the middle would be without a lesion.
        height = rng.uniform(-28, 58)
        fitting = places[:, (np.abs(x) > 14) & (np.abs(x) < 52) & (np.abs(z - height) < 4)]
        centre = fitting[:, rng.integers(fitting.shape[1])].astype(np.float64) + rng.uniform(-2, 2, 3)
        halo = float(rng.uniform(8, 26) if high_grade else rng.uniform(3, 9))
        # Large tumours come with no larger a halo: together they would leave no normal hemisphere.
        halo = min(halo, 52 - radius)
        reach = 1.6 * radius + 1.8 * halo
        place: Point = (float(centre[0]), float(centre[1]), float(centre[2]))
        return cls(
            Ellipsoid.drawn(rng, centre, radius, 0.18),
            high_grade,
            float(rng.uniform(2.5, 6.0)),
            halo,
            Push(place, radius, float(rng.uniform(2, 6)) * min(1.0, radius / 14)),
            Noise.around(rng, centre, reach, 7.0),
            Noise.around(rng, centre, reach, 3.0),
            Noise.around(rng, centre, reach, 9.0),
        )

    def near(self, points: Float) -> npt.NDArray[np.bool_]:
        reach = 1.6 * self.core.radius + 1.8 * self.halo_mm
        return ((points - self.core.centre[:, None]) ** 2).sum(axis=0) < reach**2

    def pushed(self, points: Float) -> Float:
        return self.push.source(points)

    def parts(self, points: Float, template_points: Float, share: Float) -> Iterator[Part]:
        rough, fine = self.shape.at(points), self.detail.at(points)
        outside = self.core.outside(points) + self.core.radius * (0.18 * rough + 0.05 * fine)
        core = inside(-outside, 0.5)
        solid_hosts = np.concatenate([TISSUE, FLUID])
        if self.high_grade:
            rim = self.rim_mm * np.clip(1 + 0.35 * rough + 0.25 * fine, 0.35, 2.0)
            dead = inside(-outside - rim, 0.5)
            # A rim is seldom closed.
            open_ = inside(self.spread.at(points) - 1.1, 0.12)
            yield "necrosis", solid_hosts, dead
            living = np.clip(core - dead, 0, 1) / np.maximum(1 - dead, 1e-3)
            yield "enhancing", solid_hosts, living * (1 - open_)
            yield "solid", solid_hosts, living * open_ / np.maximum(1 - living * (1 - open_), 1e-3)
        else:
            yield "solid", solid_hosts, core
        side = np.sign(self.core.centre[0])
        # Fluid spreads along the fibres: white matter fills, in tongues; cortex and nuclei stay.
        front = self.halo_mm * np.clip(1 + 0.45 * self.spread.at(points) + 0.1 * rough, 0.15, 1.9)
        fluid = inside(front - outside, 1.2) * inside(side * points[0] + 1, 0.5)
        fluid *= np.clip(1 - 0.45 * np.maximum(outside, 0) / np.maximum(front, 1), 0.65, 1)
        yield "oedema", WHITE, fluid.astype(np.float32)


# ------------------------------------------------------------------------------------------------- stroke

_TERRITORIES: tuple[tuple[float, Point, Point], ...] = (
    # How often, middle of the right side, SD. Middle cerebral artery: lateral cortex, insula, its deep branches; then
    # the anterior and the posterior.
    (0.45, (44, -14, 20), (7, 20, 11)),
    (0.20, (34, 4, 12), (6, 12, 9)),
    (0.14, (10, 34, 26), (4, 16, 12)),
    (0.21, (20, -74, 14), (9, 10, 10)),
)
_DEEP: tuple[tuple[float, Point, Point], ...] = (
    # Small vessels: lacunes of nuclei, capsule, thalamus and centrum semiovale.
    (0.45, (22, 2, 10), (4, 8, 6)),
    (0.20, (12, -16, 9), (3, 5, 4)),
    (0.35, (24, -12, 26), (5, 14, 5)),
)

MEDIAN_ML, LOG_SD, LEAST_ML, MOST_ML = 4.0, 2.2, 0.03, 300.0
"""Volumes of strokes: log-normal near the median of ATLAS R2.0, 5 ml: many are small, and all sizes of THOR occur."""
MIDDLE_MM, LOOSE_MM = 22.0, 11.0
"""Height of the slice that is most looked at (ATLAS' slice 95). Strokes of a smaller radius than `LOOSE_MM` lie nearer
to it than others, or few of the small ones would ever be seen in one slice a person."""


@dataclass(frozen=True, eq=False)
class Stroke(Lesion):
    """An old infarct: a cavity of fluid with strands of scar, a gliotic rim, and neighbours drawn towards it.

    It stays in the cerebrum of one side. Places are drawn by arterial territory, its outline is smooth noise.
    """

    compartments: ClassVar[tuple[str, ...]] = ("cavity", "gliosis")

    core: Ellipsoid
    rim_mm: float
    scar: float
    push: Push
    shape: Noise
    detail: Noise

    @classmethod
    def grown(cls, rng: np.random.Generator) -> Stroke:
        volume = float(np.clip(np.exp(np.log(MEDIAN_ML) + LOG_SD * rng.standard_normal()), LEAST_ML, MOST_ML))
        radius = float(np.cbrt(1000 * volume * 3 / (4 * np.pi)))
        deep = volume < 1.5 and rng.random() < 0.5
        table = _DEEP if deep else _TERRITORIES
        _, middle, spread = table[rng.choice(len(table), p=[row[0] for row in table])]
        centre = np.array(middle) + np.array(spread) * bounded(rng, 3)
        centre[0] = max(centre[0], 4.0) * (1 if rng.random() < 0.5 else -1)
        centre[2] = MIDDLE_MM + (centre[2] - MIDDLE_MM) * np.clip(radius / LOOSE_MM, 0.2, 1)
        reach = 2.2 * radius + 8
        place: Point = (float(centre[0]), float(centre[1]), float(centre[2]))
        return cls(
            Ellipsoid.drawn(rng, centre, radius, 0.10 if deep else 0.22),
            float(np.clip(0.25 * radius, 1.0, rng.uniform(2, 3))),
            float(rng.uniform(0.0, 0.8)),
            Push(place, radius, -min(3.0, 0.1 * radius)),
            Noise.around(rng, centre, reach, max(2.5, 0.4 * radius)),
            Noise.around(rng, centre, reach, 2.5),
        )

    def near(self, points: Float) -> npt.NDArray[np.bool_]:
        return ((points - self.core.centre[:, None]) ** 2).sum(axis=0) < (2.2 * self.core.radius + 8) ** 2

    def pushed(self, points: Float) -> Float:
        return self.push.source(points)

    def parts(self, points: Float, template_points: Float, share: Float) -> Iterator[Part]:
        rough, fine = self.shape.at(points), self.detail.at(points)
        outside = self.core.outside(points) + 0.28 * self.core.radius * rough + min(1.2, 0.12 * self.core.radius) * fine
        this_side = inside(np.sign(self.core.centre[0]) * points[0] - 1, 0.4)
        hole = inside(-outside, 0.4) * this_side
        strands = self.scar * inside(fine - 1.1, 0.15)
        around = inside(self.rim_mm * np.clip(1 + 0.4 * fine, 0.3, 2) - outside, 0.4) * this_side
        yield "cavity", np.concatenate([CEREBRUM, FLUID]), hole * (1 - strands)
        yield "gliosis", CEREBRUM, np.maximum(around, hole)


# ------------------------------------------------------------------------------------------- white matter


@dataclass(frozen=True, eq=False)
class WhiteMatter(Lesion):
    """White-matter hyperintensities: caps and bands at the lateral ventricles, and spots further out.

    Odds fall with the distance to the ventricles as exp(-d / fall_mm), 3 to 6 mm; more with age.
    """

    compartments: ClassVar[tuple[str, ...]] = ("wmh",)

    fall_mm: float
    bar: float
    spot_bar: float
    bands: Noise
    spots: Noise

    @classmethod
    def grown(cls, rng: np.random.Generator, age: float) -> WhiteMatter:
        painted = template()
        shape = tuple(n // CELL + 2 for n in painted.memberships.shape[1:])
        origin = np.array(painted.origin) - CELL / 2
        load = float(np.clip((age - 65) / 25 + 0.5 * bounded(rng, 1)[0], -1, 1.4))
        return cls(
            float(rng.uniform(3, 6)),
            1.30 - 0.35 * load,
            3.1 - 0.4 * load,
            Noise.filling(rng, shape, origin, 3.0),
            Noise.filling(rng, shape, origin, 2.4),
        )

    def parts(self, points: Float, template_points: Float, share: Float) -> Iterator[Part]:
        distance = np.maximum(to_ventricles(template_points) - 1, 0)
        bands = inside(0.45 * self.bands.at(points) + 1.7 * np.exp(-distance / self.fall_mm) - self.bar, 0.05)
        bands *= inside(24 - distance, 2)
        deep = inside(depth_below_surface(points) - 12, 1) * inside(45 - distance, 4)
        spots = inside(self.spots.at(points) - self.spot_bar, 0.08) * deep
        yield "wmh", WHITE, np.maximum(bands, spots).astype(np.float32)

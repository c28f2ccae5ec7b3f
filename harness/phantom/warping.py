"""How one template becomes many brains: affine heads, diffeomorphic warps, and the random streams behind them.

A subject's point p is looked up in the template at q + exp(v)(q), q = A^-1 p: an affine head (size and pose) and a
diffeomorphism, the exponential of a stationary velocity field v (scaling and squaring). v sums a smooth field, a
shorter-waved one near the cortex, and one push per deep structure that makes it larger or smaller.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.template import TISSUES, Point, template

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


@dataclass(frozen=True, eq=False)
class Head:
    """Affine from subject to template about the template's centre: q - c = matrix @ (p - c - shift), mm."""

    matrix: npt.NDArray[np.floating]
    shift: npt.NDArray[np.floating]


IDENTITY = Head(np.eye(3), np.zeros(3))


def rotation(angle: float, axis: int) -> npt.NDArray[np.float64]:
    """Rotation by `angle` radians in the plane of the other two axes."""
    a, b = (i for i in range(3) if i != axis)
    out = np.eye(3)
    out[a, a] = out[b, b] = np.cos(angle)
    out[a, b], out[b, a] = -np.sin(angle), np.sin(angle)
    return out


@dataclass(frozen=True, eq=False)
class Warp:
    """A displacement field on the velocity grid: [3, X, Y, Z] mm; cell (0, 0, 0) is centred at `origin`."""

    displacement: Float
    origin: Point

    def at(self, points: Float) -> Float:
        """Displacement in mm at points [3, N] in mm; [3, N]."""
        return np.stack([interpolate(d, self.origin, COARSE, points) for d in self.displacement])


def warp(subject: Subject, changes: Sequence[tuple[float, float]], smooth: float = 2.6, gyral: float = 1.8) -> Warp:
    """The subject's diffeomorphism, template coordinates to template coordinates.

    changes: mm by which each structure of `RESIZED` grows, (left, right). smooth: SD in mm of white noise smoothed with
    sigma 12 mm. gyral: SD near the cortex, sigma 5 mm.
    """
    pushes = push_fields()
    shape = pushes.cortex.shape
    velocity = smooth * smooth_noise(stream(subject, "warp"), (3, *shape), 12.0)
    velocity += gyral * pushes.cortex * smooth_noise(stream(subject, "gyri"), (3, *shape), 5.0)
    for (left, right), push in zip(changes, pushes.grow, strict=True):
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
class Pushes:
    """Velocity building blocks on the coarse grid.

    cortex: [X, Y, Z] 0..1, where the short waves act. grow: [structure, 3, X, Y, Z], at most 1 mm long;
    a positive multiple makes the structure larger. x: [X] mm. origin: centre of cell (0, 0, 0), mm.
    """

    cortex: Float
    grow: Float
    x: Float
    origin: Point


@functools.lru_cache(maxsize=1)
def push_fields() -> Pushes:
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
    return Pushes(np.clip(2 * cortex, 0, 1), np.stack(grow).astype(np.float32), xs, origin)


# ---------------------------------------------------------------------------------------------- helpers


def stream(subject: Subject, purpose: str) -> np.random.Generator:
    """A stream of its own for every purpose: a change to one leaves the others as they were."""
    return np.random.default_rng(derive_seed("anatomy", purpose, subject.seed))


def bounded(rng: np.random.Generator, n: int) -> npt.NDArray[np.float64]:
    """Standard normal, cut at 2.4: no monsters in a small cohort. [n]"""
    return np.clip(rng.standard_normal(n), -2.4, 2.4)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma_mm: float) -> Float:
    """White noise smoothed over the last three axes of the coarse grid, SD 1."""
    from scipy import ndimage

    noise = rng.standard_normal(shape, dtype=np.float32)
    sigma = (0.0, *(3 * (sigma_mm / COARSE,)))
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return smooth / smooth.std()


def interpolate(grid: npt.NDArray, origin: Point, step: int, points: Float) -> Float:
    """Linear interpolation of a grid [X, Y, Z] at mm points [3, N]; 0 outside. [N]"""
    return _linear(grid, (points - np.array(origin, dtype=np.float32)[:, None]) / np.float32(step))


def _linear(grid: npt.NDArray, cells: Float) -> Float:
    from scipy import ndimage

    return ndimage.map_coordinates(grid, cells, output=np.float32, order=1, mode="constant", prefilter=False)

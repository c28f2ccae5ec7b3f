"""Simplex noise: smooth random fields of several scales, whose energy lies where lesions have theirs.

A field of one scale is a sum of bumps around the points of a lattice, each with the slope of a gradient that a random
permutation picks for its point. The lattice is the cubic one, squeezed along its diagonal until it packs spheres most
densely (A2 in the plane, A3 in space); a bump is (2 − d²)⁴ times the gradient's slope, 0 beyond its √2, the distance of
neighbours. Lattice, bumps and gradients are those of OpenSimplex (Spencer, 2014). Scales are added as in AnoDDPM
(Wyatt et al., CVPR-W 2022): Σ persistence^k · S(2^k · point / frequency).

The sum is not normalised: with the published settings its root mean square is about 0.5, neighbouring pixels correlate
by 0.96, and the mean of a slice is not 0.
"""

from __future__ import annotations

import math
from typing import Literal

import numba
import numpy as np
import torch
from torch import Tensor

from harness.api import Settings, hyper

ANODDPM = "AnoDDPM (Wyatt et al., CVPR-W 2022), code"
PUBLISHED_SIDE = 256  # pixels of the slices for which the frequency was chosen
DEPTH = 1000  # fields are cut from space at a random depth below this
REACH = 2.0  # squared distance at which a bump ends
RADIUS = math.sqrt(REACH)
HASHED = 256
POOL_DRAWS = 1  # a stream of random numbers beside those of the training loop
TOPS = {2: 47.0, 3: 103.0}  # what brings a field of one scale to about −1..1


class Simplex(Settings):
    """Simplex noise as AnoDDPM has it."""

    dimensions: Literal[2, 3] = hyper(
        3, "fields are cut from space, or made in the plane, where scales show the axes", origin=ANODDPM
    )
    frequency: float = hyper(64.0, "pixels between lattice points of the coarsest scale", origin=ANODDPM, gt=0)
    octaves: int = hyper(6, "scales, each half as coarse as the one before it", origin=ANODDPM, ge=1, le=12)
    persistence: float = hyper(0.8, "size of a scale relative to the one before it", origin=ANODDPM, gt=0)
    scaled: bool = hyper(
        False,
        "the frequency goes with the slices' longer side over 256, and the finest scale stays as it is: the same noise "
        "relative to the anatomy",
        origin="ours",
    )
    pool: int = hyper(
        0,
        "training draws its fields from so many that are made beforehand, mirrored and negated at random; 0: a new "
        "field for each draw. Fields for detection are always new",
        origin="ours",
        ge=0,
    )

    def deviations(self) -> tuple[str, ...]:
        """Phrases for the rows of methods that use this noise."""
        found = []
        if self.scaled:
            found.append("simplex frequency rescaled to the slices' side")
        if self.pool:
            found.append(f"simplex fields of the training drawn from {self.pool}")
        return tuple(found)

    def scales(self, side: int) -> tuple[float, int]:
        """Frequency and octaves for slices whose longer side has so many pixels."""
        if not self.scaled:
            return self.frequency, self.octaves
        factor = side / PUBLISHED_SIDE
        return self.frequency * factor, max(1, self.octaves + round(math.log2(factor)))


def simplex_field(rng: np.random.Generator, height: int, width: int, settings: Simplex) -> np.ndarray:
    """A new field, float32 [H, W], with a permutation and a depth of its own."""
    frequency, octaves = settings.scales(max(height, width))
    permutation = rng.permutation(HASHED)
    depth = float(rng.integers(DEPTH))
    out = np.zeros((height, width))
    for octave in range(octaves):
        step = 2.0**octave / frequency
        amplitude = settings.persistence**octave / TOPS[settings.dimensions]
        if settings.dimensions == 2:
            _add_plane(out, step, amplitude, permutation, GRADIENTS_2)
        else:
            _add_space(out, step, depth * step, amplitude, permutation, GRADIENTS_3)
    return out.astype(np.float32)


class Fields:
    """Fields for a training, all of one size: new ones, or from a pool that is made here, the same for equal seeds."""

    def __init__(self, settings: Simplex, height: int, width: int, seed: int):
        self.settings, self.height, self.width = settings, height, width
        rng = np.random.default_rng([seed, POOL_DRAWS])
        self.pool = [simplex_field(rng, height, width, settings) for _ in range(settings.pool)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Float32 [H, W]. One from the pool is mirrored and negated at random."""
        if not self.pool:
            return simplex_field(rng, self.height, self.width, self.settings)
        field = self.pool[rng.integers(len(self.pool))]
        down, across, negated = rng.integers(2, size=3)
        field = field[:: 1 - 2 * down, :: 1 - 2 * across]
        return -field if negated else field.copy()

    def batch(self, rng: np.random.Generator, n: int) -> Tensor:
        """n of them, [n, 1, H, W]."""
        return torch.from_numpy(np.stack([self.draw(rng) for _ in range(n)]))[:, None]


def _turns(numbers: tuple[int, ...]) -> np.ndarray:
    """All orders and signs of the numbers, float64 [K, D]."""
    dimensions = len(numbers)
    signs = np.stack(np.meshgrid(*[(-1, 1)] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    orders = sorted({tuple(np.roll(numbers, shift).tolist()) for shift in range(dimensions)})
    return np.array([np.multiply(order, sign) for order in orders for sign in signs], np.float64)


def squish_of(dimensions: int) -> float:
    """How much of the sum of its coordinates is added to each when a point of the cubic lattice is put in its place."""
    return (math.sqrt(dimensions + 1) - 1) / dimensions


GRADIENTS_2, GRADIENTS_3 = _turns((5, 2)), _turns((11, 4, 4))
SQUISH_2, SQUISH_3 = squish_of(2), squish_of(3)


@numba.njit(cache=True)
def _add_plane(out: np.ndarray, step: float, amplitude: float, permutation: np.ndarray, gradients: np.ndarray) -> None:
    """Add `amplitude` times one scale in the plane to `out` [H, W], whose pixels are `step` apart."""
    bottom, right = (out.shape[0] - 1) * step + RADIUS, (out.shape[1] - 1) * step + RADIUS
    spread = 1 + 2 * SQUISH_2
    for total in range(math.ceil(-2 * RADIUS / spread), math.floor((right + bottom) / spread) + 1):
        moved = SQUISH_2 * total
        for i in range(math.ceil(-RADIUS - moved), math.floor(right - moved) + 1):
            j = total - i
            x, y = i + moved, j + moved
            if -RADIUS < y < bottom:
                hashed = permutation[(permutation[i & 255] + j) & 255] % len(gradients)
                _add_bump(out, step, x, y, 0.0, amplitude, gradients[hashed, 0], gradients[hashed, 1], 0.0)


@numba.njit(cache=True)
def _add_space(
    out: np.ndarray, step: float, depth: float, amplitude: float, permutation: np.ndarray, gradients: np.ndarray
) -> None:
    """As `_add_plane`, cut from space at a depth."""
    bottom, right = (out.shape[0] - 1) * step + RADIUS, (out.shape[1] - 1) * step + RADIUS
    spread = 1 + 3 * SQUISH_3
    first, last = math.ceil((depth - 3 * RADIUS) / spread), math.floor((right + bottom + depth + RADIUS) / spread)
    for total in range(first, last + 1):
        moved = SQUISH_3 * total
        for i in range(math.ceil(-RADIUS - moved), math.floor(right - moved) + 1):
            rest = total - i + moved - depth  # of which j leaves the distance to the slice
            top = max(-RADIUS - moved, rest - RADIUS)
            for j in range(math.ceil(top), math.floor(min(bottom - moved, rest + RADIUS)) + 1):
                hashed = permutation[(permutation[(permutation[i & 255] + j) & 255] + total - i - j) & 255]
                a, b, c = gradients[hashed % len(gradients)]
                _add_bump(out, step, i + moved, j + moved, rest - j, amplitude, a, b, c)


@numba.njit(cache=True)
def _add_bump(
    out: np.ndarray, step: float, x: float, y: float, z: float, amplitude: float, a: float, b: float, c: float
) -> None:
    """Add the bump of the lattice point (x, y), which lies z before the slice, with the gradient (a, b, c)."""
    reach = REACH - z * z
    if reach <= 0:
        return
    radius = math.sqrt(reach)
    for row in range(
        max(0, math.ceil((y - radius) / step)), min(out.shape[0] - 1, math.floor((y + radius) / step)) + 1
    ):
        dy = row * step - y
        width = math.sqrt(max(0.0, reach - dy * dy))
        first = max(0, math.ceil((x - width) / step))
        for column in range(first, min(out.shape[1] - 1, math.floor((x + width) / step)) + 1):
            dx = column * step - x
            left = reach - dx * dx - dy * dy
            out[row, column] += amplitude * left * left * left * left * (a * dx + b * dy - c * z)

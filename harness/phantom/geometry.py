"""Where a brain is cut, and a cut brain: geometry and slices that adults and newborns share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Plane = Literal["coronal", "axial"]
Population = Literal["adult", "neonatal"]

FIELD_MM: Mapping[tuple[Population, Plane], float] = {
    ("adult", "coronal"): 150.0,
    ("adult", "axial"): 190.0,
    ("neonatal", "coronal"): 125.0,
    ("neonatal", "axial"): 140.0,
}
"""Field of view that the largest simulated brain needs in the plane; the longer side counts."""

RANGE_MM: Mapping[tuple[Population, Plane], tuple[float, float]] = {
    ("adult", "coronal"): (-98.0, 64.0),
    ("adult", "axial"): (-68.0, 74.0),
    ("neonatal", "coronal"): (-74.0, 40.0),
    ("neonatal", "axial"): (-43.0, 53.0),
}
"""Extent of a mean brain across the plane (newborn: at 41 weeks), mm: y from the occipital to the frontal pole, or z
from the cerebellum to the vertex. The template's centre stays in place, whatever the size of the head."""


@dataclass(frozen=True)
class Geometry:
    """Where a subject is sampled: square slices, evenly spread.

    size: rows = columns, pixels. pixel_mm: pixel edge. slices: count. first_mm and last_mm: place of the first and
    last slice. plane "coronal": y, back to front, 0 at an adult's anterior commissure; row 0 is superior. "axial":
    z, bottom to top; row 0 is anterior. Column 0 is the subject's left in both. population: whose brains must fit.

    Raises ValueError when the field of view (size * pixel_mm) would cut brains off, or the range is empty.
    """

    size: int = 256
    pixel_mm: float = 1.0
    slices: int = 163
    first_mm: float = -98.0
    last_mm: float = 64.0
    plane: Plane = "coronal"
    population: Population = "adult"

    def __post_init__(self) -> None:
        needed = FIELD_MM[self.population, self.plane]
        if self.size * self.pixel_mm < needed:
            raise ValueError(
                f"{self.size} pixels of {self.pixel_mm} mm see {self.size * self.pixel_mm:g} mm; "
                f"a brain needs {needed:g} mm or more"
            )
        if self.slices < 1 or self.last_mm <= self.first_mm:
            raise ValueError(f"no slices between {self.first_mm} and {self.last_mm} mm: {self}")

    @property
    def positions(self) -> npt.NDArray[np.float64]:
        """Place of every slice, mm, [slices]; a single slice lies in the middle of the range."""
        if self.slices == 1:
            return np.array([(self.first_mm + self.last_mm) / 2])
        return np.linspace(self.first_mm, self.last_mm, self.slices)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(slice, row, column) distance in mm."""
        span = self.last_mm - self.first_mm
        return span / max(self.slices - 1, 1), self.pixel_mm, self.pixel_mm

    def points(self, position: float, ticks: npt.NDArray, centre: npt.NDArray) -> npt.NDArray:
        """mm RAS of one slice's pixels, [3, rows * columns]; `ticks`: their offsets from the middle, rising."""
        across, through = (2, 1) if self.plane == "coronal" else (1, 2)
        x, rows = np.meshgrid(centre[0] + ticks, centre[across] - ticks)
        out = np.empty((3, x.size))
        out[0], out[across], out[through] = x.ravel(), rows.ravel(), position
        return out


FULL = Geometry()
"""The paper's size for adults: 256 x 256 at 1 mm, every slice of the brain."""

SMALL = Geometry(size=96, pixel_mm=2.0, slices=12, first_mm=-60.0, last_mm=28.0)
"""Two-core size: 12 slices through cerebellum, brainstem and deep grey matter."""


@dataclass(frozen=True, eq=False)
class AnatomySlices:
    """One brain on a geometry, before any scanner has seen it.

    labels: [n, H, W] uint8, the data set's labels, 0 outside the brain (of patients: outside lesions). fractions:
    [C, n, H, W] float16, each compartment's share of the pixel (background first), summing to 1; the sites' tissues
    name compartments 1 to C-1. An adult's compartments are its 15 labels. mask: [n, H, W] bool, the brain. spacing:
    (slice, row, column) in mm.
    """

    labels: npt.NDArray[np.uint8]
    fractions: npt.NDArray[np.float16]
    mask: npt.NDArray[np.bool_]
    spacing: tuple[float, float, float]
    plane: Plane = "coronal"

"""Small cohorts for tests of estimators of age: heads that grow, and whose rim brightens, with age."""

from __future__ import annotations

import numpy as np

from harness.api import Context
from harness.brain_age import AgeInputs, AgeTraining, Volume, VolumeScan, VolumeSet

SHAPE = (30, 34, 28)
SPACING = (2.0, 2.0, 2.0)


def growing_heads(count: int, seed: int, site: str = "A") -> tuple[VolumeSet, np.ndarray]:
    """Ellipsoids of scans 26 to 44 weeks old, and their ages; a volume is made when it is read, the same each time."""
    rng = np.random.default_rng(seed)
    ages, centres = rng.uniform(26, 44, count), rng.uniform(-1, 1, (count, 3))
    scans = tuple(VolumeScan(f"{site}{i}", f"{site}{i}", site, SHAPE, SPACING) for i in range(count))
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")

    def read(index: int) -> Volume:
        grown, centre = (ages[index] - 26) / 18, centres[index]
        distance = np.sqrt((x - centre[0]) ** 2 + ((y - centre[1]) / 1.2) ** 2 + (z - centre[2]) ** 2)
        radius = 7 + 4 * grown
        levels = np.where(distance < 0.6 * radius, 0.5, 0.25 + 0.6 * grown)
        noise = np.random.default_rng([seed, index]).normal(0, 0.02, SHAPE)
        mask = distance < radius
        return Volume((np.clip(levels + noise, 0, 1) * mask).astype(np.float32), mask)

    return VolumeSet(scans, read), ages


def age_training(count: int = 24, validation: int = 8) -> AgeTraining:
    volumes, ages = growing_heads(count, 0)
    validation_volumes, validation_ages = growing_heads(validation, 1, "B")
    return AgeTraining(AgeInputs(volumes), ages, AgeInputs(validation_volumes), validation_ages)


def unread(scans: tuple[VolumeScan, ...]) -> VolumeSet:
    """A set whose volumes nobody may read."""

    def read(index: int) -> Volume:
        raise AssertionError(f"scan {index} was read")

    return VolumeSet(scans, read)


def reseeded(ctx: Context, seed: int) -> Context:
    return Context(seed, ctx.device, ctx.scratch, ctx.log)

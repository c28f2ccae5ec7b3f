"""Synthetic material for the conformance checks of brain-age methods: heads that grow, their regions and features.

Small, made in milliseconds, the same each time. Nothing here is meant to be realistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeInputs,
    Column,
    FeatureTable,
    RegionSet,
    Volume,
    VolumeScan,
    VolumeSet,
)
from harness.tracks.brain_age.features import regional_features
from harness.tracks.brain_age.stages import regions_of

SHAPE = (28, 32, 26)
SPACING = (2.0, 2.0, 2.0)
NAMES = ("background", "rind", "core", "ball", "outside of the head")
IGNORED = (4,)
LEVELS = (0.0, 0.35, 0.6, 0.9, 0.0)  # grey levels of the labels of the youngest
YOUNGEST, OLDEST = 30.0, 44.0
PLACES = ("left", "right", "left, SD")  # columns of a family that is not measured on label maps


@dataclass(frozen=True, eq=False)
class Heads:
    """One split: scans of one site, and all that is known of them. Sizes differ; one scan lacks a region."""

    scans: tuple[VolumeScan, ...]
    images: tuple[Volume, ...]
    labels: tuple[np.ndarray, ...]
    ages: np.ndarray
    table: FeatureTable

    @property
    def volumes(self) -> VolumeSet:
        return VolumeSet(self.scans, lambda index: self.images[index])

    @property
    def regions(self) -> RegionSet:
        return RegionSet(self.scans, NAMES, lambda index: self.labels[index], IGNORED)

    def inputs(self, reads: str, places: Sequence[int] | None = None) -> AgeInputs:
        """What an estimator is handed of all scans, or of some in the order given."""
        if reads == "volumes":
            return AgeInputs(granted_volumes=self.volumes if places is None else self.volumes.take(places))
        if reads == "features":
            return AgeInputs(granted_features=self.table if places is None else self.table.take(places))
        return AgeInputs(granted_scans=self.scans if places is None else tuple(self.scans[i] for i in places))

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by a readable name, such as "image of test-1"."""
        found = {"ages": self.ages, "features": self.table.values}
        for scan, volume, labels in zip(self.scans, self.images, self.labels, strict=True):
            found |= {f"image of {scan.id}": volume.image, f"mask of {scan.id}": volume.mask}
            found[f"labels of {scan.id}"] = labels
        return found


@dataclass(frozen=True, eq=False)
class VolumeMaterial:
    """Three splits of other people each; the third is of another site."""

    train: Heads
    validation: Heads
    test: Heads

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array by a readable name, such as "test: image of test-1"."""
        return {
            f"{split.name}: {name}": array
            for split in fields(self)
            for name, array in getattr(self, split.name).arrays().items()
        }

    def locked(self) -> VolumeMaterial:
        """Itself, its arrays made read-only, as some of a run are."""
        for array in self.arrays().values():
            array.flags.writeable = False
        return self


def make_volume_material(families: Sequence[str] = ()) -> VolumeMaterial:
    """New, writable arrays of the same values at each call, with features of these families."""
    return VolumeMaterial(
        _heads("train", "a", 8, without=1, families=families),
        _heads("validation", "a", 3, without=0, families=families),
        _heads("test", "b", 4, without=2, families=families),
    )


def _heads(split: str, site: str, count: int, without: int, families: Sequence[str]) -> Heads:
    """So many scans; that of number `without` has no ball."""
    rng = np.random.default_rng([count, without])
    ages = rng.permutation(np.linspace(YOUNGEST, OLDEST, count)) + rng.uniform(-0.5, 0.5, count)
    scans, images, labels = [], [], []
    for number, age in enumerate(ages):
        x, y, z = (int(n) for n in np.add(SHAPE, rng.integers(-2, 3, 3)))
        volume, regions = _head(rng, float(age), (x, y, z), ball=number != without)
        images.append(volume)
        labels.append(regions)
        scans.append(
            VolumeScan(
                id=f"{split}-{number}",
                subject=f"{split}-{number}",
                site=site,
                shape=(x, y, z),
                spacing=SPACING,
                whole=(x, y, z),
                sex="F" if number % 2 else "M",
                birth_age=float(age) - 1 if number % 3 else None,
                modality="T2w",
            )
        )
    found = Heads(tuple(scans), tuple(images), tuple(labels), ages, FeatureTable(np.empty((count, 0)), (), ()))
    return Heads(found.scans, found.images, found.labels, ages, _table(found, families, rng))


def _head(
    rng: np.random.Generator, age: float, shape: tuple[int, int, int], *, ball: bool
) -> tuple[Volume, np.ndarray]:
    """An ellipsoid with a core and a ball in its rind, larger and brighter with age, and its labels."""
    grown = (age - YOUNGEST) / (OLDEST - YOUNGEST)
    centre = rng.uniform(-1, 1, 3)
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 - c for n, c in zip(shape, centre, strict=True)), indexing="ij")
    radius = 7 + 3 * grown
    distance = np.sqrt(x**2 + (y / 1.2) ** 2 + z**2)
    labels = np.zeros(shape, np.uint8)
    for label, edge in ((4, radius + 1.5), (1, radius), (2, 0.55 * radius)):
        labels[distance < edge] = label
    if ball:
        labels[np.sqrt(x**2 + (y - 0.75 * radius) ** 2 + z**2) < 2.5] = 3
    mask = distance < radius
    labels[~mask & (labels != 4)] = 0
    levels = np.array(LEVELS)[labels] * (0.8 + 0.2 * grown) + rng.normal(0, 0.03, shape)
    return Volume(np.where(mask, np.clip(levels, 0.01, 1), 0).astype(np.float32), mask), labels


def _table(heads: Heads, families: Sequence[str], rng: np.random.Generator) -> FeatureTable:
    """Features of the regions, and those of other families made up: they follow age, and one of each is undefined."""
    regions = regions_of(heads.regions)
    measured = [
        regional_features(labels, regions, scan.spacing).vector()
        for scan, labels in zip(heads.scans, heads.labels, strict=True)
    ]
    columns = [
        Column(family, name, label)
        for family in (RELATIONAL_VOLUME, SURFACE_RATIO)
        for label, name in zip(regions.ids, regions.names, strict=True)
    ]
    wide = [np.array(measured)]
    for family in families:
        if family not in (RELATIONAL_VOLUME, SURFACE_RATIO):
            slopes, noise = np.array((0.02, -0.03, 0.01)), rng.normal(0, 0.02, (len(heads.ages), len(PLACES)))
            values = 1 + (heads.ages[:, None] - YOUNGEST) * slopes + noise
            values[1, 2] = np.nan
            wide.append(values)
            columns += [Column(family, place) for place in PLACES]
    return FeatureTable(np.concatenate(wide, axis=1), tuple(columns), heads.scans).only(families)

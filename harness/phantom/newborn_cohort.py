"""Who is scanned for brain age: newborns by the hundred, some of them twice, mostly at term.

Ages at scan follow the bins of the 558 scans of 505 infants in the developing Human Connectome Project's second
release, which also gives the share of girls (222) and of infants with two scans (53). Which bins the two scans fall in,
and ages at birth, are ours: an infant is scanned twice if it came early, first soon after birth and again at term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.phantom.cohort import Subject, derive_seed

AGES = (29.0, 45.5)
"""Weeks after the mother's last menstruation (PMA) at which newborns are simulated."""

SCANS, PEOPLE = 558, 505
"""Scans and people of the release."""

GIRLS = 222 / 505

_EDGES = (29.3, 32.0, 34.0, 36.0, 38.0, 40.0, 42.0, 45.1)
_SCANNED = (8, 17, 46, 38, 106, 204, 139)
_FIRST = (6, 14, 27, 6, 0, 0, 0)
_SECOND = (0, 0, 0, 0, 10, 25, 18)
"""Scans of the release between `_EDGES`; of these, first and second scans of the 53 scanned twice (ours)."""

LATEST_BIRTH, EARLIEST_BIRTH, TERM = 42.3, 23.5, 37.0
PRETERM_AT_TERM = 0.12
"""Share of preterm births among infants scanned once, at term (ours)."""


@dataclass(frozen=True)
class NewbornScan:
    """One session of one infant. `subject.age` and `birth_age` in weeks PMA; `subject.id` and `.seed` are the infant's
    and the same in all its sessions, which are numbered from 1. Raises ValueError for ages outside `AGES`, or a birth
    after the scan."""

    subject: Subject
    birth_age: float
    session: int = 1

    def __post_init__(self) -> None:
        low, high = AGES
        if not low <= self.subject.age <= high:
            raise ValueError(
                f"{self.subject.id}: scanned at {self.subject.age:g} weeks; simulated: {low:g} to {high:g}"
            )
        if not 0 < self.birth_age <= self.subject.age:
            raise ValueError(f"{self.subject.id}: born at {self.birth_age:g}, scanned at {self.subject.age:g} weeks")

    @property
    def id(self) -> str:
        return f"{self.subject.id}_ses-{self.session}"


def newborn_cohort(scans: int = SCANS, seed: int = 0) -> tuple[NewbornScan, ...]:
    """The first `scans` scans of the cohort `seed`; 558 are those of 505 infants.

    Infant k depends on k and the seed only: a larger number adds scans and changes none. Raises ValueError for a
    negative number.
    """
    if scans < 0:
        raise ValueError(f"newborn cohort: the number of scans must be >= 0, got {scans}")
    found: list[NewbornScan] = []
    index = 0
    while len(found) < scans:
        found += _infant(index, seed)
        index += 1
    return tuple(found[:scans])


def _infant(index: int, seed: int) -> list[NewbornScan]:
    own = derive_seed("newborn", index, seed)
    rng = np.random.default_rng(own)
    sex: Literal["F", "M"] = "F" if rng.random() < GIRLS else "M"
    twice = _twice(index + 1) > _twice(index)
    if twice:
        ages = [_age(_FIRST, rng), _age(_SECOND, rng)]
    else:
        ages = [_age(tuple(n - a - b for n, a, b in zip(_SCANNED, _FIRST, _SECOND, strict=True)), rng)]
    birth = _birth(ages[0], rng, early=twice)
    name = f"sub-{index:04d}"
    return [NewbornScan(Subject(name, own, age, sex), birth, k) for k, age in enumerate(ages, start=1)]


def _twice(people: int) -> int:
    """How many of the first so many infants are scanned twice: spread evenly, and 53 of 505."""
    return people * (SCANS - PEOPLE) // PEOPLE


def _age(counts: tuple[int, ...], rng: np.random.Generator) -> float:
    """Age at scan, in whole days: a bin by its count, and any day within it."""
    weights = np.array(counts, dtype=np.float64)
    which = int(rng.choice(len(counts), p=weights / weights.sum()))
    return _days(rng.uniform(_EDGES[which], _EDGES[which + 1]))


def _birth(scan: float, rng: np.random.Generator, early: bool) -> float:
    """Age at birth: days to weeks before the first scan, at term unless that is earlier or the infant came `early`; a
    few preterm infants are scanned at term for the first time."""
    if scan >= TERM and rng.random() < PRETERM_AT_TERM:
        return _days(rng.uniform(25.0, TERM))
    before = scan - 0.15 - (rng.exponential(1.0) if scan >= TERM else rng.uniform(0.2, 3.5))
    if early:
        return _days(min(max(before, EARLIEST_BIRTH), TERM - 0.15))
    return _days(min(max(before, TERM if scan >= TERM + 0.3 else EARLIEST_BIRTH), LATEST_BIRTH))


def _days(weeks: float) -> float:
    """Rounded to a day, and to two decimals of a week."""
    return round(round(7 * weeks) / 7, 2)

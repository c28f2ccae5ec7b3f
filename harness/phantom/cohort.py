"""Who is scanned: simulated subjects of a site, drawn from hashes and never from a place in a list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from harness.phantom.sites import Site


@dataclass(frozen=True)
class Subject:
    """One simulated person. `seed` decides the anatomy and texture; `age` in years, newborns' in weeks after the
    mother's last menstruation (PMA)."""

    id: str
    seed: int
    age: float
    sex: Literal["F", "M"]


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed from the SHA-256 of the parts: the same on every machine, different for any change."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def cohort(site: Site, n: int, seed: int) -> tuple[Subject, ...]:
    """The first `n` subjects of a site: ages uniform over the site's range (ours) unless it has a distribution of its
    own, both sexes equally likely.

    Subject k depends on (site name, k, seed) only: a larger n, or another list of sites, changes nobody.
    Raises ValueError for a negative n.
    """
    if n < 0:
        raise ValueError(f"cohort of {site.name}: n must be >= 0, got {n}")
    subjects = []
    for index in range(n):
        own = derive_seed("subject", site.name, index, seed)
        rng = np.random.default_rng(own)
        age = _age(site, rng)
        sex: Literal["F", "M"] = "F" if rng.random() < 0.5 else "M"
        subjects.append(Subject(f"{site.name}-{index:04d}", own, age, sex))
    return tuple(subjects)


def _age(site: Site, rng: np.random.Generator) -> float:
    """In tenths. A normal distribution is cut to the range by drawing again."""
    low, high = site.age_range
    if site.age_normal is None:
        return float(np.round(rng.uniform(low, high), 1))
    while True:
        age = float(np.round(rng.normal(*site.age_normal), 1))
        if low <= age <= high:
            return age

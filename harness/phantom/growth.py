"""How a newborn's brain grows: volumes, tissue shares and folding as functions of postmenstrual age (PMA), 29-45 weeks.

Shares follow the table of 558 scans of the developing Human Connectome Project (their released relative volumes, by
bin of age); total volume follows the sums of a published 4-D atlas. What a person differs from the mean by is
`Growth`; spreads are the residual SDs around linear fits on the same 558 scans where those are known, else ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

YOUNGEST, OLDEST = 28.0, 46.0
"""Weeks for which growth is described; tables end at 29 and 45.5 and are continued linearly."""

GROUPS: tuple[str, ...] = (
    "CSF",
    "cortical_GM",
    "WM",
    "ventricles",
    "cerebellum",
    "deep_GM",
    "brainstem",
    "hippocampus_amygdala",
)
"""The eight tissues of a newborn, in the order of their labels 1 to 8 (datasets/labels/neonatal8.yaml)."""

BINS: tuple[tuple[float, float], ...] = ((29, 32), (32, 34), (34, 36), (36, 38), (38, 40), (40, 42), (42, 45.5))
"""Weeks of the measured table's columns."""

MEASURED: Mapping[str, tuple[float, ...]] = {
    "cortical_GM": (0.213, 0.237, 0.268, 0.299, 0.324, 0.338, 0.357),
    "WM": (0.436, 0.418, 0.399, 0.385, 0.363, 0.344, 0.321),
    "deep_GM": (0.044, 0.047, 0.045, 0.046, 0.045, 0.045, 0.044),
    "cerebellum": (0.035, 0.042, 0.046, 0.051, 0.053, 0.056, 0.060),
    "brainstem": (0.018, 0.017, 0.016, 0.016, 0.015, 0.015, 0.014),
    "ventricles": (0.026, 0.018, 0.016, 0.014, 0.013, 0.011, 0.013),
    # Two to three ml at term (ours; the table does not list it). CSF is what is left: .16 to .22.
    "hippocampus_amygdala": (0.006,) * 7,
}
"""Mean share of the intracranial volume in each bin."""

SPREAD: Mapping[str, float] = {
    "cortical_GM": 0.0128,  # these three: measured residual SD; the rest: ours
    "WM": 0.019,
    "cerebellum": 0.0046,
    "deep_GM": 0.002,
    "brainstem": 0.0008,
    "ventricles": 0.0025,
    "hippocampus_amygdala": 0.0004,
}
"""SD between people of one age, as a share of the whole."""

_ATLAS_WEEKS = (28.0, 32.0, 36.0, 40.0, 44.0)
_ATLAS_ML = (161.0, 224.0, 332.0, 437.0, 509.0)
TOTAL_SPREAD = 0.07
"""SD of the total volume between people of one age and sex, as a fraction of it (ours; head sizes vary by 3-4 % in
circumference)."""

MALE = 1.02
"""Boys are larger than the mean of their age, girls smaller, by this factor (ours)."""


def total_ml(pma: npt.ArrayLike) -> Array:
    """Mean intracranial volume in ml: brain, ventricles and the CSF around it."""
    return _along(pma, _ATLAS_WEEKS, _ATLAS_ML)


def shares(pma: npt.ArrayLike) -> dict[str, Array]:
    """Mean share of every group in the total; they sum to 1."""
    middles = tuple((low + high) / 2 for low, high in BINS)
    found = {name: _along(pma, middles, MEASURED[name]) for name in GROUPS if name in MEASURED}
    return {"CSF": 1 - np.sum(list(found.values()), axis=0), **found}


def folding(pma: npt.ArrayLike) -> Array:
    """How far the cortex has folded, 0 (smooth) to 1 (as an adult's): .2 at 29 weeks, .9 at 45.

    A straight line between gyrification indices of about 1.1 at 28 weeks and 2.0 to 2.3 at term (adults 2.5).
    """
    return np.clip(0.2 + 0.7 * (np.asarray(pma, dtype=np.float64) - 29) / 16, 0, 1)


@dataclass(frozen=True)
class Growth:
    """One newborn: total volume in ml, the share of every group (they sum to 1), and the folding 0..1."""

    total_ml: float
    shares: Mapping[str, float]
    folding: float


def grow(pma: float, sex: str, rng: np.random.Generator, spread: Mapping[str, float] = SPREAD) -> Growth:
    """A person's growth: the mean at this age, with what people differ by; spread: SD of the shares, as `SPREAD`.

    Raises ValueError outside 28-46 weeks.
    """
    if not YOUNGEST <= pma <= OLDEST:
        raise ValueError(f"{pma:g} weeks: newborn growth is described from {YOUNGEST:g} to {OLDEST:g} weeks")
    # Cut at 2.4 SD: no monsters in a small cohort.
    size, fold, *differences = np.clip(rng.standard_normal(2 + len(SPREAD)), -2.4, 2.4)
    volume = float(total_ml(pma)) * (MALE if sex == "M" else 1 / MALE) * (1 + TOTAL_SPREAD * size)
    mean = shares(pma)
    own = {
        name: max(float(mean[name]) + spread[name] * difference, 0.4 * float(mean[name]))
        for name, difference in zip(SPREAD, differences, strict=True)
    }
    own["CSF"] = max(1 - sum(own.values()), 0.05)
    whole = sum(own.values())
    return Growth(
        volume, {name: own[name] / whole for name in GROUPS}, float(np.clip(folding(pma) + 0.03 * fold, 0, 1))
    )


def _along(pma: npt.ArrayLike, weeks: tuple[float, ...], values: tuple[float, ...]) -> Array:
    """Linear interpolation, continued by the first and last segment's slope."""
    at = np.asarray(pma, dtype=np.float64)
    out = np.interp(at, weeks, values)
    first = (values[1] - values[0]) / (weeks[1] - weeks[0])
    last = (values[-1] - values[-2]) / (weeks[-1] - weeks[-2])
    return out + first * np.minimum(at - weeks[0], 0) + last * np.maximum(at - weeks[-1], 0)

"""Groups of the scored scans that ages are reported for: sex, and intervals of true age."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

YOUNGEST, STEP = 29.0, 2.0
"""Weeks: where the intervals of newborns' ages begin, and how long they are, as in published tables."""
MOST, FEWEST = 5, 10
"""Ages in years: at most so many intervals of equally many scans, and none of fewer scans than this."""
SEXES: tuple[str, ...] = ("F", "M")
SEX_NAMES = {"F": "female", "M": "male", "": "unknown"}


@dataclass(frozen=True)
class Bin:
    """An interval of true age, low <= age < high; the last one holds its upper end too."""

    name: str
    low: float
    high: float
    last: bool = False

    def holds(self, age: pl.Expr) -> pl.Expr:
        """Whether an age lies in the interval."""
        return (age >= self.low) & (age <= self.high if self.last else age < self.high)


def age_bins(ages: Sequence[float], unit: str) -> tuple[Bin, ...]:
    """Intervals that hold all these ages, one for each scan: of two weeks, or of equally many scans where in years.

    Intervals of weeks without a scan are left out. One interval is none.
    """
    if not ages:
        return ()
    edges = list(_of_weeks(ages)) if unit == "weeks" else _of_years(ages)
    found = [
        Bin(f"{low:g}–{high:g}", low, high, last=number == len(edges) - 2)
        for number, (low, high) in enumerate(itertools.pairwise(edges))
    ]
    values = pl.DataFrame({"age": [float(age) for age in ages]})
    filled = tuple(each for each in found if not values.filter(each.holds(pl.col("age"))).is_empty())
    return filled if len(filled) > 1 else ()


def _of_weeks(ages: Sequence[float]) -> Iterator[float]:
    first = math.floor((min(ages) - YOUNGEST) / STEP)
    # An age at an edge opens an interval of its own: 45.0 lies in 45–47.
    last = math.floor((max(ages) - YOUNGEST) / STEP) + 1
    return (YOUNGEST + STEP * number for number in range(first, last + 1))


def _of_years(ages: Sequence[float]) -> list[float]:
    parts = min(MOST, len(ages) // FEWEST)
    if parts < 2:
        return []
    inner = np.round(np.quantile(ages, np.arange(1, parts) / parts), 1)
    ends = (math.floor(min(ages)), math.ceil(max(ages)))
    return sorted({float(ends[0]), *map(float, inner), float(ends[1])})

"""Whether the numbers of a feature table can be what their families are called: errors, and what is only odd.

Relational volumes of a scan sum to 1, and no ratio leaves 0..1. That two families are named the wrong way round is
seen in the sums; that two regions are, cannot be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO, Column
from harness.data.schema import FeatureTableCard
from harness.data.table_features import Table
from harness.data.table_people import Findings
from harness.problems import Problem

SUM_TOLERANCE = 0.01
"""Relational volumes sum to 1 within this: 86 shares rounded to four decimals are off by 0.005 at most. Ours."""

RATIO_TOLERANCE = 1e-6
"""How far beyond 0..1 a share may lie: rounding. Ours."""

SAME_AS_AGE = 0.9999
"""A feature that correlates so with age is age in disguise; the best known one reaches 0.93. Ours."""

FEWEST = 5
"""Scans from which on a feature that never varies, or follows age, is no accident. Ours."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def check_values(card: FeatureTableCard, site: str, table: Table) -> list[Problem]:
    """Values that cannot be: undefined or infinite, shares beyond 0..1, relational volumes that do not sum to 1."""
    families = np.array([column.family for column in table.columns])
    volumes = table.values[:, families == RELATIONAL_VOLUME]
    ratios = table.values[:, families == SURFACE_RATIO]
    if _swapped(volumes, ratios):
        return [card.problem(("swap",) if card.swap else ("families",), _swap_told(card, site, volumes, ratios))]
    return check_rows(table)


def check_rows(table: Table) -> list[Problem]:
    """What `check_values` tells of single rows, each at its place."""
    volumes = table.values[:, [column.family == RELATIONAL_VOLUME for column in table.columns]]
    findings = Findings()
    for index, column in enumerate(table.columns):
        values = table.values[:, index]
        _tell(findings, table, np.isinf(values), column, "is infinite", "mend the table, or exclude the scan")
        if column.family != SURFACE_RATIO:
            todo = "write 0 where the region is absent" if column.family == RELATIONAL_VOLUME else "fill it in"
            _tell(findings, table, np.isnan(values), column, "is empty", f"{todo}, or exclude the scan")
        if column.family in (RELATIONAL_VOLUME, SURFACE_RATIO):
            beyond = (values < -RATIO_TOLERANCE) | (values > 1 + RATIO_TOLERANCE)
            _tell(
                findings, table, beyond & np.isfinite(values), column, "is not in 0..1", "it is a share: mend the table"
            )
    problems = findings.problems()
    if volumes.shape[1] and not problems:
        sums = volumes.sum(axis=1)
        todo = f"name all regions in {RELATIONAL_VOLUME!r} and nothing else, or call the family otherwise"
        for i in np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE):
            findings.add(table.scans[i].place, f"relational volumes sum to {sums[i]:.4g}, not to 1", todo, "sum")
        problems = findings.problems()
    return problems


def _tell(findings: Findings, table: Table, wrong: Bools, column: Column, what: str, todo: str) -> None:
    for i in np.flatnonzero(wrong):
        value = table.values[i, table.columns.index(column)]
        shown = "" if not np.isfinite(value) else f" ({value:.4g})"
        findings.add(table.scans[i].place, f"{column.name} {what}{shown}", todo, f"{column.family} {what}")


def _sums_to_one(values: Floats) -> Bools:
    sums: Floats = values.sum(axis=1)
    return np.abs(sums - 1) <= SUM_TOLERANCE


def _swapped(volumes: Floats, ratios: Floats) -> bool:
    """Whether it is the surface ratios that sum to 1 for every scan, and the relational volumes for none."""
    if not len(volumes) or not volumes.shape[1] or not ratios.shape[1]:
        return False
    return bool(_sums_to_one(ratios).all()) and not _sums_to_one(volumes).any()


def _swap_told(card: FeatureTableCard, site: str, volumes: Floats, ratios: Floats) -> str:
    what = f"{site}: the {RELATIONAL_VOLUME}s of a scan sum to {np.nanmean(np.nansum(volumes, axis=1)):.3g}, the "
    what += f"{SURFACE_RATIO}s to {ratios.sum(axis=1).mean():.3g}"
    if card.swap:
        return f"{what}, once swap: true has exchanged them: the table names them rightly; drop swap"
    return (
        f"{what}: the table names the two the wrong way round. Write swap: true, which the report will say, "
        "or mend the columns under families"
    )


# ---------------------------------------------------------------------------------------------- warnings


def oddities(card: FeatureTableCard, site: str, table: Table) -> list[str]:
    """What can be so, but is worth a look: features that never vary, that are alike, or that follow age itself."""
    found: list[str] = []
    if card.swap:
        what = f"the table names {RELATIONAL_VOLUME}s and {SURFACE_RATIO}s the wrong way round"
        found.append(f"{site}: {what}; they are exchanged (swap: true)")
    if len(table.scans) < FEWEST or not table.columns:
        return found
    values = table.values
    constant = np.array([_varies_not(values[:, i]) for i in range(values.shape[1])])
    found += _named(site, table.columns, constant, "the same for every scan")
    alike = np.zeros(len(table.columns), bool)
    first: dict[bytes, int] = {}
    for i in np.flatnonzero(~constant):
        alike[i] = first.setdefault(values[:, i].tobytes(), int(i)) != i
    found += _named(site, table.columns, alike, "the same as another feature, scan by scan")
    follows = np.array([_follows(values[:, i], table) for i in range(values.shape[1])])
    found += _named(site, table.columns, follows, "age itself in other units; no feature should be")
    return found


def _varies_not(values: Floats) -> bool:
    known = values[np.isfinite(values)]
    return not len(known) or bool((known == known[0]).all())


def _follows(values: Floats, table: Table) -> bool:
    ages = np.array([scan.age for scan in table.scans])
    known = np.isfinite(values)
    if known.sum() < FEWEST or not (ages[known] != ages[known][0]).any() or _varies_not(values):
        return False
    one, other = (x - x.mean() for x in (values[known], ages[known]))
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return size > 0 and abs(float((one * other).sum())) / size > SAME_AS_AGE


def _named(site: str, columns: Sequence[Column], chosen: Bools, what: str) -> list[str]:
    """One line for the chosen columns of each family."""
    lines = []
    for family in dict.fromkeys(column.family for column in columns):
        regions = [c.region for c, taken in zip(columns, chosen, strict=True) if taken and c.family == family]
        if regions:
            more = f" and {len(regions) - 3} more" if len(regions) > 3 else ""
            lines.append(f"{site}: {family} of {', '.join(regions[:3])}{more}: {what}")
    return lines

"""From a table of features to what a regression is fitted to: absent regions, the choice of features, their scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.api import MethodError, State
from harness.brain_age import SURFACE_RATIO, FeatureTable
from methods.brain_age.regional_regression.base import Floats
from methods.brain_age.regional_regression.selection import selected

Name = tuple[str, str]
"""Family and region of a column."""


@dataclass(frozen=True, eq=False)
class Preparation:
    """What is done to every scan's features; learnt from training scans.

    columns: those the regression sees, in the order of their names, so that nothing depends on how a table is
    ordered. fill: what stands in for undefined values, mean and scale: what features are centred and divided by, each
    float64 [columns]. out_of: how many columns they were chosen from.
    """

    columns: tuple[Name, ...]
    fill: Floats
    mean: Floats
    scale: Floats
    out_of: int

    @classmethod
    def learn(cls, table: FeatureTable, ages: Floats, select: int | None, absent: float, scale: bool) -> Preparation:
        """From features and ages [scans] of training scans; ages are known and differ. Raises MethodError for
        infinite features, and where none varies."""
        names = _names(table)
        order = sorted(range(len(names)), key=lambda i: names[i])
        values = _finite(table)[:, order]
        # A column that is undefined for every training scan teaches nothing, whatever stands in for it.
        known: NDArray[np.bool_] = ~np.asarray(np.isnan(values).all(axis=0))
        names, values = [names[i] for i, has in zip(order, known, strict=True) if has], values[:, known]
        ratio = np.array([family == SURFACE_RATIO for family, _ in names])
        fill = np.where(ratio, absent, np.nanmean(values, axis=0)) if names else np.empty(0)
        values = np.where(np.isnan(values), fill, values)
        if (values == values[0]).all():
            raise MethodError(f"no feature varies over the {len(table)} training scans: there is nothing to learn from")
        chosen = np.arange(len(names)) if select is None else np.sort(selected(values, ages, select))
        mean, spread = np.zeros(len(chosen)), np.ones(len(chosen))
        if scale:
            from sklearn.preprocessing import StandardScaler

            scaler = StandardScaler().fit(values[:, chosen])
            mean, spread = scaler.mean_, scaler.scale_
        return cls(tuple(names[i] for i in chosen), fill[chosen], mean, spread, len(table.columns))

    def apply(self, table: FeatureTable) -> Floats:
        """float64 [scans, columns]. Raises MethodError for a table without one of the columns."""
        places = {name: i for i, name in enumerate(_names(table))}
        missing = [f"{family} of {region}" for family, region in self.columns if (family, region) not in places]
        if missing:
            raise MethodError(
                f"{len(missing)} of {len(self.columns)} features that were learnt from are not in the table, first "
                f"{missing[0]}; measure the same regions"
            )
        values = _finite(table, [places[name] for name in self.columns])
        return (np.where(np.isnan(values), self.fill, values) - self.mean) / self.scale

    def state(self) -> State:
        return {
            "columns": [list(name) for name in self.columns],
            "out_of": self.out_of,
            "fill": self.fill,
            "mean": self.mean,
            "scale": self.scale,
        }

    @classmethod
    def of(cls, state: State) -> Preparation:
        columns = tuple((family, region) for family, region in state["columns"])
        return cls(columns, state["fill"], state["mean"], state["scale"], state["out_of"])


def _names(table: FeatureTable) -> list[Name]:
    names = [(column.family, column.region) for column in table.columns]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise MethodError(
            f"the table has two columns for the {twice[0][0]} of {twice[0][1]}; give each region one name"
        )
    return names


def _finite(table: FeatureTable, places: list[int] | None = None) -> Floats:
    """Values of some columns, nan where undefined. Raises MethodError for infinite ones."""
    values = np.asarray(table.values, np.float64)
    values = values if places is None else values[:, places]
    wrong = np.isinf(values)
    if wrong.any():
        scan, column = (int(i) for i in np.argwhere(wrong)[0])
        name = table.columns[column if places is None else places[column]].name
        raise MethodError(f"the {name} of scan {table.scans[scan].id} is infinite; mend or leave out that scan")
    return values

"""The search for a regression's settings by its error on validation scans."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError, field_validator

from harness.api import Settings, hyper
from harness.problems import did_you_mean
from methods.brain_age.regional_regression.base import Grid, Regression
from methods.brain_age.regional_regression.regressors import Mistake, faults_of, mistakes

MOST_POINTS = 10_000


class Tuning(Settings):
    """Every point of a grid is fitted to the training scans; the one with the least error on validation scans stays.

    Of equal ones the first. No test scan is seen. The thesis says that hyper-parameters were searched and names
    neither ranges nor results; its numbers are those of scikit-learn's defaults. The grid `published` holds the ranges
    with which those regressions come close to the Bayesian ridge on its feature tables, in steps that are ours; the
    Bayesian ridge itself keeps its defaults there.
    """

    grid: Literal["published"] | dict[str, list[Any]] = hyper(
        "published", "published, or field of the regression → values to try, crossed", origin="ours"
    )
    trials: int | None = hyper(None, "so many of its points, drawn by the seed; null: all of them", origin="ours", ge=1)
    by: Literal["mae"] = hyper("mae", "what is compared: the mean absolute error of validation scans", origin="ours")

    @field_validator("grid", mode="before")
    @classmethod
    def _crossed(cls, given: Any) -> Any:
        if given == "published":
            return given
        if not isinstance(given, Mapping) or not given:
            raise ValueError("write published, or field: [values] for each field of the regression that is searched")
        for name, values in given.items():
            if not isinstance(values, list | tuple) or not values:
                raise mistakes([((str(name),), values, "expected a list of values to try")])
        return given

    def points(self, start: Regression, seed: int) -> list[tuple[dict[str, Any], Regression]]:
        """(what differs from `start`, the regression) of every point that is tried, in the grid's order."""
        grids: tuple[Grid, ...] = start.searched() if self.grid == "published" else (self.grid,)
        found: list[tuple[dict[str, Any], Regression]] = []
        for grid in grids:
            for values in itertools.product(*grid.values()):
                point = dict(zip(grid, values, strict=True))
                found.append((point, type(start).model_validate({**start.model_dump(), **point})))
        if self.trials is not None and self.trials < len(found):
            drawn = np.random.default_rng([seed, len(found)]).choice(len(found), self.trials, replace=False)
            found = [found[i] for i in np.sort(drawn)]
        return found

    def faults(self, start: Regression) -> list[Mistake]:
        """What is wrong with the grid for this regression, value by value."""
        if self.grid == "published":
            return []
        kind, own = type(start), [name for name in type(start).model_fields if name != "id"]
        found: list[Mistake] = []
        for name, values in self.grid.items():
            if name not in own:
                what = f"{start.id} has no field {name!r}{did_you_mean(name, own)}"
                found.append((("grid", name), values, what))
                continue
            for i, value in enumerate(values):
                try:
                    kind.model_validate({**start.model_dump(), name: value})
                except ValidationError as error:
                    found += [(("grid", name, i), value, what) for _, _, what in faults_of(kind, error)]
        count = int(np.prod([float(len(values)) for values in self.grid.values()]))
        if count > MOST_POINTS:
            found.append((("grid",), None, f"the grid has {count:,} points; at most {MOST_POINTS:,} are searched"))
        return found

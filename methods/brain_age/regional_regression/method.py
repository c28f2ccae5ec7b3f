"""Age by a regression on sizes and surfaces of segmented regions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from harness.api import Context, MethodError, State, hyper
from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeEstimator,
    AgeInputs,
    AgePredictions,
    AgeTraining,
    Column,
    FeatureTable,
    VolumeSegmenter,
)
from methods.brain_age.patch_segmenter.method import PatchSegmenter
from methods.brain_age.regional_regression.base import Fitted, Floats, Regression
from methods.brain_age.regional_regression.linear import BayesianRidge
from methods.brain_age.regional_regression.preparation import Preparation
from methods.brain_age.regional_regression.regressors import AnyRegression, mistakes, read
from methods.brain_age.regional_regression.tuning import Tuning

THESIS = "thesis ch. 6"
CODE = "authors' code"
PREFIX = "fitted."
"""Entries of a state that the regression reads."""


class RegionalRegression(AgeEstimator):
    """Relational volumes and surface ratios of segmented regions, the 100 that follow age best, and a Bayesian ridge.

    Learnt from training scans: which features have the largest Pearson correlation with age, in size; their means and
    standard deviations, by which they are scaled; the mean age, which is taken off; the regression. Features of regions
    that a scan does not have are filled in first. Columns are told by their names, never by their place.

    A state holds, beside what predictions need: "columns", the features that were chosen, as [family, region];
    "out_of", the number they were chosen from; "settings", the regression with which it predicts; "tuning", every
    setting that was tried with its error; "warnings", what the fit had to say, such as that it did not converge.
    """

    id = "regional_regression"
    reference = "Beizaee et al., neonatal brain age, thesis ch. 6"
    notes = (
        "Ours: what stands in for the features of absent regions (the published tables have none); the order of "
        "columns, by name; steps of the grids that are searched. The published importances are of a Bayesian ridge on "
        "one family, unscaled, with all its features."
    )
    reads = "features"

    families: Annotated[tuple[str, ...], Field(min_length=1)] = hyper(
        (RELATIONAL_VOLUME, SURFACE_RATIO), "families of features", origin=THESIS
    )
    segmentation: PatchSegmenter | None = hyper(
        PatchSegmenter(),
        "the network whose regions are measured; null: the data set's own label maps or tables (DRAW-EM)",
        origin=f"{THESIS}, table 6.4",
    )
    select: int | None = hyper(
        100, "features that are kept, of the largest correlation with age; null: all", origin=CODE, ge=1
    )
    absent: float = hyper(
        1.0,
        "surface ratio of a region without voxels, towards which it shrinks; other undefined features take the mean "
        "of the training scans",
        origin="ours",
        ge=0,
        le=1,
    )
    scale: bool = hyper(True, "features are centred and divided by their standard deviation", origin=CODE)
    centre: bool = hyper(True, "the mean age of the training scans is taken off before the regression", origin=CODE)
    regressor: AnyRegression = hyper(
        BayesianRidge(),
        "the regression: bayesian_ridge, kernel_ridge, elastic_net, gradient_boosting, svr or mlp, alone or as `id` "
        "beside its fields",
        origin=f"{THESIS}, table 6.4",
    )
    tune: Tuning | None = hyper(
        None, "search for the regression's settings on validation scans; null: as they are given", origin=THESIS
    )
    refit_with_validation: bool = hyper(
        False, "learn the final regression from training and validation scans together", origin="ours"
    )

    @field_validator("families")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a family is listed twice")
        return names

    @field_validator("tune")
    @classmethod
    def _searchable(cls, tune: Tuning | None, info: ValidationInfo) -> Tuning | None:
        start = info.data.get("regressor")
        if tune is not None and start is not None and (found := tune.faults(start)):
            raise mistakes(found)
        return tune

    @classmethod
    def example(cls) -> RegionalRegression:
        return cls(select=8, segmentation=None)

    def wanted(self) -> tuple[str, ...]:
        return self.families

    def segmenter(self) -> VolumeSegmenter | None:
        return self.segmentation

    def chosen(self, state: State) -> tuple[str, ...]:
        return tuple(Column(family, region).name for family, region in state["columns"])

    def learns_from_validation(self) -> bool:
        return self.refit_with_validation

    def alone(self, family: str) -> AgeEstimator | None:
        """The same regression on all features of that family as they are: neither scaled, selected nor tuned."""
        if family not in self.families:
            return None
        plain = {"families": (family,), "select": None, "scale": False, "tune": None}
        return self.model_copy(update=plain)

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """Learn from features and ages of training scans, of validation scans where they are to be learnt from too.

        Validation scans choose settings where `tune` is given, and are not read otherwise. Raises MethodError for
        ages that are unknown or all equal, families that are missing, features that do not vary, and whatever the
        regression itself refuses.
        """
        table, ages = self._read(data.train.features, data.ages)
        chosen, tried = self._tuned(data, table, ages, ctx) if self.tune else (self.regressor, [])
        if self.refit_with_validation:
            more, more_ages = self._read(data.validation.features, data.validation_ages)
            table, ages = _together(table, more), np.concatenate([ages, more_ages])
        prepared = self._prepared(table, ages)
        mean = float(ages.mean()) if self.centre else 0.0
        fitted, said = _learnt(chosen, prepared.apply(table), ages - mean, ctx)
        return {
            **prepared.state(),
            "mean_age": mean,
            "settings": chosen.model_dump(mode="json"),
            "tuning": tried,
            "warnings": said,
            **{PREFIX + name: value for name, value in fitted.items()},
        }

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        """Ages, and a Bayesian ridge's standard deviations of them. Raises MethodError for missing columns."""
        fitted = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
        regression: Regression = read(state["settings"])
        ages, sds = regression.predict(fitted, Preparation.of(state).apply(data.features))
        return AgePredictions(ages + state["mean_age"], sds)

    def deviations(self) -> tuple[str, ...]:
        families = "" if set(self.families) == {RELATIONAL_VOLUME, SURFACE_RATIO} else ", ".join(self.families)
        selection = "all features" if self.select is None else f"{self.select} features, where 100 are published"
        changed = ", ".join(f"{name} {value}" for name, value in self.regressor.changed().items() if name != "id")
        told: Sequence[tuple[Any, str]] = (
            (families, f"features: {families}"),
            (self.segmentation is None, "regions as the data set has them"),
            (self.select != 100, selection),
            (not self.scale, "features are not scaled"),
            (not self.centre, "ages are not centred"),
            (self.regressor.id != "bayesian_ridge", f"{self.regressor.id} in place of a Bayesian ridge"),
            (changed, f"{self.regressor.id}: {changed}"),
            (self.tune, "settings are tuned on validation scans"),
            (self.refit_with_validation, "learns from validation scans too"),
        )
        return tuple(what for holds, what in told if holds)

    def _read(self, table: FeatureTable, ages: np.ndarray) -> tuple[FeatureTable, Floats]:
        missing = [family for family in self.families if family not in table.families]
        if missing:
            have = ", ".join(table.families) or "none"
            raise MethodError(f"features of the family {missing[0]!r} are asked for; the data have {have}")
        known = np.asarray(ages, np.float64)
        unknown = ~np.isfinite(known)
        if unknown.any():
            first = table.scans[int(unknown.argmax())].id
            raise MethodError(f"the ages of {int(unknown.sum())} scans are unknown, first {first}; leave these out")
        return table.only(self.families), known

    def _prepared(self, table: FeatureTable, ages: Floats) -> Preparation:
        if len(ages) == 0 or (ages == ages[0]).all():
            raise MethodError(f"all {len(ages)} training scans have the same age; there is nothing to learn")
        return Preparation.learn(table, ages, self.select, self.absent, self.scale)

    def _tuned(
        self, data: AgeTraining, table: FeatureTable, ages: Floats, ctx: Context
    ) -> tuple[Regression, list[dict[str, Any]]]:
        """The setting with the least error on validation scans, and all that were tried with theirs."""
        assert self.tune is not None
        if not len(data.validation.scans):
            raise MethodError("tune needs validation scans, and there are none; leave it out, or split some off")
        seen, truth = self._read(data.validation.features, data.validation_ages)
        prepared = self._prepared(table, ages)
        mean = float(ages.mean()) if self.centre else 0.0
        features, seen_features = prepared.apply(table), prepared.apply(seen)
        best: tuple[float, Regression] | None = None
        tried: list[dict[str, Any]] = []
        for number, (point, regression) in enumerate(self.tune.points(self.regressor, ctx.seed)):
            try:
                fitted, _ = _learnt(regression, features, ages - mean, ctx)
            except MethodError as error:
                tried.append({"settings": point, "mae": None, "failed": str(error)})
                continue
            mae = float(np.abs(regression.predict(fitted, seen_features)[0] + mean - truth).mean())
            ctx.log("validation MAE", number, mae)
            tried.append({"settings": point, "mae": mae})
            if best is None or mae < best[0]:
                best = (mae, regression)
        if best is None:
            raise MethodError(f"none of {len(tried)} settings could be fitted; the first: {tried[0]['failed']}")
        return best[1], tried


def _learnt(regression: Regression, features: Floats, ages: Floats, ctx: Context) -> tuple[Fitted, list[str]]:
    """The regression as arrays, and what scikit-learn warned of. Raises MethodError for what it refuses."""
    regressor = regression.build(ctx.seed % 2**32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            regressor.fit(features, ages)
        except ValueError as error:
            first = str(error).strip().splitlines()[0]
            raise MethodError(f"{regression.id} cannot be fitted to {len(ages)} scans: {first}") from None
    said = dict.fromkeys(str(warning.message).strip().splitlines()[0] for warning in caught)
    return regression.frozen(regressor, features), list(said)


def _together(table: FeatureTable, more: FeatureTable) -> FeatureTable:
    """Scans of both, the columns of the first. Raises MethodError where the second lacks one."""
    places = {column.name: i for i, column in enumerate(more.columns)}
    missing = [column.name for column in table.columns if column.name not in places]
    if missing:
        raise MethodError(f"validation scans have no {missing[0]}; measure the same regions")
    values = more.values[:, [places[column.name] for column in table.columns]]
    return FeatureTable(np.concatenate([table.values, values]), table.columns, (*table.scans, *more.scans))

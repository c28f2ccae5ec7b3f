"""Regional regression: each regression against scikit-learn, what is chosen and from whom, tuning, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.feature_selection import SelectKBest, r_regression
from sklearn.linear_model import BayesianRidge as SklearnRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.api import Context, MethodError, State
from harness.brain_age import (
    RELATIONAL_VOLUME,
    SURFACE_RATIO,
    AgeInputs,
    AgeTraining,
    Column,
    FeatureTable,
    VolumeScan,
)
from harness.data.arrays import load_state, save_state
from harness.sweep.file import SweepSpec
from harness.sweep.space import expand, fields_of
from harness.yamlfile import check, read
from methods.brain_age.patch_segmenter.method import PatchSegmenter
from methods.brain_age.regional_regression.method import RegionalRegression
from methods.brain_age.regional_regression.regressors import KINDS
from methods.brain_age.regional_regression.tuning import Tuning

REGIONS = 12
SIGNAL = {(SURFACE_RATIO, "region 3"), (SURFACE_RATIO, "region 7"), (RELATIONAL_VOLUME, "region 5")}


def table(count: int, seed: int = 0, regions: int = REGIONS) -> tuple[FeatureTable, np.ndarray]:
    """Features of `count` scans and their ages in weeks: three columns follow age, the others are noise."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(29, 45, count)
    columns = tuple(
        Column(family, f"region {i}", i) for family in (RELATIONAL_VOLUME, SURFACE_RATIO) for i in range(regions)
    )
    values = np.empty((count, len(columns)))
    for i, column in enumerate(columns):
        typical = 1 / regions if column.family == RELATIONAL_VOLUME else 0.5
        signal = (ages - 40) / 50 if (column.family, column.region) in SIGNAL else 0
        values[:, i] = typical * (1 + signal + rng.normal(0, 0.05, count))
    scans = tuple(VolumeScan(f"{seed}-{i}", f"{seed}-{i}", "here", (4, 4, 4), (1, 1, 1)) for i in range(count))
    return FeatureTable(values, columns, scans), ages


def training(count: int = 60, validation: int = 25, regions: int = REGIONS) -> AgeTraining:
    (known, ages), (others, other_ages) = table(count, 1, regions), table(validation, 2, regions)
    return AgeTraining(AgeInputs(None, known), ages, AgeInputs(None, others), other_ages)


def changed(data: AgeTraining, values: np.ndarray) -> AgeTraining:
    """The same training scans with other features."""
    return replace(data, train=AgeInputs(None, data.train.features.with_values(values)))


def method(**fields: Any) -> RegionalRegression:
    return RegionalRegression(**{"segmentation": None, **fields})


def predicted(model: RegionalRegression, state: State, features: FeatureTable, ctx: Context) -> np.ndarray:
    return model.predict(state, AgeInputs(None, features), ctx).ages


def ordered(features: FeatureTable) -> np.ndarray:
    """Values with the columns in the order of their names."""
    names = [(column.family, column.region) for column in features.columns]
    return features.values[:, sorted(range(len(names)), key=lambda i: names[i])]


# ------------------------------------------------------------------------------ equality with scikit-learn


@pytest.mark.parametrize(
    "regressor",
    [
        {"id": "bayesian_ridge"},
        {"id": "bayesian_ridge", "alpha_init": 2.0, "lambda_init": 0.5, "max_iter": 3},
        {"id": "elastic_net"},
        {"id": "elastic_net", "alpha": 0.05, "l1_ratio": 0.8, "selection": "random", "positive": True},
        {"id": "kernel_ridge"},
        {"id": "kernel_ridge", "kernel": "poly", "degree": 2, "alpha": 0.1, "gamma": 0.01},
        {"id": "kernel_ridge", "kernel": "rbf", "alpha": 0.01},
        {"id": "kernel_ridge", "kernel": "laplacian", "gamma": 0.02},
        {"id": "kernel_ridge", "kernel": "sigmoid", "gamma": 0.001, "coef0": 0.5},
        {"id": "svr"},
        {"id": "svr", "kernel": "linear", "C": 0.1},
        {"id": "svr", "kernel": "poly", "degree": 2, "gamma": "auto", "coef0": 1.0},
        {"id": "svr", "kernel": "sigmoid", "gamma": 0.01},
        {"id": "svr", "epsilon": 50.0},
        {"id": "gradient_boosting", "n_estimators": 40},
        {"id": "gradient_boosting", "n_estimators": 30, "subsample": 0.5, "max_depth": None, "max_leaf_nodes": 6},
        {"id": "gradient_boosting", "n_estimators": 30, "loss": "huber", "max_features": "sqrt", "ccp_alpha": 0.01},
        {"id": "gradient_boosting", "n_estimators": 30, "loss": "quantile", "n_iter_no_change": 5},
        {"id": "mlp", "hidden_layer_sizes": [16, 8], "max_iter": 30},
        {"id": "mlp", "hidden_layer_sizes": [8], "activation": "tanh", "solver": "lbfgs", "alpha": 1.0},
        {"id": "mlp", "hidden_layer_sizes": [8], "activation": "logistic", "solver": "sgd", "early_stopping": True},
        {"id": "mlp", "hidden_layer_sizes": [8], "activation": "identity", "max_iter": 20},
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_predictions_are_those_of_scikit_learn(regressor: dict[str, Any], ctx: Context, tmp_path: Path) -> None:
    """Fitted on features as they are chosen and scaled, and predicting from a state that was saved and loaded."""
    data, (test, _) = training(), table(40, 9)
    model = method(select=9, regressor=regressor)
    save_state(tmp_path, model.fit(data, ctx))
    state = load_state(tmp_path)

    chosen = SelectKBest(lambda x, y: np.abs(r_regression(x, y)), k=9)
    peer = make_pipeline(chosen, StandardScaler(), model.regressor.build(ctx.seed))
    mean = data.ages.mean()
    peer.fit(ordered(data.train.features), data.ages - mean)
    expected = peer.predict(ordered(test)) + mean
    found = model.predict(state, AgeInputs(None, test), ctx)
    np.testing.assert_allclose(found.ages, expected, rtol=0, atol=1e-10)
    if regressor["id"] == "bayesian_ridge":
        scaled = peer[:-1].transform(ordered(test))
        np.testing.assert_allclose(found.sds, peer[-1].predict(scaled, return_std=True)[1], rtol=0, atol=1e-10)
    else:
        assert found.sds is None


def test_trees_at_their_thresholds(ctx: Context) -> None:
    """Even numbers in training put thresholds at whole numbers, which many test scans meet exactly."""
    data, (test, _) = training(), table(40, 9)
    rng = np.random.default_rng(2)
    data = changed(data, 2.0 * rng.integers(0, 10, data.train.features.values.shape))
    test = test.with_values(rng.integers(0, 20, test.values.shape).astype(float))
    model = method(select=None, scale=False, centre=False, regressor={"id": "gradient_boosting", "max_depth": 5})
    peer = model.regressor.build(ctx.seed).fit(ordered(data.train.features), data.ages)
    found = predicted(model, model.fit(data, ctx), test, ctx)
    np.testing.assert_allclose(found, peer.predict(ordered(test)), rtol=0, atol=1e-10)


def test_the_whole_pipeline_with_all_features(ctx: Context) -> None:
    data, (test, _) = training(), table(40, 9)
    model = method(select=None, scale=False, centre=False)
    peer = SklearnRidge().fit(ordered(data.train.features), data.ages)
    found = model.predict(model.fit(data, ctx), AgeInputs(None, test), ctx)
    ages, sds = peer.predict(ordered(test), return_std=True)
    np.testing.assert_allclose(found.ages, ages, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.sds, sds, rtol=0, atol=1e-9)


def test_kernel_ridge_needs_centred_ages(ctx: Context) -> None:
    """It has no intercept: without centring it is off by weeks."""
    data, (test, ages) = training(), table(40, 9)
    errors = []
    for centre in (True, False):
        model = method(centre=centre, regressor="kernel_ridge")
        errors.append(np.abs(predicted(model, model.fit(data, ctx), test, ctx) - ages).mean())
    assert errors[0] < 3 < errors[1]


# ------------------------------------------------------------------------------------- what is chosen


def test_signal_is_selected_and_predicts(ctx: Context) -> None:
    data, (test, ages) = training(800), table(400, 9)
    model = method(select=3)
    state = model.fit(data, ctx)
    assert {(family, region) for family, region in state["columns"]} == SIGNAL
    assert state["out_of"] == 2 * REGIONS
    off = predicted(model, state, test, ctx) - ages
    assert np.abs(off).mean() < 0.45 * np.abs(ages - data.ages.mean()).mean()
    sds = model.predict(state, AgeInputs(None, test), ctx).sds
    assert sds is not None
    assert 0.9 < np.mean(np.abs(off) < 1.96 * sds) < 0.98, "its own uncertainty covers what it should"


def test_nothing_is_learnt_from_validation_or_test(ctx: Context) -> None:
    """Poison everything but training scans: the state stays as it is, to the last bit."""
    data = training()
    poisoned = replace(
        data,
        validation=AgeInputs(None, data.validation.features.with_values(np.full((25, 2 * REGIONS), np.inf))),
        validation_ages=np.full(25, np.nan),
    )
    model = method(select=5)
    same(model.fit(data, ctx), model.fit(poisoned, ctx))
    other = replace(data, ages=data.ages[::-1].copy())
    assert model.fit(other, ctx)["columns"] != model.fit(data, ctx)["columns"]


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_columns_does_not_matter(name: str, ctx: Context) -> None:
    data, (test, _) = training(), table(20, 9)
    model = method(select=7, regressor={"id": name, **({"max_iter": 20} if name == "mlp" else {})})
    state = model.fit(data, ctx)
    order = np.random.default_rng(5).permutation(2 * REGIONS)
    turned = replace(data, train=AgeInputs(None, shuffled(data.train.features, order)))
    same(state, model.fit(turned, ctx))
    expected = predicted(model, state, test, ctx)
    np.testing.assert_array_equal(predicted(model, state, shuffled(test, order), ctx), expected)


def shuffled(features: FeatureTable, order: np.ndarray) -> FeatureTable:
    return FeatureTable(features.values[:, order], tuple(features.columns[i] for i in order), features.scans)


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_a_scan_depends_on_itself_alone(ctx: Context) -> None:
    data, (test, _) = training(), table(20, 9)
    for name in KINDS:
        model = method(regressor={"id": name, **({"max_iter": 20} if name == "mlp" else {})})
        state = model.fit(data, ctx)
        alone = [predicted(model, state, test.take([i]), ctx)[0] for i in range(5)]
        np.testing.assert_allclose(predicted(model, state, test, ctx)[:5], alone, rtol=0, atol=1e-10)
        assert predicted(model, state, test.take([]), ctx).shape == (0,)


def test_seeds(ctx: Context) -> None:
    """A seed decides what is random, and may be as large as any."""
    data, (test, _) = training(), table(20, 9)
    model = method(regressor={"id": "mlp", "max_iter": 5, "hidden_layer_sizes": [4]})
    large = replace(ctx, seed=2**63 + 1)
    one, again = (predicted(model, model.fit(data, large), test, ctx) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, predicted(model, model.fit(data, ctx), test, ctx))


# --------------------------------------------------------------------------------- absent and constant


def test_absent_regions(ctx: Context) -> None:
    """A surface ratio that is undefined counts as 1, any other undefined feature as the mean of the training scans."""
    data, (test, _) = training(), table(20, 9)
    ratio, volume = REGIONS + 3, 5
    holes = data.train.features.values.copy()
    holes[:7, ratio] = holes[3:9, volume] = np.nan
    filled = np.where(np.isnan(holes), 1.0, holes)
    filled[3:9, volume] = np.delete(holes[:, volume], range(3, 9)).mean()
    model = method(select=6)
    expected = model.fit(changed(data, filled), ctx)
    for name, value in model.fit(changed(data, holes), ctx).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(value, expected[name], rtol=1e-9, atol=1e-12)

    state = model.fit(data, ctx)
    assert [SURFACE_RATIO, "region 3"] in state["columns"]
    gone, whole = test.values.copy(), test.values.copy()
    gone[:, ratio], whole[:, ratio] = np.nan, 1.0
    found = predicted(model, state, test.with_values(gone), ctx)
    np.testing.assert_array_equal(found, predicted(model, state, test.with_values(whole), ctx))
    half = method(select=6, absent=0.5)
    whole[:, ratio] = 0.5
    found = predicted(half, half.fit(data, ctx), test.with_values(gone), ctx)
    np.testing.assert_array_equal(found, predicted(model, state, test.with_values(whole), ctx))


@pytest.mark.parametrize("name", KINDS)
def test_constant_and_empty_columns(name: str, ctx: Context) -> None:
    """They are never selected; with all features a column that no training scan has is left out, not guessed."""
    data, (test, ages) = training(200), table(30, 9)
    values = data.train.features.values.copy()
    values[:, 0], values[:, 1], values[:, REGIONS] = 0.25, np.nan, np.nan
    holed = changed(data, values)
    fields = {"regressor": {"id": name, **({"solver": "lbfgs", "alpha": 1.0} if name == "mlp" else {})}}
    for select, count in ((None, 2 * REGIONS - 2), (100, 2 * REGIONS - 3)):
        model = method(select=select, **fields)
        state = model.fit(holed, ctx)
        assert len(state["columns"]) == count
        found = predicted(model, state, test, ctx)
        assert np.abs(found - ages).mean() < np.abs(ages - ages.mean()).mean()
        wild = test.values.copy()
        wild[:, 1] = 1e6
        np.testing.assert_array_equal(predicted(model, state, test.with_values(wild), ctx), found)


def test_more_to_select_than_there_are(ctx: Context) -> None:
    data, (test, _) = training(), table(20, 9)
    model, every = method(select=100), method(select=None)
    state = model.fit(data, ctx)
    assert len(state["columns"]) == state["out_of"] == 2 * REGIONS
    found = predicted(model, state, test, ctx)
    np.testing.assert_array_equal(found, predicted(every, every.fit(data, ctx), test, ctx))


@pytest.mark.parametrize("name", KINDS)
def test_three_scans(name: str, ctx: Context) -> None:
    data, (test, _) = training(3), table(20, 9)
    model = method(regressor={"id": name, **({"max_iter": 20} if name == "mlp" else {})})
    found = predicted(model, model.fit(data, ctx), test, ctx)
    assert np.isfinite(found).all()


def test_unfinished_fits_are_said(ctx: Context) -> None:
    data = training()
    short = method(regressor={"id": "mlp", "max_iter": 2}).fit(data, ctx)
    assert any("Maximum iterations (2)" in line for line in short["warnings"])
    assert method().fit(data, ctx)["warnings"] == []


# --------------------------------------------------------------------------------------------- tuning


def test_tuning_takes_the_best_on_validation(ctx: Context) -> None:
    data, (test, _) = training(), table(30, 9)
    alphas = [100.0, 0.01, 1.0, 10.0]
    errors = []
    for alpha in alphas:
        model = method(regressor={"id": "kernel_ridge", "alpha": alpha})
        errors.append(
            np.abs(predicted(model, model.fit(data, ctx), data.validation.features, ctx) - data.validation_ages).mean()
        )
    searched = method(regressor="kernel_ridge", tune={"grid": {"alpha": alphas}})
    state = searched.fit(data, ctx)
    best = alphas[int(np.argmin(errors))]
    assert [point["settings"] for point in state["tuning"]] == [{"alpha": alpha} for alpha in alphas]
    np.testing.assert_allclose([point["mae"] for point in state["tuning"]], errors, rtol=1e-12)
    assert state["settings"]["alpha"] == best
    given = method(regressor={"id": "kernel_ridge", "alpha": best})
    np.testing.assert_array_equal(
        predicted(searched, state, test, ctx), predicted(given, given.fit(data, ctx), test, ctx)
    )
    # Other validation ages, another choice: nothing else chose.
    spoilt = replace(data, validation_ages=np.full(25, data.ages.mean()))
    assert searched.fit(spoilt, ctx)["settings"]["alpha"] == 100.0


def test_of_equal_settings_the_first(ctx: Context) -> None:
    model = method(regressor="svr", tune={"grid": {"shrinking": [True], "max_iter": [-1, 1_000_000]}})
    state = model.fit(training(), ctx)
    assert state["tuning"][0]["mae"] == state["tuning"][1]["mae"]
    assert state["settings"]["max_iter"] == -1


def test_a_setting_that_fails_is_passed_over(ctx: Context) -> None:
    """Ten scans are too few to set a hundredth of them aside."""
    grid = {"validation_fraction": [0.01, 0.3]}
    regressor = {"id": "mlp", "early_stopping": True, "max_iter": 20, "hidden_layer_sizes": [4]}
    state = method(regressor=regressor, tune={"grid": grid}).fit(training(10), ctx)
    assert [point["mae"] is None for point in state["tuning"]] == [True, False]
    assert state["settings"]["validation_fraction"] == 0.3
    with pytest.raises(MethodError, match="none of 1 settings could be fitted; the first: mlp cannot be fitted to 10"):
        method(regressor=regressor, tune={"grid": {"validation_fraction": [0.01]}}).fit(training(10), ctx)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bayesian_ridge", 1),
        ("kernel_ridge", 52),
        ("elastic_net", 35),
        ("gradient_boosting", 16),
        ("svr", 76),
        ("mlp", 18),
    ],
)
def test_published_grids(name: str, count: int) -> None:
    """As many points as the ranges say; each is a setting of its own."""
    points = Tuning().points(method(regressor=name).regressor, 0)
    assert len(points) == len({str(regression) for _, regression in points}) == count
    assert all(regression.id == name for _, regression in points)


def test_the_published_search_helps_where_defaults_are_poor(ctx: Context) -> None:
    data, (test, ages) = training(), table(60, 9)
    for name in ("elastic_net", "svr"):
        plain, searched = method(regressor=name), method(regressor=name, tune={})
        states = [model.fit(data, ctx) for model in (plain, searched)]
        before, after = (np.abs(predicted(plain, state, test, ctx) - ages).mean() for state in states)
        assert after < before, name
    untouched = method(tune={}).fit(data, ctx)
    same({**untouched, "tuning": []}, method().fit(data, ctx))


def test_some_of_a_grid(ctx: Context) -> None:
    start = method(regressor="elastic_net").regressor
    every = [point for point, _ in Tuning().points(start, 3)]
    some = [point for point, _ in Tuning(trials=6).points(start, 3)]
    assert len(some) == 6
    assert [point for point in every if point in some] == some, "in the grid's order"
    assert some == [point for point, _ in Tuning(trials=6).points(start, 3)]
    assert some != [point for point, _ in Tuning(trials=6).points(start, 4)]
    assert len(Tuning(trials=99).points(start, 3)) == len(every)


def test_refit_with_validation(ctx: Context) -> None:
    data, (test, _) = training(), table(30, 9)
    known, more = data.train.features, data.validation.features
    everybody = FeatureTable(np.concatenate([known.values, more.values]), known.columns, (*known.scans, *more.scans))
    joined = replace(data, train=AgeInputs(None, everybody), ages=np.concatenate([data.ages, data.validation_ages]))
    model, plain = method(select=6, refit_with_validation=True), method(select=6)
    order = np.random.default_rng(1).permutation(2 * REGIONS)
    turned = replace(data, validation=AgeInputs(None, shuffled(more, order)))
    for given in (data, turned):
        same(model.fit(given, ctx), plain.fit(joined, ctx))
    tuned = method(regressor="elastic_net", tune={"grid": {"alpha": [0.1, 5.0]}}, refit_with_validation=True)
    state = tuned.fit(data, ctx)
    fixed = method(regressor={"id": "elastic_net", "alpha": state["settings"]["alpha"]})
    np.testing.assert_array_equal(
        predicted(tuned, state, test, ctx), predicted(fixed, fixed.fit(joined, ctx), test, ctx)
    )


# ------------------------------------------------------------------------------------ families and card


def test_one_family_alone(ctx: Context) -> None:
    data, (test, _) = training(), table(30, 9)
    model = method(select=4, regressor={"id": "bayesian_ridge", "tol": 1e-4}, tune={})
    assert model.wanted() == (RELATIONAL_VOLUME, SURFACE_RATIO)
    assert model.alone("sulcal depth") is None
    for family in model.wanted():
        lone = model.alone(family)
        assert isinstance(lone, RegionalRegression)
        assert lone.wanted() == (family,)
        assert lone.segmenter() is model.segmenter()
        state = lone.fit(data, ctx)
        assert len(state["columns"]) == REGIONS
        own = replace(data, train=AgeInputs(None, data.train.features.only([family])))
        same(state, lone.fit(own, ctx))
        peer = SklearnRidge(tol=1e-4).fit(ordered(own.train.features), data.ages)
        expected = peer.predict(ordered(test.only([family])))
        np.testing.assert_allclose(predicted(lone, state, test, ctx), expected, rtol=0, atol=1e-9)


def test_departures_are_named() -> None:
    assert method().deviations() == ("regions as the data set has them",)
    found = method(
        families=("curvature",), select=None, scale=False, centre=False, tune={}, refit_with_validation=True,
        regressor={"id": "svr", "C": 3},
    ).deviations()  # fmt: skip
    assert found == (
        "features: curvature",
        "regions as the data set has them",
        "all features",
        "features are not scaled",
        "ages are not centred",
        "svr in place of a Bayesian ridge",
        "svr: C 3.0",
        "settings are tuned on validation scans",
        "learns from validation scans too",
    )
    assert "20 features, where 100 are published" in method(select=20).deviations()


# ------------------------------------------------------------------------------------------- mistakes


def broken(case: str) -> tuple[RegionalRegression, AgeTraining]:
    data = training(10)
    values, model = data.train.features.values.copy(), method()
    if case == "infinite":
        values[4, 2] = np.inf
        return model, changed(data, values)
    if case == "constant":
        return model, changed(data, np.full_like(values, 0.5))
    if case == "empty":
        return method(select=None), changed(data, np.full_like(values, np.nan))
    if case == "family":
        return method(families=("curvature",)), data
    if case == "unknown age":
        return model, replace(data, ages=np.where(np.arange(10) == 3, np.nan, data.ages))
    if case == "equal ages":
        return model, replace(data, ages=np.full(10, 40.0))
    if case == "one scan":
        return model, replace(data, train=AgeInputs(None, data.train.features.take([0])), ages=data.ages[:1])
    if case == "no validation":
        none = AgeInputs(None, data.validation.features.take([]))
        return method(regressor="svr", tune={}), replace(data, validation=none, validation_ages=np.empty(0))
    twice = data.train.features.columns
    table = replace(data.train.features, columns=(twice[1], *twice[1:]))
    return model, replace(data, train=AgeInputs(None, table))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("infinite", "the relational volume of region 2 of scan 1-4 is infinite; mend or leave out that scan"),
        ("constant", "no feature varies over the 10 training scans"),
        ("empty", "no feature varies over the 10 training scans"),
        ("family", "'curvature' are asked for; the data have relational volume, surface ratio"),
        ("unknown age", "the ages of 1 scans are unknown, first 1-3"),
        ("equal ages", "all 10 training scans have the same age"),
        ("one scan", "all 1 training scans have the same age"),
        ("no validation", "tune needs validation scans, and there are none"),
        ("twice", "two columns for the relational volume of region 1"),
    ],
)
def test_bad_tables_are_told_in_a_line(case: str, message: str, ctx: Context) -> None:
    model, data = broken(case)
    with pytest.raises(MethodError) as caught:
        model.fit(data, ctx)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_of_other_regions(ctx: Context) -> None:
    model, (test, _) = method(), table(5, 9, regions=4)
    state = model.fit(training(), ctx)
    with pytest.raises(MethodError, match=r"16 of 24 features .* first relational volume of region 10"):
        predicted(model, state, test, ctx)


def problems(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "b.yaml").write_text(text)
    document = read(tmp_path / "b.yaml", "b.yaml")
    _, found = check(document, document.data, RegionalRegression)
    return [str(problem) for problem in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("regressor: svm\n", ["b.yaml:1:1: regressor: unknown regression 'svm'; did you mean svr?"]),
        ("regressor: 3\n", ["b.yaml:1:1: regressor: write the name of a regression, or a mapping"]),
        ("regressor:\n  id: mlpp\n", ["b.yaml:2:3: regressor.id: unknown regression 'mlpp'; did you mean mlp?"]),
        (
            "regressor:\n  id: svr\n  C: -1\n  kernal: rbf\n",
            [
                "b.yaml:3:3: regressor.C: -1: input should be greater than 0",
                "b.yaml:4:3: regressor.kernal: svr has no field 'kernal'; did you mean kernel?",
            ],
        ),
        ("regressor:\n  C: 1\n", ["b.yaml:2:3: regressor.C: bayesian_ridge has no field 'C'"]),
        ("regressor: {id: svr, gamma: x}\n", ["b.yaml:1:22: regressor.gamma: 'x': input should be a valid number"]),
        (
            "regressor: svr\ntune:\n  grid:\n    C: [1, 0]\n    alpha: [1]\n",
            [
                "b.yaml:4:12: tune.grid.C.1: 0: input should be greater than 0",
                "b.yaml:5:5: tune.grid.alpha: svr has no field 'alpha'",
            ],
        ),
        ("tune:\n  grid: publishd\n", ["b.yaml:2:3: tune.grid: write published, or field: [values]"]),
        ("tune:\n  grid:\n    tol: 0.1\n", ["b.yaml:3:5: tune.grid.tol: expected a list of values to try"]),
        ("select: 0\n", ["b.yaml:1:1: select is 0: input should be greater than or equal to 1"]),
        ("families: [a, a]\n", ["b.yaml:1:1: families: a family is listed twice"]),
    ],
)  # fmt: skip
def test_mistakes_in_files_are_told_where_they_stand(text: str, expected: Sequence[str], tmp_path: Path) -> None:
    found = problems(text, tmp_path)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start), line


def test_settings_survive_a_round_trip() -> None:
    """Stages are handed settings as JSON."""
    for name in KINDS:
        model = method(regressor=name, tune={"grid": "published", "trials": 3})
        assert RegionalRegression.model_validate(model.model_dump(mode="json")) == model
    with pytest.raises(ValidationError):
        method(regressor="svr", tune={"grid": {"C": [1.0]}}, absent=1.5)


# --------------------------------------------------------------------------------------------- sweeps

ABLATIONS = Path(__file__).parents[2] / "benchmarks" / "ablations"


@pytest.mark.parametrize(("name", "count"), [("features", 3), ("segmentation", 4), ("regression", 12), ("k", 8)])
def test_the_ablations_are_of_this_method(name: str, count: int) -> None:
    """Each trial of a sweep is a setting of its own, whatever the base says of the segmenter's sizes."""
    document = read(ABLATIONS / f"brain_age_{name}.yaml")
    spec, faults = check(document, document.data, SweepSpec)
    assert spec is not None, faults
    start = {"id": "regional_regression", "segmentation": PatchSegmenter.example().model_dump(mode="json")}
    trials, faults = expand(document, spec.method, spec.space, spec.samples, spec.seed, RegionalRegression, start)
    assert not faults
    fields = [{key: value for key, value in fields_of(trial, start).items() if key != "id"} for trial in trials]
    models = [RegionalRegression.model_validate(each) for each in fields]
    assert len(models) == len({str(model) for model in models}) == count
    assert all(model.segmentation is not None and model.segmentation.patch == 16 for model in models)

"""Permutation importance: against scikit-learn's, permutation by permutation, and what has no use."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.inspection import permutation_importance as peer_importance
from sklearn.linear_model import BayesianRidge

from harness.api import Context, State
from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining, Column, FeatureTable, VolumeScan
from harness.tracks.brain_age import importance
from harness.tracks.brain_age.importance import Importance, permutation_importance, permutations
from methods.brain_age.regional_regression.method import RegionalRegression

FAMILY = "surface ratio"


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=11, device="cpu", scratch=tmp_path, log=lambda *_: None)


def table(count: int, width: int, seed: int) -> tuple[FeatureTable, np.ndarray]:
    """Column i follows age the less the larger i is; the last two are noise."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(29, 45, count)
    shares = np.append(np.linspace(1, 0.2, width - 2), [0, 0])
    values = 0.5 + shares * (ages[:, None] - 40) / 100 + rng.normal(0, 0.05, (count, width))
    scans = tuple(VolumeScan(str(i), str(i), "here", (4, 4, 4), (1, 1, 1)) for i in range(count))
    return FeatureTable(values, tuple(Column(FAMILY, f"{i:02}", i) for i in range(width)), scans), ages


def fitted(ctx: Context, width: int = 8, **fields: object) -> tuple[RegionalRegression, State]:
    known, ages = table(80, width, 1)
    model = RegionalRegression(segmentation=None, families=(FAMILY,), select=None, scale=False, **fields)
    return model, model.fit(AgeTraining(AgeInputs(None, known), ages, AgeInputs(None, known), ages), ctx)


def test_equal_to_scikit_learn_permutation_by_permutation(ctx: Context) -> None:
    model, state = fitted(ctx)
    known, known_ages = table(80, 8, 1)
    test, ages = table(50, 8, 2)
    peer = BayesianRidge().fit(known.values, known_ages)
    expected = peer_importance(
        peer, test.values, ages, scoring="neg_mean_squared_error", n_repeats=7, random_state=np.random.RandomState(4)
    )
    # scikit-learn seeds every column alike, and permutes anew what the permutations before have left.
    shuffler = np.random.RandomState(np.random.RandomState(4).randint(2**31))
    order, placed, orders = np.arange(50), np.arange(50), []
    for _ in range(7):
        shuffler.shuffle(order)
        placed = placed[order]
        orders.append(placed)
    found = permutation_importance(model, state, test, ages, ctx, orders=np.array(orders))
    np.testing.assert_allclose(found.means, expected.importances_mean, rtol=1e-8)
    np.testing.assert_allclose(found.sds, expected.importances_std, rtol=1e-8)
    assert found.baseline == pytest.approx(np.square(peer.predict(test.values) - ages).mean())


def test_equal_to_scikit_learn_on_average(ctx: Context) -> None:
    model, state = fitted(ctx)
    known, known_ages = table(80, 8, 1)
    test, ages = table(50, 8, 2)
    peer = peer_importance(
        BayesianRidge().fit(known.values, known_ages), test.values, ages,
        scoring="neg_mean_squared_error", n_repeats=300, random_state=0,
    )  # fmt: skip
    found = permutation_importance(model, state, test, ages, ctx, repeats=300)
    error = np.hypot(found.sds, peer.importances_std) / np.sqrt(300)
    assert (np.abs(found.means - peer.importances_mean) < 5 * error).all()
    np.testing.assert_allclose(found.sds, peer.importances_std, rtol=0.3)
    assert (np.argsort(-found.means)[:2] < 3).all(), "those that follow age most closely lead"
    assert np.abs(found.means[-2:]).max() < 0.2 * found.means.max()


def test_batches_change_nothing(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = fitted(ctx)
    test, ages = table(50, 8, 2)
    whole = permutation_importance(model, state, test, ages, ctx, repeats=10)
    monkeypatch.setattr(importance, "MOST_VALUES", 3 * 50 * 8)
    parts = permutation_importance(model, state, test, ages, ctx, repeats=10)
    np.testing.assert_allclose(parts.means, whole.means, rtol=1e-10)
    np.testing.assert_allclose(parts.sds, whole.sds, rtol=1e-8)


@pytest.mark.parametrize("regressor", ["bayesian_ridge", "svr", "gradient_boosting"])
def test_columns_of_no_use_have_none(regressor: str, ctx: Context) -> None:
    """Those that were not selected, and those that do not vary among the test scans: exactly 0."""
    known, known_ages = table(80, 8, 1)
    model = RegionalRegression(segmentation=None, families=(FAMILY,), select=5, regressor=regressor)
    state = model.fit(AgeTraining(AgeInputs(None, known), known_ages, AgeInputs(None, known), known_ages), ctx)
    test, ages = table(37, 8, 2)
    test.values[:, 1], test.values[:, 2] = 0.5, np.nan
    found = permutation_importance(model, state, test, ages, ctx, repeats=9)
    used = {region for _, region in state["columns"]} - {"01", "02"}
    for column, mean, sd in zip(found.columns, found.means, found.sds, strict=True):
        assert (mean != 0) == (sd != 0) == (column.region in used), column


def test_seeds_and_repeats(ctx: Context) -> None:
    model, state = fitted(ctx)
    test, ages = table(50, 8, 2)
    one, again = (permutation_importance(model, state, test, ages, ctx, repeats=5) for _ in range(2))
    np.testing.assert_array_equal(one.means, again.means)
    np.testing.assert_array_equal(permutations(50, 3, 7), permutations(50, 9, 7)[:3])
    assert (permutations(50, 3, 7) != permutations(50, 3, 8)).any()


def test_two_ways_to_rescale() -> None:
    columns = tuple(Column(FAMILY, str(i)) for i in range(3))
    found = Importance(columns, np.array([-1.0, 0.0, 4.0]), np.zeros(3), 1.0)
    np.testing.assert_allclose(found.shares, [-0.25, 0, 1])
    np.testing.assert_allclose(found.ranged, [0, 0.2, 1])
    for means in (np.zeros(3), np.full(3, -1.0)):
        nothing = Importance(columns, means, np.zeros(3), 1.0)
        np.testing.assert_array_equal(nothing.shares, 0)
        np.testing.assert_array_equal(nothing.ranged, 0)


def test_a_published_sized_table_takes_seconds(ctx: Context) -> None:
    """172 columns, 100 permutations, 140 scans: 2.4 million predictions."""
    model, state = fitted(ctx, width=172)
    test, ages = table(140, 172, 2)
    start = time.process_time()
    found = permutation_importance(model, state, test, ages, ctx)
    assert time.process_time() - start < 60
    assert found.means.shape == (172,)


class OneAtATime(AgeEstimator):
    """The second column times 100, and an error of rounding that differs from place to place, as of matrix products."""

    id = "one_at_a_time"
    reference = "ours"
    reads = "features"

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        return {}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        return AgePredictions(np.array([100 * row[1] + 1e-9 * i for i, row in enumerate(data.features.values)]))


def test_any_estimator_of_tables(ctx: Context) -> None:
    test, ages = table(20, 4, 2)
    found = permutation_importance(OneAtATime(), {}, test, ages, ctx, repeats=4)
    errors = [
        np.square(100 * test.values[order, 1] - ages).mean() - np.square(100 * test.values[:, 1] - ages).mean()
        for order in permutations(20, 4, ctx.seed)
    ]
    np.testing.assert_allclose(found.means, [0, np.mean(errors), 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.sds, [0, np.std(errors), 0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ages": np.zeros(3)}, r"ages \[scans\] are needed"),
        ({"ages": np.full(20, np.nan)}, "an age is missing or infinite"),
        ({"scans": 1}, "two or more are needed"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"orders": np.zeros((2, 20), int)}, "permutations of 20 scans"),
    ],
)
def test_mistakes(change: dict, message: str, ctx: Context) -> None:
    test, ages = table(20, 4, 2)
    if "scans" in change:
        test, ages = test.take(range(change["scans"])), ages[: change["scans"]]
    options = {name: change[name] for name in ("repeats", "orders") if name in change}
    with pytest.raises(ValueError, match=message):
        permutation_importance(OneAtATime(), {}, test, change.get("ages", ages), ctx, **options)

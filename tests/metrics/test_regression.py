"""Errors and agreement, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from harness.metrics import regression

ages = st.floats(20, 90).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(ages, ages), min_size=2, max_size=30))
@settings(deadline=None, max_examples=80)
def test_follows_the_definitions(cases: list[tuple[float, float]]) -> None:
    target, predicted = (np.array(side) for side in zip(*cases, strict=True))
    assume(np.ptp(target) > 0.01 and np.ptp(predicted) > 0.01)
    scores = regression.regression_scores(target, predicted)
    errors = [p - t for t, p in cases]
    n = len(cases)
    assert scores.n == n
    assert scores.mae == pytest.approx(sum(map(abs, errors)) / n, rel=1e-12)
    assert scores.mse == pytest.approx(sum(e * e for e in errors) / n, rel=1e-12)
    assert scores.rmse == math.sqrt(scores.mse)
    assert scores.bias == pytest.approx(math.fsum(errors) / n, rel=1e-9, abs=1e-12)
    assert scores.r2 == pytest.approx(1 - scores.mse / np.var(target), rel=1e-9, abs=1e-9)
    assert scores.r2_pearson == pytest.approx(np.corrcoef(target, predicted)[0, 1] ** 2, rel=1e-7, abs=1e-9)
    assert scores.r2 <= scores.r2_pearson + 1e-9
    assert 0 <= scores.r2_pearson <= 1


def test_bias_is_positive_where_the_prediction_is_too_old() -> None:
    assert regression.bias([40.0, 50.0], [43.0, 51.0]) == 2.0


@pytest.mark.parametrize(
    ("target", "predicted", "r2", "r2_pearson"),
    [
        ([40.1] * 3, [40.0, 41.0, 42.0], math.nan, math.nan),
        ([40.0, 41.0, 42.0], [41.1] * 3, -0.015, math.nan),
        ([40.0], [41.0], math.nan, math.nan),
        ([], [], math.nan, math.nan),
    ],
)
def test_agreement_needs_spread(target: list[float], predicted: list[float], r2: float, r2_pearson: float) -> None:
    assert regression.r2(target, predicted) == pytest.approx(r2, nan_ok=True)
    assert regression.r2_pearson(target, predicted) == pytest.approx(r2_pearson, nan_ok=True)


def test_no_cases_give_nan_without_a_warning() -> None:
    assert math.isnan(regression.mae([], []))
    assert math.isnan(regression.rmse([], []))


@pytest.mark.parametrize(
    ("target", "predicted", "message"),
    [([1.0], [1.0, 2.0], "one length"), ([math.nan], [1.0], "finite"), ([1.0], [math.inf], "finite")],
)
def test_refuses_unpaired_or_missing_cases(target: list[float], predicted: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regression.regression_scores(target, predicted)

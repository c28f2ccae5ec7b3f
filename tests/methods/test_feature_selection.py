"""The choice of features, against np.corrcoef."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from methods.brain_age.regional_regression.selection import selected


def by_corrcoef(features: np.ndarray, ages: np.ndarray, k: int) -> list[int]:
    sizes = {}
    for column in range(features.shape[1]):
        if np.ptp(features[:, column]) > 0:
            sizes[column] = abs(np.corrcoef(features[:, column], ages)[0, 1])
    return sorted(sizes, key=lambda column: -sizes[column])[:k]


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_equals_one_by_corrcoef(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, features = int(rng.integers(3, 60)), int(rng.integers(1, 40))
    ages = rng.uniform(29, 45, n)
    scale = 10.0 ** rng.integers(-6, 3, features)
    table = scale * (rng.standard_normal(features) * (ages[:, None] - 38) / 4 + rng.standard_normal((n, features)) + 5)
    table[:, rng.random(features) < 0.2] = 0.3
    for k in (1, 5, features, features + 10):
        assert selected(table, ages, k).tolist() == by_corrcoef(table, ages, k)


def test_the_sign_of_a_correlation_does_not_count() -> None:
    ages = np.array([30.0, 35.0, 40.0, 44.0])
    noise = np.array([1.0, -1.0, -1.0, 1.0])
    assert selected(np.stack([noise, 2 * ages + noise, -ages], axis=1), ages, 2).tolist() == [2, 1]


def test_equal_correlations_keep_the_order_of_the_columns() -> None:
    rng = np.random.default_rng(0)
    ages = rng.uniform(29, 45, 31)
    strong, weak = ages + rng.standard_normal(31), ages + 9 * rng.standard_normal(31)
    table = np.stack([weak, -strong, weak, strong, 4 * strong, -weak, strong], axis=1)
    assert selected(table, ages, 5).tolist() == [1, 3, 4, 6, 0]
    assert selected(np.asfortranarray(table), ages, 7).tolist() == [1, 3, 4, 6, 0, 2, 5]
    wide = np.tile(strong[:, None], 172)
    assert selected(wide, ages, 100).tolist() == list(range(100))


def test_constant_features_are_never_selected() -> None:
    ages = np.array([30.0, 35.0, 40.0, 41.0])
    constant = np.full(4, 0.1)  # its mean is not exactly 0.1
    table = np.stack([constant, np.array([1.0, 1.0, 1.0, 1.0 + 1e-12]), np.zeros(4), ages], axis=1)
    assert selected(table, ages, 4).tolist() == [3, 1]
    assert selected(table[:, :1], ages, 4).tolist() == []


def test_the_size_of_values_does_not_count() -> None:
    rng = np.random.default_rng(1)
    ages = rng.uniform(29, 45, 12)
    table = rng.standard_normal((12, 3)) * np.array([2.0**-600, 1.0, 2.0**600])
    plain = table / np.array([2.0**-600, 1.0, 2.0**600])
    assert selected(table, ages, 3).tolist() == by_corrcoef(plain, ages, 3)


@pytest.mark.parametrize(
    ("features", "ages", "k", "message"),
    [
        (np.ones(4), np.arange(4), 1, r"\[subjects, n\]"),
        (np.ones((4, 2)), np.arange(5), 1, r"not \(4, 2\) and \(5,\)"),
        (np.ones((4, 2)), np.arange(4), 0, "at least 1, not 0"),
        (np.ones((4, 2)), np.full(4, 38.0), 1, "do not vary"),
        (np.ones((1, 2)), np.array([38.0]), 1, "do not vary"),
        (np.ones((0, 2)), np.array([]), 1, "do not vary"),
        (np.ones((2, 2)), np.array([38.0, np.nan]), 1, "age is missing"),
        (np.array([[1, np.nan, 2], [1, 2, np.inf]]), np.array([38.0, 39.0]), 1, "columns 1, 2$"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(features: Any, ages: Any, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        selected(features, ages, k)

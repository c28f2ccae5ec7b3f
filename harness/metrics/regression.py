"""Errors and agreement of predicted numbers, such as ages in years."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class RegressionScores:
    """mae, rmse and bias in the unit of the target, mse in its square; r2 ≤ 1; r2_pearson in [0, 1]; n cases."""

    mae: float
    mse: float
    rmse: float
    bias: float
    r2: float
    r2_pearson: float
    n: int


def regression_scores(target: ArrayLike, predicted: ArrayLike) -> RegressionScores:
    """All scores of this file on the same cases, [n] each. Raises ValueError as `mae` does."""
    return RegressionScores(
        mae=mae(target, predicted),
        mse=mse(target, predicted),
        rmse=rmse(target, predicted),
        bias=bias(target, predicted),
        r2=r2(target, predicted),
        r2_pearson=r2_pearson(target, predicted),
        n=np.size(target),
    )


def mae(target: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error of [n] cases; nan without cases.

    Raises ValueError, as all functions here, where the lengths differ or a value is not finite.
    """
    return _mean(np.abs(_errors(target, predicted)))


def mse(target: ArrayLike, predicted: ArrayLike) -> float:
    """Mean squared error."""
    return _mean(_errors(target, predicted) ** 2)


def rmse(target: ArrayLike, predicted: ArrayLike) -> float:
    """Root of the mean squared error over all cases (the mean of per-case roots would be the MAE)."""
    return math.sqrt(mse(target, predicted))


def bias(target: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of predicted - target: positive where the prediction is too high."""
    return _mean(_errors(target, predicted))


def r2(target: ArrayLike, predicted: ArrayLike) -> float:
    """Coefficient of determination 1 - SSE/SST, which punishes bias and has no lower bound.

    nan for fewer than two cases or a constant target.
    """
    error, actual = _errors(target, predicted), np.asarray(target, np.float64)
    if not _varies(actual):
        return math.nan
    return float(1 - (error**2).sum() / ((actual - actual.mean()) ** 2).sum())


def r2_pearson(target: ArrayLike, predicted: ArrayLike) -> float:
    """Squared Pearson correlation in [0, 1], blind to bias and scale (the thesis' eq. 6.7 under the name R²).

    Computed from centred values: the single-pass formula loses digits. nan for fewer than two cases or where
    either side is constant.
    """
    _errors(target, predicted)
    x, y = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    if not (_varies(x) and _varies(y)):
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    return min(1.0, float((x * y).sum() ** 2 / ((x * x).sum() * (y * y).sum())))


def _errors(target: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    actual, guess = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
    if actual.shape != guess.shape or actual.ndim != 1:
        raise ValueError(f"need two lists of one length, not shapes {actual.shape} and {guess.shape}")
    if not (np.isfinite(actual).all() and np.isfinite(guess).all()):
        raise ValueError("targets and predictions must be finite; leave missing cases out and count them")
    return guess - actual


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if values.size else math.nan


def _varies(values: NDArray[np.float64]) -> bool:
    """Not constant. Compared exactly: a rounded mean leaves a constant a tiny, meaningless spread."""
    return values.size > 1 and bool(values.max() > values.min())

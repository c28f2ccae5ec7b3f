"""How much worse ages are predicted when one feature is dealt out among the scans at random.

Permutation importance as published: the rise of the mean squared error of test scans when the values of one column
are permuted, mean and standard deviation over 100 permutations. It is measured with one estimator for each family of
features (`AgeEstimator.alone`), since features of two families that say the same would hide each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.api import Context, State
from harness.brain_age import AgeEstimator, AgeInputs, Column, FeatureTable

Floats = NDArray[np.float64]

REPEATS = 100
MOST_VALUES = 500_000
"""Features of all permuted scans that are predicted at a time: 4 MB, which a processor keeps near."""


@dataclass(frozen=True, eq=False)
class Importance:
    """means, sds: rise of the mean squared error over the permutations of each column, float64 [columns], in squared
    units of age; 0 for a column that changes no prediction. baseline: the error with no column permuted."""

    columns: tuple[Column, ...]
    means: Floats
    sds: Floats
    baseline: float

    @property
    def shares(self) -> Floats:
        """Means over the largest, one of two published ways to rescale them; all 0 where no column has importance."""
        largest = float(self.means.max(initial=0.0))
        return self.means / largest if largest > 0 else np.zeros_like(self.means)

    @property
    def ranged(self) -> Floats:
        """Means from the least (0) to the largest (1), the other way (published as min-max).

        It differs from `shares` where the least mean is not 0, as it is below 0 for columns that do harm.
        """
        if not len(self.means) or (least := self.means.min()) == (largest := self.means.max()):
            return np.zeros_like(self.means)
        return (self.means - least) / (largest - least)


def permutation_importance(
    estimator: AgeEstimator,
    state: State,
    features: FeatureTable,
    ages: NDArray[np.floating],
    ctx: Context,
    *,
    repeats: int = REPEATS,
    orders: NDArray[np.integer] | None = None,
) -> Importance:
    """Importance of every column of `features` for a fitted estimator, on scans it has not learnt from.

    ages: float64 [scans]. orders: int [repeats, scans], the permutations; None draws `repeats` from ctx.seed. All
    columns are permuted by the same ones, as scikit-learn does, so that columns differ by what they say and by nothing
    else. Raises ValueError for fewer than two scans, ages that are not finite, and orders that are no permutations.
    """
    truth = np.asarray(ages, np.float64)
    count = len(features)
    if truth.shape != (count,):
        raise ValueError(f"ages [scans] are needed, not {truth.shape} for {count} scans")
    if count < 2:
        raise ValueError(f"{count} scans: two or more are needed to permute anything")
    if not np.isfinite(truth).all():
        raise ValueError("an age is missing or infinite")
    drawn = permutations(count, repeats, ctx.seed) if orders is None else np.asarray(orders)
    if drawn.ndim != 2 or not len(drawn) or (np.sort(drawn, axis=1) != np.arange(count)).any():
        raise ValueError(f"orders must be permutations of {count} scans, one a row")
    size = max(1, MOST_VALUES // max(1, count * len(features.columns)))
    batches = [_Batch(estimator, state, features, truth, drawn[i : i + size], ctx) for i in range(0, len(drawn), size)]
    unchanged = np.concatenate([batch.errors(None) for batch in batches])
    rises = np.zeros((len(features.columns), len(drawn)))
    for column in range(len(features.columns)):
        values = features.values[:, column]
        if (values == values[0]).all() or np.isnan(values).all():
            continue  # permuted, it is the same column
        rises[column] = np.concatenate([batch.errors(column) for batch in batches]) - unchanged
    return Importance(features.columns, rises.mean(axis=1), rises.std(axis=1), float(unchanged[0]))


def permutations(count: int, repeats: int, seed: int) -> NDArray[np.int64]:
    """`repeats` random orders of `count` scans: int64 [repeats, count]. The first ones do not depend on how many."""
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    rng = np.random.default_rng([seed, count])
    return np.stack([rng.permutation(count) for _ in range(repeats)])


class _Batch:
    """The same scans once for each of a few permutations, predicted together.

    Errors without a permutation are those of the batch itself, not of the scans alone: a product of matrices may round
    a row differently in another company, and a column of no use would seem to have some.
    """

    def __init__(
        self,
        estimator: AgeEstimator,
        state: State,
        features: FeatureTable,
        ages: Floats,
        orders: NDArray[np.integer],
        ctx: Context,
    ):
        self._estimator, self._state, self._ctx, self._ages = estimator, state, ctx, ages
        self._orders = orders
        repeated = np.tile(features.values, (len(orders), 1))
        self._table = FeatureTable(repeated, features.columns, features.scans * len(orders))

    def errors(self, column: int | None) -> Floats:
        """Mean squared errors with this column permuted, float64 [permutations]."""
        values = self._table.values
        if column is not None:
            values = values.copy()
            values[:, column] = values[: len(self._ages), column][self._orders].reshape(-1)
        inputs = AgeInputs(granted_features=self._table.with_values(values))
        predicted = self._estimator.predict(self._state, inputs, self._ctx).ages
        off = predicted.reshape(self._orders.shape) - self._ages
        return (off**2).mean(axis=1)

"""Gradient boosting: small trees, each fitted to what those before it left."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from harness.api import hyper
from methods.brain_age.regional_regression.base import SKLEARN, Fitted, Floats, Grid, Regression

MOST_PLACES = 1_000_000
"""Trees × scans that are followed at a time: some 10 MB each for the places and the values compared."""


class GradientBoosting(Regression):
    """Gradient boosted regression trees. Ties between features are broken at random, by the seed."""

    id: Literal["gradient_boosting"] = hyper("gradient_boosting", "which regression this is", origin="ours")
    loss: Literal["squared_error", "absolute_error", "huber", "quantile"] = hyper(
        "squared_error", "what is made smaller", origin=SKLEARN
    )
    alpha: float = hyper(0.9, "quantile of huber and quantile", origin=SKLEARN, gt=0, lt=1)
    learning_rate: float = hyper(0.1, "share of each tree that is added", origin=SKLEARN, gt=0)
    n_estimators: int = hyper(100, "trees", origin=SKLEARN, ge=1)
    subsample: float = hyper(1.0, "share of the scans that a tree sees", origin=SKLEARN, gt=0, le=1)
    max_depth: int | None = hyper(3, "most decisions to a leaf; null: no limit", origin=SKLEARN, ge=1)
    max_leaf_nodes: int | None = hyper(None, "most leaves; null: no limit", origin=SKLEARN, ge=2)
    min_samples_split: int = hyper(2, "fewest scans that are split", origin=SKLEARN, ge=2)
    min_samples_leaf: int = hyper(1, "fewest scans of a leaf", origin=SKLEARN, ge=1)
    min_impurity_decrease: float = hyper(0.0, "least gain of a split", origin=SKLEARN, ge=0)
    max_features: Annotated[float, Field(gt=0, le=1)] | Literal["sqrt", "log2"] | None = hyper(
        None, "share of the features that a split chooses from; null: all", origin=SKLEARN
    )
    n_iter_no_change: int | None = hyper(
        None,
        "trees without gain after which to stop, on a part of the training scans; null: never",
        origin=SKLEARN,
        ge=1,
    )
    validation_fraction: float = hyper(0.1, "that part", origin=SKLEARN, gt=0, lt=1)
    tol: float = hyper(1e-4, "least gain that counts", origin=SKLEARN, gt=0)
    ccp_alpha: float = hyper(0.0, "price of a leaf when trees are pruned", origin=SKLEARN, ge=0)

    def build(self, seed: int) -> Any:
        from sklearn.ensemble import GradientBoostingRegressor as Regressor

        return Regressor(random_state=seed, **self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        """All trees as one table of nodes; a leaf leads to itself, so that every path may be followed equally far."""
        trees = [tree.tree_ for tree in regressor.estimators_[:, 0]]
        first = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        nodes: dict[str, list[Any]] = {"left": [], "right": [], "feature": [], "threshold": [], "value": []}
        for start, tree in zip(first, trees, strict=True):
            leaf, self_ = tree.children_left < 0, np.arange(tree.node_count)
            nodes["left"].append(start + np.where(leaf, self_, tree.children_left))
            nodes["right"].append(start + np.where(leaf, self_, tree.children_right))
            nodes["feature"].append(np.where(leaf, 0, tree.feature))
            nodes["threshold"].append(np.where(leaf, np.inf, tree.threshold))
            nodes["value"].append(self.learning_rate * tree.value[:, 0, 0])
        table = {name: np.concatenate(parts) for name, parts in nodes.items()}
        constant = float(regressor.init_.predict(features[:1])[0])
        return {**table, "roots": first, "depth": max(tree.max_depth for tree in trees), "constant": constant}

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        values = np.empty(len(features))
        step = max(1, MOST_PLACES // len(fitted["roots"]))
        for start in range(0, len(features), step):
            chosen = slice(start, start + step)
            # The trees were grown, and are followed by scikit-learn, in single precision.
            values[chosen] = _followed(fitted, features[chosen].astype(np.float32))
        return values, None

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        rates: Grid = {"n_estimators": [300, 800], "learning_rate": [0.03, 0.1]}
        return ({**rates, "max_depth": [2, 3], "subsample": [0.5, 0.8]},)


def _followed(fitted: Fitted, features: np.ndarray) -> Floats:
    places = np.broadcast_to(fitted["roots"], (len(features), len(fitted["roots"])))
    for _ in range(fitted["depth"]):
        seen = np.take_along_axis(features, fitted["feature"][places], axis=1)
        places = np.where(seen <= fitted["threshold"][places], fitted["left"][places], fitted["right"][places])
    return fitted["constant"] + fitted["value"][places].sum(axis=1)

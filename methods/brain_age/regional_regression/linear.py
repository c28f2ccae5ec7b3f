"""Regressions that are linear in the features: Bayesian ridge, which is the published choice, and the elastic net."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from harness.api import hyper
from methods.brain_age.regional_regression.base import SKLEARN, Fitted, Floats, Grid, Regression


class BayesianRidge(Regression):
    """A linear regression whose noise and weights have Gaussian priors of precisions that are learnt from the data.

    It also says how sure it is: a prediction's variance is that of the noise plus that of the weights' posterior.
    """

    id: Literal["bayesian_ridge"] = hyper("bayesian_ridge", "which regression this is", origin="ours")
    max_iter: int = hyper(300, "most iterations", origin=SKLEARN, ge=1)
    tol: float = hyper(1e-3, "change of the weights at which it has converged", origin=SKLEARN, gt=0)
    alpha_1: float = hyper(1e-6, "shape of the gamma prior of the noise's precision", origin=SKLEARN, ge=0)
    alpha_2: float = hyper(1e-6, "its rate", origin=SKLEARN, ge=0)
    lambda_1: float = hyper(1e-6, "shape of the gamma prior of the weights' precision", origin=SKLEARN, ge=0)
    lambda_2: float = hyper(1e-6, "its rate", origin=SKLEARN, ge=0)
    alpha_init: float | None = hyper(
        None, "first precision of the noise; null: 1 / variance of the ages", origin=SKLEARN, gt=0
    )
    lambda_init: float | None = hyper(None, "first precision of the weights; null: 1", origin=SKLEARN, gt=0)

    def build(self, seed: int) -> Any:
        from sklearn.linear_model import BayesianRidge as Regressor

        return Regressor(**self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        return {
            "weights": regressor.coef_,
            "intercept": float(regressor.intercept_),
            "covariance": regressor.sigma_,
            "noise": float(1 / regressor.alpha_),
            "centre": features.mean(axis=0),
        }

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        apart = features - fitted["centre"]
        variance = ((apart @ fitted["covariance"]) * apart).sum(axis=1) + fitted["noise"]
        return features @ fitted["weights"] + fitted["intercept"], np.sqrt(variance)


class ElasticNet(Regression):
    """A linear regression with a penalty on both the size and the square of the weights, so that many become 0."""

    id: Literal["elastic_net"] = hyper("elastic_net", "which regression this is", origin="ours")
    alpha: float = hyper(1.0, "weight of the penalty", origin=SKLEARN, gt=0)
    l1_ratio: float = hyper(0.5, "share of the penalty that is on the size", origin=SKLEARN, ge=0, le=1)
    max_iter: int = hyper(1000, "most passes over the features", origin=SKLEARN, ge=1)
    tol: float = hyper(1e-4, "change at which it has converged", origin=SKLEARN, gt=0)
    positive: bool = hyper(False, "allow no weight below 0", origin=SKLEARN)
    selection: Literal["cyclic", "random"] = hyper("cyclic", "order of the features in a pass", origin=SKLEARN)

    def build(self, seed: int) -> Any:
        from sklearn.linear_model import ElasticNet as Regressor

        return Regressor(random_state=seed, **self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        return {"weights": regressor.coef_, "intercept": float(regressor.intercept_)}

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        return features @ fitted["weights"] + fitted["intercept"], None

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        return ({"alpha": [1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0], "l1_ratio": [0.05, 0.2, 0.5, 0.8, 0.95]},)

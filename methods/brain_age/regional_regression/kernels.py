"""Regressions on similarities to the training scans: kernel ridge and support vector regression."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.spatial.distance import cdist

from harness.api import hyper
from methods.brain_age.regional_regression.base import SKLEARN, Fitted, Floats, Grid, Regression


class KernelRidge(Regression):
    """Ridge regression in the space of a kernel. It has no intercept: ages are centred."""

    id: Literal["kernel_ridge"] = hyper("kernel_ridge", "which regression this is", origin="ours")
    alpha: float = hyper(1.0, "weight of the penalty", origin=SKLEARN, gt=0)
    kernel: Literal["linear", "poly", "rbf", "laplacian", "sigmoid"] = hyper(
        "linear", "how alike two scans are", origin=SKLEARN
    )
    gamma: float | None = hyper(
        None, "scale of all kernels but linear; null: 1 / number of features", origin=SKLEARN, gt=0
    )
    degree: float = hyper(3.0, "power of poly", origin=SKLEARN, ge=0)
    coef0: float = hyper(1.0, "added in poly and sigmoid", origin=SKLEARN)

    def build(self, seed: int) -> Any:
        from sklearn.kernel_ridge import KernelRidge as Regressor

        return Regressor(**self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        gamma = 1 / features.shape[1] if self.gamma is None else self.gamma
        return {"known": features, "weights": regressor.dual_coef_, "gamma": gamma}

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        alike = similarity(self.kernel, features, fitted["known"], fitted["gamma"], self.degree, self.coef0)
        return alike @ fitted["weights"], None

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        gammas = [1e-4, 1e-3, 1e-2]
        return (
            {"kernel": ["linear"], "alpha": [0.01, 0.1, 1.0, 10.0]},
            {"kernel": ["rbf", "laplacian"], "alpha": [1e-3, 0.01, 0.1, 1.0], "gamma": gammas},
            {"kernel": ["poly"], "degree": [2.0, 3.0], "alpha": [0.01, 0.1, 1.0, 10.0], "gamma": gammas},
        )


class SVR(Regression):
    """Support vector regression: errors below epsilon cost nothing, larger ones in proportion to their size."""

    id: Literal["svr"] = hyper("svr", "which regression this is", origin="ours")
    kernel: Literal["linear", "poly", "rbf", "sigmoid"] = hyper("rbf", "how alike two scans are", origin=SKLEARN)
    C: float = hyper(1.0, "price of errors", origin=SKLEARN, gt=0)
    epsilon: float = hyper(0.1, "errors that cost nothing, in the unit of age", origin=SKLEARN, ge=0)
    gamma: Annotated[float, Field(gt=0)] | Literal["scale", "auto"] = hyper(
        "scale",
        "scale of all kernels but linear; auto: 1 / number of features; scale: that over the features' variance",
        origin=SKLEARN,
    )
    degree: int = hyper(3, "power of poly", origin=SKLEARN, ge=0)
    coef0: float = hyper(0.0, "added in poly and sigmoid", origin=SKLEARN)
    shrinking: bool = hyper(True, "leave out scans whose part is settled, for speed", origin=SKLEARN)
    tol: float = hyper(1e-3, "how exactly the optimum is met", origin=SKLEARN, gt=0)
    max_iter: int = hyper(-1, "most iterations; -1: no limit", origin=SKLEARN, ge=-1)

    def build(self, seed: int) -> Any:
        from sklearn.svm import SVR as Regressor

        return Regressor(**self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        return {
            "known": regressor.support_vectors_,
            "weights": regressor.dual_coef_[0],
            "intercept": float(regressor.intercept_[0]),
            "gamma": self._scale(features),
        }

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        alike = similarity(self.kernel, features, fitted["known"], fitted["gamma"], self.degree, self.coef0)
        return alike @ fitted["weights"] + fitted["intercept"], None

    def _scale(self, features: Floats) -> float:
        if isinstance(self.gamma, float):
            return self.gamma
        variance = float(features.var()) if self.gamma == "scale" else 1.0
        # scikit-learn's exception: features that do not vary at all
        return 1 / (features.shape[1] * variance) if variance else 1.0

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        epsilons = [0.01, 0.03, 0.1, 0.3]
        wide: Grid = {"C": [1.0, 3.0, 10.0, 30.0, 100.0], "epsilon": epsilons, "gamma": ["scale", 1e-3, 3e-4]}
        return ({"kernel": ["rbf"], **wide}, {"kernel": ["linear"], "C": [1e-3, 0.01, 0.1, 1.0], "epsilon": epsilons})


def similarity(kernel: str, these: Floats, known: Floats, gamma: float, degree: float, coef0: float) -> Floats:
    """The kernel of every pair: features [n, k] and [m, k] to float64 [n, m]."""
    if kernel == "laplacian":
        return np.exp(-gamma * cdist(these, known, "cityblock"))
    products = these @ known.T
    if kernel == "rbf":
        # Squared distances by products: ten times as fast as pair by pair, and as exact as the features are.
        squares = (these**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * products
        return np.exp(-gamma * np.maximum(squares, 0))
    if kernel == "poly":
        return (gamma * products + coef0) ** degree
    return np.tanh(gamma * products + coef0) if kernel == "sigmoid" else products

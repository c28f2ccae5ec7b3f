"""A multilayer perceptron on the features."""

from __future__ import annotations

from itertools import count
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from scipy.special import expit

from harness.api import hyper
from methods.brain_age.regional_regression.base import SKLEARN, Fitted, Floats, Grid, Regression


class MLP(Regression):
    """A multilayer perceptron, fitted by scikit-learn. First weights and batches depend on the seed."""

    id: Literal["mlp"] = hyper("mlp", "which regression this is", origin="ours")
    hidden_layer_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = hyper(
        (100,), "units of each hidden layer", origin=SKLEARN
    )
    activation: Literal["identity", "logistic", "tanh", "relu"] = hyper(
        "relu", "what follows each hidden layer", origin=SKLEARN
    )
    solver: Literal["adam", "lbfgs", "sgd"] = hyper("adam", "update rule", origin=SKLEARN)
    alpha: float = hyper(1e-4, "weight of the penalty on squared weights", origin=SKLEARN, ge=0)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = hyper(
        "auto", "scans in a batch; auto: 200, or all if fewer", origin=SKLEARN
    )
    learning_rate: Literal["constant", "invscaling", "adaptive"] = hyper(
        "constant", "course of the rate of sgd", origin=SKLEARN
    )
    learning_rate_init: float = hyper(1e-3, "first rate of adam and sgd", origin=SKLEARN, gt=0)
    power_t: float = hyper(0.5, "power of invscaling", origin=SKLEARN, ge=0)
    max_iter: int = hyper(200, "most epochs", origin=SKLEARN, ge=1)
    shuffle: bool = hyper(True, "new batches in each epoch", origin=SKLEARN)
    tol: float = hyper(1e-4, "least gain that counts", origin=SKLEARN, gt=0)
    momentum: float = hyper(0.9, "momentum of sgd", origin=SKLEARN, ge=0, le=1)
    nesterovs_momentum: bool = hyper(True, "Nesterov's form of it", origin=SKLEARN)
    early_stopping: bool = hyper(False, "stop by the error on a part of the training scans", origin=SKLEARN)
    validation_fraction: float = hyper(0.1, "that part", origin=SKLEARN, gt=0, lt=1)
    beta_1: float = hyper(0.9, "decay of adam's mean of gradients", origin=SKLEARN, ge=0, lt=1)
    beta_2: float = hyper(0.999, "decay of adam's mean of their squares", origin=SKLEARN, ge=0, lt=1)
    epsilon: float = hyper(1e-8, "adam's guard against division by 0", origin=SKLEARN, gt=0)
    n_iter_no_change: int = hyper(10, "epochs without gain after which to stop", origin=SKLEARN, ge=1)
    max_fun: int = hyper(15000, "most evaluations of lbfgs", origin=SKLEARN, ge=1)

    def build(self, seed: int) -> Any:
        from sklearn.neural_network import MLPRegressor as Regressor

        return Regressor(random_state=seed, **self.model_dump(exclude={"id"}))

    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        weights = {f"weights{i}": layer for i, layer in enumerate(regressor.coefs_)}
        return weights | {f"bias{i}": layer for i, layer in enumerate(regressor.intercepts_)}

    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        values = features
        for i in count():
            values = values @ fitted[f"weights{i}"] + fitted[f"bias{i}"]
            if f"weights{i + 1}" not in fitted:
                break
            values = self._activated(values)
        return values[:, 0], None

    def _activated(self, values: Floats) -> Floats:
        if self.activation == "relu":
            return np.maximum(values, 0)
        if self.activation == "tanh":
            return np.tanh(values)
        return expit(values) if self.activation == "logistic" else values

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        sizes = [(64,), (128,), (100, 50)]
        return ({"hidden_layer_sizes": sizes, "alpha": [1e-4, 1e-2, 1.0], "solver": ["adam", "lbfgs"]},)

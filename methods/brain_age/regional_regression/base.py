"""What the regressions share: fields named as in scikit-learn, and predictions from plain arrays.

A fit is scikit-learn's. What it leaves is turned into arrays and numbers, so that a state needs no pickle, and
predictions are made from those alone: they do not depend on the version of scikit-learn that fitted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import Settings

Floats = NDArray[np.float64]
Fitted = dict[str, Any]
"""What predictions need: numpy arrays and JSON numbers."""
Grid = Mapping[str, list[Any]]
"""Field → the values to try, crossed with those of the other fields."""

SKLEARN = "scikit-learn's default, which the thesis' tables were made with"


class Regression(Settings, ABC):
    """Settings of one regression."""

    id: str

    @abstractmethod
    def build(self, seed: int) -> Any:
        """A new scikit-learn regressor with these settings."""

    @abstractmethod
    def frozen(self, regressor: Any, features: Floats) -> Fitted:
        """What a regressor learnt from `features` [scans, n] needs to predict."""

    @abstractmethod
    def predict(self, fitted: Fitted, features: Floats) -> tuple[Floats, Floats | None]:
        """(values, standard deviations or None), each float64 [scans], of features [scans, n]."""

    @classmethod
    def searched(cls) -> tuple[Grid, ...]:
        """The grids of `tune: {grid: published}`; ({},) where the publication keeps the defaults."""
        return ({},)

    def changed(self) -> dict[str, Any]:
        """Fields that are not at their defaults."""
        return {name: value for name, value in self if value != type(self).model_fields[name].default}

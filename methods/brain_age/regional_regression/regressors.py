"""Which regression: read from a name or a mapping with an `id`, mistakes told where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from harness.problems import did_you_mean
from methods.brain_age.regional_regression.base import Regression
from methods.brain_age.regional_regression.boosting import GradientBoosting
from methods.brain_age.regional_regression.kernels import SVR, KernelRidge
from methods.brain_age.regional_regression.linear import BayesianRidge, ElasticNet
from methods.brain_age.regional_regression.perceptron import MLP

KINDS: dict[str, type[Regression]] = {
    "bayesian_ridge": BayesianRidge,
    "kernel_ridge": KernelRidge,
    "elastic_net": ElasticNet,
    "gradient_boosting": GradientBoosting,
    "svr": SVR,
    "mlp": MLP,
}
PUBLISHED = "bayesian_ridge"


def read(given: Any) -> Any:
    """`given` as a regression: one already, the name of one, or its fields, of a Bayesian ridge without an `id`.

    Raises ValueError, and ValidationError whose places are those of the fields.
    """
    if isinstance(given, Regression):
        return given
    fields = {"id": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping):
        raise ValueError(f"write the name of a regression, or a mapping with its id ({', '.join(KINDS)})")
    name = fields.get("id", PUBLISHED)
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        what = f"unknown regression {str(name)[:60]!r}{did_you_mean(str(name), KINDS)}"
        raise ValueError(what) if isinstance(given, str) else mistakes([(("id",), name, what)])
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise mistakes(faults_of(kind, error)) from None


Mistake = tuple[tuple[int | str, ...], Any, str]
"""Where it stands below the field, what is there, and what is wrong with it."""


def mistakes(found: Iterable[Mistake]) -> ValidationError:
    """An error of validation that keeps the place of each mistake."""
    details = [
        InitErrorDetails(type=PydanticCustomError("value_error", "{what}", {"what": what}), loc=loc, input=value)
        for loc, value, what in found
    ]
    return ValidationError.from_exception_data("regression", details)


def faults_of(kind: type[Regression], error: ValidationError) -> list[Mistake]:
    """What pydantic found wrong with the fields of a regression, once for each place and in our words."""
    values: dict[tuple[int | str, ...], Any] = {}
    told: dict[tuple[int | str, ...], list[str]] = {}
    own = [name for name in kind.model_fields if name != "id"]
    for item in error.errors():
        name = item["loc"][0]
        # What follows are places in a list, and names of the alternatives of a field, which nobody has written.
        place = (name, *(part for part in item["loc"][1:] if isinstance(part, int)))
        message = item["msg"][0].lower() + item["msg"][1:]
        if item["type"] == "extra_forbidden":
            message = f"{kind.model_fields['id'].default} has no field {name!r}{did_you_mean(str(name), own)}"
        values.setdefault(place, item["input"])
        told.setdefault(place, []).append(message)
    return [
        (
            place,
            values[place],
            " or ".join(texts) if "no field" in texts[0] else f"{values[place]!r:.60}: {' or '.join(texts)}",
        )
        for place, texts in told.items()
    ]


AnyRegression = Annotated[
    BayesianRidge | KernelRidge | ElasticNet | GradientBoosting | SVR | MLP, BeforeValidator(read)
]

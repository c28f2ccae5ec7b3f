"""The search space of a sweep: what each field takes, and the trials that come of it."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from harness.api import Method, Settings
from harness.problems import Problem, did_you_mean
from harness.yamlfile import Document, check

Kind = Literal["grid", "choice", "uniform", "loguniform"]
KINDS: tuple[Kind, ...] = ("grid", "choice", "uniform", "loguniform")
DIGITS = 4
"""Significant digits of a drawn number, so that a trial's name says exactly what it ran with."""

MOST_TRIALS = 10_000
"""Trials of one sweep: each is a row with results of its own."""


class Domain(Settings):
    """What one field takes: every value in turn (grid), or a draw for each sample."""

    grid: list[Any] | None = Field(None, min_length=1, description="each value in turn, crossed with other grids")
    choice: list[Any] | None = Field(None, min_length=1, description="one of these, drawn")
    uniform: tuple[float, float] | None = Field(None, description="drawn between two numbers")
    loguniform: tuple[float, float] | None = Field(None, description="drawn between two numbers, evenly in logarithm")

    @model_validator(mode="before")
    @classmethod
    def _mapping(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return given
        raise ValueError("write {grid: [...]} for each value in turn, or {choice: [...]} for a draw")

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)}")
        low, high = self.uniform or self.loguniform or (1, 2)
        if not low < high or not high - low < math.inf or (self.loguniform and low <= 0):
            raise ValueError(f"{self.kind} takes [low, high] with low < high" + ", above 0" * bool(self.loguniform))
        texts = [json.dumps(_named(value), sort_keys=True, default=str) for value in self.values]
        twice = sorted(text for text, count in Counter(texts).items() if count > 1)
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice")
        return self

    @property
    def kind(self) -> Kind:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def values(self) -> list[Any]:
        """What a grid or a choice lists, else nothing."""
        return self.grid or self.choice or []

    @property
    def ends(self) -> tuple[float, float] | tuple[None, None]:
        return self.uniform or self.loguniform or (None, None)


Space = Mapping[str, Domain]


@dataclass(frozen=True)
class Trial:
    """One point of the search space: the name of its row, and field → value."""

    name: str
    config: dict[str, Any]


def expand(
    document: Document, name: str, space: Space, samples: int, seed: int, cls: type[Method], starting: Mapping[str, Any]
) -> tuple[list[Trial], list[Problem]]:
    """Every trial, or everything wrong with the space.

    name: row that trials are named after. starting: its fields.
    """
    problems: list[Problem] = []
    whole: set[str] = set()
    for field in space:
        annotation, problem = _field(document, cls, field)
        problems += [problem] if problem else []
        if int in (annotation, *get_args(annotation)) and float not in get_args(annotation):
            whole.add(field)
            low, high = space[field].ends
            if low is not None and high is not None and math.ceil(low) > math.floor(high):
                what = f"{field} takes whole numbers, and there is none from {low:g} to {high:g}"
                problems.append(document.problem(("space", field), what))
    if samples > 1 and space and all(domain.kind == "grid" for domain in space.values()):
        problems.append(document.problem(("samples",), "samples draws nothing: every field of the space is a grid"))
    if problems or not space:
        return [], problems
    count = math.prod(len(domain.grid) for domain in space.values() if domain.grid is not None) * samples
    if count > MOST_TRIALS:
        what = f"the space has {count:,} trials; at most {MOST_TRIALS:,} can be asked for"
        return [], [document.problem(("space",), what)]
    labels = _labels(space)
    trials: dict[str, Trial] = {}
    for config in draw(space, whole, samples, seed):
        parts = [f"{labels[field]}={_text(value)}" for field, value in config.items()]
        trial = Trial(" ".join([name, *parts]), config)
        if trial.name not in trials:  # a choice may draw the same again
            trials[trial.name] = trial
            problems += [p for p in _check(document, space, cls, trial, starting) if p not in problems]
    return list(trials.values()), problems


def draw(space: Space, whole: set[str], samples: int, seed: int) -> list[dict[str, Any]]:
    """Field → value of every trial: the grids crossed, and for each of their points `samples` draws of the rest.

    whole: fields that take integers only. Equal seeds give equal draws, and more samples keep the first ones.
    """
    grids = [[(name, value) for value in domain.grid] for name, domain in space.items() if domain.grid is not None]
    found = []
    for number, point in enumerate(itertools.product(*grids)):
        fixed = dict(point)
        rng = np.random.default_rng([seed, number])
        for _ in range(samples):
            config = {n: fixed[n] if n in fixed else _drawn(d, n in whole, rng) for n, d in space.items()}
            found.append(copy.deepcopy(config))
    return found


def _drawn(domain: Domain, whole: bool, rng: np.random.Generator) -> Any:
    if domain.choice is not None:
        return domain.choice[int(rng.integers(len(domain.choice)))]
    low, high = domain.ends
    assert low is not None
    assert high is not None
    # Whole numbers: each end has as wide a share as those between.
    ends = (math.ceil(low) - 0.5, math.floor(high) + 0.5) if whole else (low, high)
    log = domain.loguniform is not None
    value = math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]))) if log else rng.uniform(ends[0], ends[1])
    if whole:
        return min(max(round(value), math.ceil(low)), math.floor(high))
    return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def _check(
    document: Document, space: Space, cls: type[Method], trial: Trial, starting: Mapping[str, Any]
) -> list[Problem]:
    """What is wrong with a trial's fields, where possible at the value that is to blame."""
    fields = fields_of(trial, starting)
    del fields["id"]
    try:
        cls.model_validate(fields)
    except ValidationError as error:
        places = [item["loc"] for item in error.errors()]
    else:
        return []
    _, explained = check(Document("", None), fields, cls)
    problems = []
    for loc, problem in zip(places, explained, strict=True):
        to_blame = [name for name in trial.config if loc[: name.count(".") + 1] == tuple(name.split("."))]
        if not to_blame:
            problems.append(document.problem(("space",), f"{trial.name}: {problem.what}"))
            continue
        name = to_blame[0]
        domain = space[name]
        at = ["space", name, domain.kind]
        if domain.values:
            at.append(domain.values.index(trial.config[name]))  # type: ignore[arg-type]
        problems.append(document.problem(at, problem.what))
    return problems


def fields_of(trial: Trial, starting: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a trial: the starting point with the trial's values put in."""
    fields: dict[str, Any] = copy.deepcopy(dict(starting))
    for name, value in trial.config.items():
        *groups, last = name.split(".")
        node = fields
        for group in groups:
            if not isinstance(node.get(group), dict):
                node[group] = {}
            node = node[group]
        node[last] = copy.deepcopy(value)
    return fields


def _field(document: Document, cls: type[BaseModel], name: str) -> tuple[Any, Problem | None]:
    """The annotation of a dotted field, or what is wrong with its name. A field of several kinds has those of each."""
    models: list[Any] = [cls]
    annotation: Any = None
    for part in name.split("."):
        known = {field: info for model in reversed(models) for field, info in model.model_fields.items()}
        if part not in known:
            inside = f"of {models[0].__name__}" if models else f"below {name.rpartition('.')[0]}, which has no fields"
            what = f"{name}: there is no field {part!r} {inside}{did_you_mean(part, known)}"
            return None, document.problem(("space", name), what)
        annotation = known[part].annotation
        models = [o for o in (annotation, *get_args(annotation)) if isinstance(o, type) and issubclass(o, BaseModel)]
    return annotation, None


def _labels(names: Iterable[str]) -> dict[str, str]:
    """Shortest endings of dotted names that tell them apart."""
    found = {}
    names = list(names)
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            label = ".".join(parts[-count:])
            if sum(other == label or other.endswith(f".{label}") for other in names) == 1:
                break
        found[name] = label
    return found


def _named(value: Any) -> Any:
    """The value with all keys as text, so that they can be put in order."""
    if isinstance(value, Mapping):
        return {str(key): _named(inside) for key, inside in value.items()}
    return [_named(inside) for inside in value] if isinstance(value, list) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)

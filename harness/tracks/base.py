"""What every track shares: the common part of a benchmark file, and methods and data resolved from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from harness import registry
from harness.api import Adaptive, Method, Settings
from harness.data.card import load_card
from harness.data.dataset import Dataset, open_dataset
from harness.engine.plan import Cell, Plan, Stage
from harness.engine.resources import ResourceClasses
from harness.problems import Problem, UserError, did_you_mean
from harness.yamlfile import Document, Where, check

RESERVED = {"store", "cache", "mlruns", "mlartifacts", "combined", "sweeps"}
"""Names in the results folder that no benchmark may take."""

LONGEST_ROW_NAME = 1000
"""Characters of a row's name. Trials of a sweep are named after their values; MLflow takes a few thousand."""


MOST_CELLS = 100_000
"""So many are planned in minutes and run in years."""


class DataSection(Settings):
    """`data:` of a benchmark file."""

    card: str = Field(description="id of a dataset card, or the path of a card file relative to this file")
    sites: list[str] = Field(default_factory=list, description="sites to use, in the order shown; empty = all")
    root: Path | None = Field(None, description="folder that holds the data; --root overrides it")
    with_: dict[str, Any] = Field(default_factory=dict, alias="with", description="fields of the card to replace")

    @field_validator("sites")
    @classmethod
    def _distinct(cls, sites: list[str]) -> list[str]:
        twice = sorted(site for site, count in Counter(sites).items() if count > 1)
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice")
        return sites


class ReportSection(Settings):
    """`report:` of a benchmark file."""

    baseline: str = Field("none", description="row against which the others are tested")
    headline: str | None = Field(None, description="metric that orders the leaderboard; default: the first listed")
    published: str = Field("", description="setting of the published tables to show beside, with --against")
    rank_metrics: list[str] = Field(
        default_factory=list, description="metrics that count in mean ranks; empty: all that can be ranked"
    )


class BenchmarkSpec(Settings):
    """The keys that every benchmark file has, whatever its track."""

    benchmark: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="name; also of the results folder"
    )
    track: str = Field(description="evaluation protocol")
    description: str = Field("", description="one sentence for the report")
    data: DataSection
    methods: dict[str, dict[str, Any] | None] = Field(
        min_length=1, description="row name → fields of the method; `id` names the method if the row has another name"
    )
    metrics: list[str] = Field(min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, description="replicates")
    resources: ResourceClasses = ResourceClasses()
    report: ReportSection = ReportSection()

    @field_validator("benchmark")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"{name!r} is reserved; choose another name")
        return name

    @field_validator("methods")
    @classmethod
    def _named(cls, methods: dict[str, Any]) -> dict[str, Any]:
        for name in methods:
            if not name.isprintable() or not 0 < len(name.strip()) <= len(name) <= LONGEST_ROW_NAME:
                raise ValueError(
                    f"{name[:40]!r} is no name for a row; use 1 to {LONGEST_ROW_NAME} characters that can be shown"
                )
        return methods

    @field_validator("seeds", "metrics")
    @classmethod
    def _once(cls, values: list[Any]) -> list[Any]:
        twice = sorted(str(v) for v, count in Counter(values).items() if count > 1)
        if twice:
            raise ValueError(f"{', '.join(twice)} is listed twice")
        return values


@dataclass(frozen=True)
class Row:
    """One method of a benchmark: the name it is shown under, where its class lies, and its instance."""

    name: str
    target: str
    method: Method

    def payload(self, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """What a stage needs to build the method again: class and fields, defaults included.

        With `fields` only those: the others have their defaults there, so they cannot change what the stage does.
        """
        return payload_of(self.method, self.target, fields)

    def early_fields(self) -> tuple[str, ...]:
        """Fields that fits and adaptations depend on."""
        late = self.method.late_fields if isinstance(self.method, Adaptive) else ()
        return tuple(name for name in type(self.method).model_fields if name not in late)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file, fully resolved: what a track plans from.

    sites: of the data, which are audited. places: sources and targets of the cells, in the order shown.
    """

    spec: BenchmarkSpec
    dataset: Dataset
    sites: tuple[str, ...]
    rows: tuple[Row, ...]
    plan: Plan
    extra: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        return self.spec.report.headline or self.spec.metrics[0]


@dataclass(frozen=True)
class Unique:
    """One object for each key of a stage, and a title for each: stages of one kind may differ in their fields."""

    _made: dict[str, Stage] = field(default_factory=dict)
    _titles: set[str] = field(default_factory=set)

    def one(self, stage: Stage, title: str = "") -> Stage:
        """The stage of this key, under its own title or that given, numbered where another stage has it."""
        wanted = title or stage.title
        if stage.key not in self._made:
            number, unique = 1, wanted
            while unique in self._titles:
                number += 1
                unique = f"{wanted} ({number})"
            self._titles.add(unique)
            self._made[stage.key] = replace(stage, title=unique)
        return self._made[stage.key]


def head_of(benchmark: Benchmark, cell: Cell) -> dict[str, Any]:
    """What the records of a cell have in common."""
    return {
        "benchmark": benchmark.spec.benchmark,
        "track": benchmark.spec.track,
        "method": cell.method,
        "seed": cell.seed,
        "source": cell.source,
        "target": cell.target,
    }


def payload_of(method: Method, target: str = "", fields: Iterable[str] | None = None) -> dict[str, Any]:
    """`Row.payload` of a method that is no row, such as a component of one."""
    values = method.model_dump(mode="json")
    if fields is not None:
        values = {name: values[name] for name in values if name in set(fields)}
    return {"class": target or target_of(method), "fields": values}


def target_of(method: Method) -> str:
    """The method's class as "module:Class"."""
    return f"{type(method).__module__}:{type(method).__qualname__}"


def build_method(payload: Mapping[str, Any]) -> Method:
    """The method instance a stage was planned with."""
    return registry.load_class(payload["class"]).model_validate(payload["fields"])


def resolve_row(
    document: Document, at: Where, name: str, fields: Mapping[str, Any] | None, families: tuple[type[Method], ...]
) -> tuple[Row | None, list[Problem]]:
    """A method from its YAML mapping: known id, right family, valid fields. Returns every problem found."""
    given = dict(fields or {})
    method_id = given.pop("id", name)
    where = (*at, "id") if fields and "id" in fields else at
    if not isinstance(method_id, str) or method_id not in registry.entries():
        what = f"unknown method {method_id!r}{did_you_mean(str(method_id), registry.entries())}"
        return None, [document.problem(where, what)]
    try:
        cls = registry.load(method_id)
    except registry.BrokenPlugin as error:
        return None, [document.problem(where, str(error))]
    if not issubclass(cls, families):
        wanted = " or ".join(sorted(str(family.family) for family in families))
        return None, [document.problem(where, f"{method_id} is a {cls.family}, this place takes a {wanted}")]
    method, problems = check(document, given, cls, at)
    if method is None:
        return None, problems
    return Row(name, registry.entries()[method_id].target, method), []


def resolve_rows(document: Document, families: tuple[type[Method], ...]) -> tuple[tuple[Row, ...], list[Problem]]:
    """Every row of `methods:` that can be read, and every problem of the others."""
    rows: list[Row] = []
    problems: list[Problem] = []
    listed = document.data.get("methods")
    for name, fields in listed.items() if isinstance(listed, dict) else ():
        if fields is None or isinstance(fields, dict):
            row, found = resolve_row(document, ("methods", name), str(name), fields, families)
            problems += found
            rows += [row] if row else []
    return tuple(rows), problems


def resolve_dataset(
    document: Document, cache: Path, root: Path | None, *, withhold_age: bool = False
) -> tuple[Dataset | None, list[Problem]]:
    """The data set that `data:` names; None where it names none, or what is wrong with its card."""
    section = document.data.get("data")
    if not isinstance(section, dict) or not isinstance(section.get("card"), str):
        return None, []
    try:
        card = load_card(document, section)
        given = root or (Path(section["root"]) if isinstance(section.get("root"), str) else None)
        if given is not None and root is None and not given.is_absolute():
            given = Path(document.path).parent / given
        return open_dataset(card, given, cache, withhold_age=withhold_age), []
    except UserError as error:
        return None, list(error.problems)


def check_report(document: Document, spec: BenchmarkSpec) -> list[Problem]:
    """What `report:` says of rows and metrics that are not there."""
    problems = []
    if spec.report.baseline not in spec.methods:
        at = ("report", "baseline") if "report" in document.data else ("methods",)
        what = f"the baseline {spec.report.baseline!r} is not among the methods; add it, or set report.baseline"
        problems.append(document.problem(at, what))
    headline = spec.report.headline
    if headline is not None and headline not in spec.metrics:
        what = f"the headline metric {headline!r} is not among metrics: {', '.join(spec.metrics)}"
        problems.append(document.problem(("report", "headline"), what))
    return problems + unknown(
        document, ("report", "rank_metrics"), spec.report.rank_metrics, spec.metrics, "metric of this benchmark"
    )


def check_size(document: Document, cells: int, asked: str) -> list[Problem]:
    """Whether a plan of so many cells can be made; `asked` says what multiplies to them."""
    if cells <= MOST_CELLS:
        return []
    what = f"{asked} make {cells:,} cells; at most {MOST_CELLS:,} can be planned: leave some out"
    return [document.problem((), what)]


def unknown(document: Document, at: Where, values: Iterable[str], known: Iterable[str], noun: str) -> list[Problem]:
    """A problem for each of the listed values that is not known, with a suggestion."""
    options = list(map(str, known))
    return [
        document.problem((*at, i), f"unknown {noun} {value!r}{did_you_mean(value, options)}")
        for i, value in enumerate(values)
        if value not in options
    ]


def fail_if(problems: list[Problem]) -> None:
    if problems:
        raise UserError(problems)

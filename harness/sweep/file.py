"""A sweep file: a base benchmark, one of its methods, and the values that its fields are to take.

Every trial becomes a row of one ordinary benchmark, beside the rows of the base that are kept as references. So
trials share all stages that do not depend on what is swept, and their results are results like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from harness import registry
from harness.api import Method, Settings
from harness.derived import read_derived
from harness.engine.plan import Cell
from harness.metrics.catalogue import METRICS
from harness.problems import Problem, UserError, did_you_mean
from harness.spec import TRACKS, resolve
from harness.sweep.space import KINDS, Domain, Trial, expand, fields_of
from harness.tracks.base import RESERVED, Benchmark, unknown
from harness.untrusted import is_file
from harness.yamlfile import Document, check, read

Split = Literal["test", "validation"]
VALIDATION: Split = "validation"
"""Role of a cell's final stage that scores validation scans, in place of "scores"."""


class Objective(Settings):
    """`objective:` of a sweep file."""

    metric: str = Field(description="a metric of the base benchmark: the leaderboard's mean of it is optimised")
    mode: Literal["max", "min"] | None = Field(None, description="default: the metric's own direction")
    split: Split = Field(
        "test",
        description="scans by which trials are compared: test shows what a setting does, validation chooses one and "
        "leaves its test score honest",
    )


class Asha(Settings):
    """`scheduler.asha`: asynchronous successive halving (Li et al., MLSys 2020). A rung is a (seed, source)."""

    grace: int = Field(1, ge=1, description="rungs that every trial runs")
    reduction: float = Field(2, gt=1, description="at rungs grace · reductionᵏ the best 1/reduction go on")


class Scheduler(Settings):
    """`scheduler:` of a sweep file."""

    asha: Asha

    @field_validator("asha", mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        return {} if given is None else given


class SweepSpec(Settings):
    """The keys of a sweep file."""

    sweep: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100, description="name; also of the results folder"
    )
    description: str = Field("", description="one sentence for the report")
    base: str = Field(description="benchmark file, relative to this file")
    set_: list[str] = Field(default_factory=list, alias="set", description="KEY=VALUE changes of the base")
    method: str = Field(description="row of the base whose fields are the starting point, or any method's id")
    space: dict[str, Domain] = Field(min_length=1, description="field of the method → what it takes")
    samples: int = Field(1, ge=1, description="draws of what is not a grid, for each point of the grids")
    seed: int = Field(0, ge=0, description="of the draws")
    objective: Objective
    keep: list[str] = Field(default_factory=list, description="rows of the base to show beside; its baseline always is")
    scheduler: Scheduler | None = Field(None, description="stops bad trials early")
    concurrent: int | None = Field(None, ge=1, description="trials at a time; default: what the cluster can use")

    @field_validator("sweep")
    @classmethod
    def _free(cls, name: str) -> str:
        if name in RESERVED | {"sweeps"}:
            raise ValueError(f"{name!r} is reserved; choose another name")
        return name


class _Partial(SweepSpec):
    """A sweep file with faults: what can be checked nevertheless."""

    sweep: str = ""
    base: str = ""
    method: str = ""
    space: dict[str, Domain] = {}
    objective: Objective | None = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved: `benchmark` holds the kept rows and one row for each trial.

    defaults: what the searched fields are in the base, by dotted name; without those that it does not have.
    """

    spec: SweepSpec
    file: Path
    base: Path
    method: str
    mode: Literal["max", "min"]
    trials: tuple[Trial, ...]
    benchmark: Benchmark
    defaults: Mapping[str, Any]

    def rungs(self, trial: str) -> list[tuple[Cell, ...]]:
        return rungs(self.benchmark, trial)


def rungs(benchmark: Benchmark, trial: str) -> list[tuple[Cell, ...]]:
    """Cells of a trial in the groups after which it reports: one for each seed and source, in plan order."""
    cells = [cell for cell in benchmark.plan.cells if cell.method == trial]
    return [tuple(group) for _, group in itertools.groupby(cells, key=lambda cell: (cell.seed, cell.source))]


def load(file: Path, overrides: Iterable[str], *, cache: Path, root: Path | None = None) -> Sweep:
    """Read, override, check and expand a sweep file. Raises UserError with every problem found.

    overrides: `key=value`, of this file where the key is one of a sweep's, else of the base benchmark.
    """
    document = read(file)
    own, others = _sort_overrides(overrides)
    for assignment in own:
        _override(document, assignment)
    _, problems = check(document, document.data, SweepSpec)
    spec = _valid_part(document.data)
    base, base_problems = _read_base(document, spec, others)
    problems += base_problems
    rows = base.data.get("methods") if base else None
    if base is None or not isinstance(rows, dict) or not spec.method:
        raise UserError(problems or [Problem(spec.base, "methods is missing; it is required")])
    problems += unknown(document, ("keep",), spec.keep, rows, "row of the base")
    problems += _objective(document, spec, base)
    starting, cls, found = _starting_point(document, spec, base, rows)
    problems += found
    trials: list[Trial] = []
    if cls is not None and not found:
        trials, found = expand(document, spec.method, spec.space, spec.samples, spec.seed, cls, starting)
        problems += found
    if not trials or problems:
        raise UserError(problems)
    _combine(document, spec, base, rows, trials, starting)
    benchmark = resolve(base, cache=cache, root=root)
    if spec.objective.split == "validation":
        benchmark = _validated(document, benchmark, [trial.name for trial in trials])
    mode = spec.objective.mode or ("min" if METRICS[spec.objective.metric].lower_is_better else "max")
    assert cls is not None
    defaults = _defaults(cls, starting, spec.space)
    sweep = Sweep(spec, file, Path(base.path), cls.id, mode, tuple(trials), benchmark, defaults)
    problems = _plan_problems(document, sweep)
    if problems:
        raise UserError(problems)
    return sweep


# ------------------------------------------------------------------------------------------- the file


def _sort_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    names = {info.alias or name for name, info in SweepSpec.model_fields.items()}
    own: list[str] = []
    others: list[str] = []
    for text in overrides:
        (own if text.partition("=")[0].strip().split(".")[0] in names else others).append(text)
    return own, others


def _override(document: Document, assignment: str) -> None:
    """One `--set`; in `space.FIELD.KIND=…` the field's own dots belong to its name."""
    dotted, sign, value = assignment.partition("=")
    first, *field, kind = dotted.strip().split(".")
    if not (sign and first == "space" and field and kind in KINDS):
        document.override(assignment)
        return
    stand_in = Document(document.path, {"value": None})
    stand_in.override(f"value={value}")
    space = document.data.setdefault("space", {})
    if isinstance(space, dict):
        name = ".".join(field)
        space[name] = {kind: stand_in.data["value"]}
        document.positions = {k: v for k, v in document.positions.items() if k[:2] != ("space", name)}
        document.positions["space", name] = f"--set {assignment}"


def _valid_part(data: dict[str, Any]) -> SweepSpec:
    """The spec, without the keys that are wrong."""
    try:
        return SweepSpec.model_validate(data)
    except ValidationError as error:
        wrong = {item["loc"][: 2 if item["loc"][:1] == ("space",) else 1] for item in error.errors()}
    kept = {key: value for key, value in data.items() if isinstance(key, str) and (key,) not in wrong}
    if isinstance(kept.get("space"), dict):
        kept["space"] = {name: value for name, value in kept["space"].items() if ("space", name) not in wrong}
    return _Partial.model_validate(kept)


def _read_base(document: Document, spec: SweepSpec, overrides: list[str]) -> tuple[Document | None, list[Problem]]:
    if not spec.base:
        return None, []
    path = Path(document.path).parent / spec.base
    if not is_file(path):
        return None, [document.problem(("base",), f"no such file: {path}")]
    try:
        base = read_derived(path)
    except UserError as error:
        return None, list(error.problems)
    problems: list[Problem] = []
    for i, assignment in enumerate([*spec.set_, *overrides]):
        try:
            base.override(assignment)
        except UserError as error:
            listed = i < len(spec.set_)
            problems += [document.problem(("set", i), p.what) if listed else p for p in error.problems]
    if spec.sweep and base.data.get("benchmark") == spec.sweep:
        what = f"{spec.sweep!r} is the name of the base; the results would take each other's place"
        problems.append(document.problem(("sweep",), what))
    return base, problems


def _objective(document: Document, spec: SweepSpec, base: Document) -> list[Problem]:
    listed = base.data.get("metrics")
    if spec.objective is None or not isinstance(listed, list) or spec.objective.metric in listed:
        return []
    hint = did_you_mean(spec.objective.metric, map(str, listed))
    what = f"{spec.objective.metric!r} is not among the metrics of the base{hint}"
    return [document.problem(("objective", "metric"), what)]


def _starting_point(
    document: Document, spec: SweepSpec, base: Document, rows: Mapping[str, Any]
) -> tuple[dict[str, Any], type[Method] | None, list[Problem]]:
    """The fields that trials start from, `id` included, and the method's class."""
    row = rows.get(spec.method)
    if not isinstance(row, dict | None):
        return {}, None, [base.problem(("methods", spec.method), "expected a mapping of fields, or nothing")]
    fields = dict(row or {})
    method_id = fields.setdefault("id", spec.method)
    if not isinstance(method_id, str) or method_id not in registry.entries():
        if spec.method in rows:
            hint = did_you_mean(str(method_id), registry.entries())
            return fields, None, [base.problem(("methods", spec.method), f"unknown method {method_id!r}{hint}")]
        hint = did_you_mean(spec.method, [*map(str, rows), *registry.entries()])
        what = f"{spec.method!r} is neither a row of the base nor a method{hint}"
        return fields, None, [document.problem(("method",), what)]
    try:
        cls = registry.load(method_id)
    except registry.BrokenPlugin as error:
        return fields, None, [document.problem(("method",), str(error))]
    given = {name: value for name, value in fields.items() if name != "id"}
    _, problems = check(base, given, cls, ("methods", spec.method))
    return fields, cls, problems


def _defaults(cls: type[Method], starting: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    fields = cls.model_validate({name: value for name, value in starting.items() if name != "id"})
    found: dict[str, Any] = {}
    for name in names:
        value: Any = fields.model_dump(mode="json")
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found


# ------------------------------------------------------------------------------------------- the benchmark


def _combine(
    document: Document,
    spec: SweepSpec,
    base: Document,
    rows: Mapping[str, Any],
    trials: Iterable[Trial],
    starting: Mapping[str, Any],
) -> None:
    """Turn the base's document into that of the sweep: kept rows, then trials."""
    report = base.data.get("report")
    report = dict(report) if isinstance(report, dict) else {}
    kept = [report.get("baseline", "none"), *spec.keep]
    methods = {name: rows[name] for name in kept if isinstance(name, str) and name in rows}
    for trial in trials:
        methods[trial.name] = fields_of(trial, starting)
        # A trial has no place in the base; what is wrong with it is wrong with the space.
        base.positions["methods", trial.name] = document.where(("space",))
    base.data["benchmark"] = spec.sweep
    base.data["description"] = spec.description or f"Sweep of {spec.method} over {', '.join(spec.space)}."
    base.data["methods"] = methods
    base.data["report"] = {**report, "headline": spec.objective.metric}


def _validated(document: Document, benchmark: Benchmark, trials: Iterable[str]) -> Benchmark:
    """The benchmark whose trials are scored on validation scans too. Raises UserError where that means nothing."""
    name, at = benchmark.spec.track, ("objective", "split")
    track = import_module(f"{TRACKS[name]}.spec")
    if not hasattr(track, "validated"):
        raise UserError(document.problem(at, f"track {name} scores no validation scans; leave split out"))
    try:
        found: Benchmark = track.validated(benchmark, trials)
    except ValueError as error:
        raise UserError(document.problem(at, f"{error}; leave split out, or change the row")) from None
    return found


def _plan_problems(document: Document, sweep: Sweep) -> list[Problem]:
    """What only the plan can tell."""
    metric = sweep.spec.objective.metric
    own = [cell for cell in sweep.benchmark.plan.cells if cell.method == sweep.trials[0].name]
    chosen_by = sweep.spec.objective.split == VALIDATION
    judging = [s for cell in own for role, s in cell.finals.items() if (role == VALIDATION) == chosen_by]
    if not any(metric in stage.params.get("metrics", ()) for stage in judging):
        scans = " on validation scans" if chosen_by else ""
        what = f"{metric} is not measured for {sweep.method} in this benchmark{scans}; take another metric"
        return [document.problem(("objective", "metric"), what)]
    asha = sweep.spec.scheduler.asha if sweep.spec.scheduler else None
    count = len(sweep.rungs(sweep.trials[0].name))
    if asha and asha.grace >= count:
        what = f"grace is {asha.grace}, but a trial has {count} rungs (seeds × sources): nothing would be stopped"
        return [document.problem(("scheduler", "asha", "grace"), what)]
    return []

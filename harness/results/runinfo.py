"""What a run was: `run.json` of a results folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.engine.store import write_atomically
from harness.problems import Problem, UserError

FILE = "run.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MethodInfo(_Frozen):
    """One row of the benchmark: its display name, the method behind it, its traits and its fields."""

    name: str
    id: str
    family: str
    reference: str = ""
    traits: Mapping[str, bool] = Field(default_factory=dict)
    fields: Mapping[str, Any] = Field(default_factory=dict)
    doc: str = ""
    oracle: bool = False
    """Whether it was tuned by the target's labels: shown apart, never ranked."""
    deviations: tuple[str, ...] = ()
    """Where its settings depart from its publication."""


class DatasetInfo(_Frozen):
    """The data set of a run. Whatever else its card says is kept beside these keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    name: str
    simulated: bool
    label_names: tuple[str, ...] = ()
    """`label_names[i]` names label i, background included; empty where there are no labels."""


class Counts(_Frozen):
    """Stages by how they ended."""

    executed: int = 0
    cached: int = 0
    failed: int = 0
    blocked: int = 0


class SweepDomain(_Frozen):
    """What one field of a method took in a sweep: `values` of a grid or choice, `low` and `high` of a range."""

    type: Literal["grid", "choice", "uniform", "loguniform"]
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None


class SweepObjective(_Frozen):
    """What a sweep optimises: the leaderboard's mean of a metric, or that mean over validation scans."""

    metric: str
    mode: Literal["max", "min"]
    split: Literal["test", "validation"] = "test"


class SweepTrial(_Frozen):
    """One trial: the name of its row, field → value, and the objective (of the cells it got to, if stopped).

    test: the metric over test scans, where the objective is that over validation scans.
    """

    name: str
    config: Mapping[str, Any]
    state: Literal["finished", "stopped", "failed", "pending"]
    objective: float | None = None
    test: float | None = None


class SweepInfo(_Frozen):
    """The search behind a run's rows. method: id. base: the benchmark file that was swept. space: by field.

    defaults: what each field is in the base, for the figures to mark; fields that are not named are not marked.
    """

    method: str
    base: str
    objective: SweepObjective
    space: Mapping[str, SweepDomain]
    trials: tuple[SweepTrial, ...]
    defaults: Mapping[str, Any] = Field(default_factory=dict)

    def best(self, among: Callable[[SweepTrial], bool] = lambda trial: True) -> SweepTrial | None:
        """The best trial that finished; the first of equals."""
        done = [t for t in self.trials if t.state == "finished" and t.objective is not None and among(t)]
        choose = max if self.objective.mode == "max" else min
        return choose(done, key=lambda trial: trial.objective or 0.0) if done else None


class RunInfo(_Frozen):
    """Everything about a run that is not a number in the records.

    baseline: display name of the row that others are tested against. headline: id of the metric that orders the
    leaderboard. methods: the rows. task: the model of the downstream task, shared by all rows. started: ISO 8601.
    published: setting of the published tables that this benchmark repeats. rank_metrics: those that count in mean
    ranks, () for all. processing: of anomaly maps before they are scored; records of the first make the leaderboard.
    sweep: the search that the rows come from, None for an ordinary run. commit: git commit of the benchmark's folder,
    None where unknown. environment: versions and machine.
    """

    run_id: str
    benchmark: str
    track: str
    description: str = ""
    dataset: DatasetInfo
    sites: tuple[str, ...]
    unlabelled_sites: tuple[str, ...] = ()
    baseline: str
    metrics: tuple[str, ...]
    headline: str
    seeds: tuple[int, ...]
    methods: tuple[MethodInfo, ...]
    task: MethodInfo | None = None
    counts: Counts = Counts()
    seconds: float = 0.0
    sweep: SweepInfo | None = None
    published: str = ""
    rank_metrics: tuple[str, ...] = ()
    processing: tuple[str, ...] = ()
    started: str
    version: str
    commit: str | None = None
    environment: Mapping[str, Any] = Field(default_factory=dict)

    def method(self, name: str) -> MethodInfo:
        """The row shown under this name. Raises KeyError."""
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(name)

    def write(self, folder: Path) -> None:
        """Replace `run.json` of a results folder."""
        write_atomically(folder / FILE, self.model_dump_json(indent=1))


def read(folder: Path) -> RunInfo:
    """`run.json` of a results folder. Raises UserError where it is absent or damaged."""
    path = folder / FILE
    try:
        return RunInfo.model_validate_json(path.read_text())
    except OSError as error:
        what = f"cannot be read ({error.strerror or error}); is this a results folder?"
        raise UserError(Problem(str(path), what)) from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"])) or "file"
        what = f"is damaged ({at}: {first['msg']}); the next `harness run` writes it anew"
        raise UserError(Problem(str(path), what)) from None

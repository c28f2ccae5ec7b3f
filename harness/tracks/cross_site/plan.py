"""Stages of the cross-site track. A method's inputs are wired from its traits, here and nowhere else.

images(site, split), labels(site, split) or ages(site, split)
  train   source images + labels (train, validation)          once per source and seed
  fit     what the traits allow                               once per source, pair or benchmark; parts apart
  adapt   state + unlabelled target images                    methods that adapt step by step
  apply   state + target test images (+ source / task model)  harmonised images, or predictions
  predict task model + harmonised images                      predictions
  trace   every step of an adaptation, predicted and scored   curves
  score   predictions + labels; harmonised + source images    records
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, Literal, TypeVarTuple

from harness.api import Adaptive, Generalizer, Harmonizer, Outcome, TaskModel, TestTimeAdapter
from harness.contract import adapt_inputs, apply_inputs, fit_inputs
from harness.data.dataset import Dataset
from harness.engine.history import trained
from harness.engine.plan import Cell, Plan, Stage, seed_of
from harness.tracks.base import Row

STAGES = "harness.tracks.cross_site.stages"
LABEL_METRICS = {"dsc", "hd95", "hd95_pooled", "hd95_unit", "hd95_missing"}
AGE_METRICS = {"mae", "mse"}
TASK_METRICS: Mapping[Outcome, set[str]] = {"labels": LABEL_METRICS, "age": AGE_METRICS}
PAIRED_METRICS = {"psnr", "ssim"}
TRAITS = ("source_free", "task_agnostic", "unknown_domains")


@dataclass(frozen=True)
class Protocol:
    """The choices of a benchmark file that shape the stages.

    workers: processes that train one model together; stages that train nothing keep to one.
    """

    diagonal: str
    quantize: str
    paired: bool
    metrics: tuple[str, ...]
    baseline: str
    trace: bool = True
    workers: int = 1


def build_plan(
    name: str,
    dataset: Dataset,
    sites: tuple[str, ...],
    task: Row,
    rows: tuple[Row, ...],
    seeds: tuple[int, ...],
    protocol: Protocol,
) -> Plan:
    """Every (row, source, target, seed) of the matrix, as cells of one plan."""
    wiring = _Wiring(dataset, sites, task, protocol)
    cells = [
        wiring.cell(row, source, target, seed)
        for seed in seeds
        for source in sites
        if wiring.has_reference(source)
        for target in sites
        for row in rows
        if source != target
        or protocol.diagonal == "all"
        or (protocol.diagonal, row.name) == ("baseline", protocol.baseline)
    ]
    return Plan.of(name, [cell for cell in cells if cell.finals])


def has_reference(dataset: Dataset, site: str, outcome: Outcome) -> bool:
    """Whether the site has what a task model of this outcome is trained on and scored against."""
    return dataset.labelled(site) if outcome == "labels" else dataset.aged(site)


def metric_role(metric: str) -> Literal["labels", "ages", "images"]:
    """Which of a cell's final stages answers for a metric."""
    return "labels" if metric in LABEL_METRICS else "ages" if metric in AGE_METRICS else "images"


def access(plan: Plan, rows: Iterable[Row]) -> dict[str, dict[str, bool]]:
    """Row name → traits, read off the edges of the plan: what was wired, not what was declared.

    source_free: no stage of the method is handed source images together with, or after, target images.
    task_agnostic: none is handed the task model, or trains it. unknown_domains: no fit is handed target images.
    """
    edges: dict[str, dict[str, Stage]] = {row.name: {} for row in rows}
    for cell in plan.cells:
        if cell.method in edges:
            edges[cell.method].update((stage.key, stage) for stage in _own(plan, cell))
    found = {}
    for row in rows:
        handed = [(s.kind, {name.partition(".")[0] for name in s.needs}) for s in edges[row.name].values()]
        fits = [names for kind, names in handed if kind == "fit"]
        later = [names for kind, names in handed if kind != "fit"]
        found[row.name] = {
            "source_free": not any("source" in names for names in later)
            and not any(names & {"source", "validation", "sites"} and names & {"target", "sites"} for names in fits),
            "task_agnostic": not any(names & {"task", "reference"} for _, names in handed),
            "unknown_domains": not any(names & {"target", "sites"} for names in fits),
        }
    return found


def _own(plan: Plan, cell: Cell) -> Iterator[Stage]:
    """The stages of a cell in which its method's code is called to produce what is scored."""
    for role, final in cell.finals.items():
        if role != "trace":
            for key in plan.ancestors(final):
                stage = plan.by_key[key]
                if stage.kind in ("fit", "adapt", "apply"):
                    yield stage


_Of = TypeVarTuple("_Of")


def _once(make: Callable[[_Wiring, *_Of], Stage]) -> Callable[[_Wiring, *_Of], Stage]:
    """Cells that need the same stage get one object: its key is computed once, and a large plan fits into memory."""

    @wraps(make)
    def made(self: _Wiring, *of: *_Of) -> Stage:
        identity = (make.__name__, *(value.name if isinstance(value, Row) else value for value in of))
        if identity not in self.made:
            self.made[identity] = self._shared_out(make(self, *of))
        return self.made[identity]

    return made


@dataclass(frozen=True)
class _Wiring:
    dataset: Dataset
    sites: tuple[str, ...]
    task: Row
    protocol: Protocol
    made: dict[tuple[Any, ...], Stage] = field(default_factory=dict)
    payloads: dict[tuple[str, tuple[str, ...] | None], dict[str, Any]] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        assert isinstance(self.task.method, TaskModel)
        return self.task.method.outcome

    def has_reference(self, site: str) -> bool:
        return has_reference(self.dataset, site, self.outcome)

    def cell(self, row: Row, source: str, target: str, seed: int) -> Cell:
        return Cell(row.name, source, target, seed, dict(self._finals(row, source, target, seed)))

    def _finals(self, row: Row, source: str, target: str, seed: int) -> Iterator[tuple[str, Stage]]:
        wanted = set(self.protocol.metrics)
        scored = self.has_reference(target) and bool(wanted & TASK_METRICS[self.outcome])
        method = row.method
        role = "labels" if self.outcome == "labels" else "ages"
        if not isinstance(method, Harmonizer):
            if scored:
                predictions = (
                    self._predict(row, source, target, seed, self._generalize(row, source, seed))
                    if isinstance(method, Generalizer)
                    else self._apply(row, source, target, seed)
                )
                yield role, self._score(row, source, target, seed, predictions)
            return
        if method.is_oracle() and not scored:  # nothing to choose by
            return
        harmonised = self._apply(row, source, target, seed)
        if scored:
            task = self.train(source, seed)
            predictions = self._predict(row, source, target, seed, task, harmonised)
            yield role, self._score(row, source, target, seed, predictions)
            if method.adapts() and self.protocol.trace and source != target:
                yield "trace", self._score_trace(row, source, target, seed)
        if wanted - LABEL_METRICS - AGE_METRICS:
            yield "images", self._score_images(row, source, target, seed, harmonised)

    def _shared_out(self, stage: Stage) -> Stage:
        """The stage on as many workers as train together, if it trains."""
        workers = self.protocol.workers
        return replace(stage, workers=workers) if workers > 1 and trained(stage) else stage

    def _payload(self, row: Row, fields: Iterable[str] | None = None) -> dict[str, Any]:
        """`row.payload`, one object for all stages of a row."""
        asked = (row.name if row is not self.task else "", None if fields is None else tuple(fields))
        if asked not in self.payloads:
            self.payloads[asked] = row.payload(asked[1])
        return self.payloads[asked]

    # ------------------------------------------------------------------------------------- learning

    @_once
    def train(self, source: str, seed: int) -> Stage:
        """The task model of a source site."""
        method = self.task.method
        return Stage(
            kind="train",
            title=f"train {method.id} {source}{_replicate(seed)}",
            fn=f"{STAGES}:train_task",
            params={"method": self._payload(self.task)},
            needs=self._training_data(source),
            resources="train",
            code=(self.task.target,),
            seed=seed_of("train", method.id, source, seed),
        )

    @_once
    def _generalize(self, row: Row, source: str, seed: int) -> Stage:
        """The task model of a source site, trained as a generalizer wants it; the same seed as without it."""
        return Stage(
            kind="fit",
            title=f"fit {row.name} {source}{_replicate(seed)}",
            fn=f"{STAGES}:train_task",
            params={"method": self._payload(self.task), "generalizer": self._payload(row)},
            needs=self._training_data(source),
            resources="train",
            code=(self.task.target, row.target),
            seed=seed_of("train", self.task.method.id, source, seed),
        )

    def _training_data(self, source: str) -> dict[str, Stage]:
        return {
            "images": self.dataset.images(source, "train"),
            "reference": self._reference(source, "train"),
            "validation_images": self.dataset.images(source, "validation"),
            "validation_reference": self._reference(source, "validation"),
        }

    def _reference(self, site: str, split: Literal["train", "validation", "test"]) -> Stage:
        return self.dataset.labels(site, split) if self.outcome == "labels" else self.dataset.ages(site, split)

    def _fits(self, row: Row, source: str, target: str, seed: int) -> dict[str, Stage]:
        """The fit of a method, or of each of its parts, as inputs of the stages that need its state."""
        method = _adaptive(row)
        where = _fitted_on(method, source, target)
        parts = method.fit_parts()
        if parts:
            return {f"state.{part}": self._fit(row, where, seed, part) for part in parts}
        return {"state": self._fit(row, where, seed, "")} if method.has_fit() else {}

    @_once
    def _fit(self, row: Row, where: tuple[str, ...], seed: int, part: str) -> Stage:
        """A fit: on the source alone if it knows no domains, else on the sites that its scope and traits allow."""
        method = _adaptive(row)
        wanted = fit_inputs(method)
        if "sites" in wanted:
            needs = {f"sites.{site}": self.dataset.images(site, "train") for site in self.sites}
            place, identity = "all sites", tuple(sorted(self.sites))
        else:
            sites = {"source": where[0], "target": where[-1], "validation": where[0]}
            needs = {
                name: self.dataset.images(sites[name], "validation" if name == "validation" else "train")
                for name in sorted(wanted)
            }
            place, identity = ("↔" if method.fit_scope == "pair" else "→").join(where), where
        fields = method.fit_parts()[part] if part else row.early_fields()
        params: dict[str, Any] = {"method": self._payload(row, fields)}
        return Stage(
            kind="fit",
            title=" ".join(filter(None, ["fit", row.name, part, place])) + _replicate(seed),
            fn=f"{STAGES}:fit",
            params={**params, "part": part} if part else params,
            needs=needs,
            resources="train",
            code=(row.target,),
            seed=seed_of("fit", method.id, *([part] if part else []), *identity, seed),
        )

    # ------------------------------------------------------------------------------------- using

    @_once
    def _adapt(self, row: Row, source: str, target: str, seed: int) -> Stage:
        """Adaptation of a harmoniser to the target's images."""
        method = row.method
        assert isinstance(method, Harmonizer)
        needs = {"target": self.dataset.images(target, method.adaptation_split())}
        if "source" in adapt_inputs(method):
            needs["source"] = self.dataset.images(source, "train")
        return Stage(
            kind="adapt",
            title=f"adapt {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:adapt_harmonizer",
            params={"method": self._payload(row, row.early_fields())},
            needs={**needs, **self._fits(row, source, target, seed)},
            resources="train",
            code=(row.target,),
            seed=seed_of("adapt", method.id, source, target, seed),
        )

    def _apply(self, row: Row, source: str, target: str, seed: int) -> Stage:
        method = _adaptive(row)
        needs = {"target": self.dataset.images(target, "test")}
        params: dict[str, Any] = {"method": self._payload(row)}
        code: tuple[str, ...] = (row.target,)
        wanted = apply_inputs(method)
        if "source" in wanted:
            needs["source"] = self.dataset.images(source, "train")
        if isinstance(method, Harmonizer) and method.adapts():
            needs["state"] = self._adapt(row, source, target, seed)
            if method.is_oracle():
                needs["choice"] = self._score_trace(row, source, target, seed)
        else:
            needs |= self._fits(row, source, target, seed)
        if "task" in wanted:
            needs["task"] = self.train(source, seed)
            params["task"] = self._payload(self.task)
            code = (row.target, self.task.target)
        verb = "harmonize" if isinstance(method, Harmonizer) else "adapt"
        params |= {"quantize": {"mode": self.protocol.quantize}} if verb == "harmonize" else self._answer()
        return Stage(
            kind="apply",
            title=f"apply {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:{verb}",
            params=params,
            needs=needs,
            resources="apply",
            code=code,
            seed=seed_of("apply", method.id, source, target, seed),
        )

    def _predict(
        self, row: Row, source: str, target: str, seed: int, task: Stage, images: Stage | None = None
    ) -> Stage:
        return Stage(
            kind="predict",
            title=f"predict {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:predict",
            params={"task": self._payload(self.task), **self._answer()},
            needs={"task": task, "images": images or self.dataset.images(target, "test")},
            resources="apply",
            code=(self.task.target,),
            seed=seed_of("predict", self.task.method.id, source, target, seed),
        )

    def _answer(self) -> dict[str, Any]:
        """What predictions must look like."""
        return {"labels": {"count": len(self.dataset.label_names)}} if self.outcome == "labels" else {"ages": {}}

    # ------------------------------------------------------------------------------------- scoring

    def _trace(self, row: Row, source: str, target: str, seed: int) -> Stage:
        """Predictions and entropy at every step of an adaptation; no labels here."""
        return Stage(
            kind="trace",
            title=f"trace {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:trace",
            params={
                "method": self._payload(row, row.early_fields()),
                "task": self._payload(self.task),
                "quantize": {"mode": self.protocol.quantize},
                **self._answer(),
            },
            needs={
                "target": self.dataset.images(target, "test"),
                "state": self._adapt(row, source, target, seed),
                "task": self.train(source, seed),
            },
            resources="apply",
            code=(row.target, self.task.target),
            seed=seed_of("trace", row.method.id, source, target, seed),
        )

    @_once
    def _score_trace(self, row: Row, source: str, target: str, seed: int) -> Stage:
        return Stage(
            kind="trace",
            title=f"score steps {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:score_trace",
            needs={"trace": self._trace(row, source, target, seed), "reference": self._reference(target, "test")},
        )

    def _score(self, row: Row, source: str, target: str, seed: int, predictions: Stage) -> Stage:
        what = "labels" if self.outcome == "labels" else "ages"
        return Stage(
            kind="score",
            title=f"score {what} {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:score_{what}",
            params={"metrics": sorted(TASK_METRICS[self.outcome] & set(self.protocol.metrics))},
            needs={"predictions": predictions, what: self._reference(target, "test")},
        )

    def _score_images(self, row: Row, source: str, target: str, seed: int, harmonised: Stage) -> Stage:
        metrics = set(self.protocol.metrics) - LABEL_METRICS - AGE_METRICS
        needs = {
            "harmonised": harmonised,
            "before": self.dataset.images(target, "test"),
            "source": self.dataset.images(source, "test"),
        }
        paired = source != target and self.protocol.paired and self.dataset.is_paired(target, source)
        if paired and metrics & PAIRED_METRICS:
            needs["truth"] = self.dataset.images(target, "test", rendered_at=source)
        else:
            metrics -= PAIRED_METRICS
        return Stage(
            kind="score",
            title=f"score images {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:score_images",
            params={"metrics": sorted(metrics)},
            needs=needs,
        )


def _fitted_on(method: Adaptive, source: str, target: str) -> tuple[str, ...]:
    """The sites that a fit is for: () for all, (source,), or a pair, sorted where it serves both directions."""
    if "sites" in fit_inputs(method):
        return ()
    if method.unknown_domains:
        return (source,)
    return tuple(sorted((source, target))) if method.fit_scope == "pair" else (source, target)


def _adaptive(row: Row) -> Adaptive:
    assert isinstance(row.method, Harmonizer | TestTimeAdapter)
    return row.method


def _replicate(seed: int) -> str:
    return f" #{seed}" if seed else ""

"""Stages of the cross-site track. A method's inputs are wired from its traits, here and nowhere else.

images(site, split), labels(site, split)
  train   source images + labels (train, validation)          once per source and seed
  fit     what the traits allow                               once per source, or per pair
  apply   state + target test images (+ source / task model)  harmonised images, or predictions
  predict task model + harmonised images                      predictions
  score   predictions + labels; harmonised + source images    records
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.api import Adaptive, Harmonizer, TestTimeAdapter
from harness.contract import apply_inputs, fit_inputs
from harness.data.dataset import Dataset
from harness.engine.plan import Cell, Plan, Stage, seed_of
from harness.tracks.base import Row

STAGES = "harness.tracks.cross_site.stages"
LABEL_METRICS = {"dsc", "hd95", "hd95_pooled", "hd95_unit", "hd95_missing"}
PAIRED_METRICS = {"psnr", "ssim"}


@dataclass(frozen=True)
class Protocol:
    """The choices of a benchmark file that shape the stages."""

    diagonal: str
    quantize: str
    paired: bool
    metrics: tuple[str, ...]
    baseline: str


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
    wiring = _Wiring(dataset, task, protocol)
    cells = [
        wiring.cell(row, source, target, seed)
        for seed in seeds
        for source in sites
        if dataset.labelled(source)
        for target in sites
        for row in rows
        if source != target
        or protocol.diagonal == "all"
        or (protocol.diagonal, row.name) == ("baseline", protocol.baseline)
    ]
    return Plan.of(name, [cell for cell in cells if cell.finals])


@dataclass(frozen=True)
class _Wiring:
    dataset: Dataset
    task: Row
    protocol: Protocol

    def cell(self, row: Row, source: str, target: str, seed: int) -> Cell:
        return Cell(row.name, source, target, seed, dict(self._finals(row, source, target, seed)))

    def _finals(self, row: Row, source: str, target: str, seed: int) -> Iterator[tuple[str, Stage]]:
        wanted = set(self.protocol.metrics)
        labelled = self.dataset.labelled(target) and bool(wanted & LABEL_METRICS)
        if isinstance(row.method, TestTimeAdapter):
            if labelled:
                predictions = self._apply(row, source, target, seed)
                yield "labels", self._score_labels(row, source, target, seed, predictions)
            return
        harmonised = self._apply(row, source, target, seed)
        if labelled:
            predictions = self._predict(row, source, target, seed, harmonised)
            yield "labels", self._score_labels(row, source, target, seed, predictions)
        if wanted - LABEL_METRICS:
            yield "images", self._score_images(row, source, target, seed, harmonised)

    def train(self, source: str, seed: int) -> Stage:
        """The task model of a source site."""
        method = self.task.method
        return Stage(
            kind="train",
            title=f"train {method.id} {source}{_replicate(seed)}",
            fn=f"{STAGES}:train_task",
            params={"method": self.task.payload()},
            needs={
                "images": self.dataset.images(source, "train"),
                "labels": self.dataset.labels(source, "train"),
                "validation_images": self.dataset.images(source, "validation"),
                "validation_labels": self.dataset.labels(source, "validation"),
            },
            resources="train",
            code=(self.task.target,),
            seed=seed_of("train", method.id, source, seed),
        )

    def _fit(self, row: Row, source: str, target: str, seed: int) -> Stage:
        """Fit of a method: on the source alone if it knows no domains, else on the pair its traits allow."""
        method = _adaptive(row)
        sites = {"source": source, "target": target}
        needs = {name: self.dataset.images(sites[name], "train") for name in sorted(fit_inputs(type(method)))}
        place = source if method.unknown_domains else f"{source}→{target}"
        return Stage(
            kind="fit",
            title=f"fit {row.name} {place}{_replicate(seed)}",
            fn=f"{STAGES}:fit",
            params={"method": row.payload()},
            needs=needs,
            resources="train",
            code=(row.target,),
            seed=seed_of("fit", method.id, *(place.split("→")), seed),
        )

    def _apply(self, row: Row, source: str, target: str, seed: int) -> Stage:
        method = _adaptive(row)
        needs = {"target": self.dataset.images(target, "test")}
        params = {"method": row.payload()}
        code: tuple[str, ...] = (row.target,)
        wanted = apply_inputs(type(method))
        if "source" in wanted:
            needs["source"] = self.dataset.images(source, "train")
        if method.has_fit():
            needs["state"] = self._fit(row, source, target, seed)
        if "task" in wanted:
            needs["task"] = self.train(source, seed)
            params["task"] = self.task.payload()
            code = (row.target, self.task.target)
        verb = "harmonize" if isinstance(method, Harmonizer) else "adapt"
        if verb == "harmonize":
            params["quantize"] = {"mode": self.protocol.quantize}
        else:
            params["labels"] = {"count": len(self.dataset.label_names)}
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

    def _predict(self, row: Row, source: str, target: str, seed: int, images: Stage) -> Stage:
        return Stage(
            kind="predict",
            title=f"predict {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:predict",
            params={"task": self.task.payload(), "labels": {"count": len(self.dataset.label_names)}},
            needs={"task": self.train(source, seed), "images": images},
            resources="apply",
            code=(self.task.target,),
            seed=seed_of("predict", self.task.method.id, source, target, seed),
        )

    def _score_labels(self, row: Row, source: str, target: str, seed: int, predictions: Stage) -> Stage:
        return Stage(
            kind="score",
            title=f"score labels {row.name} {source}→{target}{_replicate(seed)}",
            fn=f"{STAGES}:score_labels",
            params={"metrics": sorted(LABEL_METRICS & set(self.protocol.metrics))},
            needs={"predictions": predictions, "labels": self.dataset.labels(target, "test")},
        )

    def _score_images(self, row: Row, source: str, target: str, seed: int, harmonised: Stage) -> Stage:
        metrics = set(self.protocol.metrics) - LABEL_METRICS
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


def _adaptive(row: Row) -> Adaptive:
    assert isinstance(row.method, Adaptive)
    return row.method


def _replicate(seed: int) -> str:
    return f" #{seed}" if seed else ""

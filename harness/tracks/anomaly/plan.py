"""Stages of the anomaly track. What a method is handed is decided here and nowhere else.

images(site, split, slices), labels(site, split, slices)
  fit        healthy slices (train, validation)            components and detectors, once per training site and seed
  detect     state + images                                maps of the lesions, of healthy validation, of healthy test
  threshold  maps of healthy validation slices             no label
  score      maps + labels + threshold                     records
  examples   labels                                        a few slices to show
  illustrate state + those slices                          pictures, never scored

Labels reach `score` and `examples` alone; what these leave reaches no map, and no threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from harness.anomaly import AnomalyDetector, Component, Processing
from harness.data.dataset import Dataset
from harness.data.fingerprint import contents_of
from harness.engine.history import trained
from harness.engine.plan import Cell, Plan, Stage, seed_of
from harness.tracks.base import Row, Unique, payload_of, target_of

STAGES = "harness.tracks.anomaly.stages"
HEALTHY = "healthy"
"""What the source of a cell is called where a method learns from healthy slices of the site it is tested on."""

POOLED = (
    "max_dice_global", "max_dice_shared", "max_dice_oracle", "auroc", "ap", "auroc_full", "ap_full", "aupro",
    "image_auroc",
)  # fmt: skip
SIZES = ("max_dice_binned", "max_dice_binned_mm2", "max_dice_bin_weighted")
OPERATING = ("dice_operating", "dice_gap", "fpr_healthy")
COSTS = ("parameters", "evaluations", "seconds_per_slice", "peak_memory")

Purpose = Literal["lesions", "validation", "holdout"]
"""Of a detection: the slices to score, those that fix the threshold, and healthy ones that did not."""


@dataclass(frozen=True)
class Setting:
    """One column of the tables: where is learnt, where is sought. subjects: of the test site, its test split or all."""

    name: str
    train: str
    test: str
    subjects: Literal["test", "all"]

    @property
    def source(self) -> str:
        """What the cells call the training slices."""
        return HEALTHY if self.train == self.test else self.train


@dataclass(frozen=True)
class Protocol:
    """The choices of a benchmark file that shape the stages; see `AnomalySpec`."""

    test_slices: Literal["largest", "lesions", "all"]
    metrics: tuple[str, ...]
    processing: tuple[str, ...]
    common: Processing
    false_positive_rate: float
    size_bins: str
    examples: int
    workers: int = 1


def build_plan(
    name: str,
    dataset: Dataset,
    settings: tuple[Setting, ...],
    rows: tuple[Row, ...],
    seeds: tuple[int, ...],
    protocol: Protocol,
) -> tuple[Plan, dict[str, Stage]]:
    """Every (row, setting, seed), as cells of one plan; and setting → the stage that chooses slices to show."""
    wiring = _Wiring(dataset, protocol)
    cells = [
        wiring.cell(row, setting, seed, pictures=protocol.examples > 0 and seed == seeds[0])
        for seed in seeds
        for setting in settings
        for row in rows
    ]
    examples = {s.name: wiring.examples(s) for s in settings} if protocol.examples else {}
    return Plan.of(name, cells, examples.values()), examples


@dataclass(frozen=True)
class _Wiring:
    dataset: Dataset
    protocol: Protocol
    stages: Unique = field(default_factory=Unique)

    def cell(self, row: Row, setting: Setting, seed: int, *, pictures: bool) -> Cell:
        finals = {"scores": self._score(row, setting, seed)}
        if pictures and type(detector_of(row)).illustrate is not AnomalyDetector.illustrate:
            finals["pictures"] = self._illustrate(row, setting, seed)
        return Cell(row.name, setting.source, setting.name, seed, finals)

    # ----------------------------------------------------------------------------------------- data

    def _images(self, setting: Setting, purpose: Purpose) -> Stage:
        if purpose == "lesions":
            return self.dataset.images(setting.test, setting.subjects, choice=self.protocol.test_slices)
        split: Literal["validation", "test"] = "validation" if purpose == "validation" else "test"
        return self.dataset.images(setting.train, split, choice="healthy")

    def _labels(self, setting: Setting) -> Stage:
        return self.dataset.labels(setting.test, setting.subjects, choice=self.protocol.test_slices)

    # ------------------------------------------------------------------------------------- learning

    def _learnt(self, method: AnomalyDetector | Component, train: str, seed: int) -> dict[str, Stage]:
        """Inputs of whatever needs what the components of a method learnt."""
        return {
            f"component.{name}": self._component(component, train, seed)
            for name, component in method.components().items()
        }

    def _component(self, component: Component, train: str, seed: int) -> Stage:
        payload = payload_of(component)
        return self._learning(
            f"fit {component.id} {train}", component, payload, ("component", component.id), train, seed
        )

    def _fit(self, row: Row, train: str, seed: int) -> Stage:
        method = detector_of(row)
        early = [name for name in type(method).model_fields if name not in method.late_fields]
        return self._learning(f"fit {row.name} {train}", method, row.payload(early), ("fit", method.id), train, seed)

    def _learning(
        self,
        title: str,
        method: AnomalyDetector | Component,
        payload: Mapping[str, Any],
        identity: tuple[str, str],
        train: str,
        seed: int,
    ) -> Stage:
        stage = Stage(
            kind="fit",
            title="",
            fn=f"{STAGES}:fit",
            params={"method": payload},
            needs={
                "images": self.dataset.images(train, "train", choice="healthy"),
                "validation": self.dataset.images(train, "validation", choice="healthy"),
                **self._learnt(method, train, seed),
            },
            resources="train",
            code=(target_of(method),),
            data=contents_of(method.files(), self.dataset.cache),
            seed=seed_of(*identity, train, seed),
        )
        workers = self.protocol.workers if trained(stage) else 1
        return self.stages.one(replace(stage, workers=workers), title + _replicate(seed))

    # ------------------------------------------------------------------------------------- using

    def _state(self, row: Row, train: str, seed: int) -> dict[str, Stage]:
        method = detector_of(row)
        own = {"state": self._fit(row, train, seed)} if method.has_fit() else {}
        return {**own, **self._learnt(method, train, seed)}

    def _detect(self, row: Row, setting: Setting, purpose: Purpose, seed: int) -> Stage:
        place = f"{setting.train}→{setting.name}" if purpose == "lesions" else f"{setting.train} {purpose}"
        site = setting.test if purpose == "lesions" else setting.train
        stage = Stage(
            kind="detect",
            title="",
            fn=f"{STAGES}:detect",
            params={"method": row.payload()},
            needs={"images": self._images(setting, purpose), **self._state(row, setting.train, seed)},
            resources="apply",
            code=(row.target,),
            data=contents_of(detector_of(row).files(), self.dataset.cache),
            seed=seed_of("detect", detector_of(row).id, setting.train, site, purpose, seed),
        )
        return self.stages.one(stage, f"detect {row.name} {place}{_replicate(seed)}")

    def _processing(self, row: Row) -> dict[str, Any]:
        """Name → settings of everything that is done to this row's maps."""
        known = {
            "raw": Processing(),
            "common": self.protocol.common,
            "published": detector_of(row).published_processing(),
        }
        return {name: known[name].model_dump(mode="json") for name in self.protocol.processing}

    def _threshold(self, row: Row, setting: Setting, seed: int) -> Stage:
        stage = Stage(
            kind="threshold",
            title="",
            fn=f"{STAGES}:fix_threshold",
            params={"processing": self._processing(row), "rate": self.protocol.false_positive_rate},
            needs={
                "maps": self._detect(row, setting, "validation", seed),
                "images": self._images(setting, "validation"),
            },
        )
        return self.stages.one(stage, f"threshold {row.name} {setting.train}{_replicate(seed)}")

    def _score(self, row: Row, setting: Setting, seed: int) -> Stage:
        return Stage(
            kind="score",
            title=f"score {row.name} {setting.train}→{setting.name}{_replicate(seed)}",
            fn=f"{STAGES}:score",
            params={
                "metrics": sorted(self.protocol.metrics),
                "processing": self._processing(row),
                "size_bins": self.protocol.size_bins,
            },
            needs={
                "maps": self._detect(row, setting, "lesions", seed),
                "images": self._images(setting, "lesions"),
                "labels": self._labels(setting),
                "healthy_maps": self._detect(row, setting, "holdout", seed),
                "healthy_images": self._images(setting, "holdout"),
                "threshold": self._threshold(row, setting, seed),
            },
            seed=seed_of("score", setting.train, setting.name, seed),
        )

    # ------------------------------------------------------------------------------------- showing

    def examples(self, setting: Setting) -> Stage:
        stage = Stage(
            kind="examples",
            title="",
            fn=f"{STAGES}:choose_examples",
            params={"count": self.protocol.examples},
            needs={"labels": self._labels(setting)},
        )
        return self.stages.one(stage, f"examples {setting.name}")

    def _illustrate(self, row: Row, setting: Setting, seed: int) -> Stage:
        return Stage(
            kind="illustrate",
            title=f"illustrate {row.name} {setting.train}→{setting.name}{_replicate(seed)}",
            fn=f"{STAGES}:illustrate",
            params={"method": row.payload()},
            needs={
                "images": self._images(setting, "lesions"),
                "examples": self.examples(setting),
                **self._state(row, setting.train, seed),
            },
            resources="apply",
            code=(row.target,),
            data=contents_of(detector_of(row).files(), self.dataset.cache),
            seed=seed_of("detect", detector_of(row).id, setting.train, setting.test, "lesions", seed),
        )


def detector_of(row: Row) -> AnomalyDetector:
    """The method of a row, which `resolve` lets only be a detector."""
    assert isinstance(row.method, AnomalyDetector)
    return row.method


def _replicate(seed: int) -> str:
    return f" #{seed}" if seed else ""

"""Stages of the brain-age track. What a method is handed is decided here and nowhere else.

volumes, regions (site, split, chunk)      scans kept whole, and their label maps
  fit segmenter     volumes + regions      once for each segmenter, training size and seed
  segment           state + volumes        label maps of a chunk
  overlap           label maps of a chunk, found and true
  features          label maps             a table of a chunk; or a table that the data set brings
scans(site, split)                         who was scanned, for methods that read nothing of them
ages(site, split)                          reach `fit`, `importance` and `score` alone
  fit               what is read of train and validation, and their ages
  predict           state + what is read of test (of validation, where a sweep chooses by it)    no age
  importance        features and ages of all splits                                  outside the method's own fit
  score             predictions + ages                                               records

A training size keeps a nested subset of train and validation; the test split is always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.api import Method
from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO, AgeEstimator, VolumeSegmenter
from harness.data.dataset import Dataset
from harness.data.feature_table import FeatureTableDataset, who_of
from harness.data.schema import Part
from harness.engine.plan import Cell, Plan, Stage, seed_of
from harness.tracks.base import Row, Unique, payload_of, target_of
from harness.tracks.brain_age.subsets import Subset, nested

STAGES = "harness.tracks.brain_age.stages"
MEASURED = (RELATIONAL_VOLUME, SURFACE_RATIO)
"""Families that are measured on label maps; all others come with the data."""

ERRORS = ("mae", "error_sd", "rmse", "mse", "r2", "r2_pearson")
SEGMENTATION = ("dsc",)


@dataclass(frozen=True)
class Protocol:
    """The choices of a benchmark file that shape the stages; see `BrainAgeSpec`. sizes: None is all scans."""

    train: str
    tests: tuple[str, ...]
    sizes: tuple[int | None, ...]
    validation_share: float
    metrics: tuple[str, ...]
    repeats: int
    unit: str
    validated: frozenset[str] = frozenset()
    """Rows whose cells also end in "validation": the errors on the scans that a search may choose by.

    Their importance is left out: it costs many times a fit, and most of them are not chosen.
    """

    @property
    def largest(self) -> int | None:
        """The size whose importance and features are shown: all scans, else the largest number."""
        return None if None in self.sizes else max(size for size in self.sizes if size is not None)


def source_of(size: int | None) -> str:
    """What the cells call a training size."""
    return "all" if size is None else f"{size} scans"


def tables_of(dataset: Dataset, site: str) -> dict[str, str]:
    """Families that the data of a site bring → the kind of source they come from: table, surfaces or side tables."""
    from harness.data.nifti import NiftiDataset
    from harness.data.surfaces import FAMILIES

    if isinstance(dataset, FeatureTableDataset):
        return dict.fromkeys(dataset.families, "table")
    found: dict[str, str] = {}
    if isinstance(dataset, NiftiDataset):
        entry = dataset.card.sites[dataset.card.scanned(site)]
        if entry.surfaces is not None:
            found |= dict.fromkeys(FAMILIES.values(), "surfaces")
        found |= dict.fromkeys(entry.tables, "side tables")
    return found


def measures(dataset: Dataset, row: Row, site: str) -> bool:
    """Whether a row reads features that are measured on label maps of the site's scans."""
    estimator, known = estimator_of(row), tables_of(dataset, site)
    return estimator.reads == "features" and any(f in MEASURED and f not in known for f in estimator.wanted())


def segmenter_of(dataset: Dataset, row: Row, site: str) -> VolumeSegmenter | None:
    """Who makes the label maps of the site that a row's features are measured on; None: nobody, they are there."""
    return estimator_of(row).segmenter() if measures(dataset, row, site) else None


def build_plan(
    name: str, dataset: Dataset, rows: tuple[Row, ...], seeds: tuple[int, ...], protocol: Protocol
) -> tuple[Plan, Mapping[str, Stage]]:
    """Every (row, training size, test site, seed), as cells of one plan; and what the report needs beside them."""
    wiring = _Wiring(dataset, protocol)
    cells = [
        wiring.cell(row, size, test, seed, shown=seed == seeds[0] and size == protocol.largest)
        for seed in seeds
        for size in protocol.sizes
        for test in protocol.tests
        for row in rows
    ]
    return Plan.of(name, cells, wiring.shown.values()), dict(wiring.shown)


@dataclass(frozen=True)
class _Wiring:
    dataset: Dataset
    protocol: Protocol
    stages: Unique = field(default_factory=Unique)
    shown: dict[str, Stage] = field(default_factory=dict)
    """Stages that the report reads and no cell ends in."""

    def cell(self, row: Row, size: int | None, test: str, seed: int, *, shown: bool) -> Cell:
        finals = {"scores": self._score(row, size, test, "test", seed)}
        compared = row.name in self.protocol.validated
        if compared:
            finals["validation"] = self._score(row, size, self.protocol.train, "validation", seed)
        estimator = estimator_of(row)
        if shown and not compared and any(estimator.alone(family) is not None for family in estimator.wanted()):
            finals["importance"] = self._importance(row, size, test, seed)
        if shown and self.dataset.card.volumes is not None and self.dataset.labelled(test):
            # The first chunk alone: one head is shown.
            self.shown.setdefault(
                "atlas",
                self.stages.one(
                    Stage(
                        kind="illustrate",
                        title=f"illustrate {test}",
                        fn=f"{STAGES}:atlas",
                        needs={
                            "volumes": self.dataset.volumes(test, "test")[0],
                            "regions": self.dataset.regions(test, "test")[0],
                        },
                    )
                ),
            )
        return Cell(row.name, source_of(size), test, seed, finals)

    # ------------------------------------------------------------------------------------------- who is learnt from

    def _subset(self, size: int | None, seed: int) -> Subset | None:
        """Who is learnt from where a size is asked for. Without the data: nobody, so that plans can be printed."""
        if size is None:
            return None
        site = self.protocol.train
        pool = (*self.dataset.scans(site, "train"), *self.dataset.scans(site, "validation"))
        return nested(pool, size, self.protocol.validation_share, seed) if pool else Subset((), ())

    def _chosen(self, size: int | None, seed: int) -> dict[str, Any]:
        subset = self._subset(size, seed)
        if subset is None:
            return {}
        return {"size": size, "train": list(subset.train), "validation": list(subset.validation)}

    def _ages(self, site: str, split: Part) -> Stage:
        scans = self.dataset.scans(site, split)
        return self.stages.one(
            Stage(
                kind="ages",
                title=f"ages {site} {split}",
                fn=f"{STAGES}:keep_ages",
                params={
                    "site": site,
                    "split": split,
                    "ages": [[scan.id, scan.age] for scan in scans],
                    "unit": self.dataset.card.age_unit,
                },
                resources="prepare",
            )
        )

    def _scans(self, site: str, split: Part) -> Stage:
        return self.stages.one(
            Stage(
                kind="scans",
                title=f"scans {site} {split}",
                fn=f"{STAGES}:keep_scans",
                params=who_of(self.dataset, site, split),
                resources="prepare",
            )
        )

    # ------------------------------------------------------------------------------------------------- label maps

    def _learnt_segmenter(self, segmenter: VolumeSegmenter, size: int | None, seed: int) -> Stage:
        site = self.protocol.train
        needs = {
            f"{kind}.{split}.{number}": stage
            for split in ("train", "validation")
            for kind, stages in (
                ("volumes", self.dataset.volumes(site, split)),
                ("regions", self.dataset.regions(site, split)),
            )
            for number, stage in enumerate(stages)
        }
        early = [name for name in type(segmenter).model_fields if name not in segmenter.late_fields]
        return self.stages.one(
            Stage(
                kind="fit",
                title=f"fit {segmenter.id} {site}{_sized(size)}{_replicate(seed)}",
                fn=f"{STAGES}:fit_segmenter",
                params={"method": payload_of(segmenter, fields=early), **self._chosen(size, seed)},
                needs=needs,
                resources="train",
                code=(target_of(segmenter),),
                seed=seed_of("segmenter", segmenter.id, site, seed),
            )
        )

    def _segmented(
        self, segmenter: VolumeSegmenter, size: int | None, site: str, split: Part, seed: int
    ) -> list[Stage]:
        """Label maps that a segmenter finds, a stage for each chunk that has scans of the training size."""
        learnt, labels = self._learnt_segmenter(segmenter, size, seed), self.dataset.card.labels
        who = f"{_sized(size)}{_replicate(seed)}"
        return [
            self.stages.one(
                Stage(
                    kind="segment",
                    title=f"segment {segmenter.id} {stage.title.removeprefix('volumes ')}{who}",
                    fn=f"{STAGES}:segment",
                    params={
                        "method": payload_of(segmenter),
                        "names": list(self.dataset.label_names),
                        "ignored": labels.ignored_values if labels else [],
                        **({} if scans is None else {"scans": list(scans)}),
                    },
                    needs={"volumes": stage, "state": learnt},
                    resources="apply",
                    code=(target_of(segmenter),),
                    seed=seed_of("segment", segmenter.id, site, split, seed),
                )
            )
            for stage, scans in self._wanted(size, site, split, seed)
        ]

    def _wanted(
        self, size: int | None, site: str, split: Part, seed: int
    ) -> list[tuple[Stage, tuple[str, ...] | None]]:
        """Chunks of volumes of which label maps are needed, and which of their scans; None: all, as of test always."""
        chunks = self.dataset.volumes(site, split)
        subset = self._subset(size, seed)
        if subset is None or split == "test" or not (learnt := {*subset.train, *subset.validation}):
            return [(stage, None) for stage in chunks]
        assert self.dataset.card.volumes is not None
        scans, length = self.dataset.scans(site, split), self.dataset.card.volumes.chunk
        of_chunk = [
            tuple(scan.id for scan in scans[number * length : (number + 1) * length] if scan.id in learnt)
            for number in range(len(chunks))
        ]
        return [(stage, names) for stage, names in zip(chunks, of_chunk, strict=True) if names]

    # --------------------------------------------------------------------------------------------------- features

    def _features(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> list[Stage]:
        """Tables of all that a row reads of one split: by family, and by chunk where they are measured."""
        estimator = estimator_of(row)
        known = tables_of(self.dataset, site)
        found: list[Stage] = []
        kinds = {known[family] for family in estimator.wanted() if family in known}
        if "table" in kinds:
            assert isinstance(self.dataset, FeatureTableDataset)
            found.append(self.dataset.features(site, split))
        if "surfaces" in kinds or "side tables" in kinds:
            from harness.data.nifti import NiftiDataset
            from harness.data.side_tables import side_table_stage
            from harness.data.surfaces import surface_stage

            assert isinstance(self.dataset, NiftiDataset)
            found += [surface_stage(self.dataset, site, split)] if "surfaces" in kinds else []
            found += [side_table_stage(self.dataset, site, split)] if "side tables" in kinds else []
        if measures(self.dataset, row, site):
            segmenter = segmenter_of(self.dataset, row, site)
            maps = (
                self._segmented(segmenter, size, site, split, seed)
                if segmenter is not None
                else list(self.dataset.regions(site, split))
            )
            found += [self._measured(stage) for stage in maps]
        return [self.stages.one(stage) for stage in found]

    def _measured(self, maps: Stage) -> Stage:
        return self.stages.one(
            Stage(
                kind="features",
                title=f"features {maps.title.removeprefix('segment ').removeprefix('regions ')}",
                fn=f"{STAGES}:measure",
                needs={"regions": maps},
                resources="prepare",
            )
        )

    def _read(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> dict[str, Stage]:
        """Inputs of a stage that reads scans of one split as the row's method does: name → stage."""
        match estimator_of(row).reads:
            case "volumes":
                kind, stages = "volumes", list(self.dataset.volumes(site, split))
            case "features":
                kind, stages = "features", self._features(row, size, site, split, seed)
            case "nothing":
                kind, stages = "scans", [self._scans(site, split)]
        return {f"{kind}.{split}.{number}": stage for number, stage in enumerate(stages)}

    # ------------------------------------------------------------------------------------------------------- ages

    def _learning(self, row: Row, size: int | None, seed: int) -> dict[str, Stage]:
        site = self.protocol.train
        return {
            **self._read(row, size, site, "train", seed),
            **self._read(row, size, site, "validation", seed),
            "ages.train": self._ages(site, "train"),
            "ages.validation": self._ages(site, "validation"),
        }

    def _fit(self, row: Row, size: int | None, seed: int) -> Stage:
        method = estimator_of(row)
        early = [name for name in type(method).model_fields if name not in method.late_fields]
        return self.stages.one(
            Stage(
                kind="fit",
                title=f"fit {row.name} {self.protocol.train}{_sized(size)}{_replicate(seed)}",
                fn=f"{STAGES}:fit",
                params={"method": row.payload(early), **self._chosen(size, seed)},
                needs=self._learning(row, size, seed),
                resources="train" if method.reads == "volumes" else "score",
                code=(row.target,),
                seed=seed_of("fit", method.id, self.protocol.train, seed),
            )
        )

    def _scored(self, size: int | None, split: Part, seed: int) -> tuple[tuple[Part, ...], list[str] | None]:
        """The splits that are read to score one, and which of their scans: a training size has a validation of its own.

        None: all of them.
        """
        subset = None if split == "test" else self._subset(size, seed)
        return ((split,), None) if subset is None else (("train", "validation"), list(subset.validation))

    def _predict(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> Stage:
        method, (among, scans) = estimator_of(row), self._scored(size, split, seed)
        read = {name: stage for each in among for name, stage in self._read(row, size, site, each, seed).items()}
        return self.stages.one(
            Stage(
                kind="predict",
                title=f"predict {row.name} {_scans(site, split)}{_sized(size)}{_replicate(seed)}",
                fn=f"{STAGES}:predict",
                params={"method": row.payload(), "split": split, **({} if scans is None else {"scans": scans})},
                needs={"state": self._fit(row, size, seed), **read},
                resources="apply" if method.reads == "volumes" else "score",
                code=(row.target,),
                seed=seed_of("predict", method.id, _scans(site, split), seed),
            )
        )

    def _importance(self, row: Row, size: int | None, test: str, seed: int) -> Stage:
        method = estimator_of(row)
        return self.stages.one(
            Stage(
                kind="importance",
                title=f"importance {row.name} {test}{_sized(size)}{_replicate(seed)}",
                fn=f"{STAGES}:importance",
                params={"method": row.payload(), "repeats": self.protocol.repeats, **self._chosen(size, seed)},
                needs={
                    "state": self._fit(row, size, seed),
                    **self._learning(row, size, seed),
                    **self._read(row, size, test, "test", seed),
                    "ages.test": self._ages(test, "test"),
                },
                code=(row.target,),
                seed=seed_of("importance", method.id, test, seed),
            )
        )

    def _score(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> Stage:
        among, _ = self._scored(size, split, seed)
        ages = {"ages" if each == split else f"ages.{each}": self._ages(site, each) for each in among}
        measured = self.protocol.metrics if split == "test" else {*self.protocol.metrics} & {*ERRORS}
        return self.stages.one(
            Stage(
                kind="score",
                title=f"score {row.name} {_scans(site, split)}{_sized(size)}{_replicate(seed)}",
                fn=f"{STAGES}:score",
                params={"metrics": sorted(measured), "unit": self.protocol.unit},
                needs={
                    "predictions": self._predict(row, size, site, split, seed),
                    **ages,
                    **(self._overlaps(row, size, site, seed) if split == "test" else {}),
                },
                seed=seed_of("score", _scans(site, split), seed),
            )
        )

    def _overlaps(self, row: Row, size: int | None, test: str, seed: int) -> dict[str, Stage]:
        """The overlap of label maps that a row's segmenter makes of test scans with their own, by chunk."""
        segmenter = segmenter_of(self.dataset, row, test)
        if segmenter is None or "dsc" not in self.protocol.metrics or not self.dataset.labelled(test):
            return {}
        maps = self._segmented(segmenter, size, test, "test", seed)
        return {
            f"overlap.{number}": self.stages.one(
                Stage(
                    kind="overlap",
                    title=found.title.replace("segment", "overlap", 1),
                    fn=f"{STAGES}:overlap",
                    needs={"found": found, "true": known},
                )
            )
            for number, (found, known) in enumerate(zip(maps, self.dataset.regions(test, "test"), strict=True))
        }


def estimator_of(row: Row) -> AgeEstimator:
    """The method of a row, which `resolve` lets only be an estimator."""
    method: Method = row.method
    assert isinstance(method, AgeEstimator)
    return method


def _scans(site: str, split: Part) -> str:
    """Which scans a title means: those of test unless it says so."""
    return site if split == "test" else f"{site} {split}"


def _sized(size: int | None) -> str:
    return "" if size is None else f" ({size} scans)"


def _replicate(seed: int) -> str:
    return f" #{seed}" if seed else ""

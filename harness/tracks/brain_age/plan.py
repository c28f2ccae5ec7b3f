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

from harness.data.dataset import Dataset
from harness.data.feature_table import who_of
from harness.data.schema import Part
from harness.engine.plan import Cell, Plan, Stage, seed_of
from harness.tracks.base import Row, Unique
from harness.tracks.brain_age.protocol import (
    ERRORS,
    STAGES,
    Protocol,
    chosen,
    estimator_of,
    replicate,
    sized,
    source_of,
    subset_of,
    whose,
)
from harness.tracks.brain_age.regions import RegionStages
from harness.tracks.brain_age.subsets import Subset


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

    def _subset(self, size: int | None, seed: int) -> Subset | None:
        return subset_of(self.dataset, self.protocol, size, seed)

    @property
    def _regions(self) -> RegionStages:
        return RegionStages(self.dataset, self.protocol, self.stages)

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

    def _read(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> dict[str, Stage]:
        """Inputs of a stage that reads scans of one split as the row's method does: name → stage."""
        match estimator_of(row).reads:
            case "volumes":
                kind, stages = "volumes", list(self.dataset.volumes(site, split))
            case "features":
                kind, stages = "features", self._regions.features(row, size, site, split, seed)
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
                title=f"fit {row.name} {self.protocol.train}{sized(size)}{replicate(seed)}",
                fn=f"{STAGES}:fit",
                params={"method": row.payload(early), **chosen(size, self._subset(size, seed))},
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
                title=f"predict {row.name} {whose(site, split)}{sized(size)}{replicate(seed)}",
                fn=f"{STAGES}:predict",
                params={"method": row.payload(), "split": split, **({} if scans is None else {"scans": scans})},
                needs={"state": self._fit(row, size, seed), **read},
                resources="apply" if method.reads == "volumes" else "score",
                code=(row.target,),
                seed=seed_of("predict", method.id, whose(site, split), seed),
            )
        )

    def _importance(self, row: Row, size: int | None, test: str, seed: int) -> Stage:
        method = estimator_of(row)
        return self.stages.one(
            Stage(
                kind="importance",
                title=f"importance {row.name} {test}{sized(size)}{replicate(seed)}",
                fn=f"{STAGES}:importance",
                params={
                    "method": row.payload(),
                    "repeats": self.protocol.repeats,
                    **chosen(size, self._subset(size, seed)),
                },
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
                title=f"score {row.name} {whose(site, split)}{sized(size)}{replicate(seed)}",
                fn=f"{STAGES}:score",
                params={"metrics": sorted(measured), "unit": self.protocol.unit},
                needs={
                    "predictions": self._predict(row, size, site, split, seed),
                    **ages,
                    **(self._regions.overlaps(row, size, site, seed) if split == "test" else {}),
                },
                seed=seed_of("score", whose(site, split), seed),
            )
        )

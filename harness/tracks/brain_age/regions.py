"""Stages that make label maps, measure them, and compare them with true ones: what rows on features share."""

from __future__ import annotations

from dataclasses import dataclass

from harness.brain_age import VolumeSegmenter
from harness.data.dataset import Dataset
from harness.data.feature_table import FeatureTableDataset
from harness.data.schema import Part
from harness.engine.plan import Stage, seed_of
from harness.tracks.base import Row, Unique, payload_of, target_of
from harness.tracks.brain_age.protocol import (
    STAGES,
    Protocol,
    chosen,
    estimator_of,
    measures,
    replicate,
    segmenter_of,
    sized,
    subset_of,
    tables_of,
)
from harness.tracks.brain_age.subsets import Subset


@dataclass(frozen=True)
class RegionStages:
    """Each stage is made once, whatever rows need it; `stages` is common to the plan."""

    dataset: Dataset
    protocol: Protocol
    stages: Unique

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
                title=f"fit {segmenter.id} {site}{sized(size)}{replicate(seed)}",
                fn=f"{STAGES}:fit_segmenter",
                params={"method": payload_of(segmenter, fields=early), **chosen(size, self._subset(size, seed))},
                needs=needs,
                resources="train",
                code=(target_of(segmenter),),
                seed=seed_of("segmenter", segmenter.id, site, seed),
            )
        )

    def segmented(self, segmenter: VolumeSegmenter, size: int | None, site: str, split: Part, seed: int) -> list[Stage]:
        """Label maps that a segmenter finds, a stage for each chunk that has scans of the training size."""
        learnt, labels = self._learnt_segmenter(segmenter, size, seed), self.dataset.card.labels
        who = f"{sized(size)}{replicate(seed)}"
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

    def features(self, row: Row, size: int | None, site: str, split: Part, seed: int) -> list[Stage]:
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
                self.segmented(segmenter, size, site, split, seed)
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

    def overlaps(self, row: Row, size: int | None, test: str, seed: int) -> dict[str, Stage]:
        """The overlap of label maps that a row's segmenter makes of test scans with their own, by chunk."""
        segmenter = segmenter_of(self.dataset, row, test)
        if segmenter is None or "dsc" not in self.protocol.metrics or not self.dataset.labelled(test):
            return {}
        maps = self.segmented(segmenter, size, test, "test", seed)
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

    def _subset(self, size: int | None, seed: int) -> Subset | None:
        return subset_of(self.dataset, self.protocol, size, seed)

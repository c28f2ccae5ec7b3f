"""The newborns of the phantom as whole volumes: a cohort, some of it scanned twice, and its stage functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.brain_age import Volume, VolumeScan
from harness.data.dataset import Whole
from harness.data.phantom_data import PERCENTILE, Person, PhantomDataset
from harness.data.schema import Part, PhantomCard
from harness.data.volume_sets import Box, cropped, kept_box, save_regions, save_volumes
from harness.data.volumes import group_labels
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import UserError, did_you_mean

if TYPE_CHECKING:
    from harness.phantom.newborn_volume import NewbornVolume

DRAWEM = "drawem87"
"""The label table of what the phantom draws, and the grouping by which another one names it."""

VOXEL_MM = 0.5
"""As in the developing Human Connectome Project's releases."""


class NewbornVolumeDataset(PhantomDataset):
    """Simulated newborns, scanned at one site or at both; the same infants everywhere. There are no slices."""

    card: PhantomCard

    def _check(self) -> None:
        """Raises UserError for sites the phantom does not have, or a label table that is not its own."""
        from harness.phantom.neonatal import NEONATAL
        from harness.phantom.newborn_regions import label_names

        known = [place.name for place in NEONATAL["T2w"]]
        problems = [
            self.card.problem(("sites", name), f"the phantom has no site {name!r}{did_you_mean(name, known)}")
            for name in self.sites
            if name not in known
        ]
        if self.label_names != label_names() and self._grouping is None:
            what = (
                f"the phantom's whole newborns have DRAW-EM's labels; write labels: {DRAWEM}, or a table with a "
                f"grouping {DRAWEM} of them, such as neonatal8"
            )
            problems.append(self.card.problem(("labels",), what))
        if self._grouping is not None:
            unknown = group_labels(np.arange(len(label_names())), self._grouping)[1]
            if unknown:
                what = f"the grouping {DRAWEM} says nothing of the labels {', '.join(map(str, unknown))}"
                problems.append(self.card.problem(("labels",), what))
        if problems:
            raise UserError(problems)

    @property
    def _grouping(self) -> list[tuple[int, int, int]] | None:
        """How the card's label table groups DRAW-EM's labels; None: it does not."""
        table = self.card.labels
        return table.ranges(DRAWEM) if table is not None and DRAWEM in table.groupings else None

    def count(self, site: str) -> int:
        """Scans of the site: the card's `scans`, else the site's own, else the released number."""
        from harness.phantom.newborn_cohort import SCANS

        own = self.card.sites[site]
        return self.card.scans or (own.scans if own else None) or SCANS

    def _simulated(self, site: str) -> tuple[Person, ...]:
        from harness.phantom.newborn_cohort import newborn_cohort

        return tuple(
            Person(
                scan.id,
                scan.subject.id,
                scan.subject.seed,
                scan.subject.age,
                scan.subject.sex,
                birth_age=scan.birth_age,
                session=scan.session,
            )
            for scan in newborn_cohort(self.count(site), self.card.seed)
        )

    # -------------------------------------------------------------------------------------------- stages

    def _images(self, site: str, split: Part, at: str) -> Stage:
        raise self._no_slices()

    def _labels(self, site: str, split: Part) -> Stage:
        raise self._no_slices()

    def _no_slices(self) -> UserError:
        """A card in the wrong benchmark is its author's mistake, and told as one."""
        what = (
            f"scans of {self.card.id} are whole and have no slices; where slices are wanted, take phantom_neonatal_t2"
        )
        return UserError(self.card.problem(("volumes",), what))

    def _whole(self, kind: Whole, site: str, split: Part, scans: tuple[Any, ...]) -> Stage:
        whole = self.card.volumes
        assert whole is not None
        table = self.card.labels
        assert table is not None
        more: dict[str, Any] = {"percentile": self.card.intensity.percentile or PERCENTILE}
        if kind == "regions":
            more = {"names": list(table.names), "ignored": table.ignored_values}
            if self._grouping is not None:
                more["groups"] = [list(entry) for entry in self._grouping]
        fields = ("id", "subject", "seed", "age", "sex", "birth_age", "session")
        return Stage(
            kind=kind,
            title="",
            fn=f"harness.data.phantom_newborns:newborn_{kind}",
            params={
                "site": site,
                "split": split,
                "scans": [{name: getattr(scan, name) for name in fields} for scan in scans],
                "voxel_mm": whole.voxel_mm or VOXEL_MM,
                "margin": whole.margin,
                "contrast": self.card.modality,
                **more,
            },
            resources="prepare",
        )


# ----------------------------------------------------------------------------------------- stage functions


def newborn_volumes(run: StageRun) -> None:
    """Image the newborns of a chunk; leaves a volume set."""
    contrast = run.params["contrast"]
    save_volumes(
        run.out,
        (
            (scan, Volume(born.images[contrast][box] / np.float32(255), born.mask[box]))
            for scan, born, box in _born(run, (contrast,), run.params["percentile"])
        ),
    )


def newborn_regions(run: StageRun) -> None:
    """Regions of the newborns of a chunk; leaves a region set on the voxels of their volumes."""
    groups = run.params.get("groups")
    labels = (
        (scan, born.labels[box] if groups is None else group_labels(born.labels[box], groups)[0])
        for scan, born, box in _born(run)
    )
    save_regions(run.out, run.params["names"], run.params["ignored"], labels)


def _born(
    run: StageRun, contrasts: tuple[Any, ...] = (), percentile: float = PERCENTILE
) -> Iterator[tuple[VolumeScan, NewbornVolume, Box]]:
    """Scans, one rendered at a time, and what is kept of them."""
    from harness.phantom.newborn_volume import Grid, render_volume

    grid = Grid(run.params["voxel_mm"])
    spacing = (grid.voxel_mm, grid.voxel_mm, grid.voxel_mm)
    for who in run.params["scans"]:
        born = render_volume(_scan(who), grid, contrasts, run.params["site"], percentile)
        box = kept_box(born.mask, run.params["margin"])
        known = {name: who[name] for name in ("id", "subject", "sex", "birth_age")}
        known |= {"site": run.params["site"], "modality": run.params["contrast"]}
        yield cropped(known, box, grid.shape, spacing), born, box


def _scan(who: Mapping[str, Any]) -> Any:
    from harness.phantom.cohort import Subject
    from harness.phantom.newborn_cohort import NewbornScan

    person = Subject(who["subject"], who["seed"], who["age"], who["sex"])
    return NewbornScan(person, who["birth_age"], who["session"])

"""What a track sees of a data set: its sites, and the stages that prepare images, labels and ages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import AgeSet
from harness.data import arrays
from harness.data.fingerprint import default_cache
from harness.data.schema import SPLITS, Card, PhantomCard, Shift, Split
from harness.data.splits import Assignment, SplitFile, as_document, read_split_file
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import Problem
from harness.untrusted import is_folder


class Dataset(ABC):
    """Scans of several sites, split by subject.

    Stages can be made, and so a plan printed, where the data is absent; `missing` then says so, and their keys
    differ from those of the real data. Images and labels are two artifacts: an image set never carries labels.
    With `withhold_age`, image and label sets carry no age either: then only `ages` does.
    """

    def __init__(
        self,
        card: Card,
        root: Path | None,
        cache: Path | None,
        split_file: SplitFile | None,
        withhold_age: bool = False,
    ):
        self.card = card
        self.root = root
        self.cache = cache
        self.split_file = split_file
        self.withhold_age = withhold_age
        self._stages: dict[tuple[str, ...], Stage] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites, in the card's order."""
        return tuple(self.card.sites)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels by value, background first; empty where the card has no labels."""
        return tuple(self.card.labels.names) if self.card.labels else ()

    @abstractmethod
    def labelled(self, site: str) -> bool:
        """Whether the site's scans have labels."""

    def aged(self, site: str) -> bool:
        """Whether every scan of the site has an age."""
        scans = self.scans(site)
        return bool(scans) and all(scan.age is not None for scan in scans)

    @abstractmethod
    def is_paired(self, site: str, other: str) -> bool:
        """Whether scans of `site` can be rendered at `other`, voxel for voxel: the truth of harmonisation."""

    @property
    def paired(self) -> bool:
        """Whether any two sites are paired."""
        return all(self.is_paired(site, other) for site in self.sites for other in self.sites)

    @abstractmethod
    def subjects(self) -> Assignment:
        """Every subject's side."""

    @abstractmethod
    def scans(self, site: str, split: Split | None = None) -> tuple[Any, ...]:
        """The scans of a site, or of one split of it; each has `id`, `subject`, `age`, `sex`."""

    def shift(self, site: str) -> Shift | None:
        """The simulated shift that makes the site, if one does."""
        return None

    def images(self, site: str, split: Split, rendered_at: str | None = None) -> Stage:
        """The stage that leaves the image set of a site and split; with `rendered_at`, as that site shows it.

        Raises ValueError for an unknown site or split, or sites that are not paired.
        """
        at = rendered_at or site
        self._known(site, split)
        self._known(at, split)
        if not self.is_paired(site, at):
            raise ValueError(f"scans of {site} cannot be rendered at {at}: other people, other brains")
        key = ("images", site, split, at)
        if key not in self._stages:
            title = f"images {site} {split}" + (f" as {at}" if at != site else "")
            self._stages[key] = replace(self._images(site, split, at), title=title)
        return self._stages[key]

    def labels(self, site: str, split: Split) -> Stage:
        """The stage that leaves the label set of a site and split, on the slices of its images.

        Raises ValueError for an unknown site or split, or a site without labels.
        """
        self._known(site, split)
        if not self.labelled(site):
            raise ValueError(f"{site} has no labels")
        key = ("labels", site, split)
        if key not in self._stages:
            self._stages[key] = replace(self._labels(site, split), title=f"labels {site} {split}")
        return self._stages[key]

    def ages(self, site: str, split: Split) -> Stage:
        """The stage that leaves the ages of a site and split, in the order of the scans of its images.

        Raises ValueError for an unknown site or split, or a site where an age is unknown.
        """
        self._known(site, split)
        if not self.aged(site):
            raise ValueError(f"{site} has scans without an age")
        key = ("ages", site, split)
        if key not in self._stages:
            self._stages[key] = Stage(
                kind="ages",
                title=f"ages {site} {split}",
                fn="harness.data.dataset:collect_ages",
                params={"ages": [[scan.id, scan.age] for scan in self.scans(site, split)], "unit": self.card.age_unit},
                needs={"images": self.images(site, split)},
                resources="prepare",
            )
        return self._stages[key]

    @abstractmethod
    def _images(self, site: str, split: Split, at: str) -> Stage: ...

    @abstractmethod
    def _labels(self, site: str, split: Split) -> Stage: ...

    @abstractmethod
    def missing(self, sites: Iterable[str] | None = None) -> list[str]:
        """What has to be there before anything can run, and how to get it, a line each; empty if all is.

        Speaks of the data as a whole; with `sites`, also of each of them that has no scans.
        """

    @abstractmethod
    def audit(self, sites: Iterable[str]) -> list[Problem]:
        """Everything wrong with the files, subjects and splits of the sites, all at once."""

    def summary(self) -> dict[str, Any]:
        """JSON: what the data is, and scans per site and split. Sites made by a simulated shift say so."""
        return {
            "id": self.card.id,
            "name": self.card.name,
            "kind": self.card.kind,
            "simulated": self.card.simulated,
            "modality": self.card.modality,
            "age_unit": self.card.age_unit,
            "licence": self.card.licence,
            "reference": self.card.reference,
            "labels": list(self.label_names),
            "sites": {site: self._site_summary(site) for site in self.sites},
        }

    def _site_summary(self, site: str) -> dict[str, Any]:
        shift = self.shift(site)
        return {
            **{split: len(self.scans(site, split)) for split in SPLITS},
            "scans": len(self.scans(site)),
            "subjects": len({scan.subject for scan in self.scans(site)}),
            "labelled": self.labelled(site),
            "aged": self.aged(site),
            "simulated": self.card.simulated or shift is not None,
            "shift": shift.describe() if shift else None,
        }

    def splits(self) -> dict[str, Any]:
        """The split as a split file holds it: side → subjects and their sha256."""
        return as_document(self.subjects())

    # ----------------------------------------------------------------------------------- shared by kinds

    def _known(self, site: str, split: str) -> None:
        if site not in self.card.sites:
            raise ValueError(f"{self.card.id} has no site {site!r}; known: {', '.join(self.sites)}")
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; known: {', '.join(SPLITS)}")

    def _missing_root(self) -> list[str]:
        if self.root is None:
            what = f"{self.card.name}: no data folder is named; give --root DIR, or data.root in the benchmark"
        elif not is_folder(self.root):
            what = f"{self.card.name}: there is no folder {self.root}; mend --root or data.root"
        else:
            return []
        return [f"{what}. To get the data: {self.card.access.strip()}"]

    def _empty_splits(self, site: str) -> list[Problem]:
        """Sides on which the site has nobody. Validation only serves sites that a task model is trained on."""
        wanted = SPLITS if self.labelled(site) else ("train", "test")
        empty = [split for split in wanted if not self.scans(site, split)]
        if not empty:
            return []
        people = len({scan.subject for scan in self.scans(site)})
        at = ("split",) if self.split_file is None else ("split", "file")
        what = f"{site} has {people} subject{'' if people == 1 else 's'} and none in {' or '.join(empty)}"
        return [self.card.problem(at, f"{what}; add scans, leave the site out, or give a split file (split: {{file}})")]

    def _unassigned(self, site: str, people: Iterable[str]) -> list[Problem]:
        """Subjects that the split file forgets."""
        if self.split_file is None:
            return []
        lost = sorted(set(people) - set(self.split_file.sides))
        return [
            Problem(self.split_file.path, f"subject {name!r} of {site} is on no side; add it, or exclude its scans")
            for name in lost
        ]


def collect_ages(run: StageRun) -> None:
    """Stage function: put the known ages to the scans of the images; leaves an age set."""
    known = dict(run.params["ages"])
    scans = arrays.load_images(run.inputs["images"]).scans
    arrays.save_ages(run.out, AgeSet(np.array([known[scan.id] for scan in scans], np.float64), scans))


def open_dataset(card: Card, root: Path | None, cache: Path | None = None, withhold_age: bool = False) -> Dataset:
    """The data set that a card describes.

    root: folder that holds the files; None where none is needed or known. cache: folder for fingerprints, default
    HARNESS_HOME/cache. withhold_age: image and label sets carry no age, as where age is to be predicted. Raises
    UserError for what is wrong with the card's sites or its split file.
    """
    split_file = read_split_file(card.split_file) if card.split_file else None
    where = cache or default_cache()
    if isinstance(card, PhantomCard):
        from harness.data.phantom_data import PhantomDataset

        return PhantomDataset(card, root, where, split_file, withhold_age)
    from harness.data.nifti import NiftiDataset

    return NiftiDataset(card, root, where, split_file, withhold_age)

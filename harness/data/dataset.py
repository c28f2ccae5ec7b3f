"""What a track sees of a data set: its sites, and the stages that prepare images, labels and ages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.api import AgeSet
from harness.data import arrays
from harness.data.choice import NO_LESION, nothing_left
from harness.data.fingerprint import default_cache
from harness.data.schema import (
    CHOICES,
    SPLITS,
    Card,
    Choice,
    FeatureTableCard,
    Part,
    PhantomCard,
    PngCard,
    Shift,
    Split,
)
from harness.data.splits import Assignment, SplitFile, as_document, assign, read_split_file
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import Problem
from harness.untrusted import is_folder

Whole = Literal["volumes", "regions"]


class Dataset(ABC):
    """Scans of several sites, split by subject.

    Stages can be made, and so a plan printed, where the data is absent; `missing` then says so, and their keys
    differ from those of the real data. Images and labels are two artifacts: an image set never carries labels, not
    even where labels chose its slices.
    With `withhold_age`, image and label sets carry no age either: then only `ages` does.

    Where the card has `volumes:`, scans can be had whole: `volumes` and `regions`. Neither carries an age.
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

    def lesioned(self, site: str) -> bool:
        """Whether the site's labels are lesions: any value above 0 is one."""
        return self.card.lesions and self.labelled(site) and not self.healthy(site)

    def healthy(self, site: str) -> bool:
        """Whether the card says that nobody there has a lesion. Labels are then all zero, and no file is needed."""
        return False

    def modality(self, site: str) -> str:
        """The contrast of the site's scans, such as T1w."""
        entry = self.card.sites[site]
        return (entry.modality if entry else None) or self.card.modality

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
    def scans(self, site: str, split: Part | None = None) -> tuple[Any, ...]:
        """The scans of a site ("all" or None), or of one split of it.

        Each has `id`, `subject`, `age`, `birth_age`, `sex`; what is unknown is None.
        """

    @property
    def by_scan(self) -> bool:
        """Whether the split file lists scans, so that a subject may be on several sides."""
        return self.split_file is not None and self.split_file.by == "scan"

    def _on(self, split: Part | None, scan: Any) -> bool:
        """Whether a scan is on a side; everybody is where None or "all" is asked for."""
        if split in (None, "all"):
            return True
        if self.split_file is not None and self.by_scan:
            return self.split_file.sides.get(scan.id) == split
        return self.subjects().get(scan.subject) == split

    def _assigned(self) -> Assignment:
        """Every subject's side by the split file or the card's fractions. By scan: of those on one side only."""
        people = {site: {scan.subject for scan in self.scans(site)} for site in self.sites}
        if self.split_file is None:
            return assign(people, self.card.split.fractions, self.card.split.seed)
        if self.by_scan:
            return {subject: sides[0] for subject, sides in self._sides_by_subject().items() if len(sides) == 1}
        everyone = set().union(*people.values())
        return {subject: side for subject, side in self.split_file.sides.items() if subject in everyone}

    def _sides_by_subject(self) -> dict[str, list[Split]]:
        found: dict[str, list[Split]] = {}
        for split in SPLITS:
            for subject in {scan.subject for site in self.sites for scan in self.scans(site, split)}:
                found.setdefault(subject, []).append(split)
        return dict(sorted(found.items()))

    def shared_subjects(self) -> Mapping[str, tuple[str, ...]]:
        """Subjects that have scans on several sides, and which: none, unless a published split by scan has them."""
        if not self.by_scan:
            return {}
        return {subject: tuple(sides) for subject, sides in self._sides_by_subject().items() if len(sides) > 1}

    def warnings(self) -> tuple[str, ...]:
        """What is no mistake, and yet has to be told beside results, a line each: such as people on several sides."""
        shared = self.shared_subjects()
        if not shared:
            return ()
        tested = [s for site in self.sites for s in self.scans(site, "test") if "test" in shared.get(s.subject, ())]
        return (
            f"the split is by scan: people on several of its sides: {len(shared)}; scans of test of people who "
            f"are in train or validation too: {len(tested)}; errors may come out too small",
        )

    def shift(self, site: str) -> Shift | None:
        """The simulated shift that makes the site, if one does."""
        return None

    def images(self, site: str, split: Part, rendered_at: str | None = None, choice: Choice = "all") -> Stage:
        """The stage that leaves the image set of a site and split; with `rendered_at`, as that site shows it.

        choice: of the slices that the card cuts, by the labels of `site`. Scans without a chosen slice are left out.
        Raises ValueError for an unknown site or split, sites that are not paired, or a choice that is impossible.
        """
        at = rendered_at or site
        self._known(site, split)
        self._known(at, split)
        if not self.is_paired(site, at):
            raise ValueError(f"scans of {site} cannot be rendered at {at}: other people, other brains")
        if self._takes_all(site, choice):
            key = ("images", site, split, at)
            if key not in self._stages:
                title = f"images {site} {split}" + (f" as {at}" if at != site else "")
                self._stages[key] = replace(self._images(site, split, at), title=title)
            return self._stages[key]
        return self._choose("images", site, split, choice, self.images(site, split, at))

    def labels(self, site: str, split: Part, choice: Choice = "all") -> Stage:
        """The stage that leaves the label set of a site and split, on the slices of its images of the same choice.

        Raises ValueError for an unknown site or split, a site without labels, or a choice that is impossible.
        """
        self._known(site, split)
        if not self._takes_all(site, choice):
            return self._choose("labels", site, split, choice, self.images(site, split))
        if not self.labelled(site) and not self.healthy(site):
            raise ValueError(f"{site} has no labels")
        key = ("labels", site, split)
        if key not in self._stages:
            made = self._no_lesions(site, split) if self.healthy(site) else self._labels(site, split)
            self._stages[key] = replace(made, title=f"labels {site} {split}")
        return self._stages[key]

    def choice_trouble(self, site: str, choice: Choice) -> str | None:
        """Why slices of the site cannot be chosen so, in one line; None where they can. Reads no file."""
        if choice not in CHOICES:
            return f"no choice of slices {choice!r}; known: {', '.join(CHOICES)}"
        if choice == "all" or self.lesioned(site):
            return None
        if self.healthy(site):
            return (
                None if choice == "healthy" else f"{site} is healthy: no lesion can choose slices; write all or healthy"
            )
        if self.card.lesions:
            return f"{site} has no labels to choose {choice} slices by; give its label, or declare it healthy: true"
        return (
            f"labels of {self.card.id} are no lesions and choose no {choice} slices; if they are, write lesions: true"
        )

    def audit_choice(self, site: str, split: Part, choice: Choice) -> list[Problem]:
        """What is wrong with choosing slices so: that it cannot be done, or leaves nothing as far as files can say."""
        trouble = self.choice_trouble(site, choice)
        if trouble is None and not self._takes_all(site, choice):
            counts = self._lesion_slices(site, split)
            left = None if counts is None else [row[1 if choice == "healthy" else 0] for row in counts]
            if left and not any(left):
                trouble = f"{site} {split}, {len(left)} scans: {nothing_left(choice)}"
        return [self.card.problem(("sites", site), trouble)] if trouble else []

    def _takes_all(self, site: str, choice: Choice) -> bool:
        """Whether the choice is no choice. Raises ValueError for one that is impossible."""
        trouble = self.choice_trouble(site, choice)
        if trouble:
            raise ValueError(trouble)
        return choice == "all" or self.healthy(site)

    def _choose(self, kind: str, site: str, split: Part, choice: Choice, images: Stage) -> Stage:
        """The stage that takes the chosen slices of `images`, or of their labels."""
        key = (kind, choice, site, split, images.title)
        if key not in self._stages:
            self._stages[key] = Stage(
                kind=kind,
                title=images.title.replace("images", kind, 1) + f" ({choice})",
                fn=f"harness.data.choice:choose_{kind}",
                params={"choice": choice, "site": site, "split": split},
                needs={"images": images, "labels": self.labels(site, split)},
                resources="prepare",
            )
        return self._stages[key]

    def _no_lesions(self, site: str, split: Part) -> Stage:
        return Stage(
            kind="labels",
            title="",
            fn="harness.data.choice:no_lesions",
            params={"names": list(self.label_names or NO_LESION)},
            needs={"images": self.images(site, split)},
            resources="prepare",
        )

    def ages(self, site: str, split: Part) -> Stage:
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

    def volumes(self, site: str, split: Part) -> tuple[Stage, ...]:
        """The stages that leave the whole volumes of a site and split (`volume_sets`), in the order of `scans`.

        Each is of `volumes.chunk` scans; without the data there is one stage of none. Raises ValueError for an unknown
        site or split, or a card without `volumes:`.
        """
        return self._chunks("volumes", site, split)

    def regions(self, site: str, split: Part) -> tuple[Stage, ...]:
        """The stages that leave the label maps of `volumes`, on their voxels and in the same chunks.

        Raises ValueError for an unknown site or split, a card without `volumes:`, or a site without labels.
        """
        self._known(site, split)
        if not self.labelled(site):
            raise ValueError(f"{site} has no labels")
        return self._chunks("regions", site, split)

    def _chunks(self, kind: Whole, site: str, split: Part) -> tuple[Stage, ...]:
        self._known(site, split)
        if self.card.volumes is None:
            raise ValueError(f"scans of {self.card.id} are cut into slices; to keep them whole, write volumes: {{}}")
        scans, size = self.scans(site, split), self.card.volumes.chunk
        chunks = [scans[start : start + size] for start in range(0, len(scans), size)] or [()]
        for number, chunk in enumerate(chunks, start=1):
            key = (kind, site, split, str(number))
            if key not in self._stages:
                title = f"{kind} {site} {split} {number}/{len(chunks)}"
                self._stages[key] = replace(self._whole(kind, site, split, chunk), title=title)
        return tuple(self._stages[kind, site, split, str(number)] for number in range(1, len(chunks) + 1))

    def _whole(self, kind: Whole, site: str, split: Part, scans: tuple[Any, ...]) -> Stage:
        """The stage of one chunk. Only data sets whose cards may say `volumes:` have any."""
        raise ValueError(f"{self.card.id} has no whole volumes")

    @abstractmethod
    def _images(self, site: str, split: Part, at: str) -> Stage: ...

    @abstractmethod
    def _labels(self, site: str, split: Part) -> Stage: ...

    def _lesion_slices(self, site: str, split: Part) -> list[tuple[int, int]] | None:
        """(slices with a lesion, slices without) of every scan, as far as files say it before a run; None: unknown."""
        return None

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
            **({"shared_subjects": len(self.shared_subjects())} if self.by_scan else {}),
            **({"warnings": list(found)} if (found := self.warnings()) else {}),
        }

    def _site_summary(self, site: str) -> dict[str, Any]:
        shift = self.shift(site)
        lesions = {"modality": self.modality(site), "lesioned": self.lesioned(site), "healthy": self.healthy(site)}
        return {
            **{split: len(self.scans(site, split)) for split in SPLITS},
            "scans": len(self.scans(site)),
            "subjects": len({scan.subject for scan in self.scans(site)}),
            "labelled": self.labelled(site),
            "aged": self.aged(site),
            "simulated": self.card.simulated or shift is not None,
            "shift": shift.describe() if shift else None,
            **(lesions if self.card.lesions else {}),
        }

    def splits(self) -> dict[str, Any]:
        """The split as a split file holds it: side → subjects, or scans, and their sha256."""
        if not self.by_scan:
            return as_document(self.subjects())
        everyone = [(split, scan) for split in SPLITS for site in self.sites for scan in self.scans(site, split)]
        return as_document({scan.id: split for split, scan in everyone}, "scan")

    # ----------------------------------------------------------------------------------- shared by kinds

    def _known(self, site: str, split: str) -> None:
        if site not in self.card.sites:
            raise ValueError(f"{self.card.id} has no site {site!r}; known: {', '.join(self.sites)}")
        if split not in (*SPLITS, "all"):
            raise ValueError(f"no split {split!r}; known: {', '.join((*SPLITS, 'all'))}")

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

    def _unassigned(self, site: str) -> list[Problem]:
        """Subjects, or scans, that the split file forgets."""
        if self.split_file is None:
            return []
        by = self.split_file.by
        lost = sorted(
            {getattr(scan, "id" if by == "scan" else by) for scan in self.scans(site)} - set(self.split_file.sides)
        )
        todo = "add it, or exclude it" if by == "scan" else "add it, or exclude its scans"
        return [Problem(self.split_file.path, f"{by} {name!r} of {site} is on no side; {todo}") for name in lost]


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
    split_file = read_split_file(card.split_file, card.split.by) if card.split_file else None
    where = cache or default_cache()
    if isinstance(card, PhantomCard):
        from harness.data.phantom_data import PhantomDataset
        from harness.data.phantom_newborns import NewbornVolumeDataset
        from harness.data.phantom_patients import PatientDataset

        simulated = NewbornVolumeDataset if card.volumes is not None else PhantomDataset
        kind = PatientDataset if card.lesions else simulated
        return kind(card, root, where, split_file, withhold_age)
    if isinstance(card, PngCard):
        from harness.data.pngfolder import PngDataset

        return PngDataset(card, root, where, split_file, withhold_age)
    if isinstance(card, FeatureTableCard):
        from harness.data.feature_table import FeatureTableDataset

        return FeatureTableDataset(card, root, where, split_file, withhold_age)
    from harness.data.nifti import NiftiDataset

    return NiftiDataset(card, root, where, split_file, withhold_age)

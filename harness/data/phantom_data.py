"""The embedded phantom as a data set: simulated subjects, rendered at any site, and its stage functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.api import ImageSet, LabelSet, Scan
from harness.data import arrays
from harness.data.dataset import Dataset
from harness.data.fingerprint import fingerprints
from harness.data.layout import refusal
from harness.data.schema import Part, PhantomCard, Slices
from harness.data.splits import Assignment, SplitFile, order_of
from harness.data.stack import Stack
from harness.engine.plan import Stage, canonical, seed_of
from harness.engine.worker import StageRun
from harness.problems import Problem, UserError, did_you_mean
from harness.untrusted import is_folder, plain

if TYPE_CHECKING:
    from harness.phantom.geometry import AnatomySlices, Geometry, Population
    from harness.phantom.sites import Site


PERCENTILE = 99.5
"""Of the brain, becomes white, unless a card says otherwise."""


@dataclass(frozen=True)
class Person:
    """A simulated subject's scan at a site. `anatomy`: the label map that is its brain, if one is. session: from 1."""

    id: str
    subject: str
    seed: int
    age: float | None
    sex: Literal["F", "M"] | None
    anatomy: str | None = None
    birth_age: float | None = None
    session: int = 1


class PhantomDataset(Dataset):
    """Simulated scans. Any subject can be rendered at any site, so all sites are paired."""

    card: PhantomCard

    def __init__(
        self,
        card: PhantomCard,
        root: Path | None,
        cache: Path | None,
        split_file: SplitFile | None,
        withhold_age: bool = False,
    ):
        super().__init__(card, root, cache, split_file, withhold_age)
        self._check()
        self._people: dict[str, tuple[Person, ...]] = {}
        self._maps: tuple[str, ...] | None = None
        self._assignment: Assignment | None = None

    def _check(self) -> None:
        """Raises UserError for sites the phantom does not have, or a label table that is not its own."""
        known = [site.name for site in _places(self.card.population, self.card.modality)]
        labels, table = _own_labels(self.card.population)
        problems = [
            self.card.problem(("sites", name), f"the phantom has no site {name!r}{did_you_mean(name, known)}")
            for name in self.sites
            if name not in known
        ]
        if self.label_names != labels:
            what = f"a phantom's labels are its own {len(labels)} groups, in their order; write labels: {table}"
            problems.append(self.card.problem(("labels",), what))
        if problems:
            raise UserError(problems)

    # ------------------------------------------------------------------------------------- what there is

    def labelled(self, site: str) -> bool:
        return True

    def is_paired(self, site: str, other: str) -> bool:
        return True

    def count(self, site: str) -> int:
        """Scans of the site: the card's `scans`, else the site's own, else the paper's number."""
        own = self.card.sites[site]
        return self.card.scans or (own.scans if own else None) or self._place(site).scans

    def _place(self, site: str) -> Site:
        return next(place for place in _places(self.card.population, self.card.modality) if place.name == site)

    def scans(self, site: str, split: Part | None = None) -> tuple[Person, ...]:
        """The site's people, of one split or of all."""
        if site not in self._people:
            self._people[site] = self._real(site) if self.card.anatomies else self._simulated(site)
        people = self._people[site]
        return tuple(person for person in people if self._on(split, person))

    def _simulated(self, site: str) -> tuple[Person, ...]:
        from harness.phantom.cohort import cohort

        people = cohort(self._place(site), self.count(site), self.card.seed)
        return tuple(Person(p.id, p.id, p.seed, p.age, p.sex) for p in people)

    def _real(self, site: str) -> tuple[Person, ...]:
        """People of the label maps: the same at every site, as far as the site's number of scans goes."""
        names = sorted(self._anatomies(), key=lambda name: order_of(name, self.card.seed))[: self.count(site)]
        return tuple(
            Person(_stem(name), _stem(name), seed_of("anatomy", _stem(name), self.card.seed), None, None, name)
            for name in sorted(names)
        )

    def _anatomies(self) -> tuple[str, ...]:
        """Label maps below the root, by their path; empty without a root."""
        if self._maps is None:
            folder = self.root / (self.card.anatomies or "") if self.root else None
            found = sorted(folder.glob("*.nii*")) if folder and is_folder(folder) else []
            self._maps = tuple(f"{self.card.anatomies}/{path.name}" for path in found)
        return self._maps

    def subjects(self) -> Assignment:
        if self._assignment is None:
            self._assignment = self._assigned()
        return self._assignment

    # -------------------------------------------------------------------------------------------- stages

    def _images(self, site: str, split: Part, at: str) -> Stage:
        # `site` and `split` are in the parameters: without data, stages must not fall together.
        return self._stage("images", site, split, {"rendered_at": at})

    def _labels(self, site: str, split: Part) -> Stage:
        return self._stage("labels", site, split, {"names": list(self.label_names)})

    @property
    def _newborns(self) -> bool:
        return self.card.population == "neonatal"

    def _levels(self, kind: str) -> dict[str, float]:
        """The intensity rule, where it is of account and not the phantom's own."""
        percentile = self.card.intensity.percentile
        return {"percentile": percentile} if kind == "images" and percentile not in (None, PERCENTILE) else {}

    def _stage(self, kind: str, site: str, split: Part, more: Mapping[str, Any]) -> Stage:
        people = self.scans(site, split)
        params = {
            "site": site,
            "split": split,
            "subjects": [{"id": p.id, "seed": p.seed, "age": p.age, "sex": p.sex} for p in people],
            "slices": self.card.slices.model_dump(mode="json"),
            "anatomies": self.card.anatomies is not None,
            **({"population": "neonatal", "contrast": self.card.modality} if self._newborns else {}),
            **({"withhold_age": True} if self.withhold_age else {}),
            **self._levels(kind),
            **more,
        }
        files = {p.id: p.anatomy for p in people if p.anatomy}
        data, local = "", {}
        if self.card.anatomies is not None:
            data = "absent"
            if self.root is not None and is_folder(self.root):
                hashes = fingerprints([self.root / name for name in files.values()], self.cache)
                contents = {who: hashes[self.root / name] for who, name in files.items()}
                data = hashlib.sha256(canonical(contents).encode()).hexdigest()
                local = {"root": str(self.root.absolute()), "files": files}
        return Stage(
            kind=kind,
            title="",
            fn=f"harness.data.phantom_data:{'neonatal' if self._newborns else 'phantom'}_{kind}",
            params=params,
            resources="prepare",
            data=data,
            local=local,
        )

    # --------------------------------------------------------------------------------------------- audit

    def missing(self, sites: Iterable[str] | None = None) -> list[str]:
        if self.card.anatomies is None:
            return []
        found = self._missing_root()
        if not found and not self._anatomies():
            found.append(f"no label map (*.nii, *.nii.gz) lies in {self.root}/{self.card.anatomies}; mend anatomies:")
        return found

    def audit(self, sites: Iterable[str]) -> list[Problem]:
        absent = self.missing()
        if absent:
            return [Problem(self.card.id, line) for line in absent]
        problems: list[Problem] = []
        for site in sites:
            there = len(self.scans(site))
            if there < self.count(site):
                what = f"{site} asks for {self.count(site)} scans, but there are {there} anatomies; set scans: {there}"
                problems.append(self.card.problem(("sites", site), what))
            problems += self._empty_splits(site)
            problems += self._unassigned(site)
        return problems + self._audit_anatomies()

    def _audit_anatomies(self) -> list[Problem]:
        from harness.data.audit import check_labels

        if self.card.anatomies is None or self.root is None or self.card.labels is None:
            return []
        groups = self.card.labels.ranges("identity")
        refused = {name: what for name in self._anatomies() if (what := refusal(self.root, name))}
        read = [name for name in self._anatomies() if name not in refused]
        found = [*refused.items(), *(finding for name in read for finding in check_labels(self.root, name, groups))]
        return [Problem(plain(str(self.root / path)), what) for path, what in found]


def _stem(path: str) -> str:
    return Path(path).name.partition(".")[0]


def _places(population: Population, contrast: str) -> tuple[Site, ...]:
    """The phantom's sites."""
    if population == "adult":
        from harness.phantom.sites import SITES

        return SITES
    from harness.phantom.neonatal import NEONATAL

    return NEONATAL["T1w" if contrast == "T1w" else "T2w"]


def _own_labels(population: Population) -> tuple[tuple[str, ...], str]:
    """Names of the phantom's labels, background first, and the table that has them."""
    if population == "adult":
        from harness.phantom.physics import LABELS

        return LABELS, "adult15"
    from harness.phantom.growth import GROUPS

    return ("background", *GROUPS), "neonatal8"


# ----------------------------------------------------------------------------------------- stage functions


def phantom_images(run: StageRun) -> None:
    """Render adults at a site; leaves an image set of 8-bit slices."""
    from harness.phantom.render import render
    from harness.phantom.sites import site

    at = site(run.params["rendered_at"])
    geometry = geometry_of(run, "adult")
    top = run.params.get("percentile", PERCENTILE)
    brains = ((who, _adult(run, who, geometry)) for who in run.params["subjects"])
    save_images(run, ((who, brain, render(brain, at, who["seed"], percentile=top)) for who, brain in brains))


def phantom_labels(run: StageRun) -> None:
    """Adults' labels; leaves a label set on the slices of their images."""
    geometry = geometry_of(run, "adult")
    save_labels(run, ((who, _adult(run, who, geometry)) for who in run.params["subjects"]))


def neonatal_images(run: StageRun) -> None:
    """Render newborns at a site; leaves an image set of 8-bit slices."""
    from harness.phantom.neonatal import neonatal_site, tissues_of
    from harness.phantom.render import render

    at = neonatal_site(run.params["rendered_at"], run.params["contrast"])
    geometry = geometry_of(run, "neonatal")
    brains = ((who, _newborn(who, geometry)) for who in run.params["subjects"])
    tissues = {who["id"]: tissues_of(who["age"], who["seed"]) for who in run.params["subjects"]}
    top = run.params.get("percentile", PERCENTILE)
    save_images(run, ((who, brain, render(brain, at, who["seed"], tissues[who["id"]], top)) for who, brain in brains))


def neonatal_labels(run: StageRun) -> None:
    """Newborns' labels; leaves a label set on the slices of their images."""
    geometry = geometry_of(run, "neonatal")
    save_labels(run, ((who, _newborn(who, geometry)) for who in run.params["subjects"]))


def save_images(run: StageRun, rendered: Iterable[tuple[Mapping[str, Any], AnatomySlices, np.ndarray]]) -> None:
    """Leave (who, anatomy, image), person after person, as an image set."""
    with Stack(run.scratch / "pixels.raw", np.uint8) as pixels, Stack(run.scratch / "mask.raw", np.bool_) as masks:
        scans = []
        for who, anatomy, image in rendered:
            scans.append(_scan(run, who, run.params["rendered_at"], len(masks), anatomy))
            pixels.append(image)
            masks.append(anatomy.mask)
        arrays.save_images(run.out, ImageSet(pixels.array(), masks.array(), tuple(scans)))


def save_labels(run: StageRun, brains: Iterable[tuple[Mapping[str, Any], AnatomySlices]]) -> None:
    """Leave the labels of (who, anatomy), person after person, as a label set."""
    with Stack(run.scratch / "labels.raw", np.uint8) as labels:
        scans = []
        for who, anatomy in brains:
            scans.append(_scan(run, who, run.params["site"], len(labels), anatomy))
            labels.append(anatomy.labels)
        arrays.save_labels(run.out, LabelSet(labels.array(), tuple(run.params["names"]), tuple(scans)))


def geometry_of(run: StageRun, population: Population) -> Geometry:
    """The phantom's sampling for a card's slices: the middles of `count` equal parts of a mean brain's range."""
    from harness.phantom.geometry import RANGE_MM, Geometry

    slices = Slices.model_validate(run.params["slices"])
    assert slices.plane != "sagittal"
    low, high = RANGE_MM[population, slices.plane]
    first, last = (low + fraction * (high - low) for fraction in slices.range)
    count = max(1, round(last - first)) if slices.count == "all" else slices.count
    # The middles of `count` equal parts; a single slice lies in the middle of its range.
    half = (last - first) / count / 2 if count > 1 else 0.0
    pixel = slices.pixel_mm or 1.0
    return Geometry(slices.size, pixel, count, first + half, last - half, slices.plane, population)


def _adult(run: StageRun, who: Mapping[str, Any], geometry: Geometry) -> AnatomySlices:
    from harness.phantom.anatomy import anatomy_from_labels, render_anatomy
    from harness.phantom.cohort import Subject

    if run.params["anatomies"]:
        return anatomy_from_labels(Path(run.local["root"]) / run.local["files"][who["id"]], geometry)
    return render_anatomy(Subject(who["id"], who["seed"], who["age"], who["sex"]), geometry)


def _newborn(who: Mapping[str, Any], geometry: Geometry) -> AnatomySlices:
    from harness.phantom.cohort import Subject
    from harness.phantom.newborn import render_newborn

    return render_newborn(Subject(who["id"], who["seed"], who["age"], who["sex"]), geometry)


def _scan(run: StageRun, who: Mapping[str, Any], site: str, start: int, anatomy: AnatomySlices) -> Scan:
    age = None if run.params.get("withhold_age") else who["age"]  # a brain still follows its person's age
    stop = start + len(anatomy.mask)
    contrast = run.params.get("contrast", "T1w")  # all that adults without lesions are imaged at
    return Scan(who["id"], who["id"], site, start, stop, anatomy.spacing, age, who["sex"], contrast)

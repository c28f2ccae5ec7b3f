"""Real scans from files that nibabel reads: the data set, and its stage functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from harness.api import ImageSet, LabelSet, Scan
from harness.data import arrays, volumes
from harness.data.dataset import Dataset, Whole
from harness.data.fingerprint import JsonCache, fingerprints
from harness.data.layout import Layout, ScanFiles, find_scans
from harness.data.schema import Intensity, NiftiCard, Part, Shift, Slices
from harness.data.shift import apply_shift
from harness.data.splits import Assignment, SplitFile, order_of
from harness.data.stack import Stack
from harness.engine.plan import Stage, canonical, seed_of
from harness.engine.worker import StageRun
from harness.problems import Problem
from harness.untrusted import is_folder


class NiftiDataset(Dataset):
    """Scans below a root folder, laid out as the card's patterns say. Planning works without the folder."""

    card: NiftiCard

    _checker: ClassVar[str] = "harness.data.audit"
    """Module whose `check_scan` and `lesion_slices` read the files of this kind."""

    def __init__(
        self,
        card: NiftiCard,
        root: Path | None,
        cache: Path | None,
        split_file: SplitFile | None,
        withhold_age: bool = False,
    ):
        super().__init__(card, root, cache, split_file, withhold_age)
        self._layouts: dict[str, Layout] = {}
        self._hashes: dict[str, dict[str, str | None]] = {}
        self._assignment: Assignment | None = None

    # ------------------------------------------------------------------------------------- what there is

    def labelled(self, site: str) -> bool:
        return self.card.sites[self.card.scanned(site)].label is not None

    def healthy(self, site: str) -> bool:
        return self.card.sites[self.card.scanned(site)].healthy

    def modality(self, site: str) -> str:
        return super().modality(self.card.scanned(site))

    def aged(self, site: str) -> bool:
        """Whether every scan has an age; without the data, whether there is a table that can say so."""
        if self._absent:
            return self.card.sites[self.card.scanned(site)].subjects is not None
        return super().aged(site)

    def is_paired(self, site: str, other: str) -> bool:
        return self.card.scanned(site) == self.card.scanned(other)

    def shift(self, site: str) -> Shift | None:
        return self.card.sites[site].shift

    def layout(self, site: str) -> Layout:
        """The site's scans and what is wrong with how they lie; empty without a root."""
        base = self.card.scanned(site)
        if base not in self._layouts:
            self._layouts[base] = Layout() if self._absent else self._find(base)
        return self._layouts[base]

    def _find(self, base: str) -> Layout:
        return find_scans(self._root, self.card, base)

    def _files(self, scan: ScanFiles) -> list[str]:
        """Every file of a scan, by its path below the root."""
        return [part for path in (scan.image, scan.label, scan.mask) if path for part in _parts(path)]

    def scans(self, site: str, split: Part | None = None) -> tuple[ScanFiles, ...]:
        """The site's scans, of one split or of all, ordered by name; at most the card's and the site's `scans`."""
        scans = self._limited(site, self.layout(site).scans)
        return tuple(scan for scan in scans if self._on(split, scan))

    def _limited(self, site: str, scans: tuple[ScanFiles, ...]) -> tuple[ScanFiles, ...]:
        limits = [n for n in (self.card.scans, self.card.sites[self.card.scanned(site)].scans) if n is not None]
        if not limits:
            return scans
        people: dict[str, int] = {}
        for scan in scans:
            people[scan.subject] = people.get(scan.subject, 0) + 1
        kept: set[str] = set()
        room = min(limits)
        for subject in sorted(people, key=lambda name: order_of(name, self.card.split.seed)):
            if people[subject] <= room:
                kept.add(subject)
                room -= people[subject]
        return tuple(scan for scan in scans if scan.subject in kept)

    def subjects(self) -> Assignment:
        if self._assignment is None:
            self._assignment = self._assigned()
        return self._assignment

    @property
    def _absent(self) -> bool:
        return self.root is None or not is_folder(self.root)

    @property
    def _root(self) -> Path:
        assert self.root is not None
        return self.root

    # -------------------------------------------------------------------------------------------- stages

    def _images(self, site: str, split: Part, at: str) -> Stage:
        # The same scans at another site are that site's own images of the same people.
        scans = self.scans(at, split)
        params = {
            **self._params(at, split, scans),
            "intensity": self.card.intensity.model_dump(mode="json"),
            "shift": _dumped(self.shift(at)),
        }
        return self._stage("images", at, scans, params, ("image", "mask"))

    def _labels(self, site: str, split: Part) -> Stage:
        scans = self.scans(site, split)
        base = self.card.sites[self.card.scanned(site)]
        assert self.card.labels is not None
        params = {
            **self._params(site, split, scans),
            "names": list(self.card.labels.names),
            "groups": [list(entry) for entry in self.card.labels.ranges(base.grouping)],
        }
        return self._stage("labels", site, scans, params, ("image", "mask", "label"))

    def _whole(self, kind: Whole, site: str, split: Part, scans: tuple[ScanFiles, ...]) -> Stage:
        whole, base = self.card.volumes, self.card.sites[self.card.scanned(site)]
        assert whole is not None
        params: dict[str, Any] = {
            "site": site,
            "split": split,
            "scans": [{"id": s.id, "subject": s.subject, "sex": s.sex, "birth_age": s.birth_age} for s in scans],
            "masked": base.mask is not None,
            "modality": self.modality(site),
            "margin": whole.margin,
        }
        if kind == "volumes":
            roles: tuple[str, ...] = ("image", "mask")
            params |= {"intensity": self.card.intensity.model_dump(mode="json"), "shift": _dumped(self.shift(site))}
        else:
            roles, table = ("image", "mask", "label"), self.card.labels
            assert table is not None
            groups = [list(entry) for entry in table.ranges(base.grouping)]
            params |= {"names": list(table.names), "groups": groups, "ignored": table.ignored_values}
        return replace(self._stage(kind, site, scans, params, roles), fn=f"harness.data.nifti_volumes:nifti_{kind}")

    def _params(self, site: str, split: Part, scans: Iterable[ScanFiles]) -> dict[str, Any]:
        ages = {s.id: None if self.withhold_age else s.age for s in scans}
        people = [{"id": s.id, "subject": s.subject, "age": ages[s.id], "sex": s.sex} for s in scans]
        masked = self.card.sites[self.card.scanned(site)].mask is not None
        return {
            "site": site,
            "split": split,
            "scans": people,
            "slices": self.card.slices.model_dump(mode="json"),
            "masked": masked,
            "modality": self.modality(site),
        }

    def _stage(
        self, kind: str, site: str, scans: tuple[ScanFiles, ...], params: dict[str, Any], roles: tuple[str, ...]
    ) -> Stage:
        files = {s.id: {role: getattr(s, role) for role in roles if getattr(s, role)} for s in scans}
        hashes = self.hashes(site)
        contents = {
            scan: {role: [hashes[part] for part in _parts(path)] for role, path in paths.items()}
            for scan, paths in files.items()
        }
        return Stage(
            kind=kind,
            title="",
            fn=f"harness.data.nifti:nifti_{kind}",
            params=params,
            resources="prepare",
            data="absent" if self._absent else hashlib.sha256(canonical(contents).encode()).hexdigest(),
            local={} if self._absent else self._local(files),
        )

    def _local(self, files: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
        """Where the files lie, and how large they may be: nothing that an artifact depends on."""
        return {"root": str(self._root.absolute()), "files": files, "most_voxels": self.card.most_voxels}

    def hashes(self, site: str) -> dict[str, str | None]:
        """sha256 by path below the root of every file of the site's scans; None where it cannot be read."""
        base = self.card.scanned(site)
        if base not in self._hashes:
            names = [name for scan in self.layout(site).scans for name in self._files(scan)]
            paths = {name: self._root / name for name in names}
            found = fingerprints(paths.values(), self.cache)
            self._hashes[base] = {name: found[path] for name, path in paths.items()}
        return self._hashes[base]

    # --------------------------------------------------------------------------------------------- audit

    def missing(self, sites: Iterable[str] | None = None) -> list[str]:
        found = self._missing_root()
        if not found and sites is not None:
            for site in sites:
                if not self.layout(site).scans:
                    pattern = self.card.sites[self.card.scanned(site)].image
                    found.append(f"{site} has no scans: nothing matches {self._root}/{pattern}")
        return found

    def audit(self, sites: Iterable[str]) -> list[Problem]:
        from harness.data import audit

        absent = self.missing()
        if absent:
            return [Problem(self.card.id, line) for line in absent]
        sites = list(sites)
        bases = list(dict.fromkeys(self.card.scanned(site) for site in sites))
        problems = [problem for base in bases for problem in self.layout(base).problems]
        for base in bases:
            problems += self._unassigned(base)
        for site in sites:
            problems += self._empty_splits(site) if self.scans(site) else []  # else: reported as missing files
        memory = JsonCache(self.cache / "audits.json" if self.cache else None)
        for base in bases:
            problems += self._audit_files(base, memory)
            problems += self._audit_features(base)
        memory.save()
        return problems + audit.same_contents(
            self._root, [(scan, self.hashes(base).get(scan.image)) for base in bases for scan in self.scans(base)]
        )

    def _lesion_slices(self, site: str, split: Part) -> list[tuple[int, int]] | None:
        """Counted in the label files and remembered; None where the data is absent or a file is not sound."""
        from harness.engine import code

        checker: Any = import_module(self._checker)
        base = self.card.sites[self.card.scanned(site)]
        if self._absent or self.card.labels is None:
            return None
        groups, most = self.card.labels.ranges(base.grouping), self.card.most_voxels
        asked = [code.fingerprint((f"{self._checker}:lesion_slices",)), groups, most]
        asked.append(self.card.slices.model_dump(mode="json"))
        memory = JsonCache(self.cache / "audits.json" if self.cache else None)
        counts = []
        for scan in self.scans(site, split):
            key = self._audit_key(site, scan, asked)
            found = memory.get(key)
            if found is None:
                found = checker.lesion_slices(self._root, scan, self.card.slices, groups, most)
                memory.put(key, found)
            counts.append(found)
        memory.save()
        return None if any(not row for row in counts) else [(row[0], row[1]) for row in counts]

    def _audit_key(self, site: str, scan: ScanFiles, asked: list[Any]) -> str:
        hashes = self.hashes(site)
        contents = [[name, hashes[name]] for name in self._files(scan)]
        return hashlib.sha256(canonical([asked, contents]).encode()).hexdigest()

    def _audit_features(self, base: str) -> list[Problem]:
        """Features that lie beside the images: of surfaces, and in tables."""
        from harness.data.side_tables import audit_side_tables
        from harness.data.surfaces import audit_surfaces

        site = self.card.sites[base]
        return [
            *(audit_surfaces(self, base) if site.surfaces else ()),
            *(audit_side_tables(self, base) if site.tables else ()),
        ]

    def _audit_files(self, base: str, memory: JsonCache) -> list[Problem]:
        """Every file of a site; a scan whose files and checks are unchanged is not read again."""
        from harness.data import audit
        from harness.data.audit import Checks
        from harness.engine import code

        checker: Any = import_module(self._checker)
        labels = self.card.labels
        groups = labels.ranges(self.card.sites[base].grouping) if labels and self.labelled(base) else None
        whole, ignored = self.card.volumes, tuple(labels.ignored_values) if labels else ()
        checks = Checks(self.card.slices, self.card.intensity.percentile, groups, self.card.most_voxels, whole, ignored)
        asked: list[Any] = [
            code.fingerprint((f"{self._checker}:check_scan",)),
            self.card.slices.model_dump(mode="json"),
            [checks.percentile, groups, checks.most_voxels, ignored],
            whole.model_dump(mode="json") if whole else None,
        ]
        problems: list[Problem] = []
        for scan in self.scans(base):
            key = self._audit_key(base, scan, asked)
            found = memory.get(key)
            if found is None:
                found = checker.check_scan(self._root, scan, checks)
                memory.put(key, found)
            problems += [Problem(str(self._root / path), what) for path, what in found]
        if whole is not None and groups is not None:
            problems += audit.unlike_voxels(self._root, self.scans(base), self.card.most_voxels)
        return problems


def _parts(path: str) -> list[str]:
    """The files that hold one image: Analyze and NIfTI pairs are two."""
    stem, dot, ending = path.rpartition(".")
    return [f"{stem}.hdr", f"{stem}.img"] if dot and ending in ("img", "hdr") else [path]


def _dumped(shift: Shift | None) -> dict[str, Any] | None:
    return shift.model_dump(mode="json") if shift else None


# ----------------------------------------------------------------------------------------- stage functions


def nifti_images(run: StageRun) -> None:
    """Cut and scale the scans of one site and split; leaves an image set of 8-bit slices."""
    params = run.params
    intensity = Intensity.model_validate(params["intensity"])
    slices = Slices.model_validate(params["slices"])
    shift = Shift.model_validate(params["shift"]) if params["shift"] else None
    with Stack(run.scratch / "pixels.raw", np.uint8) as pixels, Stack(run.scratch / "mask.raw", np.bool_) as masks:
        scans = []
        for who in params["scans"]:
            brain = _brain(run.local, who["id"])
            mask, voxel = brain.mask, brain.voxel
            unit = volumes.to_unit(brain.image, mask, intensity.percentile)
            if shift is not None:
                seeds = [seed_of("shift", params["site"], shift.seed, *more) for more in ((), (who["id"],))]
                unit = apply_shift(unit, mask, voxel, shift, *seeds)
                # A scanner's scale is its own: the percentile becomes white again, as for any real scan.
                if intensity.percentile is not None:
                    unit = volumes.to_unit(unit, mask, intensity.percentile)
            cut = volumes.Cut.of(mask, voxel, slices, brain.start)
            inside = cut.labels(mask)
            scans.append(scan_of(who, params, len(masks), len(inside), cut.spacing))
            pixels.append(volumes.eight_bits(cut.image(unit), inside))
            masks.append(inside)
        arrays.save_images(run.out, ImageSet(pixels.array(), masks.array(), tuple(scans)))


def nifti_labels(run: StageRun) -> None:
    """Group and cut the labels of one site and split; leaves a label set on the slices of its images."""
    params = run.params
    slices = Slices.model_validate(params["slices"])
    with Stack(run.scratch / "labels.raw", np.uint8) as labels:
        scans = []
        for who in params["scans"]:
            path = _path(run.local, who["id"], "label")
            ids = volumes.read_integers(path, run.local["most_voxels"])
            grouped, unknown = volumes.group_labels(ids, params["groups"])
            if unknown:
                raise ValueError(f"{path}: label ids {unknown[:5]} are in no group; audit the data set again")
            brain = _brain(run.local, who["id"])
            cut = volumes.Cut.of(brain.mask, brain.voxel, slices, brain.start)
            inside = cut.labels(grouped[brain.box])
            scans.append(scan_of(who, params, len(labels), len(inside), cut.spacing))
            labels.append(inside)
        arrays.save_labels(run.out, LabelSet(labels.array(), tuple(params["names"]), tuple(scans)))


@dataclass(frozen=True, eq=False)
class _Brain:
    """Image and mask within the brain's box (all further work is inside it), the box, and the voxel in mm."""

    image: volumes.Float
    mask: volumes.Bool
    box: tuple[slice, ...]
    voxel: tuple[float, float, float]

    @property
    def start(self) -> list[int]:
        return [side.start for side in self.box]


def _brain(local: Mapping[str, Any], scan: str) -> _Brain:
    most = local["most_voxels"]
    image, voxel = volumes.read_image(_path(local, scan, "image"), most)
    masked = "mask" in local["files"][scan]
    mask = volumes.read_mask(_path(local, scan, "mask"), most) if masked else image > 0
    if mask.shape != image.shape:
        raise ValueError(f"{scan}: mask {mask.shape} and image {image.shape} differ; audit the data set again")
    low, high = volumes.brain_box(mask)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return _Brain(image[box], mask[box], box, voxel)


def _path(local: Mapping[str, Any], scan: str, role: str) -> Path:
    return Path(local["root"]) / local["files"][scan][role]


def scan_of(
    who: Mapping[str, Any], params: Mapping[str, Any], start: int, n: int, spacing: tuple[float, float, float]
) -> Scan:
    site, modality = params["site"], params["modality"]
    return Scan(who["id"], who["subject"], site, start, start + n, spacing, who["age"], who["sex"], modality)

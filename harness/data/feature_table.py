"""Tables of ready-made features as a data set, and how a `FeatureTable` lies in an artifact folder.

Ages are in the table, and in no artifact: whoever needs them takes them from the scans.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.brain_age import Column, FeatureTable, VolumeScan
from harness.data.dataset import Dataset
from harness.data.schema import FeatureTableCard, Part
from harness.data.splits import Assignment, SplitFile, assign, order_of
from harness.data.table_audit import check_values, oddities
from harness.data.table_features import Table, differing, read_site
from harness.data.table_people import TableScan
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import Problem, UserError
from harness.untrusted import is_folder

NO_VOXELS = (0, 0, 0)
"""Shape of a scan of which there are features only."""


class FeatureTableDataset(Dataset):
    """Features of scans, from tables below a root folder. Planning works without the folder.

    There are no images, labels or volumes: asking for their stages raises ValueError; for images, UserError with the
    place in the card, which stands in the wrong benchmark.
    """

    card: FeatureTableCard

    def __init__(
        self,
        card: FeatureTableCard,
        root: Path | None,
        cache: Path | None,
        split_file: SplitFile | None,
        withhold_age: bool = False,
    ):
        super().__init__(card, root, cache, split_file, withhold_age)
        self._tables: dict[str, Table] = {}
        self._assignment: Assignment | None = None

    # ------------------------------------------------------------------------------------- what there is

    @property
    def families(self) -> tuple[str, ...]:
        """Families of features, in the card's order."""
        return tuple(self.card.families)

    def labelled(self, site: str) -> bool:
        return False

    def aged(self, site: str) -> bool:
        """Every scan of a table has an age; without the data, the card says so."""
        return self._absent or super().aged(site)

    def is_paired(self, site: str, other: str) -> bool:
        return site == other

    def table(self, site: str) -> Table:
        """The site's rows and what is wrong with them; empty without a root."""
        if site not in self._tables:
            self._tables[site] = Table() if self._absent else read_site(self._root, self.card, site)
        return self._tables[site]

    def scans(self, site: str, split: Part | None = None) -> tuple[TableScan, ...]:
        """The site's scans, of one split or of all, ordered by name; at most the card's and the site's `scans`."""
        limits = [n for n in (self.card.scans, self.card.sites[site].scans) if n is not None]
        scans = self.table(site).scans
        if limits:
            scans = _whole_subjects(scans, min(limits), self.card.split.seed)
        return tuple(scan for scan in scans if self._on(split, scan))

    @property
    def by_scan(self) -> bool:
        """Whether a subject may be on several sides: the card says `split: {by: scan}`."""
        return self.card.split.by == "scan"

    def subjects(self) -> Assignment:
        """Every subject's side: by the split file, the tables, or the card's fractions; by scan, of one side only."""
        if self._assignment is None:
            self._assignment = self._sides()
        return dict(self._assignment)

    def _sides(self) -> Assignment:
        if self.split_file is not None:
            return self._assigned()
        if self.by_scan:
            return {subject: sides[0] for subject, sides in self._sides_by_subject().items() if len(sides) == 1}
        everyone = [(site, scan) for site in self.sites for scan in self.scans(site)]
        told: Assignment = {}
        for _, scan in everyone:
            if scan.side is not None:
                told.setdefault(scan.subject, scan.side)
        others: dict[str, set[str]] = {site: set() for site in self.sites}
        for site, scan in everyone:
            if scan.subject not in told:
                others[site].add(scan.subject)
        return dict(sorted({**assign(others, self.card.split.fractions, self.card.split.seed), **told}.items()))

    def _on(self, split: Part | None, scan: TableScan) -> bool:
        if self.by_scan and self.split_file is None and split not in (None, "all"):
            return scan.side == split
        return super()._on(split, scan)

    @property
    def _absent(self) -> bool:
        return self.root is None or not is_folder(self.root)

    @property
    def _root(self) -> Path:
        assert self.root is not None
        return self.root

    # -------------------------------------------------------------------------------------------- stages

    def features(self, site: str, split: Part) -> Stage:
        """The stage that leaves the feature table of a site and split (`load_features`), its rows as `scans` has them.

        Raises ValueError for an unknown site or split.
        """
        self._known(site, split)
        key = ("features", site, split)
        if key not in self._stages:
            scans = self.scans(site, split)
            rows = _rows_of(self.table(site), [scan.name for scan in scans])
            self._stages[key] = Stage(
                kind="features",
                title=f"features {site} {split}",
                fn="harness.data.feature_table:table_features",
                params={
                    "site": site,
                    "split": split,
                    "modality": self.modality(site),
                    "scans": [scan.name for scan in scans],
                    "people": [[scan.id, scan.subject, scan.sex, scan.birth_age] for scan in scans],
                    "digest": "absent" if self._absent else digest_of(rows),
                },
                resources="prepare",
                # How the file is read matters by what comes of it, which the digest holds.
                local={} if self._absent else {"root": str(self._root.absolute()), "card": self._card()},
            )
        return self._stages[key]

    def _card(self) -> dict[str, Any]:
        # Only what was written: a column that may be missing must not come back as one that has to be there.
        return self.card.model_dump(mode="json", exclude_unset=True)

    def _images(self, site: str, split: Part, at: str) -> Stage:
        raise self._no_images()

    def _labels(self, site: str, split: Part) -> Stage:
        raise self._no_images()

    def _no_images(self) -> UserError:
        what = f"{self.card.id} is a table of features: it has no images and no labels; take it in track brain_age"
        return UserError(self.card.problem(("kind",), what))

    # --------------------------------------------------------------------------------------------- audit

    def missing(self, sites: Iterable[str] | None = None) -> list[str]:
        found = self._missing_root()
        if not found and sites is not None:
            for site in sites:
                if not self.table(site).scans:
                    files = " and ".join(f"{self._root}/{name}" for _, name in self.card.sites[site].tables())
                    found.append(f"{site} has no scans: no row of {files} is one of its")
        return found

    def audit(self, sites: Iterable[str]) -> list[Problem]:
        absent = self.missing()
        if absent:
            return [Problem(self.card.id, line) for line in absent]
        sites = list(sites)
        problems: list[Problem] = []
        for site in sites:
            table = self.table(site)
            # Holes that unreadable cells leave are told as such, not once more as missing values.
            problems += table.problems or check_values(self.card, site, table)
            problems += self._unassigned(site) + self._on_both_sides(site)
            if table.scans:
                problems += self._empty_splits(site)
            elif not table.problems:
                problems.append(self.card.problem(("sites", site), "no row of its table is left; mend only: or ages:"))
        return list(dict.fromkeys(problems + self._other_columns(sites)))

    def _on_both_sides(self, site: str) -> list[Problem]:
        """Subjects that the table puts on two sides though it splits by subject: three of them by name."""
        if self.split_file is not None:
            return []
        scans = self.scans(site)
        if self.by_scan:
            if all(scan.side is not None for scan in scans):
                return []
            what = f"{site} says nowhere on which side a scan is; name columns.split, or files: for each side"
            return [self.card.problem(("split", "by"), f"by: scan, but {what}")]
        told: dict[str, TableScan] = {}
        leaks: dict[str, str] = {}
        for scan in (scan for other in self.sites for scan in self.scans(other) if scan.side is not None):
            first = told.setdefault(scan.subject, scan)
            if first.side != scan.side and any(one.subject == scan.subject for one in scans):
                leaks.setdefault(scan.subject, f"in {first.side} ({first.place}) and in {scan.side} ({scan.place})")
        found = [f"subject {subject!r} is {where}" for subject, where in leaks.items()]
        more = f" (and {len(found) - 3} more people)" if len(found) > 3 else ""
        todo = "keep every person on one side, or write split: {by: scan} if the split was published so"
        return [self.card.problem(("split",), f"{what}{more}; {todo}") for what in found[:3]]

    def _other_columns(self, sites: Sequence[str]) -> list[Problem]:
        """An estimator is fitted at one site and asked at others: all have the same features in the same order."""
        tables = [(site, self.table(site)) for site in sites if self.table(site).columns]
        return [
            self.card.problem(("sites", site), f"{site} {differing(table.columns, tables[0][1].columns, tables[0][0])}")
            for site, table in tables[1:]
            if table.columns != tables[0][1].columns
        ]

    def warnings(self) -> tuple[str, ...]:
        odd = [line for site in self.sites for line in oddities(self.card, site, self.table(site))]
        return (*super().warnings(), *odd)

    def summary(self) -> dict[str, Any]:
        """What the base says, and features by family, and warnings."""
        tables = [self.table(site) for site in self.sites]
        columns = max((table.columns for table in tables), key=len, default=())
        counts = {family: sum(column.family == family for column in columns) for family in self.families}
        return {**super().summary(), "features": counts}


def _whole_subjects(scans: tuple[TableScan, ...], room: int, seed: int) -> tuple[TableScan, ...]:
    """At most `room` scans: whole subjects, chosen by hash."""
    people: dict[str, int] = {}
    for scan in scans:
        people[scan.subject] = people.get(scan.subject, 0) + 1
    kept: set[str] = set()
    for subject in sorted(people, key=lambda name: order_of(name, seed)):
        if people[subject] <= room:
            kept.add(subject)
            room -= people[subject]
    return tuple(scan for scan in scans if scan.subject in kept)


def _rows_of(table: Table, names: Sequence[str]) -> Table:
    """The rows of these scans, in this order. Raises KeyError for one that the table lacks."""
    places = {scan.name: i for i, scan in enumerate(table.scans)}
    rows = [places[name] for name in names]
    return replace(table, scans=tuple(table.scans[i] for i in rows), values=table.values[rows])


def digest_of(table: Table) -> str:
    """sha256 of the features of a table: its columns and values, and who has them; not their ages."""
    told = [[scan.id for scan in table.scans], [asdict(column) for column in table.columns]]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    # One nan is as good as another: which bits stand for it must not count.
    values = np.ascontiguousarray(table.values, np.float64)
    digest.update(np.where(np.isnan(values), np.nan, values).tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- stage


def table_features(run: StageRun) -> None:
    """Stage function: read the features of one site and split; leaves a feature table without ages."""
    params = run.params
    card = FeatureTableCard.model_validate(run.local["card"])
    table = read_site(Path(run.local["root"]), card, params["site"])
    try:
        table = _rows_of(table, params["scans"])
    except KeyError as error:
        raise ValueError(f"{params['site']}: the table has no scan {error} any more; plan the run again") from None
    if digest_of(table) != params["digest"]:
        raise ValueError(f"{params['site']}: the table has changed since the run was planned; run it again")
    save_features(run.out, FeatureTable(table.values, table.columns, featured(params)))


def who_of(dataset: Dataset, site: str, split: Part) -> dict[str, Any]:
    """The params by which a stage knows the scans of a site and split, without their ages; `featured` reads them."""
    people = [[scan.id, scan.subject, scan.sex, scan.birth_age] for scan in dataset.scans(site, split)]
    return {"site": site, "split": split, "modality": dataset.modality(site), "people": people}


def featured(params: Mapping[str, Any]) -> tuple[VolumeScan, ...]:
    """The scans of a stage of features, which has params site, modality and people: of their voxels nothing is said."""
    site, modality = params["site"], params["modality"]
    return tuple(
        VolumeScan(name, subject, site, NO_VOXELS, (0.0, 0.0, 0.0), sex=sex, birth_age=birth, modality=modality)
        for name, subject, sex, birth in params["people"]
    )


# --------------------------------------------------------------------------------------------- artifacts


def save_features(folder: Path, table: FeatureTable) -> None:
    """Write features.npy, float64 [scans, columns], and features.json: what the columns and rows are."""
    shape = (len(table.scans), len(table.columns))
    values = np.asarray(table.values, np.float64)
    if values.shape != shape:
        raise ValueError(f"{shape[0]} scans with {shape[1]} features need values of that shape, not {values.shape}")
    np.save(folder / "features.npy", values, allow_pickle=False)
    told = {"columns": [asdict(column) for column in table.columns], "scans": [asdict(scan) for scan in table.scans]}
    (folder / "features.json").write_text(json.dumps(told, indent=1, allow_nan=False))


def load_features(folder: Path) -> FeatureTable:
    """The feature table in `folder`; its values are memory-mapped and read-only."""
    told = json.loads((folder / "features.json").read_text())
    values = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    return FeatureTable(values, tuple(Column(**column) for column in told["columns"]), scans_of(told["scans"]))


def scans_of(rows: Iterable[dict[str, Any]]) -> tuple[VolumeScan, ...]:
    """Scans as `asdict` and JSON leave them, as scans again."""
    triples = ("shape", "spacing", "start", "whole")
    return tuple(VolumeScan(**{**row, **{name: row[name] and tuple(row[name]) for name in triples}}) for row in rows)

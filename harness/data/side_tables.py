"""Tables of features beside images: one family a file, a row for each scan of a site, such as FreeSurfer's statistics.

What kind a number is of, and whether it can be, is judged as in tables that stand alone (`table_audit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.brain_age import Column, FeatureTable
from harness.data import layout
from harness.data.feature_table import digest_of, featured, save_features, who_of
from harness.data.layout import ScanFiles
from harness.data.nifti import NiftiDataset
from harness.data.schema import FeatureFile, LabelTable, Part
from harness.data.table_audit import check_rows
from harness.data.table_features import Floats, Table, column_of, matches, order_of_column, varying
from harness.data.table_file import BadTable, RawTable, number, read_table, words
from harness.data.table_people import Findings, TableScan
from harness.engine.plan import Stage
from harness.engine.worker import StageRun
from harness.problems import Problem
from harness.untrusted import is_folder, plain


def side_table_stage(dataset: NiftiDataset, site: str, split: Part) -> Stage:
    """The stage that leaves the features of a site's tables, every family, its rows as `scans` has them.

    Raises ValueError for an unknown site or split, or a site whose card names no tables.
    """
    dataset._known(site, split)
    files = _files(dataset, site)
    scans = dataset.scans(site, split)
    absent = dataset.root is None or not is_folder(dataset.root)
    keys = [_keys(dataset, site, scan) for scan in scans]
    labels = dataset.card.labels
    local: dict[str, Any] = {}
    digest = "absent"
    if not absent:
        assert dataset.root is not None
        digest = digest_of(_read(dataset.root, files, scans, keys, labels)[0])
        local = {
            "root": str(dataset.root.absolute()),
            "files": {family: file.model_dump(mode="json") for family, file in files.items()},
            "labels": labels.model_dump(mode="json") if labels else None,
            "keys": keys,
        }
    return Stage(
        kind="features",
        title=f"table features {site} {split}",
        fn="harness.data.side_tables:side_table_features",
        params={**who_of(dataset, site, split), "digest": digest},
        resources="prepare",
        local=local,
    )


def audit_side_tables(dataset: NiftiDataset, site: str) -> list[Problem]:
    """Everything wrong with the tables of a site, all at once: files, columns, rows, numbers."""
    assert dataset.root is not None
    scans = dataset.scans(site)
    keys = [_keys(dataset, site, scan) for scan in scans]
    problems: list[Problem] = []
    for family, file in _files(dataset, site).items():
        table, found = _read(dataset.root, {family: file}, scans, keys, dataset.card.labels)
        problems += found or check_rows(table)
    return problems


def _files(dataset: NiftiDataset, site: str) -> dict[str, FeatureFile]:
    files = dataset.card.sites[dataset.card.scanned(site)].tables
    if not files:
        raise ValueError(f"{site} has no tables of features; name them in the card (sites.{site}.tables)")
    return files


def _keys(dataset: NiftiDataset, site: str, scan: ScanFiles) -> dict[str, str]:
    """The fields of a scan's image; and its name, by which a table may know it."""
    image = dataset.card.sites[dataset.card.scanned(site)].image
    assert image is not None
    match = layout._regex(image).fullmatch(scan.image)
    return {**(match.groupdict() if match else {}), "": scan.name}


def _read(
    root: Path,
    files: dict[str, FeatureFile],
    scans: tuple[Any, ...],
    keys: list[dict[str, str]],
    labels: LabelTable | None,
) -> tuple[Table, list[Problem]]:
    """The features of scans, nan where they are unknown, and what is wrong. scans: each with `id`."""
    problems: list[Problem] = []
    findings = Findings()
    columns: list[Column] = []
    values: list[Floats] = []
    places = [""] * len(scans)
    for family, file in files.items():
        try:
            raw = read_table(root, file.file)
        except BadTable as error:
            problems.append(Problem(plain(str(root / file.file)), str(error)))
            continue
        if file.scan not in raw.cells:
            problems.append(Problem(raw.shown, f"{raw.lacks(file.scan)}; set tables.{family}.scan to the right one"))
            continue
        rows = _rows(raw, file, keys, [scan.id for scan in scans], findings)
        places = [raw.place(row) if row is not None else raw.shown for row in rows]
        found = list(_columns(raw, family, file, labels, problems))
        for column, name in found:
            columns.append(column)
            values.append(_numbers(raw, column, name, rows, findings))
    known = [
        TableScan(scan.id, scan.id, scan.id, np.nan, None, None, None, place)
        for scan, place in zip(scans, places, strict=True)
    ]
    filled = np.stack(values, axis=1) if values else np.empty((len(scans), 0))
    return Table(tuple(known), tuple(columns), filled), problems + findings.problems()


def _rows(
    raw: RawTable, file: FeatureFile, keys: list[dict[str, str]], ids: list[str], findings: Findings
) -> list[int | None]:
    """The row of each scan; None, and a finding, where it has none."""
    places: dict[str, int] = {}
    for index, cell in enumerate(raw.cells[file.scan]):
        first = places.setdefault(words(cell), index)
        if first != index:
            what = f"{words(cell)!r} again, first at {raw.place(first)}"
            findings.add(raw.place(index), what, "keep one row", f"twice {raw.shown}")
    found: list[int | None] = []
    for key, scan in zip(keys, ids, strict=True):
        names = (
            [layout._filled(file.key, key)] if file.key else [key[""], key.get("session", ""), key.get("subject", "")]
        )
        row = next((places[name] for name in names if name and name in places), None)
        if row is None:
            what, todo = f"has no row {names[0]!r}, for {scan}", "add it, or exclude the scan"
            findings.add(raw.shown, what, todo, f"lost {raw.shown}")
        found.append(row)
    return found


def _columns(
    raw: RawTable, family: str, file: FeatureFile, labels: LabelTable | None, problems: list[Problem]
) -> Iterator[tuple[Column, str]]:
    """(feature, column of the table), in an order that does not depend on the file's."""
    found: dict[Column, str] = {}
    for pattern in file.columns:
        named = [name for name in raw.cells if name and name != file.scan and matches(name, pattern)]
        if not named:
            what = raw.lacks(pattern) if "*" not in pattern else f"has no column {pattern!r}"
            problems.append(Problem(raw.shown, f"{what}; mend tables.{family}.columns"))
        for name in named:
            column = column_of(family, varying(name, pattern), labels)
            if isinstance(column, str):
                problems.append(Problem(raw.shown, plain(column)))
            elif found.setdefault(column, name) != name:
                what = (
                    f"columns {found[column]!r} and {name!r} both hold the {column.name}; write the patterns narrower"
                )
                problems.append(Problem(raw.shown, plain(what)))
    in_order = sorted(found, key=order_of_column) if any("*" in pattern for pattern in file.columns) else list(found)
    for column in in_order:
        yield column, found[column]


def _numbers(raw: RawTable, column: Column, name: str, rows: list[int | None], findings: Findings) -> Floats:
    values = np.full(len(rows), np.nan)
    for index, row in enumerate(rows):
        if row is None:
            continue
        try:
            found = number(raw.cells[name][row])
        except ValueError as error:
            findings.add(raw.place(row), f"{column.name}: {error}", "mend it, or narrow columns:", column.family)
            continue
        values[index] = np.nan if found is None else found
    return values


def side_table_features(run: StageRun) -> None:
    """Stage function: read the features of one site and split from its tables; leaves a feature table without ages."""
    params, local = run.params, run.local
    files = {family: FeatureFile.model_validate(file) for family, file in local["files"].items()}
    labels = LabelTable.model_validate(local["labels"]) if local["labels"] else None
    scans = featured(params)
    table, problems = _read(Path(local["root"]), files, scans, local["keys"], labels)
    if problems:
        raise ValueError(str(problems[0]))
    if digest_of(table) != params["digest"]:
        raise ValueError(f"{params['site']}: a table has changed since the run was planned; run it again")
    save_features(run.out, FeatureTable(table.values, table.columns, scans))

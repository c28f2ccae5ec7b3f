"""What the rows of a feature table say: who was scanned, and which features of which regions they hold.

Columns come in an order of their own, whatever theirs in a file: as the card lists them, else by label, else by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.brain_age import RELATIONAL_VOLUME, SURFACE_RATIO, Column
from harness.data.schema import FeatureFamily, FeatureTableCard, LabelTable, Split
from harness.data.table_file import BadTable, RawTable, cell, number, numbers, read_table
from harness.data.table_people import Findings, People, TableScan, parts
from harness.problems import Problem
from harness.untrusted import plain

SWAPPED = {RELATIONAL_VOLUME: SURFACE_RATIO, SURFACE_RATIO: RELATIONAL_VOLUME}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """The scans of a site in order of their names, their features, and what is wrong with the files.

    values: float64 [scans, columns], nan where a cell is empty.
    """

    scans: tuple[TableScan, ...] = ()
    columns: tuple[Column, ...] = ()
    values: Floats = field(default_factory=lambda: np.empty((0, 0)))
    problems: tuple[Problem, ...] = ()


def read_site(root: Path, card: FeatureTableCard, site_name: str) -> Table:
    """The rows of a site. Never raises for what files hold: every problem is in the result."""
    reader = _Reader(card, site_name)
    read: list[_Part] = []
    for side, name in card.sites[site_name].tables():
        try:
            part = reader.read(read_table(root, name), side if card.sides == "table" else None)
        except BadTable as error:
            reader.problems.append(Problem(plain(str(root / name)), str(error)))
            continue
        if part is not None and read and part.columns != read[0].columns:
            reader.problems.append(Problem(part.shown, differing(part.columns, read[0].columns, read[0].shown)))
        elif part is not None:
            read.append(part)
    reader.people.check_names()
    problems = tuple(dict.fromkeys((*reader.problems, *reader.findings.problems())))
    if not read:
        return Table(problems=problems)
    scans = [scan for part in read for scan in part.scans]
    values = np.concatenate([part.values for part in read])
    order = sorted(range(len(scans)), key=lambda i: scans[i].name)
    return Table(tuple(scans[i] for i in order), read[0].columns, values[order], problems)


def differing(columns: Sequence[Column], others: Sequence[Column], named: str) -> str:
    """How two tables' features differ, in one line; they must."""
    lost = [column.name for column in others if column not in columns]
    more = [column.name for column in columns if column not in others]
    said = [f"{word} {_some(names)}" for word, names in (("lacks", lost), ("has also", more)) if names]
    what = f"it {' and '.join(said)}" if said else "their order differs"
    return f"has other features than {named}: {what}; export the same of every scan"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


# ------------------------------------------------------------------------------------------------ reading


Getter = Callable[[int], Any]
"""Row → the cell of one feature, unread."""


@dataclass(frozen=True, eq=False)
class _Part:
    """What one file gives to a table."""

    shown: str
    scans: list[TableScan]
    columns: tuple[Column, ...]
    values: Floats


@dataclass(frozen=True)
class _Found:
    """A family in one file: its name, where the card says it lies, and [(column, text of its region)]."""

    name: str
    family: FeatureFamily
    columns: list[tuple[str, str]]


class _Reader:
    """Reads the tables of one site."""

    def __init__(self, card: FeatureTableCard, site_name: str):
        self.card = card
        self.problems: list[Problem] = []
        self.findings = Findings()
        self.people = People(card, site_name, self.problems, self.findings)

    def read(self, raw: RawTable, side: Split | None) -> _Part | None:
        """Scans, columns and values of one file; None where it cannot be told what its columns are."""
        before = len(self.problems)
        names = self.people.columns(raw)
        families = list(self._families(raw, {name for name in names.values() if name}))
        if len(self.problems) > before:
            return None
        who = ((index, self.people.scan(raw, index, names, side)) for index in range(len(raw.rows)))
        scans = {index: scan for index, scan in who if scan is not None}
        columns: list[Column] = []
        values: list[Floats] = []
        for column, get in self._columns(raw, families, list(scans)):
            columns.append(column)
            values.append(self._values(raw, column, get, list(scans)))
        twice = next((column for i, column in enumerate(columns) if column in columns[:i]), None)
        if twice is not None:
            what = f"two columns hold the {twice.name}; write the patterns of families: narrower"
            self.problems.append(Problem(raw.shown, plain(what)))
            return None
        filled = np.stack(values, axis=1) if values else np.empty((len(scans), 0))
        return _Part(raw.shown, list(scans.values()), tuple(columns), filled)

    def _families(self, raw: RawTable, taken: set[str]) -> Iterator[_Found]:
        """taken: columns that say who was scanned, and so are no features whatever a pattern matches."""
        card = self.card
        taken |= set(parts(card.columns.scan)) | set(self.people.site.only)
        for name in card.families:
            family = card.families[SWAPPED.get(name, name) if card.swap else name]
            at = ("families", name)
            found: list[tuple[str, str]] = []
            for pattern in [family.column] if family.column is not None else family.columns:
                matching = [c for c in raw.cells if c and matches(c, pattern)]
                if not matching:
                    hint = raw.lacks(pattern) if "*" not in pattern else f"has no column {pattern!r}"
                    self.problems.append(Problem(raw.shown, f"{hint}; mend families.{name} in the card"))
                clash = next((c for c in matching if c in taken), None)
                if clash is not None and "*" not in pattern:
                    what = f"families.{name}: {clash!r} says who was scanned and is no feature; name another column"
                    self.problems.append(card.problem(at, what))
                found += [(c, varying(c, pattern)) for c in matching if c not in taken]
            twice = next((c for i, (c, _) in enumerate(found) if c in [other for other, _ in found[:i]]), None)
            if twice is not None:
                what = f"families.{name}: {twice!r} is named by two patterns; write one of them narrower"
                self.problems.append(card.problem(at, what))
            yield _Found(name, family, found)

    def _columns(
        self, raw: RawTable, families: Sequence[_Found], rows: Sequence[int]
    ) -> Iterator[tuple[Column, Getter]]:
        for found in families:
            if found.family.column is not None:
                yield from self._packed(raw, found.name, found.family, rows)
                continue
            named = [(self._column(found.name, text), raw.cells[column]) for column, text in found.columns]
            known = [(column, cells) for column, cells in named if column is not None]
            if any("*" in pattern for pattern in found.family.columns):
                known.sort(key=lambda entry: order_of_column(entry[0]))
            for column, cells in known:
                yield column, cells.__getitem__

    def _packed(
        self, raw: RawTable, name: str, family: FeatureFamily, rows: Sequence[int]
    ) -> Iterator[tuple[Column, Getter]]:
        """Features of a column whose cells hold many numbers each."""
        assert family.column is not None
        wanted = family.regions()
        opened: dict[int, Mapping[str, Any]] = {}
        todo = "export the same of every scan, or set of: in the card"
        for row in rows:
            where = raw.place(row)
            try:
                entries = numbers(raw.cells[family.column][row])
            except ValueError as error:
                self.findings.add(where, f"{family.column!r} {error}", "export the table again", family.column)
                continue
            if isinstance(entries, list):
                if not wanted:
                    what = f"{family.column} holds lists; name their regions in order, as of: [1-83, 85-87]"
                    self.problems.append(self.card.problem(("families", name), what))
                    return
                if len(entries) != len(wanted):
                    what = f"{family.column!r} holds {len(entries)} numbers, of: names {len(wanted)} regions"
                    self.findings.add(where, what, todo, family.column)
                    continue
                entries = dict(zip(wanted, entries, strict=True))
            wanted = wanted or list(entries)
            if entries.keys() != set(wanted):
                lost = [region for region in wanted if region not in entries]
                more = [region for region in entries if region not in wanted]
                said = [f"{word} {_some(keys)}" for word, keys in (("lacks", lost), ("has also", more)) if keys]
                self.findings.add(where, f"{family.column!r} {' and '.join(said)}", todo, family.column)
            opened[row] = entries
        columns = [(region, self._column(name, region)) for region in wanted]
        known = [(region, column) for region, column in columns if column is not None]
        if not family.of:
            known.sort(key=lambda entry: order_of_column(entry[1]))
        for region, column in known:
            yield column, lambda row, region=region: opened.get(row, {}).get(region)  # type: ignore[misc]

    def _column(self, family: str, text: str) -> Column | None:
        column = column_of(family, text, self.card.labels)
        if isinstance(column, str):
            self.problems.append(self.card.problem(("families", family), plain(column)))
            return None
        return column

    def _values(self, raw: RawTable, column: Column, get: Getter, rows: Sequence[int]) -> Floats:
        values = np.full(len(rows), np.nan)
        for i, row in enumerate(rows):
            try:
                found = number(cell(get(row)))
            except ValueError as error:
                self.findings.add(
                    raw.place(row), f"{column.name}: {error}", "mend or empty it", f"word {column.family}"
                )
                continue
            if found is not None:
                values[i] = found
        return values


def column_of(family: str, text: str, labels: LabelTable | None) -> Column | str:
    """The feature that a column's or key's text stands for: a label's number, its name, or a name of its own.

    Returns what is wrong with it in one line where it is none.
    """
    if text.isdecimal():
        label = int(text)
        if label == 0:
            return f"{family}: label 0 is the background and no region; drop its column"
        if labels is None:
            return Column(family, f"label {label}", label)
        if label >= len(labels.names):
            return f"{family}: label {label} is not in the label table, which ends at {len(labels.names) - 1}"
        return Column(family, labels.names[label], label)
    if labels is not None and text in labels.names[1:]:
        return Column(family, text, labels.names.index(text))
    return Column(family, text)


def order_of_column(column: Column) -> tuple[bool, int, str]:
    """What columns that a pattern has found are sorted by: label, then name."""
    return column.label is None, column.label or 0, column.region


def matches(column: str, pattern: str) -> bool:
    """Whether a column is meant by a name, or a pattern with one `*` that stands for something."""
    before, star, after = pattern.partition("*")
    if not star:
        return column == pattern
    long_enough = len(column) > len(before) + len(after)
    return long_enough and column.startswith(before) and column.endswith(after)


def varying(column: str, pattern: str) -> str:
    """What `*` stands for; the whole name without one."""
    before, star, after = pattern.partition("*")
    return column[len(before) : len(column) - len(after)] if star else column

"""Where a site's scans lie: path patterns with named fields, and the table of who was scanned.

A pattern such as `sub-{scan}_T1w.nii.gz` or `{subject}/{session}/anat/*_T1w.nii.gz` is relative to the data root
and cannot leave it, not even by a link. A field matches part of one name and the same text wherever it recurs.
"""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from harness.problems import Problem, did_you_mean
from harness.untrusted import leads_out, open_regular, plain

if TYPE_CHECKING:
    from harness.data.schema import NiftiCard, SubjectsTable

FIELDS = ("scan", "subject", "session")
_FIELD = re.compile(r"\{([^{}]*)\}")

MOST_WILDCARDS = 4
"""`*` and new fields in one name: with k of them, a long name can be cut in length^k ways before it does not match."""

LONGEST_PATH = 1000
"""Characters of a pattern; file systems allow 4096 of a whole path."""

LARGEST_TABLE = 256 * 2**20
LONGEST_TABLE = 1_000_000
"""Bytes and rows of a table of subjects. Cohorts of 100,000 people with a hundred columns stay below both."""


@dataclass(frozen=True)
class ScanFiles:
    """One scan: who, and where its files lie below the data root. `label` and `mask` may not exist."""

    name: str
    id: str
    subject: str
    image: str
    label: str | None = None
    mask: str | None = None
    age: float | None = None
    sex: Literal["F", "M"] | None = None
    birth_age: float | None = None


@dataclass(frozen=True)
class Layout:
    """The scans of a site, ordered by name, and what is wrong with how they lie."""

    scans: tuple[ScanFiles, ...] = ()
    problems: tuple[Problem, ...] = ()


# ---------------------------------------------------------------------------------------------- patterns


def path_trouble(path: str) -> str | None:
    """Why a path cannot be used below a data root, or None."""
    if not path.strip():
        return "is empty; name a path below the data root"
    if len(path) > LONGEST_PATH:
        return f"has {len(path)} characters; no path is that long"
    if not path.isprintable():
        return f"{path!r} holds a character that cannot be shown; rename the files"
    if path.startswith(("/", "~")) or re.match(r"^[A-Za-z]:|^\\", path):
        return f"{path!r} is absolute; write it relative to the data root (--root, or data.root)"
    if "\\" in path:
        return f"{path!r} has a backslash; separate folders with /"
    if ".." in PurePosixPath(path).parts:
        return f"{path!r} leaves the data root; a path may not contain .."
    return None


def pattern_trouble(pattern: str, fields: Sequence[str] = FIELDS) -> str | None:
    """Why a pattern cannot be used, or None. fields: those it may have."""
    trouble = path_trouble(pattern)
    if trouble:
        return trouble
    if _FIELD.sub("", pattern).count("{") or _FIELD.sub("", pattern).count("}"):
        return f"{pattern!r} has a brace without its partner"
    if "**" in pattern:
        return f"{pattern!r}: ** is not known; write out the folders, with * for a name that varies"
    known: set[str] = set()
    for part in pattern.split("/"):
        names = _FIELD.findall(part)
        for name in names:
            if name not in fields:
                return f"unknown field {{{name}}}{did_you_mean(name, fields)}"
        if part.count("*") + len(set(names) - known) > MOST_WILDCARDS:
            return f"{part!r} has more than {MOST_WILDCARDS} fields and *; write out more of the name"
        known.update(names)
    return None


def fields_of(pattern: str) -> set[str]:
    return set(_FIELD.findall(pattern))


def _regex(pattern: str) -> re.Pattern[str]:
    seen: set[str] = set()
    parts: list[str] = []
    for index, piece in enumerate(_FIELD.split(pattern)):
        if index % 2 == 0:
            parts.append("[^/]*".join(map(re.escape, piece.split("*"))))
        elif piece in seen:
            parts.append(f"(?P={piece})")
        else:
            seen.add(piece)
            parts.append(f"(?P<{piece}>[^/]+?)")
    return re.compile("".join(parts))


def _glob(pattern: str, values: Mapping[str, str]) -> str:
    """The pattern for glob: fields in `values` filled in, other fields `*`."""
    pieces = _FIELD.split(pattern)
    return "".join(
        (glob.escape(values[piece]) if piece in values else "*")
        if index % 2
        else "*".join(map(glob.escape, piece.split("*")))
        for index, piece in enumerate(pieces)
    )


def _matches(
    root: Path, pattern: str, problems: list[Problem], values: Mapping[str, str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """(path below root, field values) of each file that matches, ordered by path; refused ones are problems."""
    values = values or {}
    regex = _regex(pattern)
    found = []
    for path in sorted(glob.glob(_glob(pattern, values), root_dir=root)):
        posix = path.replace("\\", "/")
        match = regex.fullmatch(posix)
        if match and match.groupdict().items() >= values.items() and (root / path).is_file():
            refused = refusal(root, posix)
            if refused:
                problems.append(Problem(plain(str(root / posix)), refused))
            else:
                found.append((posix, match.groupdict()))
    return found


def refusal(root: Path, path: str) -> str | None:
    """Why a file below the root is not read, or None."""
    if not path.isprintable():
        return "its name holds a character that cannot be shown; rename it"
    elsewhere = leads_out(root, root / path)
    if elsewhere is not None:
        return f"is a link out of the data root, to {plain(elsewhere)}; copy the file, or name a root that holds both"
    return None


# ------------------------------------------------------------------------------------------------- scans


@dataclass
class _Rows:
    """A table of subjects: scan (or subject) → its row. `problems`: of the table as a whole."""

    rows: dict[str, _Row] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """One person of a table.

    problems: told where a scan needs the row, as a table may list many that are not here. wanted: by `only`, `ages`.
    """

    subject: str
    age: float | None
    sex: Literal["F", "M"] | None
    birth_age: float | None = None
    wanted: bool = True
    problems: tuple[Problem, ...] = ()

    def with_more(self, other: _Row) -> _Row:
        """This row, with what it does not say from another table's."""
        return _Row(
            self.subject or other.subject,
            other.age if self.age is None else self.age,
            self.sex or other.sex,
            other.birth_age if self.birth_age is None else self.birth_age,
            self.wanted and other.wanted,
            (*self.problems, *other.problems),
        )


def find_scans(root: Path, card: NiftiCard, site_name: str) -> Layout:
    """The scans of a site below `root`; the site must have files of its own (no `of:`).

    Never raises for what is found there: every problem is in the result.
    """
    site = card.sites[site_name]
    assert site.image is not None
    problems: list[Problem] = []
    cohort = site.cohort or site_name
    people = _People(root, site.subjects, card.age_unit) if site.subjects else None
    persons = {scan: group[0] for group in site.same_subject for scan in group}
    seen: dict[str, str] = {}
    scans: list[ScanFiles] = []
    for path, values in _matches(root, site.image, problems):
        name = _scan_name(values)
        if name in site.exclude:
            seen.setdefault(name, path)
            continue
        if name in seen:
            what = f"scan {name!r} again, first at {seen[name]}; make the pattern narrower, or remove one"
            problems.append(Problem(str(root / path), what))
            continue
        seen[name] = path
        row = people.row(name, values, root / path) if people else None
        if row is not None and not row.wanted:
            continue
        problems += row.problems if row else ()
        label, mask = (_partner(root, role, getattr(site, role), values, path, problems) for role in ("label", "mask"))
        subject = (row.subject if row else "") or persons.get(name) or values.get("subject") or name
        scans.append(
            ScanFiles(
                name,
                f"{cohort}-{name}",
                f"{cohort}-{subject}",
                path,
                label,
                mask,
                row.age if row else None,
                row.sex if row else None,
                row.birth_age if row else None,
            )
        )
    if not seen and not problems:
        what = f"no file matches; check the root, and the pattern of {site_name}"
        problems.append(Problem(str(root / site.image), what))
    if seen:
        problems += _unknown_names(card, site_name, seen)
    return Layout(tuple(sorted(scans, key=lambda scan: scan.name)), (*(people.problems() if people else ()), *problems))


def _scan_name(values: Mapping[str, str]) -> str:
    if "scan" in values:
        return values["scan"]
    return "_".join(values[name] for name in ("subject", "session") if name in values)


def _partner(
    root: Path, role: str, pattern: str | None, values: Mapping[str, str], image: str, problems: list[Problem]
) -> str | None:
    """The label or mask that belongs to an image."""
    if pattern is None:
        return None
    given = {name: value for name, value in values.items() if name in fields_of(pattern)}
    before = len(problems)
    found = [path for path, _ in _matches(root, pattern, problems, given)]
    if len(found) == 1 and len(problems) == before:
        return found[0]
    if len(problems) > before:
        return None
    expected = _FIELD.sub(lambda match: values[match[1]], pattern)
    if found:
        what = f"{len(found)} files match ({', '.join(found[:2])}…); make the {role} pattern narrower"
    else:
        what = f"no such {role} for {image}; add the file, or exclude {_scan_name(values)!r}"
    problems.append(Problem(str(root / expected), what))
    return None


def _unknown_names(card: NiftiCard, site_name: str, seen: Mapping[str, str]) -> list[Problem]:
    """Names in the card that no scan has: a slip there would leave a bad scan in, or a person on two sides."""
    site = card.sites[site_name]
    places: list[tuple[tuple[str | int, ...], str]] = [(("exclude", i), name) for i, name in enumerate(site.exclude)]
    places += [
        (("same_subject", i, j), name) for i, group in enumerate(site.same_subject) for j, name in enumerate(group)
    ]
    return [
        card.problem(("sites", site_name, *at), f"{at[0]}: there is no scan {name!r}{did_you_mean(name, seen)}")
        for at, name in places
        if name not in seen
    ]


class _People:
    """The tables of subjects of a site: one for all, or one each; and those that say more of the same people."""

    def __init__(self, root: Path, table: SubjectsTable, age_unit: str):
        self.root, self.table, self.age_unit = root, table, age_unit
        self._more = _People(root, table.people, age_unit) if table.people else None
        self._read: dict[str, _Rows] = {}
        self._unlisted: list[Problem] = []
        if not fields_of(table.file):
            self._rows({})  # so that a missing table is told even where there are no scans

    def row(self, name: str, values: Mapping[str, str], path: Path) -> _Row | None:
        """The row of a scan; None, and a problem, where there is none."""
        rows = self._rows(values).rows
        if self.table.key is not None:
            found = rows.get(_filled(self.table.key, values))
        else:
            found = rows.get(name) or rows.get(values.get("session", "")) or rows.get(values.get("subject", ""))
        if found is None and rows:
            what = f"scan {name!r} is not in {_filled(self.table.file, values)}; add its row, or exclude it"
            self._unlisted.append(Problem(str(path), what))
        more = self._more.row(name, values, path) if self._more else None
        return more if found is None else found.with_more(more) if more else found

    def problems(self) -> list[Problem]:
        """Of whole tables, and scans that are in none."""
        own = [*(problem for rows in self._read.values() for problem in rows.problems), *self._unlisted]
        return own + (self._more.problems() if self._more else [])

    def _rows(self, values: Mapping[str, str]) -> _Rows:
        file = _filled(self.table.file, values)
        if file not in self._read:
            self._read[file] = _read_table(self.root, file, self.table, self.age_unit)
        return self._read[file]


def _filled(pattern: str, values: Mapping[str, str]) -> str:
    return _FIELD.sub(lambda match: values[match[1]], pattern)


def _read_table(root: Path, name: str, table: SubjectsTable, age_unit: str) -> _Rows:
    result = _Rows()
    path = root / name
    shown = plain(str(path))

    def refuse(what: str) -> _Rows:
        result.problems.append(Problem(shown, plain(what)))
        return result

    if leads_out(root, path) is not None:
        return refuse("is a link out of the data root; copy the table, or name a root that holds both")
    try:
        with open_regular(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            size = os.fstat(raw.fileno()).st_size
            if size > LARGEST_TABLE:
                return refuse(f"the table has {size / 2**20:.0f} MiB; keep the rows and columns that are needed")
            reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            missing = [column for column in (table.scan, *table.only) if column not in (reader.fieldnames or ())]
            if missing:
                columns = ", ".join(reader.fieldnames or ()) or "none"
                where = "subjects.scan" if missing[0] == table.scan else "subjects.only"
                return refuse(f"has no column {missing[0]!r} (it has {columns[:500]}); set {where} to the right one")
            for cells in reader:
                if reader.line_num > LONGEST_TABLE:
                    return refuse(f"the table has more than {LONGEST_TABLE:,} lines; keep the rows that are needed")
                scan, row = _row(f"{shown}:{reader.line_num}", cells, table, age_unit)
                if scan in result.rows:
                    first = result.rows[scan]
                    if first.problems:
                        continue
                    twice = Problem(f"{shown}:{reader.line_num}", f"scan {scan!r} is listed twice; keep one row")
                    row = replace(first, problems=(*first.problems, twice))
                result.rows[scan] = row
    except FileNotFoundError:
        return refuse("no such table of subjects; add it, or drop subjects: from the card")
    except OSError as error:
        return refuse(f"the table cannot be read: {error.strerror or error}")
    except (UnicodeDecodeError, csv.Error) as error:
        return refuse(f"the table cannot be read: {error}; save it as UTF-8 text")
    return result


def _row(line: str, raw: Mapping[str, str | None], table: SubjectsTable, age_unit: str) -> tuple[str, _Row]:
    """The scan that a line is about, and what it says."""
    problems: list[Problem] = []

    def cell(column: str) -> str:
        text = (raw.get(column) or "").strip()
        return "" if text.lower() in ("n/a", "na", "nan") else text

    def age_in(column: str, what: str) -> float | None:
        if not cell(column):
            return None
        try:
            value = float(cell(column))
        except ValueError:
            value = -1.0
        if 0 <= value <= 130:
            return value
        problems.append(Problem(line, f"{what} {cell(column)!r} is no age in {age_unit}; mend or empty it"))
        return None

    age, birth_age = age_in(table.age, "age"), age_in(table.birth_age, "age at birth")
    sex: Literal["F", "M"] | None = None
    written = cell(table.sex)
    if written:
        letter = table.sexes.get(written, written)[0].upper()
        if letter in "FM":
            sex = "F" if letter == "F" else "M"
        else:
            problems.append(Problem(line, f"sex {written!r} is neither F nor M; mend or empty it, or set sexes:"))
    wanted = all(any(_same(cell(column), value) for value in values) for column, values in table.only.items())
    if table.ages is not None:
        wanted = wanted and age is not None and table.ages[0] <= age <= table.ages[1]
    return cell(table.scan), _Row(cell(table.subject), age, sex, birth_age, wanted, tuple(problems))


def _same(cell: str, value: str) -> bool:
    """Whether a cell holds a value: the same text, or the same number (0 and 0.0)."""
    if cell == value:
        return True
    try:
        return float(cell) == float(value)
    except ValueError:
        return False

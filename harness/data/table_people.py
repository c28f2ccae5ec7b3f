"""Who the rows of a feature table are about: scan, person, age, sex, and side of the split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from harness.data.schema import SPLITS, FeatureTableCard, Split
from harness.data.table_file import RawTable, number, words
from harness.problems import Problem, did_you_mean
from harness.untrusted import plain

AGES = {"years": (0.0, 130.0), "weeks": (15.0, 150.0)}
"""Ages that somebody in a scanner can have. Weeks are postmenstrual: two years after birth at the most. Ours."""

_FIELD = re.compile(r"\{([^{}]*)\}")

ROUNDING = 1.0
"""Weeks by which a birth may seem to lie after the scan: ages are written in whole weeks, or days. Ours."""

LONGEST_HINT = 30
"""Scans of a site among which the one that was meant is sought: of thousands, something is always alike."""


@dataclass(frozen=True)
class TableScan:
    """One row: who. side: where the table puts it, None where it says nothing. place: "file:row"."""

    name: str
    id: str
    subject: str
    age: float
    sex: Literal["F", "M"] | None
    birth_age: float | None
    side: Split | None
    place: str


class Findings:
    """Problems, alike ones in one line: a table has them by the hundred."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], tuple[str, str, str]] = {}
        self._count: Counter[tuple[str, str]] = Counter()

    def add(self, where: str, what: str, todo: str, kind: str) -> None:
        """kind: findings of one kind in one file share a line, that of the first."""
        key = (where.rpartition(":")[0], kind)
        self._first.setdefault(key, (where, what, todo))
        self._count[key] += 1

    def problems(self) -> list[Problem]:
        found = []
        for key, (where, what, todo) in self._first.items():
            more = self._count[key] - 1
            others = f" (and {more} more like it)" if more else ""
            found.append(Problem(where, plain(f"{what}{others}; {todo}")))
        return found


class People:
    """Reads who was scanned, from the tables of one site; scans are told apart over all of them."""

    def __init__(self, card: FeatureTableCard, site_name: str, problems: list[Problem], findings: Findings):
        self.card, self.site_name, self.site = card, site_name, card.sites[site_name]
        self.cohort = self.site.cohort or site_name
        self.problems, self.findings = problems, findings
        self._seen: dict[str, str] = {}
        self._excluded: set[str] = set()

    def check_names(self) -> None:
        """Tell names of the card that no row has: a slip would leave a bad scan in."""
        for index, name in enumerate(self.site.exclude):
            if self._seen and name not in self._excluded:
                hint = did_you_mean(name, self._seen) if len(self._seen) <= LONGEST_HINT else ""
                where = ("sites", self.site_name, "exclude", index)
                self.problems.append(self.card.problem(where, f"exclude: there is no scan {name!r}{hint}"))

    def columns(self, raw: RawTable) -> dict[str, str]:
        """Role → column, "" where there is none."""
        found: dict[str, str] = {}
        columns = self.card.columns
        for part in parts(columns.scan):
            if part not in raw.cells:
                self.problems.append(Problem(raw.shown, f"{raw.lacks(part)}; set columns.scan to the right one"))
        for role in ("subject", "age", "sex", "birth_age", "split"):
            name = getattr(columns, role)
            if name is not None and name not in raw.cells:
                if columns.named(role):
                    self.problems.append(Problem(raw.shown, f"{raw.lacks(name)}; set columns.{role} to the right one"))
                name = ""
            found[role] = name or ""
        for name in self.site.only:
            if name not in raw.cells:
                what = f"{raw.lacks(name)}; set sites.{self.site_name}.only to the right one"
                self.problems.append(Problem(raw.shown, what))
        return found

    def scan(self, raw: RawTable, index: int, names: Mapping[str, str], side: Split | None) -> TableScan | None:
        """The scan of a row; None for one that is not wanted, or is unsound."""
        where = raw.place(index)

        def text(role: str) -> str:
            return words(raw.cells[names[role]][index]) if names[role] else ""

        for column, wanted in self.site.only.items():
            if words(raw.cells[column][index]) not in wanted:
                return None
        name = self._name(raw, index)
        if not name:
            self.findings.add(where, "the scan has no name", "fill it in, or delete the row", "scan")
            return None
        if name in self.site.exclude:
            self._excluded.add(name)
            self._seen.setdefault(name, where)
            return None
        if name in self._seen:
            what = f"scan {name!r} again, first at {self._seen[name]}"
            self.findings.add(where, what, "keep one row, or tell visits apart (columns.scan)", "twice")
            return None
        self._seen[name] = where
        subject = text("subject") if names["subject"] else name
        if not subject:
            self.findings.add(where, f"scan {name!r} has no subject", "fill it in, or delete the row", "subject")
            return None
        age = self._age(raw, index, names["age"], "age", needed=True)
        if age is None:
            return None
        if self.site.ages is not None and not self.site.ages[0] <= age <= self.site.ages[1]:
            return None
        birth = self._age(raw, index, names["birth_age"], "birth age", needed=False) if names["birth_age"] else None
        if birth is not None and birth > age + ROUNDING and self.card.age_unit == "weeks":
            what = f"birth age {birth:g} is after the scan, at {age:g} weeks"
            self.findings.add(where, what, "mend the row; both are postmenstrual", "birth")
        return TableScan(
            name,
            f"{self.cohort}-{name}",
            f"{self.cohort}-{subject}",
            age,
            self._sex(where, text("sex")),
            birth,
            self._side(where, text("split"), names["split"]) if side is None else side,
            where,
        )

    def _name(self, raw: RawTable, index: int) -> str:
        pattern = self.card.columns.scan
        if pattern in raw.cells:
            return words(raw.cells[pattern][index])
        values = {part: words(raw.cells[part][index]) for part in parts(pattern)}
        return _FIELD.sub(lambda field: values[field[1]], pattern) if all(values.values()) else ""

    def _age(self, raw: RawTable, index: int, column: str, what: str, needed: bool) -> float | None:
        low, high = AGES[self.card.age_unit]
        value = raw.cells[column][index]
        where = raw.place(index)
        if value is None:
            if needed:
                self.findings.add(where, f"{what} is missing", "fill it in, or exclude the scan", f"no {what}")
            return None
        try:
            found = number(value)
        except ValueError as error:
            self.findings.add(where, f"{what}: {error}", f"write it in {self.card.age_unit}", f"word {what}")
            return None
        if found is None or not low <= found <= high:
            unit = self.card.age_unit
            todo = f"ages lie in {low:g} to {high:g} {unit}: mend it, or set age_unit"
            self.findings.add(where, f"{what} {words(value)} is no age in {unit}", todo, f"bad {what}")
            return None
        return found

    def _sex(self, where: str, written: str) -> Literal["F", "M"] | None:
        if not written:
            return None
        letter = self.card.columns.sexes.get(written, written)[0].upper()
        if letter == "F":
            return "F"
        if letter == "M":
            return "M"
        self.findings.add(where, f"sex {written!r} is neither F nor M", "mend or empty it, or set columns.sexes", "sex")
        return None

    def _side(self, where: str, written: str, column: str) -> Split | None:
        if not column or self.card.sides == "card":
            return None
        for side in SPLITS:
            if written.lower() == side:
                return side
        hint = did_you_mean(written.lower(), SPLITS).removeprefix("; ") if written else "write one of them"
        what = f"split {written!r} is none of {', '.join(SPLITS)}"
        self.findings.add(where, what, hint, "split")
        return None


def parts(pattern: str) -> list[str]:
    """The columns in "{sub}_{ses}"; of a plain name, the name."""
    return list(dict.fromkeys(_FIELD.findall(pattern))) or [pattern]

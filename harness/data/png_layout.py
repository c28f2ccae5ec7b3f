"""Where the slices of a site's scans lie: one file each, gathered into scans by the fields of their names.

Patterns are those of `harness.data.layout`, with one more field: `slices/{scan}_{slice}.png`. Slices of a scan are in
natural order, 9 before 10. Without {slice} a scan is one slice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data import layout
from harness.data.layout import Layout, ScanFiles
from harness.data.schema import MOST_SLICES
from harness.problems import Problem

if TYPE_CHECKING:
    from harness.data.schema import PngCard

SLICE = "slice"
ROLES = ("label", "mask")
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class SlicedScan(ScanFiles):
    """One scan as files of slices, in order: below the data root, one label and mask for each image, or none.

    `image`, `label` and `mask` are those of the middle slice, which stand for the scan where one file has to.
    """

    images: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()

    def files(self, role: str) -> tuple[str, ...]:
        """The files of a role: image, label or mask."""
        return {"image": self.images, "label": self.labels, "mask": self.masks}[role]

    @property
    def paths(self) -> tuple[str, ...]:
        """All its files; one that serves several slices once."""
        return tuple(dict.fromkeys((*self.images, *self.labels, *self.masks)))


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """What names are sorted by, so that 9 comes before 10; names that differ by leading zeros keep an order too."""
    pieces = _DIGITS.split(name)
    return [(int(piece), "") if i % 2 else (0, piece) for i, piece in enumerate(pieces)], name


def find_slices(root: Path, card: PngCard, site_name: str) -> Layout:
    """The scans of a site below `root`, each a `SlicedScan`; the site must have files of its own (no `of:`).

    Never raises for what is found there: every problem is in the result.
    """
    site = card.sites[site_name]
    assert site.image is not None
    problems: list[Problem] = list(_unsliced(card, site_name))
    cohort = site.cohort or site_name
    people = layout._People(root, site.subjects, card.age_unit) if site.subjects else None
    persons = {scan: group[0] for group in site.same_subject for scan in group}
    seen: dict[str, str] = {}
    found = _gathered(root, site.image, site.exclude, seen, problems)
    partners = {
        role: _by_fields(root, pattern, problems) for role in ROLES if (pattern := getattr(site, role)) is not None
    }
    scans: list[SlicedScan] = []
    for name, slices in found.items():
        path, values = slices[0]
        row = people.row(name, values, root / path) if people else None
        if row is not None and not row.wanted:
            continue
        problems += row.problems if row else ()
        if len(slices) > MOST_SLICES:
            what = f"scan {name!r} has {len(slices)} slices, no head has more than {MOST_SLICES}; tell scans apart"
            problems.append(Problem(str(root / path), what))
            continue
        files = {
            role: _partners(root, role, getattr(site, role), name, slices, given, problems)
            for role, given in partners.items()
        }
        subject = (row.subject if row else "") or persons.get(name) or values.get("subject") or name
        middle = len(slices) // 2
        images, labels, masks = tuple(path for path, _ in slices), files.get("label", ()), files.get("mask", ())
        scans.append(
            SlicedScan(
                name,
                f"{cohort}-{name}",
                f"{cohort}-{subject}",
                images[middle],
                labels[middle] if labels else None,
                masks[middle] if masks else None,
                row.age if row else None,
                row.sex if row else None,
                row.birth_age if row else None,
                images,
                labels,
                masks,
            )
        )
    if not seen and not problems:
        what = f"no file matches; check the root, and the pattern of {site_name}"
        problems.append(Problem(str(root / site.image), what))
    if seen:
        problems += layout._unknown_names(card, site_name, seen)
    ordered = tuple(sorted(scans, key=lambda scan: scan.name))
    return Layout(ordered, (*(people.problems() if people else ()), *problems))


_Slices = list[tuple[str, dict[str, str]]]
"""(path below the root, values of the fields) of a scan's slices."""


def _gathered(
    root: Path, pattern: str, exclude: Iterable[str], seen: dict[str, str], problems: list[Problem]
) -> dict[str, _Slices]:
    """Slices by scan, in natural order; scans of every name are put into `seen`, with their first file."""
    found: dict[str, dict[str, tuple[str, dict[str, str]]]] = {}
    excluded = set(exclude)
    for path, values in layout._matches(root, pattern, problems):
        name, index = layout._scan_name(values), values.get(SLICE, "")
        seen.setdefault(name, path)
        if name in excluded:
            continue
        slices = found.setdefault(name, {})
        if index in slices:
            again = f"slice {index!r} of scan {name!r}" if SLICE in values else f"scan {name!r}"
            what = f"{again} again, first at {slices[index][0]}; make the pattern narrower, or remove one"
            problems.append(Problem(str(root / path), what))
            continue
        slices[index] = (path, values)
    return {name: [slices[index] for index in sorted(slices, key=natural)] for name, slices in found.items()}


def _unsliced(card: PngCard, site_name: str) -> Iterable[Problem]:
    """A label for all slices of a scan at once is a slip of the pattern; one mask for all may be meant."""
    site = card.sites[site_name]
    if site.label is not None and SLICE in layout.fields_of(site.image or "") - layout.fields_of(site.label):
        what = "label: has no {slice}, so that all slices of a scan would share one; add it to the pattern"
        yield card.problem(("sites", site_name, "label"), what)


_ByFields = dict[tuple[str, ...], list[str]]
"""The files of a role by the values of their pattern's fields, in the order of the fields' names."""


def _by_fields(root: Path, pattern: str, problems: list[Problem]) -> _ByFields:
    found: _ByFields = {}
    for path, values in layout._matches(root, pattern, problems):
        found.setdefault(_key(values, values), []).append(path)
    return found


def _key(values: Mapping[str, str], fields: Iterable[str]) -> tuple[str, ...]:
    return tuple(values[name] for name in sorted(fields))


def _partners(
    root: Path, role: str, pattern: str, name: str, slices: _Slices, given: _ByFields, problems: list[Problem]
) -> tuple[str, ...]:
    """The label or mask of each slice of a scan; none, and a problem, where one is missing or several match."""
    fields = layout.fields_of(pattern)
    matches = [given.get(_key(values, fields), []) for _, values in slices]
    lacking = [values for (_, values), paths in zip(slices, matches, strict=True) if not paths]
    double = [paths for paths in matches if len(paths) > 1]
    if lacking:
        expected = str(root / layout._filled(pattern, lacking[0]))
        what = f"no such {role}; {len(lacking)} of {len(slices)} slices of scan {name!r} have none"
        problems.append(Problem(expected, f"{what}: add the files, or exclude {name!r}"))
    if double:
        shown = ", ".join(double[0][:2])
        what = f"{len(double[0])} files match one slice of scan {name!r} ({shown}…); make the {role} pattern narrower"
        problems.append(Problem(str(root / double[0][0]), what))
    return () if lacking or double else tuple(paths[0] for paths in matches)

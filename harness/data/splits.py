"""Who is trained on, validated on and tested on: by subject, the same at every site; by scan where a file says so.

A subject's side follows from hash(seed, subject) and from how many share the subject's sites, never from a place in
a list. Subjects that occur at several sites (rescans, travelling volunteers, simulated copies) are on one side at all
of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import yamlfile
from harness.data.schema import SPLITS, Split, SplitBy
from harness.engine.store import write_atomically
from harness.problems import Problem, UserError, did_you_mean

Assignment = dict[str, Split]
"""subject → side; in a split by scan, scan → side"""


def order_of(subject: str, seed: int) -> str:
    """What subjects are sorted by: a hash, so that nobody's place says anything of them."""
    return hashlib.sha256(f"split\x1f{seed}\x1f{subject}".encode()).hexdigest()


def counts(n: int, fractions: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many of `n` subjects go to train, validation and test: largest remainders, summing to n.

    From three subjects on no side is empty. Of two, the larger fractions get one each.
    """
    exact = [n * fraction for fraction in fractions]
    # Rounded first, so that 20 × 0.15 = 3.0000000000000004 and its neighbours count as what they mean.
    found = [int(round(value, 9)) for value in exact]
    by_rest = sorted(range(3), key=lambda i: (round(found[i] - exact[i], 9), -fractions[i]))
    for i in by_rest[: n - sum(found)]:
        found[i] += 1
    while n >= 3 and min(found) == 0:
        found[found.index(max(found))] -= 1
        found[found.index(0)] += 1
    if n == 2:
        found = [int(i in sorted(range(3), key=lambda i: -fractions[i])[:2]) for i in range(3)]
    return found[0], found[1], found[2]


def assign(sites: Mapping[str, Iterable[str]], fractions: tuple[float, float, float], seed: int) -> Assignment:
    """The side of every subject, from the subjects of each site.

    Subjects are grouped by the set of sites they occur at, and each group is split by count.
    """
    where: dict[str, set[str]] = {}
    for site, subjects in sites.items():
        for subject in subjects:
            where.setdefault(subject, set()).add(site)
    groups: dict[frozenset[str], list[str]] = {}
    for subject, at in where.items():
        groups.setdefault(frozenset(at), []).append(subject)
    found: Assignment = {}
    for subjects in groups.values():
        ordered = sorted(subjects, key=lambda subject: order_of(subject, seed))
        start = 0
        for split, size in zip(SPLITS, counts(len(ordered), fractions), strict=True):
            found |= dict.fromkeys(ordered[start : start + size], split)
            start += size
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------- split files


@dataclass(frozen=True)
class SplitFile:
    """A split file as read: its path, who is on which side, where each stands in the file, and what is listed."""

    path: str
    sides: Assignment
    places: Mapping[str, str]
    by: SplitBy = "subject"


def as_document(sides: Assignment, by: SplitBy = "subject") -> dict[str, Any]:
    """What a split file holds: side → its subjects (or scans), and the sha256 over their sorted names."""
    return {
        split: {f"{by}s": names, "sha256": _digest(names)}
        for split in SPLITS
        for names in [sorted(name for name, side in sides.items() if side == split)]
    }


def write_split_file(path: Path, sides: Assignment) -> None:
    """Write a split as JSON, atomically."""
    write_atomically(path, json.dumps(as_document(sides), indent=1))


def read_split_file(path: str, by: SplitBy = "subject") -> SplitFile:
    """Read a split file, YAML or JSON: train, validation and test, each a list of subjects or {subjects, sha256}.

    by: "scan" reads scans in their place. Raises UserError with every problem at its line: unknown or missing sides, a
    name on two sides (leakage) or listed twice, a checksum that does not fit, a side without names.
    """
    listing = f"{by}s"
    document = yamlfile.read(path)
    sides: Assignment = {}
    places: dict[str, str] = {}
    problems = [
        document.problem((key,), f"unknown side {key!r}{did_you_mean(str(key), SPLITS)}")
        for key in document.data
        if key not in SPLITS
    ]
    for split in SPLITS:
        if split not in document.data:
            problems.append(document.problem((), f"the side {split!r} is missing; list its {listing}"))
            continue
        at: tuple[str, ...] = (split,)
        listed: Any = document.data[split]
        digest = None
        if isinstance(listed, dict):
            listed, digest, at = listed.get(listing), listed.get("sha256"), (split, listing)
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            problems.append(document.problem(at, f"{split} must be a list of one or more {listing}' names, in quotes"))
            continue
        for index, name in enumerate(listed):
            place = document.where((*at, index))
            if name in sides:
                leak = f"{name!r} is in {sides[name]} ({places[name]}) and in {split}: keep it on one side"
                twice = f"{name!r} is listed twice, first at {places[name]}; keep one"
                problems.append(Problem(place, twice if sides[name] == split else leak))
                continue
            sides[name], places[name] = split, place
        if digest is not None and digest != _digest(sorted(listed)):
            what = f"the {listing} of {split} do not fit its sha256; undo the change, or delete the sha256 line"
            problems.append(document.problem((split, "sha256"), what))
    if problems:
        raise UserError(problems)
    return SplitFile(path, sides, places, by)


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()

"""Nested subsets of the scans that are learnt from: people whole, one within the other, shares kept."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tracks.brain_age.subsets import Subset, nested


class Scan(NamedTuple):
    id: str
    subject: str


def cohort(visits: list[int]) -> list[Scan]:
    return [Scan(f"s{person}v{visit}", f"s{person}") for person, n in enumerate(visits) for visit in range(n)]


def ids(subset: Subset) -> set[str]:
    return {*subset.train, *subset.validation}


VISITS = st.lists(st.integers(1, 4), min_size=12, max_size=40)
SHARES = st.floats(0.2, 0.8)


@given(VISITS, SHARES, st.integers(0, 5), st.data())
def test_a_smaller_subset_lies_within_a_larger_on_the_same_side(
    visits: list[int], share: float, seed: int, data: st.DataObject
) -> None:
    scans = cohort(visits)
    # Of ten scans three people are drawn at least, so neither side is empty.
    sizes = sorted(data.draw(st.tuples(st.integers(10, len(scans)), st.integers(10, len(scans)))))
    small, large = found = [nested(scans, size, share, seed) for size in sizes]
    assert set(small.train) <= set(large.train)
    assert set(small.validation) <= set(large.validation)
    assert [len(ids(subset)) for subset in found] == sizes
    assert large.train[: len(small.train)] == small.train


@given(VISITS, SHARES, st.integers(0, 5))
def test_people_are_whole_and_the_share_is_kept(visits: list[int], share: float, seed: int) -> None:
    scans = cohort(visits)
    size = len(scans) - 2
    subset = nested(scans, size, share, seed)
    side = dict.fromkeys(subset.train, "train") | dict.fromkeys(subset.validation, "validation")
    assert len(side) == len(subset.train) + len(subset.validation) == size
    sides = {scan.subject: {side[s.id] for s in scans if s.subject == scan.subject and s.id in side} for scan in scans}
    assert all(len(there) <= 1 for there in sides.values())
    cut = [
        subject
        for subject, n in Counter(scan.subject for scan in scans).items()
        if 0 < sum(scan.id in side for scan in scans if scan.subject == subject) < n
    ]
    assert len(cut) <= 1, "only of the last person are scans left out"
    assert abs(len(subset.validation) - share * size) <= 4, "a person's scans, of which there are four at most"


def test_the_draw_depends_on_the_seed_alone() -> None:
    scans = cohort([1, 2] * 10)
    first = nested(scans, 12, 0.4, 0)
    assert nested(scans[::-1], 12, 0.4, 0) == first
    assert ids(nested(scans, 12, 0.4, 1)) != ids(first)
    renamed = [Scan(scan.id, f"x{scan.subject}") for scan in scans]
    assert ids(nested(renamed, 12, 0.4, 0)) != ids(first), "people are drawn by their names"


@pytest.mark.parametrize(
    ("size", "share", "message"),
    [
        (11, 0.4, "there are 10 scans to learn from, 11 are asked for"),
        (4, 0.01, "4 scans with a validation share of 0.01 leave one side empty"),
        (4, 0.99, "leave one side empty"),
    ],
)
def test_what_cannot_be_drawn_is_said(size: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nested(cohort([1] * 10), size, share, 0)

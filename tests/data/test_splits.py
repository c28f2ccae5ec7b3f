"""Splits by subject: sizes, stability, leakage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.schema import SPLITS
from harness.data.splits import as_document, assign, counts, read_split_file, write_split_file
from harness.problems import UserError

THESIS = (0.60, 0.15, 0.25)
names = st.lists(st.text("abcdefgh0123456789-_", min_size=1, max_size=8), unique=True, max_size=40)
fractions = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20)).map(
    lambda parts: (parts[0] / sum(parts), parts[1] / sum(parts), parts[2] / sum(parts))
)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, (0, 0, 0)),
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (19, (11, 3, 5)),
        (20, (12, 3, 5)),
        (57, (34, 9, 14)),
        (77, (46, 12, 19)),
        (117, (70, 18, 29)),
    ],
)
def test_counts_of_the_published_sites(n: int, expected: tuple[int, int, int]) -> None:
    assert counts(n, THESIS) == expected


@given(st.integers(0, 500), fractions)
def test_counts_sum_up_and_stay_near_the_fractions(n: int, parts: tuple[float, float, float]) -> None:
    found = counts(n, parts)
    assert sum(found) == n
    assert min(found) >= 0
    if n >= 3:
        assert min(found) >= 1
    if n * min(parts) >= 1:
        assert all(abs(k - n * f) <= 1 for k, f in zip(found, parts, strict=True))


@given(names, st.integers(0, 3), st.randoms())
def test_order_does_not_matter(subjects: list[str], seed: int, random: object) -> None:
    shuffled = list(subjects)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign({"A": subjects}, THESIS, seed) == assign({"A": shuffled}, THESIS, seed)


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from("ABCD"), names, max_size=4), fractions, st.integers(0, 3))
def test_a_subject_has_one_side_and_everybody_has_one(
    sites: dict[str, list[str]], parts: tuple[float, float, float], seed: int
) -> None:
    found = assign(sites, parts, seed)
    assert set(found) == {subject for subjects in sites.values() for subject in subjects}
    groups: dict[frozenset[str], list[str]] = {}
    for subject, side in found.items():
        at = frozenset(site for site, subjects in sites.items() if subject in subjects)
        groups.setdefault(at, []).append(side)
    for sides in groups.values():
        assert tuple(sides.count(split) for split in SPLITS) == counts(len(sides), parts)


def test_another_site_changes_nobody() -> None:
    alone = assign({"A": [f"a{i}" for i in range(20)]}, THESIS, 0)
    joined = assign({"A": [f"a{i}" for i in range(20)], "B": [f"b{i}" for i in range(9)]}, THESIS, 0)
    assert alone.items() <= joined.items()


def test_a_copy_of_a_site_changes_nobody() -> None:
    people = [f"a{i}" for i in range(20)]
    assert assign({"A": people}, THESIS, 0) == assign({"A": people, "COPY": people}, THESIS, 0)


def test_the_seed_matters() -> None:
    people = [f"a{i}" for i in range(20)]
    assert assign({"A": people}, THESIS, 0) != assign({"A": people}, THESIS, 1)


# ------------------------------------------------------------------------------------------------- files


def test_a_split_file_comes_back(tmp_path: Path) -> None:
    sides = assign({"A": [f"a{i}" for i in range(10)]}, THESIS, 0)
    write_split_file(tmp_path / "split.json", sides)
    back = read_split_file(str(tmp_path / "split.json"))
    assert back.sides == sides
    assert json.loads((tmp_path / "split.json").read_text()) == as_document(sides)


def test_plain_lists_in_yaml_are_a_split(tmp_path: Path) -> None:
    path = tmp_path / "split.yaml"
    path.write_text("train: [a, b]\nvalidation: [c]\ntest: [d]\n")
    assert read_split_file(str(path)).sides == {"a": "train", "b": "train", "c": "validation", "d": "test"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "train: [a, b]\nvalidation: [c]\ntest: [d, b]\n",
            "3:11: 'b' is in train ({path}:1:12) and in test: keep it on one side",
        ),
        ("train: [a, a]\nvalidation: [c]\ntest: [d]\n", "1:12: 'a' is listed twice, first at {path}:1:9; keep one"),
        ("train: [a]\nvalidation: [c]\n", "1:1: the side 'test' is missing; list its subjects"),
        ("train: [a]\nvalidation: []\ntest: [d]\n", "2:1: validation must be a list of one or more subjects' names"),
        ("train: [a]\nvalidation: [7]\ntest: [d]\n", "2:1: validation must be a list of one or more subjects' names"),
        ("train: [a]\nvalidation: [c]\ntest: [d]\ntset: [e]\n", "4:1: unknown side 'tset'; did you mean test?"),
        (
            "train: {subjects: [a], sha256: 00}\nvalidation: [c]\ntest: [d]\n",
            "1:24: the subjects of train do not fit its sha256; undo the change, or delete the sha256 line",
        ),
    ],
)
def test_each_mistake_in_a_split_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "split.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_split_file(str(path))
    assert [str(p) for p in error.value.problems][0].startswith(f"{path}:" + expected.format(path=path))

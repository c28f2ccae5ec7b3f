"""Newborns in three dimensions: cohort, growth, regions, folding, contrast."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from harness.phantom.brain_growth import TEMPO, growth_of, maturity
from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.growth import BINS, MEASURED, SPREAD
from harness.phantom.neonatal import Contrast
from harness.phantom.newborn_cohort import GIRLS, NewbornScan, newborn_cohort
from harness.phantom.newborn_cortex import MEASURED_SVR
from harness.phantom.newborn_regions import PARCELS, REGIONS, SEEDS, region, region_table, zones
from harness.phantom.newborn_volume import Grid, NewbornVolume, region_counts, render_volume

AGES = (30.5, 36.0, 43.7)
COARSE = Grid(voxel_mm=2.0)
SIX = ("cortical_GM", "WM", "deep_GM", "cerebellum", "brainstem", "hippocampus_amygdala")


def scan(
    age: float, number: int = 0, session: int = 1, sex: Literal["F", "M"] = "F", birth: float | None = None
) -> NewbornScan:
    subject = Subject(f"p{number}", derive_seed("growth test", number), age, sex)
    return NewbornScan(subject, min(age - 0.5, 40.0) if birth is None else birth, session)


@lru_cache
def born(age: float) -> NewbornVolume:
    return render_volume(scan(age), COARSE, ("T1w", "T2w"))


def shares(labels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Share of every tissue in all that is labelled."""
    counts = region_counts(labels)
    of = np.array([one.group for one in REGIONS])
    return {name: float(counts[of == name].sum() / counts.sum()) for name in set(of)}


def surface(labels: npt.NDArray[np.uint8], tissue: str) -> float:
    """Share of a tissue's voxels with a voxel of another region among their 26 neighbours."""
    low, high = (f(labels, 3, mode="constant") for f in (ndimage.minimum_filter, ndimage.maximum_filter))
    here = np.isin(labels, [one.id for one in REGIONS if one.group == tissue])
    return float((low != high)[here].mean())


# ---------------------------------------------------------------------------------------------- cohort


def test_the_cohort_is_the_releases() -> None:
    scans = newborn_cohort()
    people = {one.subject.id: one for one in scans}
    ages = np.array([one.subject.age for one in scans])
    assert len(scans) == 558
    assert len(people) == 505
    assert len({one.id for one in scans}) == 558
    assert round(ages.min(), 1) >= 29.3
    assert round(ages.max(), 1) <= 45.1
    assert ages.mean() == pytest.approx(40.07, abs=0.4)
    assert ages.std() == pytest.approx(2.88, abs=0.4)
    found = [np.mean((ages >= low) & (ages < high)) for low, high in BINS]
    assert found == pytest.approx(np.array([8, 17, 46, 38, 106, 204, 139]) / 558, abs=0.045)
    assert np.mean([one.subject.sex == "F" for one in people.values()]) == pytest.approx(GIRLS, abs=0.07)
    assert all(one.birth_age <= one.subject.age for one in scans)


def test_those_scanned_twice_came_early_and_come_back_at_term() -> None:
    by_person: dict[str, list[NewbornScan]] = {}
    for one in newborn_cohort():
        by_person.setdefault(one.subject.id, []).append(one)
    twice = [sessions for sessions in by_person.values() if len(sessions) == 2]
    assert len(twice) == 53
    for first, second in twice:
        assert first.subject.seed == second.subject.seed
        assert first.subject.sex == second.subject.sex
        assert first.birth_age == second.birth_age < 37
        assert first.subject.age < 38 <= second.subject.age
        assert (first.session, second.session) == (1, 2)


def test_a_larger_cohort_changes_nobody() -> None:
    assert newborn_cohort(30, 3) == newborn_cohort(700, 3)[:30]
    assert newborn_cohort(30, 3) != newborn_cohort(30, 4)
    assert newborn_cohort(0) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scan(46.0), "simulated: 29 to 45.5"),
        (lambda: scan(40.0, birth=41.0), "born at 41, scanned at 40 weeks"),
        (lambda: newborn_cohort(-1), "must be >= 0"),
        (lambda: Grid(field_mm=(80.0, 136.0, 112.0)), "cuts brains off"),
        (lambda: Grid(voxel_mm=0.0), "must be positive"),
        (lambda: render_volume(scan(40.0), COARSE, ("T2w",), "OASIS"), "known: DHCP, V2LP"),
    ],
)
def test_what_cannot_be_is_said(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------- growth


def test_a_brain_is_ahead_of_its_age_or_behind_and_stays_so() -> None:
    first, second = (
        np.array([maturity(scan(40.0, number, session)) - 40 for number in range(800)]) for session in (1, 2)
    )
    assert first.std() == pytest.approx(TEMPO, rel=0.1)
    assert abs(first.mean()) < 0.05
    assert 0.7 < np.corrcoef(first, second)[0, 1] < 0.9
    assert maturity(scan(40.0, 5)) == first[5] + 40


def test_sex_and_birth_matter_little() -> None:
    girls, boys = (growth_of(scan(41.0, 3, sex=sex)) for sex in ("F", "M"))
    assert 1.01 < boys.total_ml / girls.total_ml < 1.06
    assert boys.shares == girls.shares
    term, early = (growth_of(scan(41.0, 3, birth=birth)) for birth in (40.0, 25.0))
    assert 0.95 < early.total_ml / term.total_ml < 1
    assert 1.1 < early.shares["ventricles"] / term.shares["ventricles"] < 1.5
    assert early.shares["deep_GM"] < term.shares["deep_GM"]
    for one in (term, early):
        assert sum(one.shares.values()) == pytest.approx(1)


def test_mean_shares_are_the_measured_ones_at_every_age() -> None:
    for place, (low, high) in enumerate(BINS):
        people = [growth_of(scan((low + high) / 2, number)) for number in range(150)]
        for name in ("cortical_GM", "WM", "cerebellum", "deep_GM", "brainstem"):
            mean = np.mean([one.shares[name] for one in people])
            assert mean == pytest.approx(MEASURED[name][place], abs=max(0.006, 0.04 * MEASURED[name][place])), name


@pytest.mark.parametrize(
    ("name", "correlation", "spread"),
    [("cortical_GM", 0.93, 0.0128), ("WM", -0.83, 0.019), ("cerebellum", 0.74, 0.0046)],
)
def test_people_of_one_age_differ_as_measured(name: str, correlation: float, spread: float) -> None:
    """How shares go with age, and what a straight line leaves of them, in the 558 released scans."""
    scans = newborn_cohort()
    ages = np.array([one.subject.age for one in scans])
    found = np.array([growth_of(one).shares[name] for one in scans])
    assert np.corrcoef(found, ages)[0, 1] == pytest.approx(correlation, abs=0.02)
    assert np.std(found - np.polyval(np.polyfit(ages, found, 1), ages)) == pytest.approx(spread, rel=0.04)


def test_one_infant_grows() -> None:
    """Total volume, cortex and cerebellum gain, white matter and brainstem lose share; the same person throughout."""
    volumes = [born(age) for age in AGES]
    total = [float(volume.mask.sum()) * 8 / 1000 for volume in volumes]
    for age, found in zip(AGES, total, strict=True):
        assert found == pytest.approx(growth_of(scan(age)).total_ml, rel=0.06)
    assert total[0] < total[1] < total[2]
    found = [shares(volume.labels) for volume in volumes]
    for name, sign in {"cortical_GM": 1, "cerebellum": 1, "WM": -1, "brainstem": -1}.items():
        series = np.array([one[name] for one in found])
        assert (sign * np.diff(series) > 0).all(), (name, series)
        measured = [np.interp(age, [np.mean(weeks) for weeks in BINS], MEASURED[name]) for age in AGES]
        # The person's own difference, cut at 2.4 SD; how far it is ahead of its age; and voxels of 2 mm.
        assert series == pytest.approx(measured, abs=2.4 * SPREAD[name] + 0.02), name


@pytest.mark.parametrize("age", AGES)
def test_rendered_shares_are_the_persons(age: float) -> None:
    own, found = growth_of(scan(age)).shares, shares(born(age).labels)
    for name in SIX:
        assert found[name] == pytest.approx(own[name], abs=max(0.02, 0.15 * own[name])), name
    assert 0.01 < found["intracranial"] < 0.04


def test_white_matter_folds_and_the_cerebellum_rounds_off() -> None:
    white, cerebellum = ([surface(born(age).labels, name) for age in AGES] for name in ("WM", "cerebellum"))
    assert white[0] + 0.02 < white[1] < white[2] - 0.02
    assert cerebellum[0] > cerebellum[1] > cerebellum[2]


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 3, 6])
def test_surfaces_are_the_measured_ones_on_the_releases_voxels(place: int) -> None:
    """Half a millimetre; two persons near the middle of the bin's volumes stand for all."""
    age = float(np.mean(BINS[place]))
    people = sorted(range(40), key=lambda number: abs(growth_of(scan(age, number)).shares["cortical_GM"]
                    - MEASURED["cortical_GM"][place]) + abs(maturity(scan(age, number)) - age) / 50)  # fmt: skip
    labels = [render_volume(scan(age, number), Grid(), ()).labels for number in people[:2]]
    for name, measured in MEASURED_SVR.items():
        assert np.mean([surface(one, name) for one in labels]) == pytest.approx(measured[place], abs=0.05), name


# --------------------------------------------------------------------------------------------- regions


def test_the_table_is_drawems() -> None:
    assert [one.id for one in REGIONS] == [*range(1, 84), 85, 86, 87]
    assert len({(one.name, one.side) for one in REGIONS}) == 86
    pairs = {one.name for one in REGIONS if one.side}
    for name in pairs:
        left, right = region(name, "left"), region(name, "right")
        assert left - right == (1 if 20 <= left <= 47 or 63 <= left <= 82 or left >= 86 else -1), name
    assert region("frontal_GM", "right") == 36
    assert region("frontal_WM", "left") == 80
    assert region("parietal_WM", "right") == 81
    assert set(np.unique(region_table())) == {one.id for one in REGIONS}


def test_parcels_are_whole_and_symmetric() -> None:
    zone = zones()
    assert np.array_equal(zone, zone[::-1])
    right = zone[zone.shape[0] // 2 :] & 15
    for parcel, name in enumerate(PARCELS):
        pieces, count = ndimage.label(right == parcel)
        largest = np.bincount(pieces.ravel())[1:].max()
        assert largest > 0.85 * (right == parcel).sum(), (name, count)
    assert set(SEEDS) == set(PARCELS)


@pytest.mark.parametrize("age", AGES)
def test_every_region_is_there_on_its_side_and_in_one_piece(age: float) -> None:
    labels = born(age).labels
    counts = dict(zip((one.id for one in REGIONS), region_counts(labels), strict=True))
    assert min(counts.values()) > 0, [number for number, count in counts.items() if not count]
    assert sum(counts.values()) == (labels > 0).sum()
    places = ndimage.center_of_mass(labels > 0, labels, [one.id for one in REGIONS])
    middle = dict(zip((one.id for one in REGIONS), (place[0] for place in places), strict=True))
    for name in {one.name for one in REGIONS if one.side}:
        left, right = region(name, "left"), region(name, "right")
        assert middle[left] < middle[right], name
        small, large = sorted((counts[left], counts[right]))
        assert large < 30 or small > 0.4 * large, (name, small, large)
    touching = np.ones((3, 3, 3), dtype=int)
    for one in REGIONS:
        if one.group in ("deep_GM", "cerebellum", "brainstem", "hippocampus_amygdala") or one.name == "frontal_WM":
            pieces, _ = ndimage.label(labels == one.id, touching)
            assert np.bincount(pieces.ravel())[1:].max() > 0.85 * counts[one.id], one
    _, pieces = ndimage.label(labels > 0)
    assert pieces == 1


def test_no_brain_touches_the_field() -> None:
    """The largest: a boy with the most volume of many at the oldest age."""
    size = {number: growth_of(scan(45.1, number, sex="M")).total_ml for number in range(200)}
    largest = max(size, key=lambda number: size[number])
    inside = render_volume(scan(45.1, largest, sex="M"), COARSE, ()).mask
    for axis in range(3):
        assert not inside.take([0, -1], axis=axis).any(), axis


# --------------------------------------------------------------------------------------------- images


def level(volume: NewbornVolume, contrast: Contrast, *groups: str) -> float:
    here = np.isin(volume.labels, [one.id for one in REGIONS if one.group in groups])
    deep = ndimage.binary_erosion(here) if groups[0] in ("WM", "deep_GM") else here
    return float(np.median(volume.images[contrast][deep]))


@pytest.mark.parametrize("age", AGES)
def test_contrast_is_the_reverse_of_an_adults(age: float) -> None:
    volume = born(age)
    t1, t2 = (
        [level(volume, contrast, name) for name in ("deep_GM", "cortical_GM", "WM", "CSF")]
        for contrast in ("T1w", "T2w")
    )
    assert t2[0] < t2[1] < t2[2] < t2[3]
    assert t1[0] > t1[1] > t1[2] > t1[3]
    for image in volume.images.values():
        assert image.dtype == np.uint8
        assert np.array_equal(image > 0, volume.mask)


def test_white_matter_darkens_in_t2_while_it_matures() -> None:
    """Its T2 falls by 6 ms a week; that of fluid stays."""
    young, old = (level(born(age), "T2w", "WM") / level(born(age), "T2w", "ventricles") for age in (AGES[0], AGES[-1]))
    assert young > 1.05 * old


def test_the_dark_thalamus_is_darker() -> None:
    volume = born(36.0)
    low, high = (
        np.median(volume.images["T2w"][np.isin(volume.labels, [region(name, "left"), region(name, "right")])])
        for name in ("thalamus_low_T2", "thalamus_high_T2")
    )
    assert low < 0.95 * high


# ---------------------------------------------------------------------------------- what depends on what


def test_a_scan_is_the_same_each_time_whatever_else_is_rendered() -> None:
    first = born(36.0)
    again = render_volume(scan(36.0), COARSE, ("T2w",))
    assert list(again.images) == ["T2w"]
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.images["T2w"], again.images["T2w"])


def white(volume: NewbornVolume) -> npt.NDArray[np.bool_]:
    return np.isin(volume.labels, [one.id for one in REGIONS if one.group == "WM"])


def overlap(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_an_infant_keeps_its_folds_between_sessions() -> None:
    """More white matter lies where it lay than in the mirror image, which is as large and folded elsewhere."""
    own, later = white(born(43.7)), white(render_volume(scan(43.7, session=2), COARSE, ()))
    assert overlap(own, own[::-1]) + 0.05 < overlap(own, later) < 1


@pytest.mark.slow
def test_labels_are_no_scanners_and_people_differ() -> None:
    first, other = born(36.0), render_volume(scan(36.0), COARSE, ("T2w",), "V2LP")
    assert np.array_equal(first.labels, other.labels)
    assert np.abs(first.images["T2w"].astype(float) - other.images["T2w"])[first.mask].mean() > 5
    stranger = render_volume(scan(36.0, number=1), COARSE, ())
    assert overlap(white(first), white(stranger)) < 0.85

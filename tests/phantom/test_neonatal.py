"""The neonatal phantom: growth, contrast turned over, two sites."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from harness.phantom.cohort import Subject, cohort, derive_seed
from harness.phantom.geometry import AnatomySlices, Geometry
from harness.phantom.growth import BINS, GROUPS, MEASURED, folding, grow, shares, total_ml
from harness.phantom.neonatal import NEONATAL, Contrast, neonatal_site, tissues, tissues_of
from harness.phantom.newborn import COMPARTMENTS, render_newborn
from harness.phantom.render import render

GEOMETRY = Geometry(size=64, pixel_mm=2.4, slices=24, first_mm=-66, last_mm=52, population="neonatal")
CONTRASTS: tuple[Contrast, ...] = ("T1w", "T2w")


def person(age: float, number: int = 0) -> Subject:
    return Subject(f"p{number}", derive_seed("neonatal test", number), age, "F")


@lru_cache
def born(age: float, number: int = 0) -> AnatomySlices:
    return render_newborn(person(age, number), GEOMETRY)


def median(image: np.ndarray, anatomy: AnatomySlices, compartment: str) -> float:
    pure = anatomy.fractions[1 + COMPARTMENTS.index(compartment)] > 0.9  # the first is background
    assert pure.sum() > 20, compartment
    return float(np.median(image[pure]))


# ---------------------------------------------------------------------------------------------- growth


def test_shares_are_the_measured_ones_and_sum_to_one() -> None:
    middles = [(low + high) / 2 for low, high in BINS]
    found = shares(middles)
    assert set(found) == set(GROUPS)
    for name, values in MEASURED.items():
        assert found[name] == pytest.approx(values), name
    assert np.sum(list(found.values()), axis=0) == pytest.approx(np.ones(len(BINS)))
    assert all(0.15 < share < 0.23 for share in found["CSF"])


def test_the_brain_grows_and_folds_with_age() -> None:
    weeks = np.arange(28, 46.5, 0.5)
    assert (np.diff(total_ml(weeks)) > 0).all()
    assert (np.diff(folding(weeks)) > 0).all()
    assert float(total_ml(40)) == pytest.approx(437)
    found = shares(weeks)
    assert (np.diff(found["cortical_GM"]) > 0).all()
    assert (np.diff(found["WM"]) < 0).all()
    assert (np.diff(found["cerebellum"]) > 0).all()


def test_age_can_be_read_off_the_shares_as_in_the_released_scans() -> None:
    """Correlations with age over 29 to 45 weeks: cortex .93, white matter -.83, cerebellum .74."""
    rng = np.random.default_rng(0)
    weeks = np.clip(rng.normal(40.07, 2.88, 400), 29.3, 45.1)
    people = [grow(float(age), "F", rng) for age in weeks]
    for name, published in (("cortical_GM", 0.93), ("WM", -0.83), ("cerebellum", 0.74)):
        correlation = np.corrcoef(weeks, [one.shares[name] for one in people])[0, 1]
        assert correlation == pytest.approx(published, abs=0.1), name
    assert all(sum(one.shares.values()) == pytest.approx(1) for one in people)


@pytest.mark.parametrize("age", [27.9, 46.1])
def test_growth_is_described_for_newborns_only(age: float) -> None:
    with pytest.raises(ValueError, match=r"from 28 to 46 weeks"):
        grow(age, "F", np.random.default_rng(0))


def test_one_person_is_larger_when_older() -> None:
    """The same seed at three ages: the differences between people are the same, growth is what is left."""
    pixels = {age: float(born(age).mask.sum()) for age in (37.0, 41.0, 45.0)}
    assert pixels[37.0] < pixels[41.0] < pixels[45.0]
    grey = {age: np.mean(born(age).labels[born(age).mask] == 1 + GROUPS.index("cortical_GM")) for age in pixels}
    assert grey[37.0] < grey[41.0] < grey[45.0]


def test_rendered_shares_are_the_persons() -> None:
    """Volumes are right by construction, up to what slices 5 mm apart see of them."""
    anatomy = born(41.0)
    own = grow(41.0, "F", np.random.default_rng(0)).shares
    for name in ("cortical_GM", "WM", "cerebellum", "deep_GM"):
        seen = np.mean(anatomy.labels[anatomy.mask] == 1 + GROUPS.index(name))
        assert seen == pytest.approx(own[name], abs=0.06), name


def test_every_tissue_is_there_and_a_person_is_the_same_each_time() -> None:
    anatomy = born(41.0)
    assert set(np.unique(anatomy.labels)) == set(range(len(GROUPS) + 1))
    again = render_newborn(person(41.0), GEOMETRY)
    assert np.array_equal(anatomy.labels, again.labels)
    assert np.array_equal(anatomy.fractions, again.fractions)
    assert not np.array_equal(anatomy.labels, born(41.0, 1).labels)


# -------------------------------------------------------------------------------------------- contrast


@pytest.mark.parametrize("place", [s.name for s in NEONATAL["T1w"]])
def test_contrast_is_the_reverse_of_an_adults(place: str) -> None:
    """T1w: unmyelinated white matter is darker than cortex, fluid is darkest. T2w: the other way round."""
    anatomy = born(40.0)
    seen = {
        contrast: {
            name: median(render(anatomy, neonatal_site(place, contrast), 3, tissues(40)), anatomy, name)
            for name in ("cerebral_GM", "cerebral_WM", "thalamus", "ventricles")
        }
        for contrast in CONTRASTS
    }
    t1, t2 = seen["T1w"], seen["T2w"]
    assert t1["thalamus"] > t1["cerebral_GM"] > t1["cerebral_WM"] > t1["ventricles"]
    assert t2["thalamus"] < t2["cerebral_GM"] < t2["cerebral_WM"] < t2["ventricles"]


def levels(place: str, contrast: Contrast) -> dict[str, float]:
    """Signals of the mean tissues at 40 weeks, by that of white matter."""
    signal = np.abs(neonatal_site(place, contrast).acquisition.signal(tissues(40)))
    found = dict(zip(COMPARTMENTS, signal, strict=True))
    return {name: float(value / found["cerebral_WM"]) for name, value in found.items()}


def test_t2_contrast_is_the_computed_one_and_hardly_differs_between_sites() -> None:
    """Signals at 40 weeks: dHCP .51, .32, .26, .86 for white matter, cortex, deep grey matter, fluid; V2LP alike."""
    dhcp, v2lp = levels("DHCP", "T2w"), levels("V2LP", "T2w")
    assert dhcp["cerebral_GM"] == pytest.approx(0.32 / 0.51, abs=0.03)
    assert dhcp["CSF"] == pytest.approx(0.86 / 0.51, abs=0.08)
    assert v2lp["cerebral_GM"] == pytest.approx(dhcp["cerebral_GM"], abs=0.03)


def test_t1_contrast_differs_between_sites() -> None:
    dhcp, v2lp = levels("DHCP", "T1w"), levels("V2LP", "T1w")
    assert abs(dhcp["cerebral_GM"] - v2lp["cerebral_GM"]) > 0.1
    assert abs(dhcp["CSF"] - v2lp["CSF"]) > 0.1


def test_white_matter_matures() -> None:
    """T2 of white matter falls by 6 ms a week; what myelinates early is 40 % below it; all relax faster with age."""
    of = {age: {t.label: t for t in tissues(age)} for age in (37.0, 40.0, 45.0)}
    assert of[40.0]["cerebral_WM"].t2 == pytest.approx(260)
    assert of[45.0]["cerebral_WM"].t2 == pytest.approx(230)
    assert of[40.0]["early_WM"].t2 == pytest.approx(0.6 * 260)
    for name in set(COMPARTMENTS) - {"CSF", "ventricles"}:
        assert of[37.0][name].t1 > of[40.0][name].t1 > of[45.0][name].t1, name
        assert of[37.0][name].t2 > of[40.0][name].t2 > of[45.0][name].t2, name
    assert of[37.0]["CSF"] == of[45.0]["CSF"]


def test_people_of_one_age_differ_a_little_in_maturity() -> None:
    white = np.array([tissues_of(40, seed)[COMPARTMENTS.index("cerebral_WM")].t2 for seed in range(300)])
    assert white.mean() == pytest.approx(260, abs=2)
    assert 3 < white.std() < 8, "0.8 weeks of 6 ms, and 2 % of T2"
    assert tissues_of(40, 5) == tissues_of(40, 5)


# ----------------------------------------------------------------------------------------------- sites


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_sites_share_anatomy_and_not_images(contrast: Contrast) -> None:
    anatomy = born(41.0)
    before = anatomy.fractions.copy()
    first, second = (render(anatomy, place, 7, tissues(41)) for place in NEONATAL[contrast])
    assert np.array_equal(anatomy.fractions, before)
    assert np.array_equal(first > 0, anatomy.mask)
    assert np.array_equal(second > 0, anatomy.mask)
    difference = np.abs(first.astype(float) - second)[anatomy.mask].mean()
    assert difference > 5
    assert np.array_equal(first, render(anatomy, NEONATAL[contrast][0], 7, tissues(41)))


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("number", [0, 1])
def test_ages_are_term_equivalent(contrast: Contrast, number: int) -> None:
    place = NEONATAL[contrast][number]
    ages = np.array([one.age for one in cohort(place, 300, 0)])
    assert place.age_normal is not None
    assert ages.min() >= 37
    assert ages.max() <= 45
    assert ages.mean() == pytest.approx(place.age_normal[0], abs=0.3)
    assert cohort(place, 5, 0) == cohort(place, 300, 0)[:5]


def test_numbers_of_scans_are_those_of_the_table() -> None:
    counts = {contrast: {s.name: s.scans for s in NEONATAL[contrast]} for contrast in CONTRASTS}
    assert counts == {"T1w": {"DHCP": 280, "V2LP": 122}, "T2w": {"DHCP": 333, "V2LP": 122}}


def test_an_unknown_site_lists_the_known() -> None:
    with pytest.raises(ValueError, match="known: DHCP, V2LP"):
        neonatal_site("OASIS", "T2w")

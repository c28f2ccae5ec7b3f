"""Images of one brain at several sites, and who is drawn for a site."""

import dataclasses

import numpy as np
import pytest

from harness.phantom.anatomy import AnatomySlices, Geometry, render_anatomy
from harness.phantom.cohort import Subject, cohort, derive_seed
from harness.phantom.physics import LABELS
from harness.phantom.render import bias_field, mix, render
from harness.phantom.sites import SITES, Site, site

PERSON = Subject("p", derive_seed("render", 0), 30.0, "M")
GEOMETRY = Geometry(size=96, pixel_mm=2.0, slices=6, first_mm=-40, last_mm=20)


@pytest.fixture(scope="module")
def anatomy() -> AnatomySlices:
    return render_anatomy(PERSON, GEOMETRY)


def median(image: np.ndarray, anatomy: AnatomySlices, label: str) -> float:
    pure = anatomy.fractions[LABELS.index(label)] > 0.98
    return float(np.median(image[pure]))


@pytest.mark.parametrize("place", SITES, ids=lambda s: s.name)
def test_images_are_stripped_8_bit_and_reproducible(anatomy: AnatomySlices, place: Site) -> None:
    image = render(anatomy, place, PERSON.seed)
    assert image.dtype == np.uint8
    assert image.shape == anatomy.labels.shape
    assert np.array_equal(image > 0, anatomy.mask)
    assert np.array_equal(image, render(anatomy, place, PERSON.seed))
    assert 0.003 < np.mean(image[anatomy.mask] == 255) < 0.008
    white, grey, fluid = (median(image, anatomy, n) for n in ("cerebral_WM", "cerebral_GM", "ventricles"))
    assert white > grey > fluid
    levels = np.abs(place.acquisition.signal(place.tissues))
    assert grey / white == pytest.approx(levels[0] / levels[1], abs=0.12)  # bias and jitter are in


def test_noise_free_contrast_is_the_sites(anatomy: AnatomySlices) -> None:
    for place in SITES:
        levels = place.acquisition.signal(place.tissues)
        clean = np.stack([mix(anatomy.fractions[:, k], levels) for k in range(GEOMETRY.slices)])
        ratio = median(clean, anatomy, "cerebral_GM") / median(clean, anatomy, "cerebral_WM")
        assert ratio == pytest.approx(abs(levels[0] / levels[1]), abs=0.01), place.name


def test_sites_differ_in_contrast_not_in_anatomy(anatomy: AnatomySlices) -> None:
    before = anatomy.fractions.copy()
    ratios = {}
    for place in SITES:
        image = render(anatomy, place, PERSON.seed)
        ratios[place.name] = median(image, anatomy, "cerebral_GM") / median(image, anatomy, "cerebral_WM")
    assert np.array_equal(anatomy.fractions, before)
    assert ratios["KKI"] < ratios["NYU"] < ratios["CALTECH"]
    assert ratios["CALTECH"] - ratios["KKI"] > 0.15


def test_another_person_gets_another_scan(anatomy: AnatomySlices) -> None:
    place = site("NYU")
    assert not np.array_equal(render(anatomy, place, 1), render(anatomy, place, 2))


def test_noise_has_the_sites_level(anatomy: AnatomySlices) -> None:
    quiet = dataclasses.replace(site("KKI"), bias_peak=0.0, noise=0.0)
    loud = dataclasses.replace(quiet, noise=0.05)
    white = anatomy.fractions[LABELS.index("cerebral_WM")] > 0.98
    clean, noisy = (render(anatomy, s, PERSON.seed).astype(float) for s in (quiet, loud))
    spread = np.std((noisy / np.median(noisy[white]) - clean / np.median(clean[white]))[white])
    assert spread == pytest.approx(0.05, rel=0.25)


def test_coarse_voxels_blur_and_correlate_the_noise() -> None:
    fine = render_anatomy(PERSON, Geometry(size=180, pixel_mm=1.0, slices=1, first_mm=-20, last_mm=0))
    small = dataclasses.replace(site("NYU"), bias_peak=0.0, noise=0.05, voxel_mm=(1.0, 1.0, 1.0))
    large = dataclasses.replace(small, voxel_mm=(1.3, 1.0, 1.3))
    rough = [np.abs(np.diff(render(fine, s, 3)[0].astype(float), axis=0)).mean() for s in (small, large)]
    assert rough[1] < 0.9 * rough[0]


def test_bias_field_is_smooth_and_bounded(anatomy: AnatomySlices) -> None:
    for place in SITES:
        field = bias_field(anatomy, place, PERSON.seed)
        inside = field[anatomy.mask]
        assert field.shape == anatomy.labels.shape
        assert inside.max() <= 1 + place.bias_peak + 1e-5
        assert inside.min() >= 1 / (1 + place.bias_peak) - 1e-5
        assert np.abs(np.diff(field, axis=1)).max() < 0.03
        assert not np.array_equal(field, bias_field(anatomy, place, PERSON.seed + 1))


def test_slices_without_a_brain_are_an_error(anatomy: AnatomySlices) -> None:
    empty = dataclasses.replace(anatomy, mask=np.zeros_like(anatomy.mask))
    with pytest.raises(ValueError, match="no brain"):
        render(empty, SITES[0], 0)


# ----------------------------------------------------------------------------------------- cohorts


def test_cohorts_are_stable_and_in_range() -> None:
    for place in SITES:
        people = cohort(place, 30, seed=7)
        assert people == cohort(place, 40, seed=7)[:30]
        assert all(place.age_range[0] <= p.age <= place.age_range[1] for p in people)
        assert {p.sex for p in people} == {"F", "M"}
        assert len({p.seed for p in people}) == len({p.id for p in people}) == 30
    assert cohort(SITES[0], 3, seed=1) != cohort(SITES[0], 3, seed=2)
    assert {p.seed for p in cohort(SITES[0], 9, 1)}.isdisjoint(p.seed for p in cohort(SITES[1], 9, 1))
    with pytest.raises(ValueError, match="n must be >= 0"):
        cohort(SITES[0], -1, seed=0)


def test_cohort_is_the_same_on_every_machine() -> None:
    """Pinned: a change here changes every published phantom number."""
    first = cohort(site("CALTECH"), 1, seed=0)[0]
    assert (first.id, first.seed, first.age, first.sex) == PINNED


def test_seeds_separate_their_parts() -> None:
    assert derive_seed("a", "bc") != derive_seed("ab", "c")
    assert derive_seed("1") != derive_seed(1)
    assert 0 <= derive_seed("x") < 2**63


def test_table_2_1() -> None:
    assert [(s.name, s.scans) for s in SITES] == [
        ("CALTECH", 19),
        ("KKI", 20),
        ("NYU", 20),
        ("PITT", 20),
        ("HBNSI", 77),
        ("HBNRU", 57),
        ("OASIS", 117),
    ]


PINNED: tuple[str, int, float, str] = ("CALTECH-0000", 2504125776669580808, 29.4, "M")

"""Patients of the phantom: lesions that are three-dimensional, leave ventricles alone, and look as real ones do."""

import dataclasses

import numpy as np
import pytest

from harness.phantom.anatomy import Individual, cut, render_anatomy
from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.geometry import AnatomySlices, Geometry
from harness.phantom.lesion_models import Push, Stroke, depth_below_surface, to_ventricles
from harness.phantom.lesions import (
    LESIONS,
    Disease,
    compartments,
    disease_of,
    grow,
    patient_tissues,
    render_patient,
)
from harness.phantom.physics import LABELS, TISSUES_3T
from harness.phantom.render import render
from harness.phantom.scanners import CONTRASTS, DEFAULT, SCANNERS, Contrast, scanner, with_gadolinium
from harness.phantom.sites import SITES
from harness.phantom.template import template

MIDDLE = Geometry(size=80, pixel_mm=2.5, slices=4, first_mm=2, last_mm=18, plane="axial")
WM, CSF, VENTRICLES = (LABELS.index(name) for name in ("cerebral_WM", "CSF", "ventricles"))


def person(index: int, age: float = 60.0) -> Subject:
    return Subject(f"p{index}", derive_seed("patient", index), age, "M" if index % 2 else "F")


def image(
    subject: Subject,
    anatomy: AnatomySlices,
    disease: Disease,
    contrast: Contrast,
    top: float,
    bias: float | None = None,
) -> np.ndarray:
    place = scanner(DEFAULT, contrast)
    place = place if bias is None else dataclasses.replace(place, bias_peak=bias)
    tissues = patient_tissues(subject, disease, place, contrast == "T1CE")
    return render(anatomy, place, subject.seed, tissues, top).astype(np.float32)


Patient = tuple[Subject, AnatomySlices, tuple[str, ...]]


def patients(disease: Disease, n: int, age: float = 60.0) -> list[Patient]:
    return [
        (p, render_patient(p, disease, MIDDLE), compartments(grow(p, disease)))
        for p in (person(i, age) for i in range(n))
    ]


@pytest.fixture(scope="module")
def tumours() -> list[Patient]:
    """Eight whose tumour reaches the slices in the middle, and is no speck there."""
    return [one for one in patients("tumour", 13) if np.count_nonzero(one[1].labels) > 150][:8]


# ------------------------------------------------------------------------------------------------- anatomy


@pytest.mark.parametrize("disease", ["none", "tumour", "stroke", "wmh", "mixed"])
def test_a_patient_is_a_brain_with_its_lesion(disease: Disease) -> None:
    subject = person(3, 72.0)
    anatomy = render_patient(subject, disease, MIDDLE)
    again = render_patient(dataclasses.replace(subject, id="another name"), disease, MIDDLE)
    assert np.array_equal(anatomy.fractions, again.fractions)
    np.testing.assert_allclose(anatomy.fractions.sum(axis=0, dtype=np.float32), 1, atol=0.01)
    assert anatomy.fractions.min() >= 0
    assert not anatomy.labels[~anatomy.mask].any()
    share = anatomy.fractions[len(LABELS) :].sum(axis=0, dtype=np.float32)
    lesion = anatomy.labels > 0
    assert np.all(share[lesion] >= 0.499)
    assert np.all(share[~lesion & anatomy.mask] < 0.501)
    if disease == "none":
        whole = render_anatomy(subject, MIDDLE)
        assert np.array_equal(anatomy.fractions, whole.fractions)
        assert not lesion.any()
        assert patient_tissues(subject, disease, SITES[0], False) == SITES[0].tissues


def test_labels_say_what_the_lesion_is(tumours: list[Patient]) -> None:
    seen = set(np.unique([anatomy.labels for _, anatomy, _ in tumours]))
    assert {LESIONS[value] for value in seen} == {"background", "necrosis", "oedema", "enhancing"}
    assert set(np.unique(render_patient(person(1), "stroke", MIDDLE).labels)) <= {0, LESIONS.index("stroke")}
    assert set(np.unique(render_patient(person(1, 75.0), "wmh", MIDDLE).labels)) == {0, LESIONS.index("wmh")}


def test_ventricles_are_pushed_and_never_rewritten(tumours: list[Patient]) -> None:
    for subject, anatomy, _ in tumours[:3]:
        (tumour,) = grow(subject, "tumour")
        one = Individual.of(subject)
        moved = cut(template(), one.head, lambda points, t=tumour, one=one: one.shares(t.pushed(points)), MIDDLE)
        assert np.array_equal(anatomy.fractions[VENTRICLES], moved.fractions[VENTRICLES])
        still = render_anatomy(subject, MIDDLE)
        assert not np.array_equal(moved.fractions[VENTRICLES], still.fractions[VENTRICLES])
        # The skull holds: the outline of the brain stays.
        assert np.mean(moved.mask != still.mask) < 0.003


def test_oedema_follows_white_matter(tumours: list[Patient]) -> None:
    found = 0
    for subject, anatomy, names in tumours[:4]:
        oedema = anatomy.fractions[len(LABELS) + names.index("oedema")] > 0.5
        (tumour,) = grow(subject, "tumour")
        one = Individual.of(subject)
        before = cut(template(), one.head, lambda points, t=tumour, one=one: one.shares(t.pushed(points)), MIDDLE)
        assert np.all(before.fractions[WM][oedema] > 0.49)
        found += int(oedema.sum())
    assert found > 400


def test_a_push_moves_most_at_the_tumour_and_folds_nothing() -> None:
    push = Push((30.0, -10.0, 15.0), 14.0, 6.0)
    steps = np.linspace(0, 60, 601, dtype=np.float32)
    inwards = np.stack([30 - steps, np.full_like(steps, -10), np.full_like(steps, 15)])
    came_from = 30 - push.source(inwards)[0]
    moved = steps - came_from
    assert np.all(np.diff(came_from) > 0)
    assert moved.max() == pytest.approx(6, abs=0.1)
    assert abs(steps[moved.argmax()] - 14) < 0.2
    assert moved[-1] < 0.3
    outwards = np.stack([30 + steps, np.full_like(steps, -10), np.full_like(steps, 15)])
    surface = depth_below_surface(outwards) == 0
    assert surface.any()
    assert np.array_equal(push.source(outwards)[:, surface], outwards[:, surface])


def test_neighbouring_slices_agree_and_healthy_slices_remain() -> None:
    geometry = Geometry(size=80, pixel_mm=2.5, slices=40, first_mm=-50, last_mm=70, plane="axial")
    for index in range(2):
        lesion = render_patient(person(index), "tumour", geometry).labels > 0
        touched = lesion.any(axis=(1, 2))
        assert 5 <= touched.sum() <= 32
        (runs,) = np.nonzero(np.diff(np.concatenate([[0], touched.astype(int), [0]])) == 1)
        assert len(runs) <= 2
        both = lesion[:-1] & lesion[1:]
        overlap = 2 * both.sum(axis=(1, 2)) / np.maximum(lesion[:-1].sum(axis=(1, 2)) + lesion[1:].sum(axis=(1, 2)), 1)
        large = (lesion[:-1].sum(axis=(1, 2)) > 60) & (lesion[1:].sum(axis=(1, 2)) > 60)
        assert overlap[large].min() > 0.5


def test_hyperintense_white_matter_lies_at_the_ventricles() -> None:
    from scipy import ndimage

    near, far = 0.0, 0.0
    for _, anatomy, _ in patients("wmh", 3, 75.0):
        lesion = anatomy.fractions[len(LABELS)].astype(np.float32)
        white = anatomy.fractions[WM].astype(np.float32) + lesion
        for index in range(len(lesion)):
            distance = 2.5 * ndimage.distance_transform_edt(anatomy.fractions[VENTRICLES][index] < 0.5)
            near += (
                lesion[index][(distance > 0) & (distance <= 6)].sum()
                / white[index][(distance > 0) & (distance <= 6)].sum()
            )
            far += lesion[index][distance > 20].sum() / white[index][distance > 20].sum()
    assert near / 12 > 0.2
    assert far / 12 < 0.02


def test_old_people_have_more_of_it() -> None:
    young, old = (
        sum((render_patient(person(i, age), "wmh", MIDDLE).labels > 0).sum() for i in range(2)) for age in (50.0, 85.0)
    )
    assert old > 2 * young > 0


def test_all_sizes_of_strokes_occur_and_small_ones_are_many() -> None:
    """THOR's bins, pixels of 2 mm in one mid-axial slice: up to 71, up to 570, above."""
    geometry = Geometry(size=64, pixel_mm=3.2, slices=1, first_mm=20, last_mm=26, plane="axial")
    areas = [(render_patient(person(i), "stroke", geometry).labels > 0).sum() * (3.2 / 2) ** 2 for i in range(40)]
    counts = np.histogram(areas, [3, 71, 570, 10000])[0]
    assert counts[0] >= 7
    assert counts[1] >= 10
    assert counts[2] >= 1
    assert np.count_nonzero(np.array(areas) == 0) >= 3


def test_stroke_volumes_are_log_normal() -> None:
    radii = [Stroke.grown(np.random.default_rng(seed)).core.radius for seed in range(150)]
    volumes = 4 / 3 * np.pi * np.array(radii) ** 3 / 1000
    assert np.median(volumes) == pytest.approx(4, rel=0.6)
    assert np.std(np.log(volumes)) == pytest.approx(2.2, abs=0.4)


def test_a_mixed_cohort_has_all_three_diseases() -> None:
    assert {disease_of(person(i), "mixed") for i in range(20)} == {"stroke", "tumour", "wmh"}
    subject = person(4)
    one = disease_of(subject, "mixed")
    mixed, alone = render_patient(subject, "mixed", MIDDLE), render_patient(subject, one, MIDDLE)
    assert np.array_equal(mixed.fractions, alone.fractions)


def test_distances_to_the_ventricles_are_in_mm() -> None:
    points = np.array([[-15.0, 15.0, 40.0], [-15.0, -15.0, -15.0], [20.0, 20.0, 20.0]], np.float32)
    near_left, near_right, lateral = to_ventricles(points)
    assert max(near_left, near_right) < 4
    assert 10 < lateral < 30


# ---------------------------------------------------------------------------------------------- appearance

REAL = {
    # Ratio to normal brain, and tolerance: one real glioma (BRATS HG0015), of which oedema and core were measured.
    ("oedema", "T1w"): (0.93, 0.08),
    ("oedema", "T1CE"): (0.85, 0.10),
    ("oedema", "T2w"): (1.81, 0.25),
    ("oedema", "FLAIR"): (1.71, 0.25),
    ("enhancing", "T1CE"): (1.73, 0.40),
    ("necrosis", "T1w"): (0.79, 0.20),
    ("necrosis", "FLAIR"): (1.39, 0.30),
}


def test_tumours_differ_from_normal_brain_as_real_ones_do(tumours: list[Patient]) -> None:
    ratios: dict[tuple[str, Contrast], list[float]] = {}
    for subject, anatomy, names in tumours:
        fluid = anatomy.fractions[[CSF, VENTRICLES]].sum(axis=0, dtype=np.float32)
        normal = anatomy.mask & (anatomy.labels == 0) & (fluid < 0.1)
        for contrast in CONTRASTS:
            levels = image(subject, anatomy, "tumour", contrast, 100, bias=0.0)
            for index, name in enumerate(names):
                pure = anatomy.fractions[len(LABELS) + index] > 0.9
                if pure.sum() > 15:
                    ratio = float(np.median(levels[pure]) / np.median(levels[normal]))
                    ratios.setdefault((name, contrast), []).append(ratio)
    for key, (real, tolerance) in REAL.items():
        assert np.median(ratios[key]) == pytest.approx(real, abs=tolerance), key
    # Only gadolinium shows where the barrier is open.
    assert np.median(ratios["enhancing", "T1w"]) < 1
    assert np.median(ratios["necrosis", "T1CE"]) < 0.8


def test_white_matter_changes_differ_from_white_matter_as_real_ones_do() -> None:
    """Against real multiple sclerosis: T1w .65-.79, T2w 1.6-2.0, FLAIR 1.40-1.42; ours are less dark on T1w."""
    ratios: dict[Contrast, list[float]] = {contrast: [] for contrast in CONTRASTS}
    for subject, anatomy, _ in patients("wmh", 2, 78.0):
        lesion, white = anatomy.fractions[len(LABELS)] > 0.9, anatomy.fractions[WM] > 0.95
        for contrast in CONTRASTS:
            levels = image(subject, anatomy, "wmh", contrast, 100)
            ratios[contrast].append(float(np.median(levels[lesion]) / np.median(levels[white])))
    found = {contrast: np.mean(values) for contrast, values in ratios.items()}
    assert 0.65 < found["T1w"] < 0.92
    assert 0.65 < found["T1CE"] < 0.88
    assert 1.6 < found["T2w"] < 2.1
    assert 1.35 < found["FLAIR"] < 1.75


def test_a_cavity_is_dark_on_flair_within_a_bright_rim() -> None:
    large = next(p for p in (person(i) for i in range(40)) if grow(p, "stroke")[0].core.radius > 18)  # type: ignore[attr-defined]
    geometry = Geometry(size=128, pixel_mm=1.5, slices=2, first_mm=5, last_mm=25, plane="axial")
    anatomy = render_patient(large, "stroke", geometry)
    levels = {contrast: image(large, anatomy, "stroke", contrast, 100) for contrast in CONTRASTS}
    white = anatomy.fractions[WM] > 0.98
    cavity, rim = (anatomy.fractions[len(LABELS) + i] > 0.85 for i in (0, 1))
    assert cavity.sum() > 50
    assert rim.sum() > 25
    flair, t1 = levels["FLAIR"] / np.median(levels["FLAIR"][white]), levels["T1w"] / np.median(levels["T1w"][white])
    assert np.median(flair[cavity]) < 0.8
    assert np.median(flair[rim]) > 1.3
    assert np.median(t1[cavity]) < 0.65


def test_flair_shows_tumours_best_and_t1_least(tumours: list[Patient]) -> None:
    """The order of the real data (REFLECT: FLAIR 85, T2 80, T1CE 73, T1 70), by distance from the slice's median."""
    from sklearn.metrics import roc_auc_score

    found: dict[Contrast, list[float]] = {contrast: [] for contrast in CONTRASTS}
    for subject, anatomy, _ in tumours:
        for contrast in CONTRASTS:
            levels = image(subject, anatomy, "tumour", contrast, 98)
            scores, truth = [], []
            for index, inside in enumerate(anatomy.mask):
                lesion = anatomy.labels[index] > 0
                middle = np.median(levels[index][inside & ~lesion])
                scores.append(np.abs(levels[index][inside] - middle))
                truth.append(lesion[inside])
            found[contrast].append(roc_auc_score(np.concatenate(truth), np.concatenate(scores)))
    mean = {contrast: float(np.mean(values)) for contrast, values in found.items()}
    assert mean["FLAIR"] > mean["T2w"] + 0.02
    assert mean["T2w"] > mean["T1CE"] + 0.1
    assert mean["T1CE"] > mean["T1w"] + 0.05
    assert mean["FLAIR"] > 0.85


# ------------------------------------------------------------------------------------------------ scanners


def test_scanners_have_their_contrasts() -> None:
    assert set(SCANNERS) == set(CONTRASTS)
    for contrast, places in SCANNERS.items():
        names = [place.name for place in places]
        assert DEFAULT in names
        assert len(names) == len(set(names))
        for place in places:
            assert scanner(place.name, contrast) is place
            levels = dict(zip(LABELS[1:], np.abs(place.acquisition.signal(place.tissues)), strict=True))
            grey, white, fluid = (levels[name] for name in ("cerebral_GM", "cerebral_WM", "ventricles"))
            assert (white > grey) == (contrast in ("T1w", "T1CE")), (contrast, place.name)
            assert (fluid > grey) == (contrast == "T2w"), (contrast, place.name)
    assert len({place.stream for places in SCANNERS.values() for place in places}) == sum(map(len, SCANNERS.values()))
    with pytest.raises(ValueError, match="no FLAIR scanner 'IXI'; known: BRATS"):
        scanner("IXI", "FLAIR")


def test_gadolinium_shortens_t1_of_what_has_vessels() -> None:
    for before, after in zip(TISSUES_3T, with_gadolinium(TISSUES_3T), strict=True):
        assert after.t1 == before.t1 if before.label in ("CSF", "ventricles") else after.t1 < before.t1
    subject = person(0)
    places = {contrast: scanner(DEFAULT, contrast) for contrast in CONTRASTS}
    tissues = {c: {t.label: t for t in patient_tissues(subject, "tumour", p, c == "T1CE")} for c, p in places.items()}
    assert tissues["T1CE"]["enhancing"].t1 < 0.35 * tissues["T1w"]["enhancing"].t1
    assert tissues["T1CE"]["oedema"] == tissues["T1w"]["oedema"] == tissues["FLAIR"]["oedema"]
    low = patient_tissues(subject, "tumour", next(s for s in SITES if s.field_t < 3), False)
    assert low[-1].t1 == pytest.approx(0.8 * patient_tissues(subject, "tumour", SITES[0], False)[-1].t1)

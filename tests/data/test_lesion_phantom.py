"""The phantom's patients as a data set: cards, cohorts at several contrasts, chosen slices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness import yamlfile
from harness.data import arrays
from harness.data.card import load_card
from harness.data.dataset import open_dataset
from harness.data.phantom_patients import PatientDataset
from harness.engine.plan import Stage
from harness.phantom.lesions import LESIONS
from harness.problems import UserError

RunStage = Callable[[Stage], Path]
SMALL = "scans: 10, slices: {size: 64, pixel_mm: 3.2, count: 3, range: [0.40, 0.70]}"


@pytest.fixture
def patients(tmp_path: Path) -> Callable[..., PatientDataset]:
    """A built-in card with fields replaced."""

    def make(changes: str = SMALL, card: str = "phantom_s2") -> PatientDataset:
        path = tmp_path / "bench.yaml"
        path.write_text(f"data:\n  card: {card}\n  with: {{{changes}}}\n")
        document = yamlfile.read(path)
        found = open_dataset(load_card(document, document.data["data"]), None, tmp_path / "cache")
        assert isinstance(found, PatientDataset)
        return found

    return make


Patients = Callable[..., PatientDataset]


@pytest.mark.parametrize(
    ("card", "sites", "scans"),
    [
        ("phantom_s1", {"HEALTHY": "T1w", "STROKE": "T1w"}, [581, 655]),
        ("phantom_s2", {"FLAIR": "FLAIR", "T1CE": "T1CE", "T2": "T2w", "T1": "T1w"}, [1251] * 4),
    ],
)
def test_the_cards_at_their_published_size(
    patients: Patients, card: str, sites: dict[str, str], scans: list[int]
) -> None:
    data = patients("slices: {}", card)
    assert {site: data.modality(site) for site in data.sites} == sites
    assert [len(data.scans(site)) for site in data.sites] == scans
    assert data.label_names == LESIONS
    assert data.audit(data.sites) == []
    assert data.missing() == []
    slices = data.card.slices
    assert (slices.plane, slices.size, slices.pixel_mm) == ("axial", 256, 1.0)
    assert data.card.intensity.percentile == 98
    assert data.summary()["sites"][data.sites[-1]]["lesioned"]


def test_one_cohort_is_the_same_people_with_the_same_lesions(patients: Patients, run_stage: RunStage) -> None:
    data = patients()
    people = {site: data.scans(site) for site in data.sites}
    assert len(set(people.values())) == 1
    assert all(20 <= person.age <= 85 for person in people["T1"])
    images = {site: arrays.load_images(run_stage(data.images(site, "test"))) for site in data.sites}
    labels = {site: arrays.load_labels(run_stage(data.labels(site, "test"))) for site in data.sites}
    first = images["FLAIR"]
    for site in data.sites:
        assert images[site].scans == labels[site].scans
        assert {scan.modality for scan in images[site].scans} == {data.modality(site)}
        assert [(s.id, s.start, s.stop) for s in images[site].scans] == [(s.id, s.start, s.stop) for s in first.scans]
        assert np.array_equal(images[site].mask, first.mask)
        assert np.array_equal(images[site].pixels > 0, first.mask)
        assert np.array_equal(labels[site].labels, labels["FLAIR"].labels)
        assert 0.015 < np.mean(images[site].pixels[first.mask] == 255) < 0.03
    assert len({images[site].pixels.tobytes() for site in data.sites}) == 4
    assert labels["T1"].labels.any()
    assert np.all(first.mask[labels["T1"].labels > 0])
    keys = [data.images(site, "test").key for site in data.sites] + [
        data.labels(site, "test").key for site in data.sites
    ]
    assert len(set(keys)) == 8


def test_slices_of_patients_are_chosen(patients: Patients, run_stage: RunStage) -> None:
    data = patients(SMALL.replace("scans: 10", "scans: 6"))
    assert [data.lesioned(site) for site in data.sites] == [True] * 4
    every = arrays.load_labels(run_stage(data.labels("T2", "all"))).labels
    areas = np.count_nonzero(every, axis=(1, 2)).reshape(6, 3)
    assert 0 < np.count_nonzero(areas == 0) < 18
    healthy = arrays.load_images(run_stage(data.images("T2", "all", choice="healthy")))
    assert len(healthy) == np.count_nonzero(areas == 0)
    largest = arrays.load_labels(run_stage(data.labels("T2", "all", "largest")))
    assert [scan.stop - scan.start for scan in largest.scans] == [1] * len(largest.scans)
    assert np.count_nonzero(largest.labels, axis=(1, 2)).tolist() == [row.max() for row in areas if row.any()]
    assert data.audit_choice("T2", "test", "largest") == []


def test_healthy_people_and_patients_of_another_scanner(patients: Patients, run_stage: RunStage) -> None:
    data = patients("scans: 10, slices: {size: 64, pixel_mm: 3.2}", "phantom_s1")
    assert [data.healthy(site) for site in data.sites] == [True, False]
    assert [data.labelled(site) for site in data.sites] == [False, True]
    assert not {p.id for p in data.scans("HEALTHY")} & {p.id for p in data.scans("STROKE")}
    healthy = arrays.load_images(run_stage(data.images("HEALTHY", "train", choice="healthy")))
    assert len(healthy) == len(data.scans("HEALTHY", "train"))
    assert not arrays.load_labels(run_stage(data.labels("HEALTHY", "train"))).labels.any()
    sick = arrays.load_labels(run_stage(data.labels("STROKE", "all", "lesions")))
    assert 3 < len(sick.scans) <= 10
    assert set(np.unique(sick.labels)) == {0, LESIONS.index("stroke")}
    assert "healthy" in str(data.choice_trouble("HEALTHY", "largest"))
    elsewhere = arrays.load_images(run_stage(data.images("HEALTHY", "test", rendered_at="STROKE")))
    here = arrays.load_images(run_stage(data.images("HEALTHY", "test")))
    assert np.array_equal(elsewhere.mask, here.mask)
    assert not np.array_equal(elsewhere.pixels, here.pixels)


def test_who_they_are_depends_on_the_cohort_not_on_the_scanner(patients: Patients) -> None:
    data = patients(f"{SMALL}, sites: {{T1: {{scanner: NYU}}, MORE: {{disease: tumour, modality: T2w, scanner: IXI}}}}")
    assert data.scans("T1") == data.scans("FLAIR")
    assert not {p.id for p in data.scans("MORE")} & {p.id for p in data.scans("T1")}
    assert data.images("T1", "test").params["scanner"] == "NYU"
    assert data.images("MORE", "test").params["scanner"] == "IXI"
    old = patients(f"{SMALL}, sites: {{OLD: {{disease: wmh, modality: FLAIR}}}}").scans("OLD")
    assert min(person.age or 0 for person in old) >= 45


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ("sites: {T1: {scanner: IXY}}", "the phantom has no T1w scanner 'IXY'; did you mean IXI?"),
        ("sites: {FLAIR: {scanner: NYU}}", "the phantom has no FLAIR scanner 'NYU'; known: BRATS"),
        ("sites: {T1: {modality: PD}}", "the phantom has no contrast 'PD'; give modality: T1w, T1CE, T2w, FLAIR"),
        ("sites: {X: {disease: stroke}}", "the phantom has no contrast 'mixed'"),
        ("sites: {T1: {disease: stroke}}", "FLAIR has the same people, and disease tumour"),
        ("sites: {T1: {disease: flu}}", "disease"),
        ("labels: adult15", "write labels: lesions"),
        ("lesions: false", "goes with patients; write lesions: true in the card, or drop it"),
        ("population: neonatal, age_unit: weeks", "lesions grow in adults only"),
        ("anatomies: maps", "lesions grow in the simulated people only"),
        ("intensity: none", "write {percentile: 99.5}, or max"),
        ("slices: {at: [70, 89]}", "the phantom has no voxels to count"),
        ("slices: {size: 56}", "a brain needs 190 mm or more"),
    ],
)
def test_mistakes_are_told(patients: Patients, changes: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        patients(changes)
    assert what in str(error.value)


def test_the_percentile_is_an_adults_too_and_changes_no_key_where_it_is_the_phantoms_own(tmp_path: Path) -> None:
    def stage(changes: str) -> Stage:
        path = tmp_path / "bench.yaml"
        path.write_text(f"data:\n  card: phantom_adult_t1\n  with: {{scans: 3, {changes}}}\n")
        document = yamlfile.read(path)
        return open_dataset(load_card(document, document.data["data"]), None, tmp_path / "cache").images("NYU", "test")

    own = stage("seed: 0")
    assert "percentile" not in own.params
    assert stage("intensity: {percentile: 99.5}").key == own.key
    assert stage("intensity: {percentile: 98}").params["percentile"] == 98

"""The painted template, individual brains, and label maps as anatomies."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from harness.phantom.anatomy import (
    SMALL,
    AnatomySlices,
    Geometry,
    anatomy_from_labels,
    render_anatomy,
    warp,
)
from harness.phantom.cohort import Subject, derive_seed
from harness.phantom.physics import LABELS
from harness.phantom.template import template
from harness.phantom.warping import COARSE

REAL = Path(__file__).resolve().parents[3] / "shared" / "real_data"
WHOLE = Geometry(size=80, pixel_mm=2.0, slices=41, first_mm=-96, last_mm=64)  # 4 mm apart
PEOPLE = tuple(Subject(f"s{k}", derive_seed("test", k), 18.0 + 8 * k, "FM"[k % 2]) for k in range(8))


@cache
def brain(k: int) -> AnatomySlices:
    return render_anatomy(PEOPLE[k], WHOLE)


def volumes(anatomy: AnatomySlices) -> np.ndarray:
    return np.bincount(anatomy.labels.ravel(), minlength=len(LABELS)) * np.prod(anatomy.spacing) / 1000


def dice(a: AnatomySlices, b: AnatomySlices, label: int) -> float:
    x, y = a.labels == label, b.labels == label
    return float(2 * (x & y).sum() / (x.sum() + y.sum()))


# ---------------------------------------------------------------------------------------- template


def test_template_is_symmetric_and_shares_sum_to_the_tissue() -> None:
    t = template()
    assert t.memberships.shape[0] == 14
    assert np.array_equal(t.memberships, t.memberships[:, ::-1])
    total = t.memberships.sum(axis=0, dtype=np.int32)
    assert total.max() <= 255 + 7
    inside = total > 0
    assert np.mean(total[inside] > 248) > 0.99
    assert template() is t


def test_structures_lie_where_mindboggle_puts_them() -> None:
    """Centroids of the right half against those measured on Mindboggle-MNI, mm RAS."""
    expected = {
        "thalamus": (12, -18, 7),
        "caudate": (14, 10, 10),
        "putamen": (26, 2, 0),
        "pallidum": (20, -3, -1),
        "hippocampus": (26, -21, -14),
        "amygdala": (22, -4, -20),
        "ventral_DC": (11, -16, -10),
    }
    t = template()
    for label, centre in expected.items():
        mass = t.memberships[LABELS.index(label) - 1].astype(float)
        mass[: round(-t.origin[0])] = 0
        found = [
            np.average(np.arange(n) + o, weights=mass.sum(axis=tuple(a for a in range(3) if a != axis)))
            for axis, (n, o) in enumerate(zip(mass.shape, t.origin, strict=True))
        ]
        assert np.linalg.norm(np.subtract(found, centre)) < 5, (label, found)


# -------------------------------------------------------------------------------------- individuals


def test_mean_volumes_match_real_brains() -> None:
    """Means over eight adults against 35 real OASIS-1 scans, both sides, ml.

    Brainstem and cerebellar white matter: wider, real field and template are cropped differently.
    """
    real = {
        "cerebral_GM": (612, 0.15),
        "cerebral_WM": (433, 0.15),
        "cerebellum_GM": (116, 0.15),
        "cerebellum_WM": (29, 0.25),
        "ventricles": (23.9, 0.45),
        "brainstem": (18.6, 0.4),
        "thalamus": (16.3, 0.2),
        "hippocampus": (7.4, 0.2),
        "putamen": (9.3, 0.2),
        "caudate": (6.7, 0.2),
        "pallidum": (3.1, 0.2),
        "amygdala": (2.0, 0.25),
        "ventral_DC": (10.0, 0.25),
    }
    mean = np.mean([volumes(brain(k)) for k in range(len(PEOPLE))], axis=0)
    for label, (ml, tolerance) in real.items():
        assert mean[LABELS.index(label)] == pytest.approx(ml, rel=tolerance), label
    assert 80 < mean[LABELS.index("CSF")] < 260


def test_volumes_vary_between_people() -> None:
    v = np.array([volumes(brain(k)) for k in range(len(PEOPLE))])[:, 1:]
    spread = v.std(axis=0) / v.mean(axis=0)
    assert spread.min() > 0.025
    assert spread[LABELS.index("hippocampus") - 1] < 0.35


def test_people_differ_and_every_label_is_there() -> None:
    for k in range(len(PEOPLE)):
        assert set(np.unique(brain(k).labels)) == set(range(15))
    cortex = [dice(brain(0), brain(k), LABELS.index("cerebral_GM")) for k in range(1, 5)]
    assert 0.3 < np.mean(cortex) < 0.75
    assert np.mean([dice(brain(0), brain(k), LABELS.index("putamen")) for k in range(1, 5)]) < 0.85


def test_brains_are_asymmetric() -> None:
    labels = brain(0).labels
    assert np.mean(labels != labels[..., ::-1]) > 0.03


def test_ventricles_grow_with_age() -> None:
    ventricles = LABELS.index("ventricles")
    old = render_anatomy(Subject("old", PEOPLE[0].seed, 85.0, "F"), WHOLE)
    assert volumes(old)[ventricles] > 1.4 * volumes(brain(0))[ventricles]
    assert volumes(old)[1] < volumes(brain(0))[1]


def test_deformation_is_a_diffeomorphism() -> None:
    for person in PEOPLE[:4]:
        displacement = warp(person).displacement
        assert 1.5 < displacement.std() < 5
        jacobian = np.stack([np.stack(np.gradient(d, COARSE)) for d in displacement])
        jacobian += np.eye(3)[:, :, None, None, None]
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0.02


def test_same_subject_same_brain_at_any_time_and_resolution() -> None:
    again = render_anatomy(PEOPLE[0], WHOLE)
    assert np.array_equal(again.fractions, brain(0).fractions)
    finer = render_anatomy(PEOPLE[0], Geometry(160, 1.0, 41, -96, 64))
    halved = finer.fractions.reshape(15, 41, 80, 2, 80, 2).mean(axis=(3, 5), dtype=np.float32)
    assert np.abs(halved - brain(0).fractions).max() < 0.01


def test_slices_are_consistent_and_upright() -> None:
    a = brain(1)
    n = WHOLE.slices
    assert a.labels.shape == (n, 80, 80)
    assert a.labels.dtype == np.uint8
    assert a.fractions.shape == (15, n, 80, 80)
    assert a.fractions.dtype == np.float16
    assert a.spacing == (4.0, 2.0, 2.0)
    assert np.array_equal(a.mask, a.labels > 0)
    np.testing.assert_allclose(a.fractions.sum(axis=0, dtype=np.float32), 1, atol=5e-3)

    def centre(label: str, axis: int) -> float:
        return float(np.mean(np.nonzero(a.labels == LABELS.index(label))[axis]))

    assert centre("thalamus", 1) < centre("brainstem", 1)  # superior is up
    assert centre("cerebellum_GM", 0) < centre("brainstem", 0) < centre("caudate", 0)  # back to front


def test_geometry_errors() -> None:
    with pytest.raises(ValueError, match=r"64 pixels of 1\.0 mm see 64 mm"):
        Geometry(64, 1.0)
    with pytest.raises(ValueError, match="no slices between"):
        Geometry(first_mm=10, last_mm=-10)
    assert Geometry(slices=1).positions.tolist() == [-17.0]
    assert SMALL.spacing == (8.0, 2.0, 2.0)


# --------------------------------------------------------------------------------------- label maps


def test_anatomy_from_real_labels() -> None:
    folder = REAL / "synthseg_labels15"
    if not folder.is_dir():
        pytest.skip("../shared/real_data is absent: no real label maps to try")
    assert tuple(json.loads((REAL / "labels15.json").read_text())) == LABELS
    a = anatomy_from_labels(folder / "sub_03_dseg15.nii.gz", WHOLE)
    assert set(np.unique(a.labels)) == set(range(15))
    import nibabel as nib

    truth = np.bincount(np.asarray(nib.load(folder / "sub_03_dseg15.nii.gz").dataobj).ravel(), minlength=15)
    for label in ("cerebral_GM", "cerebral_WM", "thalamus", "putamen", "ventricles"):
        k = LABELS.index(label)
        assert volumes(a)[k] == pytest.approx(truth[k] / 1000, rel=0.12), label
    assert volumes(a)[LABELS.index("CSF")] < 300
    rows = np.nonzero(a.labels == LABELS.index("thalamus"))[1]
    assert rows.mean() < np.nonzero(a.labels == LABELS.index("brainstem"))[1].mean()


def test_label_maps_are_checked(tmp_path: Path) -> None:
    import nibabel as nib

    data = np.zeros((20, 20, 20), dtype=np.uint8)
    data[5:15, 5:15, 5:15] = 42
    nib.save(nib.Nifti1Image(data, np.eye(4)), tmp_path / "foreign.nii.gz")
    with pytest.raises(ValueError, match=r"label values \[42\]"):
        anatomy_from_labels(tmp_path / "foreign.nii.gz", WHOLE)
    nib.save(nib.Nifti1Image(data, np.diag([2, 2, 2, 1])), tmp_path / "coarse.nii.gz")
    with pytest.raises(ValueError, match="resample the labels to 1 mm"):
        anatomy_from_labels(tmp_path / "coarse.nii.gz", WHOLE)

"""The cards of lesion data: what they find in trees laid out as the real ones, and in real scans at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nifti_files import write_volume
from png_files import write_png

from harness import yamlfile
from harness.data import arrays
from harness.data.card import load_card, read_card
from harness.data.dataset import Dataset, open_dataset
from harness.data.schema import SPLITS
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

REPO = Path(__file__).resolve().parents[2]
SHAPE = (18, 22, 120)
"""Few voxels across, all slices of the published settings along z."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The orientation of BraTS: x and y are stored from right to left and from front to back."""


def brain(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask in RAS: a box of noise whose corner at the left, back is bright, darker with every slice."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[3:15, 3:19, 10:115] = True
    image = rng.integers(300, 600, SHAPE).astype(np.int16)
    image[3:6, 3:6] = 2000 - np.arange(SHAPE[2])
    return image, mask


def lesion(slices: dict[int, int], value: int = 1) -> np.ndarray:
    """A label volume in RAS: in each of these slices a square of that side, its corner at x 8, y 10."""
    label = np.zeros(SHAPE, np.uint8)
    for z, side in slices.items():
        label[8 : 8 + side, 10 : 10 + side, z] = value
    return label


def opened(card: str, root: Path | None, cache: Path, more: dict[str, Any] | None = None) -> Dataset:
    """A built-in card, with fields replaced as a benchmark file does it."""
    path = cache.parent / "bench.yaml"
    path.write_text(json.dumps({"data": {"card": card, "with": more or {}}}))
    document = yamlfile.read(path)
    return open_dataset(load_card(document, document.data["data"]), root, cache)


def lines(data: Dataset, *sites: str) -> list[str]:
    return [str(problem) for problem in data.audit(sites or data.sites)]


# -------------------------------------------------------------------------------------------- IXI, ATLAS

ATLAS = "ATLAS_2/Training/{0}/sub-{1}/ses-1/anat/sub-{1}_ses-1_space-MNI152NLin2009aSym_{2}.nii.gz"
CENTRES = {"IXI002": "Guys-0828", "IXI012": "HH-1211", "IXI035": "IOP-0873", "IXI039": "HH-1261", "IXI040": "Guys-0724"}
STROKES = {
    "r001s001": {94: 3, 95: 2},
    "r001s002": {95: 4, 96: 5, 104: 6},
    "r002s001": {30: 5},
    "r009s005": {85: 2},
    "r010s003": {},
}


@pytest.fixture
def strokes(tmp_path: Path) -> Path:
    """IXI and ATLAS as they lie on disk, other files beside those that the cards read."""
    root = tmp_path / "data"
    for i, (who, where) in enumerate(CENTRES.items()):
        write_volume(root / "ixi" / f"{who}-{where}-T1.nii.gz", brain(i)[0])
        write_volume(root / "ixi" / f"{who}-{where}-T2.nii.gz", brain(50 + i)[0])
    for i, (who, slices) in enumerate(STROKES.items()):
        folder = who[:4].upper()
        write_volume(root / ATLAS.format(folder, who, "T1w"), brain(100 + i)[0])
        write_volume(root / ATLAS.format(folder, who, "label-L_desc-T1lesion_mask"), lesion(slices))
    write_volume(root / "mni152_brain_mask.nii.gz", brain(0)[1].astype(np.uint8))
    (root / "ATLAS_2/20220425_ATLAS_2.0_MetaData.xlsx").write_bytes(b"PK")
    return root


def test_what_ixi_atlas_finds(strokes: Path, tmp_path: Path) -> None:
    data = opened("ixi_atlas", strokes, tmp_path / "cache")
    assert data.missing(data.sites) == []
    assert lines(data) == []
    assert [scan.subject for scan in data.scans("IXI")] == [f"IXI-{who}" for who in CENTRES]
    assert [scan.id for scan in data.scans("ATLAS")] == [f"ATLAS-{who}" for who in STROKES]
    assert (data.healthy("IXI"), data.lesioned("IXI")) == (True, False)
    assert (data.healthy("ATLAS"), data.lesioned("ATLAS")) == (False, True)
    assert len(data.scans("ATLAS", "all")) == len(STROKES)
    assert not {s.subject for s in data.scans("IXI")} & {s.subject for s in data.scans("ATLAS")}
    assert data.label_names == ("background", "lesion")


def test_ixi_atlas_cuts_slice_95_of_the_grid(strokes: Path, tmp_path: Path, run_stage: RunStage) -> None:
    data = opened("ixi_atlas", strokes, tmp_path / "cache")
    images = arrays.load_images(run_stage(data.images("IXI", "train", choice="healthy")))
    assert images.pixels.shape == (len(data.scans("IXI", "train")), 256, 256)
    assert images.mask.sum() == len(images) * 12 * 16
    for index, scan in enumerate(images.scans):
        image, mask = brain(list(CENTRES).index(scan.subject.removeprefix("IXI-")))
        top = np.percentile(image[mask], 98)
        rows, columns = np.nonzero(images.mask[index])
        inside = images.pixels[index][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        expected = np.rint(np.clip(image[3:15, 3:19, 95] / top, 0, 1) * 255).T[::-1]  # front above, left to the left
        assert np.abs(inside.astype(int) - expected).max() <= 1
        assert inside[-1, 0] == expected.max()
    assert not arrays.load_labels(run_stage(data.labels("IXI", "train", choice="healthy"))).labels.any()


def test_all_cases_of_atlas_have_their_slice(strokes: Path, tmp_path: Path, run_stage: RunStage) -> None:
    data = opened("ixi_atlas", strokes, tmp_path / "cache")
    labels = arrays.load_labels(run_stage(data.labels("ATLAS", "all")))
    assert labels.labels.sum(axis=(1, 2)).tolist() == [STROKES[who].get(95, 0) ** 2 for who in STROKES]
    some = arrays.load_labels(run_stage(data.labels("ATLAS", "all", choice="lesions")))
    assert [scan.id for scan in some.scans] == ["ATLAS-r001s001", "ATLAS-r001s002"]


def test_atlas_t1_cuts_its_20_central_slices(strokes: Path, tmp_path: Path, run_stage: RunStage) -> None:
    data = opened("atlas_t1", strokes, tmp_path / "cache")
    assert lines(data) == []
    images = arrays.load_images(run_stage(data.images("ATLAS", "all")))
    labels = arrays.load_labels(run_stage(data.labels("ATLAS", "all")))
    assert [scan.stop - scan.start for scan in images.scans] == [20] * len(STROKES)
    for who, scan in zip(STROKES, labels.scans, strict=True):
        sides = [STROKES[who].get(z, 0) ** 2 for z in range(85, 105)]
        assert labels.labels[scan.slices].sum(axis=(1, 2)).tolist() == sides
    largest = arrays.load_labels(run_stage(data.labels("ATLAS", "all", choice="largest")))
    assert largest.labels.sum(axis=(1, 2)).tolist() == [9, 36, 4]


def test_what_is_missing_of_atlas_is_told(strokes: Path, tmp_path: Path) -> None:
    (strokes / ATLAS.format("R009", "r009s005", "label-L_desc-T1lesion_mask")).unlink()
    (strokes / "mni152_brain_mask.nii.gz").unlink()
    told = lines(opened("atlas_t1", strokes, tmp_path / "cache"))
    assert any("r009s005" in line and "no such label" in line for line in told)
    assert sum("mni152_brain_mask.nii.gz: no such mask" in line for line in told) == len(STROKES)


# ---------------------------------------------------------------------------------------------- BraTS'21

TUMOURS = {i: {69: 6, 70 + i: 2, 80: 3, 90: 6} for i in range(6)}
FILES = {"FLAIR": "flair", "T1CE": "t1ce", "T2": "t2", "T1": "t1"}


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for i, slices in TUMOURS.items():
        name = f"BraTS2021_{17 * i:05}"
        for j, ending in enumerate(FILES.values()):
            image, mask = brain(10 * i + j)
            write_volume(root / name / f"{name}_{ending}.nii.gz", np.where(mask, image, 0)[::-1, ::-1], LPS)
        label = sum(lesion({z: side}, value) for value, (z, side) in zip((1, 2, 4, 4), slices.items(), strict=True))
        write_volume(root / name / f"{name}_seg.nii.gz", label.astype(np.uint8)[::-1, ::-1], LPS)
    return root


def test_what_brats21_finds(brats: Path, tmp_path: Path) -> None:
    data = opened("brats21", brats, tmp_path / "cache")
    assert data.sites == tuple(FILES)
    assert lines(data) == []
    assert {site: data.modality(site) for site in data.sites} == {
        "FLAIR": "FLAIR",
        "T1CE": "T1CE",
        "T2": "T2w",
        "T1": "T1w",
    }
    for split in SPLITS:
        sides = {site: [scan.subject for scan in data.scans(site, split)] for site in data.sites}
        assert len({tuple(side) for side in sides.values()}) == 1
        assert sides["T1"]
    assert [scan.id for scan in data.scans("T2")] == [f"BRATS21-{17 * i:05}" for i in range(6)]
    assert all(data.lesioned(site) for site in data.sites)


def test_brats21_cuts_slices_70_to_89_and_every_label_is_tumour(
    brats: Path, tmp_path: Path, run_stage: RunStage
) -> None:
    data = opened("brats21", brats, tmp_path / "cache", {"intensity": "max"})
    images = arrays.load_images(run_stage(data.images("T2", "all")))
    labels = arrays.load_labels(run_stage(data.labels("T2", "all")))
    assert images.pixels.shape == (6 * 20, 256, 256)
    assert {scan.modality for scan in images.scans} == {"T2w"}
    assert set(np.unique(labels.labels)) == {0, 1}
    for i, scan in enumerate(labels.scans):
        sides = [TUMOURS[i].get(z, 0) ** 2 for z in range(70, 90)]
        assert labels.labels[scan.slices].sum(axis=(1, 2)).tolist() == sides
        # the bright corner is at the left and back of the brain, and darker with every slice
        rows, columns = np.nonzero(images.mask[scan.start])
        corner = images.pixels[scan.slices][:, rows.max(), columns.min()]
        expected = brain(10 * i + 2)[0][3, 3].astype(float)
        assert np.abs(corner - 255 * expected[70:90] / expected[10:115].max()).max() <= 0.51
        where = np.argwhere(labels.labels[scan.start + 10])
        assert where.max(axis=0).tolist() == [rows.max() - (10 - 3), columns.min() + (10 - 3)]
    healthy = arrays.load_images(run_stage(data.images("T2", "all", choice="healthy")))
    assert len(healthy) == 6 * 18
    assert [len(arrays.load_labels(run_stage(data.labels("T2", "all", choice="largest"))).labels)] == [6]


def test_the_guides_recipe_makes_a_split_file_of_published_lists(
    brats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (REPO / "docs/anomaly_data.md").read_text()
    recipe = next(code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "brats_split" in code)
    lists = {"training": (0, 17, 34), "validation": (51,), "testing": (68, 85)}
    folder = tmp_path / "IterMask2" / "datasets"
    folder.mkdir(parents=True)
    for name, cases in lists.items():
        (folder / f"brats_split_{name}.txt").write_text("".join(f"BraTS2021_{case:05}\n" for case in cases))
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    data = opened("brats21", brats, tmp_path / "cache", {"split": {"file": "itermask2.json"}})
    assert lines(data) == []
    assert [scan.name for scan in data.scans("FLAIR", "test")] == ["00068", "00085"]
    assert [scan.name for scan in data.scans("T1", "validation")] == ["00051"]
    (folder / "brats_split_validation.txt").write_text("BraTS2021_00099")
    exec(recipe, {})
    forgetful = opened("brats21", brats, tmp_path / "cache", {"split": {"file": "itermask2.json"}})
    assert any("subject 'BRATS21-00051' of FLAIR is on no side" in line for line in lines(forgetful))


def test_an_unknown_label_of_brats_is_told(brats: Path, tmp_path: Path) -> None:
    name = "BraTS2021_00017"
    write_volume(brats / name / f"{name}_seg.nii.gz", lesion({80: 3}, 7)[::-1, ::-1], LPS)
    told = lines(opened("brats21", brats, tmp_path / "cache"), "FLAIR")
    assert len(told) == 1
    assert "label ids 7 are in no group" in told[0]


# --------------------------------------------------------------------------------------------- templates


def test_the_template_for_nifti_files_reads_patients_and_controls(tmp_path: Path, run_stage: RunStage) -> None:
    root = tmp_path / "data"
    for i in range(3):
        for j, file in enumerate(("patients/p{}_FLAIR", "patients/p{}_T1w", "controls/p{}_FLAIR")):
            image, mask = brain(3 * i + j)
            write_volume(root / f"{file.format(i)}.nii.gz", image)
        for who in ("patients", "controls"):
            write_volume(root / who / f"p{i}_brain.nii.gz", mask.astype(np.uint8))
        write_volume(root / "patients" / f"p{i}_lesion.nii.gz", lesion({60: 3, 61: 4}, 200))
    data = opened("lesion_folder", root, tmp_path / "cache")
    assert lines(data) == []
    assert data.modality("PATIENTS_T1") == "T1w"
    assert [s.id for s in data.scans("PATIENTS")] == [s.id for s in data.scans("PATIENTS_T1")]
    assert {s.id for s in data.scans("CONTROLS")}.isdisjoint({s.id for s in data.scans("PATIENTS")})
    largest = arrays.load_labels(run_stage(data.labels("PATIENTS", "all", choice="largest")))
    assert largest.labels.sum(axis=(1, 2)).tolist() == [16] * 3
    assert largest.labels.max() == 1


@pytest.mark.parametrize("card", ["ixi_atlas", "atlas_t1", "brats21", "lesion_folder", "png_folder"])
def test_cards_can_be_planned_with_before_the_data_is_there(card: str, tmp_path: Path) -> None:
    data = opened(card, None, tmp_path / "cache")
    assert read_card(card).access.strip() in data.missing()[0]
    for site in data.sites:
        choice = "healthy" if data.healthy(site) else "largest"
        assert data.choice_trouble(site, choice) is None
        assert data.images(site, "all", choice=choice).key
    with pytest.raises(UserError, match="did you mean"):
        read_card(card[:-1])


# ------------------------------------------------------------------------------------------- real scans


@pytest.fixture
def real(real_data: Path, tmp_path: Path) -> Dataset:
    """Two MS patients and a glioma through the template's fields, as a benchmark would replace them."""

    def site(image: str, label: str, **more: str) -> dict[str, Any]:
        return {"image": image, "label": label, "mask": None, "grouping": "any", **more}

    ms, glioma = "openms/sub-{scan}_lesion.nii.gz", "tumour_tcia/sub-{scan}_seg-fused.nii.gz"
    sites = {
        "PATIENTS": site("openms/sub-{scan}_FLAIR.nii.gz", ms),
        "PATIENTS_T1": site("openms/sub-{scan}_T1w.nii.gz", ms),
        "GLIOMA": site("tumour_tcia/sub-{scan}_FLAIR.nii.gz", glioma),
        "GLIOMA_T1CE": site("tumour_tcia/sub-{scan}_T1ce.nii.gz", glioma, modality="T1CE", cohort="GLIOMA"),
    }
    return opened("lesion_folder", real_data, tmp_path / "cache", {"sites": sites, "slices": {"size": 192}})


def test_real_scans_with_lesions_pass_the_audit(real: Dataset) -> None:
    sites = ("PATIENTS", "PATIENTS_T1", "GLIOMA", "GLIOMA_T1CE")
    told = lines(real, *sites)
    assert all("and none in" in line for line in told), told  # so few people leave sides empty
    assert {site: [s.name for s in real.scans(site)] for site in sites} == {
        "PATIENTS": ["07", "19"],
        "PATIENTS_T1": ["07", "19"],
        "GLIOMA": ["TCGA-DU-7294"],
        "GLIOMA_T1CE": ["TCGA-DU-7294"],
    }


def test_real_lesions_have_their_known_contrast(real: Dataset, run_stage: RunStage) -> None:
    ratios = {}
    for site in ("PATIENTS", "PATIENTS_T1", "GLIOMA"):
        images = arrays.load_images(run_stage(real.images(site, "all")))
        sick = arrays.load_labels(run_stage(real.labels(site, "all"))).labels > 0
        assert all(sick[scan.slices].any() for scan in images.scans)
        assert (sick & ~images.mask).sum() < 0.02 * sick.sum()
        ratios[site] = np.median(images.pixels[sick & images.mask]) / np.median(images.pixels[images.mask & ~sick])
    assert ratios["PATIENTS"] > 1.2  # FLAIR: lesions are bright
    assert ratios["GLIOMA"] > 1.2
    assert ratios["PATIENTS_T1"] < 1.0  # T1w: dark


def test_real_slices_are_the_same_from_png_as_from_nifti(real: Dataset, tmp_path: Path, run_stage: RunStage) -> None:
    images = arrays.load_images(run_stage(real.images("PATIENTS", "all")))
    labels = arrays.load_labels(run_stage(real.labels("PATIENTS", "all")))
    root = tmp_path / "png"
    for scan in images.scans:
        for k in range(scan.start, scan.stop):
            stem = f"{scan.id}-slice_{k - scan.start}"
            write_png(root / "patients" / f"{stem}-flair.png", images.pixels[k])
            write_png(root / "patients" / f"{stem}-brainmask.png", images.mask[k])
            write_png(root / "patients" / f"{stem}-segmentation.png", labels.labels[k] * 255)
    data = opened("png_folder", root, tmp_path / "cache", {"slices": {"size": 192}})
    assert all("and none in" in line for line in lines(data, "PATIENTS"))
    again = arrays.load_images(run_stage(data.images("PATIENTS", "all")))
    sick = arrays.load_labels(run_stage(data.labels("PATIENTS", "all")))
    for scan, old in zip(again.scans, images.scans, strict=True):
        assert scan.stop - scan.start == old.stop - old.start == 20
        # Cut about the middle of these 20 slices' brain, not of the whole: the same pixels, perhaps moved.
        for ours, theirs in ((again.pixels, images.pixels), (again.mask, images.mask), (sick.labels, labels.labels)):
            assert np.array_equal(
                _trimmed(ours[scan.slices], again.mask[scan.slices]),
                _trimmed(theirs[old.slices], images.mask[old.slices]),
            )


def _trimmed(slices: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cut to the rows and columns of the brain."""
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    return slices[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_real_mid_slices_of_healthy_people_are_a_site(real_data: Path, tmp_path: Path, run_stage: RunStage) -> None:
    with np.load(real_data / "oasis2d_axial100" / "slices_u8.npz") as file:
        slices = file[file.files[0]]
    for index, pixels in enumerate(slices):
        write_png(tmp_path / "data" / "oasis" / f"{index:03}.png", pixels)
    sites = {"CONTROLS": {"image": "oasis/{scan}.png", "mask": None, "modality": "T1w"}}
    data = opened("png_folder", tmp_path / "data", tmp_path / "cache", {"slices": {"size": 128}, "sites": sites})
    assert lines(data, "CONTROLS") == []
    assert [len(data.scans("CONTROLS", split)) for split in SPLITS] == [80, 10, 10]
    images = arrays.load_images(run_stage(data.images("CONTROLS", "train", choice="healthy")))
    assert images.pixels.shape == (80, 128, 128)
    for scan, pixels in zip(images.scans, images.pixels, strict=True):
        assert np.array_equal(
            np.sort(pixels[pixels > 0]), np.sort(slices[int(scan.id[-3:])], axis=None)[-np.count_nonzero(pixels) :]
        )
        assert np.count_nonzero(pixels) == np.count_nonzero(slices[int(scan.id[-3:])])

"""Features of cortical surfaces: real GIFTI and CIFTI files in, means and spreads of parcels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nifti_files import write_scan

from harness.brain_age import Column, FeatureTable
from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.feature_table import load_features
from harness.data.imagefile import BadImage
from harness.data.nifti import NiftiDataset
from harness.data.schema import NiftiCard
from harness.data.surface_files import LARGEST_FILE, read_surface
from harness.data.surfaces import CORTICAL_THICKNESS, CURVATURE, SULCAL_DEPTH, audit_surfaces, surface_stage
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

NAMES = {0: "???", 36: "frontal", 38: "parietal"}
VERTICES = {"L": 40, "R": 50}

SITE_MORE = """\
    surfaces:
      sulc: surf/{scan}_hemi-{hemi}_sulc.shape.gii
      thickness: surf/{scan}_hemi-{hemi}_thickness.shape.gii
      curv: surf/{scan}_hemi-{hemi}_curv.shape.gii
      parcels: surf/{scan}_hemi-{hemi}_dparc.dlabel.gii
      medial_wall: surf/{scan}_hemi-{hemi}_medialwall.shape.gii
"""


@dataclass(frozen=True, eq=False)
class Half:
    """One hemisphere: maps by role, parcels, and the cortex (1) or medial wall (0)."""

    maps: dict[str, np.ndarray]
    parcels: np.ndarray
    cortex: np.ndarray


def write_map(path: Path, values: np.ndarray, names: Mapping[int, str] | None = None) -> Path:
    """A GIFTI file of one number a vertex, with a label table where names are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = nib.gifti.GiftiLabelTable()
    for key, name in (names or {}).items():
        label = nib.gifti.GiftiLabel(key=key, red=0, green=0, blue=0, alpha=1)
        label.label = name
        table.labels.append(label)
    kind = np.int32 if names else np.float32
    intent = "NIFTI_INTENT_LABEL" if names else "NIFTI_INTENT_SHAPE"
    array = nib.gifti.GiftiDataArray(np.asarray(values, kind), intent=intent, datatype=kind)
    nib.save(nib.GiftiImage(darrays=[array], labeltable=table), path)
    return path


def half(name: str, hemi: str) -> Half:
    rng = np.random.default_rng(int.from_bytes(f"{name}{hemi}".encode()))
    n = VERTICES[hemi]
    maps = {role: rng.normal(0.2, 1, n).astype(np.float32) for role in ("sulc", "thickness", "curv")}
    return Half(maps, rng.choice([0, 36, 38], n), (np.arange(n) >= 6).astype(int))


def write_surfaces(root: Path, name: str) -> None:
    for hemi in "LR":
        one = half(name, hemi)
        start = root / "surf"
        for role, values in one.maps.items():
            spoilt = np.where(one.cortex, values, np.nan)  # what lies on the medial wall is of no importance
            write_map(start / f"{name}_hemi-{hemi}_{role}.shape.gii", spoilt)
        write_map(start / f"{name}_hemi-{hemi}_dparc.dlabel.gii", one.parcels, NAMES)
        write_map(start / f"{name}_hemi-{hemi}_medialwall.shape.gii", one.cortex)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for index in range(6):
        write_scan(tmp_path / "data", f"s{index}")
        write_surfaces(tmp_path / "data", f"s{index}")
    return tmp_path / "data"


Opened = Callable[..., NiftiDataset]


def told(dataset: NiftiDataset) -> list[str]:
    return [str(problem) for problem in audit_surfaces(dataset, "A")]


def value(table: FeatureTable, row: int, family: str, region: str) -> float:
    return float(table.values[row, table.columns.index(Column(family, region))])


def test_features_are_means_and_spreads_of_parcels_without_the_medial_wall(opened: Opened, run_stage: RunStage) -> None:
    dataset = opened()
    assert told(dataset) == []
    table = load_features(run_stage(surface_stage(dataset, "A", "train")))
    assert [scan.id for scan in table.scans] == [scan.id for scan in dataset.scans("A", "train")]
    assert table.families == (SULCAL_DEPTH, CORTICAL_THICKNESS, CURVATURE)
    # For each hemisphere its mean, and of two parcels mean and SD; of curvature also the mean of absolute values.
    assert [sum(c.family == family for c in table.columns) for family in table.families] == [10, 10, 16]
    for row, scan in enumerate(table.scans):
        for side, hemi in (("left", "L"), ("right", "R")):
            one = half(scan.id.removeprefix("A-"), hemi)
            cortex = one.cortex == 1
            for family, role in ((SULCAL_DEPTH, "sulc"), (CORTICAL_THICKNESS, "thickness"), (CURVATURE, "curv")):
                of = one.maps[role].astype(np.float64)
                assert value(table, row, family, f"{side} hemisphere") == pytest.approx(of[cortex].mean(), abs=1e-7)
                frontal = of[cortex & (one.parcels == 36)]
                assert value(table, row, family, f"{side} frontal") == pytest.approx(frontal.mean(), abs=1e-7)
                assert value(table, row, family, f"{side} frontal, SD") == pytest.approx(frontal.std(), abs=1e-7)
            sizes = np.abs(one.maps["curv"].astype(np.float64))
            parietal = sizes[cortex & (one.parcels == 38)].mean()
            assert value(table, row, CURVATURE, f"{side} parietal, absolute") == pytest.approx(parietal, abs=1e-7)


def test_the_other_way_to_write_a_medial_wall(opened: Opened, root: Path, run_stage: RunStage) -> None:
    expected = load_features(run_stage(surface_stage(opened(), "A", "all")))
    for path in (root / "surf").glob("*medialwall*"):
        write_map(path, 1 - np.asarray(nib.load(path).darrays[0].data))
    (problem, *_) = told(opened())
    assert "leaves 15 % of the left vertices as cortex; write wall: 1" in problem
    dataset = opened(("    surfaces:\n", "    surfaces:\n      wall: 1\n"))
    assert told(dataset) == []
    table = load_features(run_stage(surface_stage(dataset, "A", "all")))
    np.testing.assert_array_equal(table.values, expected.values)


def test_parcels_are_optional_and_may_be_skipped(opened: Opened, run_stage: RunStage) -> None:
    line = "      parcels: surf/{scan}_hemi-{hemi}_dparc.dlabel.gii\n"
    whole = load_features(run_stage(surface_stage(opened((line, "")), "A", "test")))
    assert [c.region for c in whole.columns if c.family == CURVATURE] == [
        f"{side} hemisphere{kind}" for side in ("left", "right") for kind in ("", ", absolute")
    ]
    some = load_features(run_stage(surface_stage(opened((line, line + "      skip: [frontal]\n")), "A", "test")))
    assert not any("frontal" in c.region for c in some.columns)
    assert any("parietal" in c.region for c in some.columns)


def test_an_absent_parcel_is_undefined(opened: Opened, root: Path, run_stage: RunStage) -> None:
    write_map(root / "surf" / "s3_hemi-L_dparc.dlabel.gii", np.full(40, 36), NAMES)
    dataset = opened()
    assert told(dataset) == []
    table = load_features(run_stage(surface_stage(dataset, "A", "all")))
    gone = [table.columns[i].region for i in np.flatnonzero(np.isnan(table.values[3]))]
    assert set(gone) == {f"left parietal{kind}" for kind in ("", ", SD", ", absolute")}
    assert np.isnan(table.values).any(axis=1).sum() == 1


def test_cifti_files_hold_both_hemispheres(opened: Opened, root: Path, run_stage: RunStage) -> None:
    expected = load_features(run_stage(surface_stage(opened(), "A", "all")))
    places = [("L", "CIFTI_STRUCTURE_CORTEX_LEFT"), ("R", "CIFTI_STRUCTURE_CORTEX_RIGHT")]
    for index in range(6):
        halves = {hemi: half(f"s{index}", hemi) for hemi, _ in places}
        models = None
        for hemi, structure in places:
            model = nib.cifti2.BrainModelAxis.from_mask(halves[hemi].cortex == 1, structure)
            models = model if models is None else models + model
        for role in ("sulc", "thickness", "curv", "parcels"):
            data = np.concatenate(
                [(one.parcels if role == "parcels" else one.maps[role])[one.cortex == 1] for one in halves.values()]
            )
            if role == "parcels":
                colours = {key: (name, (0, 0, 0, 1)) for key, name in NAMES.items()}
                axis: object = nib.cifti2.LabelAxis(["dparc"], [colours])
            else:
                axis = nib.cifti2.ScalarAxis([role])
            image = nib.Cifti2Image(data[None].astype(np.float32), (axis, models))
            nib.save(image, root / "surf" / f"s{index}_{role}.{'dlabel' if role == 'parcels' else 'dscalar'}.nii")
    maps = [
        (f"surf/{{scan}}_hemi-{{hemi}}_{role}.shape.gii", f"surf/{{scan}}_{role}.dscalar.nii")
        for role in ("sulc", "thickness", "curv")
    ]
    parcels = [
        ("surf/{scan}_hemi-{hemi}_dparc.dlabel.gii", "surf/{scan}_parcels.dlabel.nii"),
        ("      medial_wall: surf/{scan}_hemi-{hemi}_medialwall.shape.gii\n", ""),
    ]
    for changes in (maps + parcels, maps, maps[:1], parcels):  # CIFTI alone, and beside GIFTI
        dataset = opened(*changes)
        assert told(dataset) == []
        table = load_features(run_stage(surface_stage(dataset, "A", "all")))
        assert table.columns == expected.columns
        np.testing.assert_allclose(table.values, expected.values, rtol=0, atol=1e-12)


def test_names_of_hemispheres_and_wildcards(opened: Opened, root: Path, run_stage: RunStage) -> None:
    expected = load_features(run_stage(surface_stage(opened(), "A", "all")))
    for path in list((root / "surf").iterdir()):
        path.rename(path.with_name(path.name.replace("hemi-L", "hemi-left").replace("hemi-R", "hemi-right")))
    dataset = opened(
        ("    surfaces:\n", "    surfaces:\n      hemispheres: [left, right]\n"),
        ("hemi-{hemi}_curv.shape", "*{hemi}_curv.*"),
    )
    assert told(dataset) == []
    table = load_features(run_stage(surface_stage(dataset, "A", "all")))
    np.testing.assert_array_equal(table.values, expected.values)


# ------------------------------------------------------------------------------------------- keys


def test_cards_without_surfaces_do_not_mention_them(opened: Opened) -> None:
    card = opened().card
    assert card.model_dump(mode="json")["sites"]["A"]["surfaces"]["wall"] == 0
    other = read_card("nifti_folder")
    assert isinstance(other, NiftiCard)
    assert all("surfaces" not in site for site in other.model_dump(mode="json")["sites"].values())


def test_only_the_scans_of_a_split_count(opened: Opened, root: Path) -> None:
    dataset = opened()
    before = {split: surface_stage(dataset, "A", split).key for split in ("train", "test")}
    changed = dataset.scans("A", "test")[-1].name
    path = root / "surf" / f"{changed}_hemi-R_sulc.shape.gii"
    write_map(path, np.asarray(nib.load(path).darrays[0].data) + 1)
    after = {split: surface_stage(opened(), "A", split).key for split in ("train", "test")}
    assert [before[split] == after[split] for split in before] == [True, False]


def test_planning_needs_no_data(opened: Opened) -> None:
    dataset = open_dataset(opened().card, None)
    assert isinstance(dataset, NiftiDataset)
    assert surface_stage(dataset, "A", "train").data == "absent"
    with pytest.raises(ValueError, match="no split 'tests'"):
        surface_stage(dataset, "A", "tests")  # type: ignore[arg-type]


def test_a_site_without_surfaces_has_no_features_of_them(card_file: Callable[..., Path], root: Path) -> None:
    dataset = open_dataset(read_card(card_file()), root)
    assert isinstance(dataset, NiftiDataset)
    with pytest.raises(ValueError, match="A has no surfaces"):
        surface_stage(dataset, "A", "train")


# ------------------------------------------------------------------------------------------- the audit


def spoil(root: Path, what: str) -> None:
    start = root / "surf"
    curv, parcels = start / "s2_hemi-L_curv.shape.gii", start / "s2_hemi-L_dparc.dlabel.gii"
    values = half("s2", "L")
    if what == "missing":
        curv.unlink()
    elif what == "twice":
        (start / "s2_hemi-L_curv2.shape.gii").write_bytes(curv.read_bytes())
    elif what == "short":
        write_map(curv, values.maps["curv"][:-1])
    elif what == "nan":
        write_map(curv, np.where(np.arange(40) == 30, np.nan, values.maps["curv"]))
    elif what == "unknown":
        write_map(parcels, np.where(np.arange(40) == 30, 99, values.parcels), NAMES)
    elif what == "renamed":
        write_map(parcels, values.parcels, {**NAMES, 36: "temporal"})
    elif what == "lost":
        write_map(parcels, np.full(40, 38), {38: "parietal"})
    elif what == "cut":
        curv.write_bytes(curv.read_bytes()[:300])
    elif what == "two":
        image = nib.load(curv)
        image.add_gifti_data_array(image.darrays[0])
        nib.save(image, curv)
    elif what == "fractions":
        image = nib.load(parcels)
        array = nib.gifti.GiftiDataArray(np.full(40, 36.5, np.float32), datatype=np.float32)
        nib.save(nib.GiftiImage(darrays=[array], labeltable=image.labeltable), parcels)


@pytest.mark.parametrize(
    ("what", "file", "message"),
    [
        ("missing", "curv.shape", "no such file; add it (surfaces.curv of a/s2_T1w.nii.gz), or exclude 's2'"),
        ("twice", "*.shape", "2 files match; make the pattern narrower"),
        ("short", "curv.shape", "has 39 vertices, surf/s2_hemi-L_sulc.shape.gii has 40; they must be of one surface"),
        ("nan", "curv.shape", "1 vertices are NaN or infinite"),
        ("unknown", "dparc.dlabel", "parcels 99 have no name in the file; export it with its label table"),
        ("renamed", "dparc.dlabel", "parcel 36 is 'temporal' here, 'frontal' in the site's first scan"),
        ("lost", "dparc.dlabel", "lacks the parcel 'frontal' of the site; export all scans with one atlas"),
        ("cut", "curv.shape", "the left curv cannot be read"),
        ("two", "curv.shape", "it holds 2 arrays, where one number for each vertex is needed"),
        ("fractions", "dparc.dlabel", "parcels are not whole numbers"),
    ],
)
def test_a_bad_file_is_one_line(
    opened: Opened, root: Path, run_stage: RunStage, what: str, file: str, message: str
) -> None:
    spoil(root, what)
    dataset = opened(*([("hemi-{hemi}_curv.shape", "hemi-{hemi}_curv*.shape")] if what == "twice" else []))
    (problem,) = told(dataset)
    assert problem.startswith(f"{root}/surf/s2_hemi-L_{file.replace('*', 'curv*')}")
    assert message in problem
    assert "\n" not in problem
    with pytest.raises((ValueError, KeyError)):
        run_stage(surface_stage(dataset, "A", "all"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("sulc: surf/{scan}_hemi-{hemi}", "sulc: surf/{subject}_hemi-{hemi}"), "uses fields that image does not have"),
        (("sulc: surf/{scan}_hemi-{hemi}", "sulc: surf/{scan}"), "a .gii file is of one hemisphere, {hemi}"),
        (("dparc.dlabel.gii", "dparc.dlabel.nii"), "a CIFTI file, .nii, holds both"),
        (("sulc: surf", "depth: surf"), "unknown key 'depth'"),
        (("sulc: surf", "sulc: ../surf"), "leaves the data root"),
    ],
)
def test_a_card_that_contradicts_itself(opened: Opened, change: tuple[str, str], what: str) -> None:
    with pytest.raises(UserError) as error:
        opened(change)
    assert what in str(error.value)
    assert "tiny.yaml:" in str(error.value)


def test_surfaces_need_a_map(card_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="names no map to compute features from"):
        read_card(card_file(more="    surfaces: {parcels: 'surf/{scan}_{hemi}.gii'}\n"))


# --------------------------------------------------------------------------------------- single files


def test_a_file_that_refers_to_another_is_refused(tmp_path: Path) -> None:
    numbers = np.arange(10, dtype=np.float32)
    path = write_map(tmp_path / "map.gii", numbers)
    (tmp_path / "secret.bin").write_bytes(numbers.tobytes())
    text = path.read_text()
    start, end = text.index("<Data>"), text.index("</Data>")
    text = text[:start] + "<Data>" + text[end:]
    text = text.replace("GZipBase64Binary", "ExternalFileBinary")
    text = text.replace('ExternalFileName=""', 'ExternalFileName="secret.bin"')
    path.write_text(text)
    assert "secret.bin" in text
    with pytest.raises(BadImage):
        read_surface(path, "left")


def test_files_that_are_too_large_are_not_opened(tmp_path: Path) -> None:
    with open(tmp_path / "map.gii", "wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(BadImage, match="more than any map of a cortex"):
        read_surface(tmp_path / "map.gii", "left")


def test_volumes_are_no_surfaces(tmp_path: Path) -> None:
    nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "volume.nii")
    with pytest.raises(BadImage):
        read_surface(tmp_path / "volume.nii", "left")

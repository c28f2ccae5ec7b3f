"""Which slices are used: all, healthy, with a lesion, each scan's largest; of real NIfTI files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nifti_files import SHAPE, head, write_volume

from harness.api import LabelSet
from harness.data import arrays
from harness.data.card import read_card
from harness.data.choice import chosen
from harness.data.dataset import Dataset, open_dataset
from harness.data.schema import CHOICES, Choice
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

CARD = """\
id: lesions
name: Lesions
kind: nifti
simulated: false
modality: T1w
reference: ours
licence: none
access: ask a friend
lesions: true
labels: {names: [background, core, rim], groupings: {ids: {0: background, 1: core, 4: rim}}}
slices: {plane: axial, size: 32}
split: {seed: 1}
sites:
  SICK:
    image: sick/{scan}_img.nii.gz
    label: sick/{scan}_seg.nii.gz
    grouping: ids
    modality: FLAIR
  WELL:
    image: well/{scan}.nii.gz
    healthy: true
  BARE:
    image: well/{scan}.nii.gz
"""

LESIONS = {"s0": {5: 4, 6: 9}, "s1": {8: 2}, "s2": {}, "s3": {4: 3, 5: 7, 6: 7}, "s4": {9: 1}, "s5": {7: 5}}
"""Lesion pixels by scan and slice."""


def write_sick(root: Path, name: str, lesions: dict[int, int]) -> None:
    image, _ = head(int(name[1:]))
    seg = np.zeros(SHAPE, np.uint8)
    for z, count in lesions.items():
        x, y = np.nonzero(image[:, :, z])
        seg[x[:count], y[:count], z] = np.where(np.arange(count) % 2, 4, 1)
    write_volume(root / "sick" / f"{name}_img.nii.gz", image)
    write_volume(root / "sick" / f"{name}_seg.nii.gz", seg)


@pytest.fixture
def lesions(tmp_path: Path) -> Callable[..., Dataset]:
    """The data set, its card changed by (old, new); files as LESIONS says, and six healthy people."""

    def make(*replacements: tuple[str, str], files: bool = True) -> Dataset:
        text = CARD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "lesions.yaml").write_text(text)
        root = tmp_path / "data"
        if files and not root.exists():
            for name, slices in LESIONS.items():
                write_sick(root, name, slices)
            for index in range(6):
                write_volume(root / "well" / f"w{index}.nii.gz", head(100 + index)[0])
        return open_dataset(read_card(tmp_path / "lesions.yaml"), root if files else None, tmp_path / "cache")

    return make


Lesions = Callable[..., Dataset]


@pytest.mark.parametrize(
    ("choice", "expected"), [("all", [0, 1, 2, 3, 4]), ("healthy", [1]), ("lesions", [2, 3, 4]), ("largest", [3])]
)
def test_the_four_choices_of_one_scan(choice: Choice, expected: list[int]) -> None:
    lesion, brain = np.array([0, 0, 3, 8, 8]), np.array([0, 50, 60, 60, 50])
    assert chosen(choice, lesion, brain).tolist() == expected
    assert chosen("largest", np.zeros(3, int), np.ones(3, int)).tolist() == []


def taken(data: Dataset, run_stage: RunStage, choice: Choice, split: str = "all") -> dict[str, list[int]]:
    """Slices by scan as the image set has them, found among all slices by their pixels; labels must agree."""
    whole = arrays.load_images(run_stage(data.images("SICK", split)))
    every = arrays.load_labels(run_stage(data.labels("SICK", split)))
    folder = run_stage(data.images("SICK", split, choice=choice))
    assert sorted(path.name for path in folder.iterdir()) == ["mask.npy", "pixels.npy", "scans.json"]
    images, labels = arrays.load_images(folder), arrays.load_labels(run_stage(data.labels("SICK", split, choice)))
    assert images.scans == labels.scans
    assert [scan.start for scan in images.scans] == [0, *(scan.stop for scan in images.scans[:-1])]
    assert images.scans[-1].stop == len(images) == len(labels.labels)
    assert {scan.modality for scan in images.scans} == {"FLAIR"}
    found = {}
    for scan in images.scans:
        old = next(s for s in whole.scans if s.id == scan.id)
        here = []
        for index in range(scan.start, scan.stop):
            (place,) = [i for i in range(old.start, old.stop) if np.array_equal(whole.pixels[i], images.pixels[index])]
            assert np.array_equal(whole.mask[place], images.mask[index])
            assert np.array_equal(every.labels[place], labels.labels[index])
            here.append(place - old.start)
        found[scan.id.removeprefix("SICK-")] = here
    return found


def first_slice(data: Dataset) -> int:
    """The brain's lowest slice; the same in every scan."""
    image, _ = head(0)
    return int(np.flatnonzero(image.any(axis=(0, 1)))[0])


def test_slices_are_chosen_by_their_labels(lesions: Lesions, run_stage: RunStage) -> None:
    data = lesions()
    low = first_slice(data)
    sick = {name: sorted(z - low for z in slices) for name, slices in LESIONS.items() if slices}
    assert taken(data, run_stage, "lesions") == sick
    assert taken(data, run_stage, "largest") == {
        "s0": [6 - low],
        "s1": [8 - low],
        "s3": [5 - low],
        "s4": [9 - low],
        "s5": [7 - low],
    }
    healthy = taken(data, run_stage, "healthy")
    n = len(arrays.load_images(run_stage(data.images("SICK", "all")))) // 6
    assert healthy == {name: [z for z in range(n) if z + low not in LESIONS[name]] for name in LESIONS}


def test_all_is_the_stage_it_was_and_others_are_made_of_it(lesions: Lesions) -> None:
    data = lesions()
    whole = data.images("SICK", "test")
    assert data.images("SICK", "test", choice="all").key == whole.key
    assert "choice" not in whole.params
    assert (whole.title, whole.fn) == ("images SICK test", "harness.data.nifti:nifti_images")
    one = data.images("SICK", "test", choice="largest")
    assert (one.kind, one.title, one.resources) == ("images", "images SICK test (largest)", "prepare")
    assert one.needs == {"images": whole, "labels": data.labels("SICK", "test")}
    made = [data.images("SICK", "test", choice=c) for c in CHOICES] + [data.labels("SICK", "test", c) for c in CHOICES]
    made += [data.images("SICK", "all", choice=c) for c in CHOICES]
    assert len({stage.key for stage in made}) == len({stage.title for stage in made}) == 12
    assert data.images("SICK", "test", choice="largest") is one


def test_everybody_is_every_side(lesions: Lesions, run_stage: RunStage) -> None:
    data = lesions()
    sides = [{s.id for s in data.scans("SICK", split)} for split in ("train", "validation", "test")]
    assert sum(map(len, sides)) == 6
    assert {s.id for s in data.scans("SICK", "all")} == set().union(*sides) == {f"SICK-{name}" for name in LESIONS}
    images = arrays.load_images(run_stage(data.images("SICK", "all")))
    assert [scan.id for scan in images.scans] == [f"SICK-{name}" for name in sorted(LESIONS)]
    with pytest.raises(ValueError, match="no split 'every'; known: train, validation, test, all"):
        data.images("SICK", "every")  # type: ignore[arg-type]


def test_a_healthy_site_needs_no_labels(lesions: Lesions, run_stage: RunStage) -> None:
    data = lesions()
    assert [data.healthy(site) for site in data.sites] == [False, True, False]
    assert [data.lesioned(site) for site in data.sites] == [True, False, False]
    assert [data.modality(site) for site in data.sites] == ["FLAIR", "T1w", "T1w"]
    assert data.images("WELL", "train", choice="healthy").key == data.images("WELL", "train").key
    images = arrays.load_images(run_stage(data.images("WELL", "train", choice="healthy")))
    labels: LabelSet = arrays.load_labels(run_stage(data.labels("WELL", "train", "healthy")))
    assert labels.labels.shape == images.mask.shape
    assert not labels.labels.any()
    assert labels.scans == images.scans
    assert labels.names == ("background", "core", "rim")
    assert data.summary()["sites"]["WELL"]["healthy"]


def test_impossible_choices_are_one_line(lesions: Lesions) -> None:
    data = lesions()
    for site, choice, what in (
        ("WELL", "largest", "WELL is healthy: no lesion can choose slices; write all or healthy"),
        (
            "BARE",
            "healthy",
            "BARE has no labels to choose healthy slices by; give its label, or declare it healthy: true",
        ),
        ("SICK", "biggest", "no choice of slices 'biggest'; known: all, healthy, lesions, largest"),
    ):
        assert data.choice_trouble(site, choice) == what  # type: ignore[arg-type]
        with pytest.raises(ValueError) as error:
            data.images(site, "test", choice=choice)  # type: ignore[arg-type]
        assert str(error.value) == what
        (problem,) = data.audit_choice(site, "test", choice)  # type: ignore[arg-type]
        assert problem.what == what
        assert problem.where.endswith(f"lesions.yaml:{CARD[: CARD.index(site)].count(chr(10)) + 1}:3")
    anatomy = lesions(("lesions: true\n", ""), ("    healthy: true\n", ""))
    assert "if they are, write lesions: true" in str(anatomy.choice_trouble("SICK", "healthy"))
    with pytest.raises(ValueError, match="BARE has no labels"):
        data.labels("BARE", "test")


def test_a_choice_that_leaves_nothing_is_told_before_the_run_and_in_it(
    lesions: Lesions, run_stage: RunStage, tmp_path: Path
) -> None:
    lesions()
    for name in LESIONS:
        write_sick(tmp_path / "data", name, {})
    data = lesions()
    (problem,) = data.audit_choice("SICK", "all", "largest")
    assert problem.what == "SICK all, 6 scans: there is no slice with a lesion"
    assert data.audit_choice("SICK", "all", "healthy") == []
    with pytest.raises(ValueError, match=r"^SICK all, 6 scans: there is no slice with a lesion$"):
        run_stage(data.images("SICK", "all", choice="lesions"))

    for name in LESIONS:  # a pixel in every slice of brain
        write_sick(tmp_path / "data", name, dict.fromkeys(range(2, SHAPE[2] - 2), 1))
    data = lesions()
    (problem,) = data.audit_choice("SICK", "all", "healthy")
    assert problem.what == "SICK all, 6 scans: there is no slice without a lesion"
    assert data.audit_choice("SICK", "all", "largest") == []


def test_counting_lesions_says_nothing_of_unsound_files_or_absent_data(lesions: Lesions, tmp_path: Path) -> None:
    data = lesions()
    assert data.audit_choice("SICK", "test", "largest") == []
    name = data.scans("SICK", "test")[0].label
    (tmp_path / "data" / name).write_bytes(b"no image")
    assert lesions().audit_choice("SICK", "test", "largest") == []
    assert lesions(files=False).audit_choice("SICK", "test", "largest") == []
    assert lesions(files=False).images("SICK", "test", choice="largest").needs["images"].data == "absent"


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("    healthy: true\n", "    healthy: true\n    label: x/{scan}.nii.gz\n", "a healthy site needs no label"),
        ("lesions: true\n", "", "write lesions: true in the card, or drop it"),
        ("plane: axial", "plane: axial, at: [9, 5]", "must be [first, last], two voxel indices, 0 <= first <= last"),
        ("plane: axial", "plane: axial, at: [5, 9], range: [0.1, 1]", "at and range both say which slices are used"),
    ],
)
def test_what_contradicts_is_told(lesions: Lesions, old: str, new: str, what: str) -> None:
    with pytest.raises(UserError) as error:
        lesions((old, new))
    assert what in str(error.value)


# ---------------------------------------------------------------------------------------------- slices.at


def test_slices_are_taken_by_their_place_in_the_file(lesions: Lesions, run_stage: RunStage) -> None:
    data = lesions(("plane: axial", "plane: axial, at: [5, 6]"))
    whole = lesions()
    low = first_slice(data)
    images = arrays.load_images(run_stage(data.images("SICK", "all")))
    every = arrays.load_images(run_stage(whole.images("SICK", "all")))
    assert len(images) == 12
    for scan, old in zip(images.scans, every.scans, strict=True):
        assert np.array_equal(images.pixels[scan.slices], every.pixels[old.start + 5 - low : old.start + 7 - low])
    assert [s.stop - s.start for s in arrays.load_labels(run_stage(data.labels("SICK", "all"))).scans] == [2] * 6
    assert "at" not in whole.images("SICK", "all").params["slices"]
    assert data.images("SICK", "all").key != whole.images("SICK", "all").key


def test_slices_outside_the_brain_are_found_by_the_audit(lesions: Lesions) -> None:
    lines = [str(problem) for problem in lesions(("plane: axial", "plane: axial, at: [17, 30]")).audit(["SICK"])]
    assert len(lines) == 6
    assert all("slices.at [17, 30] lies outside the brain" in line and "mend slices.at" in line for line in lines)

"""Each thing that can be wrong with a file, found in a real file; and all of them at once."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nifti_files import SHAPE, head, write_scan, write_volume

from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.layout import ScanFiles

CardFile = Callable[..., Path]
MASKED = ("    label:", "    mask: m/{scan}.nii.gz\n    label:")


@pytest.fixture
def audit(root: Path, card_file: CardFile) -> Callable[..., list[str]]:
    """Problems of site A, paths relative to the root."""

    def run(*replacements: tuple[str, str], more: str = "", sites: tuple[str, ...] = ("A",)) -> list[str]:
        card = read_card(card_file(*replacements, more=more))
        found = open_dataset(card, root, root.parent / "cache").audit(sites)
        return [str(problem).replace(f"{root}/", "") for problem in found]

    return run


Audit = Callable[..., list[str]]


def test_good_files_have_no_problems(audit: Audit) -> None:
    assert audit() == []


def test_a_truncated_image(root: Path, audit: Audit) -> None:
    path = root / "a/s1_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-800])
    (line,) = audit()
    assert line.startswith("a/s1_T1w.nii.gz: the image cannot be read (")
    assert "damaged or cut short: copy or export it again" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", gzip.compress(b"x" * 400), b"\x1f\x8b\x08\x00broken"],
    ids=["empty", "text", "gzip of text", "broken gzip"],
)
def test_a_file_that_is_no_image(root: Path, audit: Audit, content: bytes) -> None:
    (root / "a/s1_T1w.nii.gz").write_bytes(content)
    (line,) = audit()
    assert line.startswith("a/s1_T1w.nii.gz: the image cannot be read (")


def patch_header(path: Path, offset: int, layout: str, *values: float) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(f"<{layout}", raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


def test_absurd_sizes_are_refused_before_memory_is_taken(root: Path, audit: Audit) -> None:
    patch_header(root / "a/s1_T1w.nii.gz", 40, "4h", 3, 2000, 2000, 2000)
    assert audit() == [
        "a/s1_T1w.nii.gz: its header claims 2000 × 2000 × 2000 voxels, more than the card's most_voxels (536,870,912); "
        "export the image again"
    ]


def test_a_negative_size(root: Path, audit: Audit) -> None:
    patch_header(root / "a/s1_T1w.nii.gz", 40, "4h", 3, 20, -24, 18)
    (line,) = audit()
    assert line.startswith("a/s1_T1w.nii.gz: ")


def test_voxels_of_absurd_size(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_T1w.nii.gz", head(1)[0], np.diag([1, 1, 500.0, 1]))
    assert audit()[0] == "a/s1_T1w.nii.gz: its header claims voxels of 1 × 1 × 500 mm; export the image again"


def test_no_orientation(root: Path, audit: Audit) -> None:
    patch_header(root / "a/s1_T1w.nii.gz", 280, "4f", 0, 0, 0, 0)  # srow_x
    patch_header(root / "a/s1_T1w.nii.gz", 252, "2h", 0, 2)  # sform only
    assert audit() == ["a/s1_T1w.nii.gz: its header has no usable orientation (affine); export the image again"]


def test_four_dimensions(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_T1w.nii.gz", np.stack([head(1)[0]] * 2, axis=-1))
    assert audit() == [
        "a/s1_T1w.nii.gz: has 4 dimensions (20 × 24 × 18 × 2), where one volume of 3 is needed; export the image again"
    ]


def test_colours_are_no_intensities(root: Path, audit: Audit) -> None:
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    write_volume(root / "a/s1_T1w.nii.gz", colours)
    (line,) = audit()
    assert "no plain numbers" in line


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_voxels_that_are_not_finite(root: Path, audit: Audit, bad: float) -> None:
    image = head(1)[0].astype(np.float32)
    image[5, 5, 5:8] = bad
    write_volume(root / "a/s1_T1w.nii.gz", image)
    assert audit() == ["a/s1_T1w.nii.gz: 3 voxels are NaN or infinite; mend the image, or exclude the scan"]


def test_a_constant_image(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_T1w.nii.gz", np.full(SHAPE, 7, np.uint8))
    assert audit() == ["a/s1_T1w.nii.gz: every voxel is 7; export the image again, or exclude the scan"]


def test_an_image_without_a_brain(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_T1w.nii.gz", -head(1)[0].astype(np.int16))
    assert audit() == ["a/s1_T1w.nii.gz: no voxel is above 0, so there is no brain; mend the file, or exclude the scan"]


def test_a_label_of_another_shape(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_seg.nii.gz", head(1)[1][:-1])
    assert audit() == [
        "a/s1_seg.nii.gz: the label has 19 × 24 × 18 voxels, its image a/s1_T1w.nii.gz 20 × 24 × 18; "
        "resample it to the image's grid"
    ]


def test_a_label_in_another_place(root: Path, audit: Audit) -> None:
    affine = np.eye(4)
    affine[0, 3] = 3
    write_volume(root / "a/s1_seg.nii.gz", head(1)[1], affine)
    assert audit() == [
        "a/s1_seg.nii.gz: the label lies up to 3 mm from its image a/s1_T1w.nii.gz (affines differ); "
        "resample it to the image's grid"
    ]


def test_another_storage_order_of_the_same_place_is_fine(root: Path, audit: Audit) -> None:
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    write_volume(root / "a/s1_seg.nii.gz", head(1)[1][::-1].copy(), flipped)
    assert audit() == []


def test_label_ids_outside_the_grouping(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_seg.nii.gz", (head(1)[1] * 40).astype(np.int16))
    assert audit() == [
        "a/s1_seg.nii.gz: label ids 40, 80 are in no group; add them to the label table's grouping, or choose another"
    ]


def test_labels_that_are_no_whole_numbers(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_seg.nii.gz", head(1)[1].astype(np.float32) * 0.5)
    assert audit() == ["a/s1_seg.nii.gz: labels are not whole numbers; resample them by nearest neighbour"]


def test_whole_numbers_stored_as_floats_are_labels(root: Path, audit: Audit) -> None:
    write_volume(root / "a/s1_seg.nii.gz", head(1)[1].astype(np.float64))
    assert audit() == []


def test_masks_are_checked(root: Path, audit: Audit) -> None:
    for index in range(6):
        write_volume(root / f"m/s{index}.nii.gz", (head(index)[0] > 0).astype(np.uint8))
    assert audit(MASKED) == []
    write_volume(root / "m/s1.nii.gz", np.zeros(SHAPE, np.uint8))
    write_volume(root / "m/s2.nii.gz", np.ones((4, 4, 4), np.uint8))
    (root / "m/s3.nii.gz").unlink()
    lines = audit(MASKED)
    assert "m/s1.nii.gz: the mask is empty; mend the file, or exclude the scan" in lines
    assert any(line.startswith("m/s2.nii.gz: the mask has 4 × 4 × 4 voxels, its image") for line in lines)
    assert "m/s3.nii.gz: no such mask for a/s3_T1w.nii.gz; add the file, or exclude 's3'" in lines
    assert len(lines) == 3


def test_a_missing_label(root: Path, audit: Audit) -> None:
    (root / "a/s1_seg.nii.gz").unlink()
    assert audit() == ["a/s1_seg.nii.gz: no such label for a/s1_T1w.nii.gz; add the file, or exclude 's1'"]


def test_kept_levels_need_eight_bits(root: Path, audit: Audit) -> None:
    none = ("split:", "intensity: none\nsplit:")
    assert audit(none) == []
    write_volume(root / "a/s1_T1w.nii.gz", head(1)[0].astype(np.int16))
    assert audit(none) == [
        "a/s1_T1w.nii.gz: is stored as int16, but intensity: none needs 8 bits; set intensity: {percentile: 99.5}"
    ]


def test_a_brain_larger_than_the_slice(audit: Audit) -> None:
    lines = audit(("size: 32", "size: 16, pixel_mm: 0.5"))
    assert len(lines) == 6
    assert lines[0] == (
        "a/s0_T1w.nii.gz: the brain takes 28 × 32 pixels and would be cut off at slices.size 16; "
        "raise size, set a larger pixel_mm, or skull-strip the image"
    )


def test_fewer_slices_than_asked_for(audit: Audit) -> None:
    lines = audit(("count: 4", "count: 60"))
    assert lines[0].startswith("a/s0_T1w.nii.gz: the range holds 20 slices, slices.count asks for 60; lower count")


def test_the_same_image_under_two_names_is_a_leak(root: Path, audit: Audit) -> None:
    (root / "a/s1_T1w.nii.gz").write_bytes((root / "a/s0_T1w.nii.gz").read_bytes())
    assert audit() == [
        "a/s1_T1w.nii.gz: is the same image as a/s0_T1w.nii.gz, yet subjects differ (A-s1, A-s0); "
        "exclude one, or declare same_subject, cohort or of"
    ]
    assert audit(("    label:", '    same_subject: [["s0", "s1"]]\n    label:')) == []


def test_one_folder_as_two_sites_is_a_leak(audit: Audit) -> None:
    lines = audit(more="  B: {image: 'a/{scan}_T1w.nii.gz'}\n", sites=("A", "B"))
    assert len(lines) == 6
    assert "yet subjects differ (B-s0, A-s0)" in lines[0]


def test_too_few_subjects_for_a_split(root: Path, audit: Audit) -> None:
    for index in range(2, 6):
        (root / f"a/s{index}_T1w.nii.gz").unlink()
    (line,) = audit()
    assert line.endswith(
        "tiny.yaml:14:1: A has 2 subjects and none in validation; add scans, leave the site out, "
        "or give a split file (split: {file})"
    )


def test_two_subjects_are_enough_for_a_site_without_labels(root: Path, audit: Audit) -> None:
    for index in range(2):
        write_volume(root / f"b/{index}.nii.gz", head(50 + index)[0])
    assert audit(more="  B: {image: 'b/{scan}.nii.gz'}\n", sites=("A", "B")) == []


def test_all_problems_are_told_at_once(root: Path, audit: Audit) -> None:
    (root / "a/s0_T1w.nii.gz").write_bytes(b"")
    write_volume(root / "a/s1_T1w.nii.gz", np.full(SHAPE, 7, np.uint8))
    write_volume(root / "a/s2_seg.nii.gz", (head(2)[1] * 40).astype(np.int16))
    (root / "a/s3_seg.nii.gz").unlink()
    lines = audit(("    label:", "    exclude: ['s9']\n    label:"))
    assert len(lines) == 5
    assert all("\n" not in line for line in lines)


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(
    root: Path, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data import audit as module

    checked: list[str] = []
    real = module.check_scan

    def counting(folder: Path, scan: ScanFiles, checks: module.Checks) -> list[module.Finding]:
        checked.append(scan.name)
        return real(folder, scan, checks)

    monkeypatch.setattr(module, "check_scan", counting)
    (root / "a/s1_T1w.nii.gz").write_bytes(b"")
    first = audit()
    assert sorted(checked) == [f"s{i}" for i in range(6)]
    checked.clear()
    assert audit() == first
    assert checked == []
    write_scan(root, "s1")
    assert audit() == []
    assert checked == ["s1"]
    checked.clear()
    audit(("count: 4", "count: 5"))  # other checks
    assert len(checked) == 6

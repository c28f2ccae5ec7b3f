"""Slices in PNG and JPEG files: what is read, how slices make scans, what the audit says, what the stages leave."""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from png_files import BRAIN, LESIONS, SHAPE, SLICES, by_hand, chunk, head, write_png, write_scan

from harness.data import arrays, png_layout, png_scan
from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.imagefile import BadHeader, BadImage
from harness.data.layout import find_scans
from harness.data.png_reader import LARGEST_FILE, read_slice
from harness.data.pngfolder import PngDataset
from harness.data.schema import SPLITS
from harness.engine.plan import Stage
from harness.problems import UserError

RunStage = Callable[[Stage], Path]

CARD = """\
id: tiny_png
name: Tiny
kind: png
simulated: false
modality: FLAIR
reference: ours
licence: none
access: ask a friend
lesions: true
labels:
  names: [background, lesion]
  groupings: {any: {0: background, 1-65535: lesion}}
slices: {plane: axial, size: 32}
spacing: [3.0, 1.5, 1.0]
split: {train: 0.5, validation: 0.25, test: 0.25}
sites:
  A:
    image: p/{scan}-{slice}-t1.png
    label: p/{scan}-{slice}-seg.png
    mask: p/{scan}-{slice}-brain.png
    grouping: any
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four good scans of twelve slices."""
    for index in range(4):
        write_scan(tmp_path / "data", f"s{index}", index)
    return tmp_path / "data"


def card_of(folder: Path, *replacements: tuple[str, str], more: str = "") -> Path:
    text = CARD
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    (folder / "tiny_png.yaml").write_text(text + more)
    return folder / "tiny_png.yaml"


@pytest.fixture
def dataset(root: Path, tmp_path: Path) -> Callable[..., PngDataset]:
    """The data set of CARD with replacements, on `root` or another."""

    def make(*replacements: tuple[str, str], at: Path | None = root, more: str = "") -> PngDataset:
        found = open_dataset(read_card(card_of(tmp_path, *replacements, more=more)), at, tmp_path / "cache")
        assert isinstance(found, PngDataset)
        return found

    return make


Make = Callable[..., PngDataset]
NO_MASK = ("    mask: p/{scan}-{slice}-brain.png\n", "")
NO_LABEL = ("    label: p/{scan}-{slice}-seg.png\n", "")


def lines(data: PngDataset, root: Path) -> list[str]:
    return [str(problem).replace(f"{root}/", "") for problem in data.audit(["A"])]


# ---------------------------------------------------------------------------------------------- one file

GREY = (np.arange(12 * 10).reshape(12, 10) * 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "expected", "bits"),
    [
        (GREY, GREY, 8),
        (GREY.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257, 16),
        (GREY > 100, (GREY > 100).astype(np.uint8), 1),
        (np.dstack([GREY] * 3), GREY, 8),
    ],
    ids=["8 bits", "16 bits", "bilevel", "equal channels"],
)
def test_every_kind_of_grey_is_read_as_stored(
    tmp_path: Path, pixels: np.ndarray, expected: np.ndarray, bits: int
) -> None:
    found = read_slice(write_png(tmp_path / "x.png", pixels))
    assert (found.bits, found.lossy, found.pixels.dtype) == (bits, False, expected.dtype)
    assert np.array_equal(found.pixels, expected)


@pytest.mark.parametrize(
    ("bits", "packed", "values"), [(2, b"\0\x1b", [0, 1, 2, 3]), (4, b"\0\x01\x2f", [0, 1, 2, 15])]
)
def test_few_bits_are_not_spread_over_all_grey_levels(
    tmp_path: Path, bits: int, packed: bytes, values: list[int]
) -> None:
    (tmp_path / "x.png").write_bytes(by_hand(4, 1, bits, 0, packed))
    assert read_slice(tmp_path / "x.png").pixels.tolist() == [values]


def test_a_jpeg_is_read_and_known_to_be_lossy(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([GREY] * 3)).save(tmp_path / "x.jpg", quality=95)
    found = read_slice(tmp_path / "x.jpg")
    assert found.lossy
    assert np.abs(found.pixels.astype(int) - GREY).mean() < 8


def _saved(pixels: np.ndarray, form: str, mode: str | None = None, **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(out, form, **options)
    return out.getvalue()


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _claiming(width: int, height: int) -> bytes:
    """A JPEG whose header claims a size."""
    raw = _saved(GREY, "JPEG")
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + struct.pack(">HH", height, width) + raw[at + 4 :]


SOUND = _saved(GREY, "PNG")
FLIPPED = SOUND[: SOUND.index(b"IDAT") + 8] + b"\x7f" + SOUND[SOUND.index(b"IDAT") + 9 :]
BAD = {
    "text": (b"hello", "begins neither as a PNG nor as a JPEG"),
    "empty": (b"", "begins neither"),
    "header only": (SOUND[:20], "ends within its header"),
    "cut short": (SOUND[:-30], "Truncated"),
    "without an end": (SOUND[:-12], "truncated"),
    "one byte changed": (FLIPPED, "checksum"),
    "too few pixels": (by_hand(40, 40, 8, 0, b"\0" * 10), "truncated"),
    "header second": (b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", b"a\0b") + SOUND[8:], "header does not come first"),
    "palette": (_saved(GREY, "PNG", "P"), "palette"),
    "alpha": (_saved(GREY, "PNG", "LA"), "alpha channel"),
    "colour": (_saved(np.dstack([GREY, GREY, GREY // 2]), "PNG"), "in colour"),
    "colour of 16 bits": (by_hand(3, 2, 16, 2, bytes(38)), "colours of 16 bits"),
    "animation": (
        _saved(GREY, "PNG", save_all=True, append_images=[Image.fromarray(GREY[::-1].copy())]),
        "several images",
    ),
    "turned PNG": (_saved(GREY, "PNG", exif=_turned()), "upright"),
    "turned JPEG": (_saved(GREY, "JPEG", exif=_turned()), "upright"),
    "JPEG cut short": (_saved(GREY, "JPEG")[:-60], "Truncated|truncated"),
    "JPEG of four inks": (_saved(np.dstack([GREY] * 3), "JPEG", "CMYK"), "CMYK"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_grey_image_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    raw, message = BAD[name]
    (tmp_path / "x.png").write_bytes(raw)
    with pytest.raises(BadImage, match=message) as caught:
        read_slice(tmp_path / "x.png")
    assert str(caught.value).isprintable()


HUGE = {
    "PNG": by_hand(60_000, 60_000, 8, 0, bytes(10)),
    "PNG of no height": by_hand(5, 0, 8, 0, b""),
    "second header": by_hand(
        4, 4, 8, 0, bytes(20), chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    ),
    "JPEG": _claiming(65_000, 65_000),
    "JPEG of 9000 columns": _claiming(9_000, 10),
    "JPEG of many passes": _saved(GREY, "JPEG")[:-2] + b"\xff\xda\0\x08\x01\x01\0\0\x3f\0" * 200,
}


@pytest.mark.parametrize("name", HUGE)
def test_absurd_claims_are_refused_before_anything_is_decoded(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.png").write_bytes(HUGE[name])
    start = time.process_time()
    with pytest.raises(BadImage, match=r"claims|any encoder|exceeds limit"):
        read_slice(tmp_path / "x.png")
    assert time.process_time() - start < 0.5


def test_neither_large_files_nor_pipes_are_read(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.write(SOUND)
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(BadHeader, match="has 64 MiB"):
        read_slice(tmp_path / "x.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="a pipe or a device"):
        read_slice(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):
        read_slice(tmp_path / "nowhere.png")


# ------------------------------------------------------------------------------------------------ layout


def test_slices_of_a_scan_are_in_natural_order(dataset: Make) -> None:
    scan = dataset().scans("A")[0]
    assert isinstance(scan, png_layout.SlicedScan)
    assert scan.images == tuple(f"p/s0-{k}-t1.png" for k in range(SLICES))
    assert scan.masks[10] == "p/s0-10-brain.png"
    assert (scan.id, scan.subject, scan.image) == ("A-s0", "A-s0", "p/s0-6-t1.png")
    names = ["a10", "a9", "a09", "b", "10", "9", "a9b2", "a9b10", ""]
    assert sorted(names, key=png_layout.natural) == ["", "9", "10", "a09", "a9", "a9b2", "a9b10", "a10", "b"]


def test_without_a_slice_each_file_is_a_scan(dataset: Make, tmp_path: Path) -> None:
    root = tmp_path / "flat"
    for i in range(5):
        write_png(root / "mid" / f"sub-{i:02}_95.png", head(i)[0][4])
    site = CARD[CARD.index("  A:") :]
    data = dataset((site, "  A: {image: 'mid/sub-{subject}_*.png', healthy: true}\n"), at=root)
    assert [scan.name for scan in data.scans("A")] == ["00", "01", "02", "03", "04"]
    assert {len(scan.images) for scan in data.scans("A")} == {1}
    assert lines(data, root) == []


def test_visits_of_a_person_and_a_table_of_subjects(dataset: Make, tmp_path: Path) -> None:
    root = tmp_path / "visits"
    for who in "abcd":
        for visit in (1, 2):
            for k in range(3):
                write_png(root / who / f"v{visit}" / f"{k}.png", head(10 * ord(who) + visit)[0][4])
    (root / "people.csv").write_text("scan,age,sex\n" + "".join(f"{who},40,F\n" for who in "abcd"))
    site = CARD[CARD.index("  A:") :]
    new = "  A: {image: '{subject}/v{session}/{slice}.png', healthy: true, subjects: people.csv, exclude: [d_2]}\n"
    data = dataset((site, new), at=root)
    assert [scan.name for scan in data.scans("A")] == ["a_1", "a_2", "b_1", "b_2", "c_1", "c_2", "d_1"]
    assert {scan.age for scan in data.scans("A")} == {40.0}
    for split in SPLITS:
        assert {s.subject for s in data.scans("A", split)} == {
            s.subject for s in data.scans("A") if data.subjects()[s.subject] == split
        }
    assert lines(data, root) == []


def test_one_mask_may_serve_all_slices_but_one_label_may_not(dataset: Make, root: Path) -> None:
    write_png(root / "brain.png", head(0)[1][4])
    data = dataset(("p/{scan}-{slice}-brain.png", "brain.png"))
    assert data.scans("A")[0].masks == ("brain.png",) * SLICES
    assert lines(data, root) == []
    write_png(root / "p" / "s0-seg.png", head(0)[2][4])
    told = lines(dataset(("label: p/{scan}-{slice}-seg.png", "label: p/s0-seg.png")), root)
    assert any("label: has no {slice}, so that all slices of a scan would share one" in line for line in told)


def test_problems_of_the_layout_are_told_at_once_and_once_a_scan(dataset: Make, root: Path, tmp_path: Path) -> None:
    for k in (2, 5, 7):
        (root / f"p/s1-{k}-seg.png").unlink()
    write_png(root / "q" / "s2-3-seg.png", head(2)[2][3])
    (tmp_path / "outside.png").write_bytes(SOUND)
    (root / "p" / "s9-1-t1.png").symlink_to(tmp_path / "outside.png")
    data = dataset(
        ("label: p/", "label: '*/"), ("-seg.png", "-seg.png'"), ("    grouping", "    exclude: [s7]\n    grouping")
    )
    told = lines(data, root)
    assert any(line.startswith("*/s1-2-seg.png: no such label; 3 of 12 slices of scan 's1' have none") for line in told)
    assert any("2 files match one slice of scan 's2'" in line for line in told)
    assert any(line.startswith("p/s9-1-t1.png: is a link out of the data root") for line in told)
    assert any("exclude: there is no scan 's7'" in line for line in told)
    assert len(told) == 4


def test_a_slice_that_two_files_claim(dataset: Make, root: Path) -> None:
    write_png(root / "q" / "s0-3-t1.png", head(0)[0][3])
    data = dataset(("image: p/", "image: '*/"), ("-t1.png", "-t1.png'"))
    assert [line for line in lines(data, root) if "again" in line] == [
        "q/s0-3-t1.png: slice '3' of scan 's0' again, first at p/s0-3-t1.png; make the pattern narrower, or remove one"
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size: 32", "size: 32, pixel_mm: 2", "never resampled"),
        ("size: 32", "size: 32, at: [2, 4]", "chosen by their names"),
        ("{scan}-{slice}-t1", "{slice}-t1", r"names no \{scan\} or \{subject\}"),
        ("{scan}-{slice}-t1", "{scan}-{slce}-t1", "did you mean slice"),
        ("[3.0, 1.5, 1.0]", "[3.0, 0, 1.0]", "spacing"),
    ],
)
def test_mistakes_in_the_card(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_card(card_of(tmp_path, (old, new)))


def test_slices_are_no_field_of_volumes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown field \{slice\}"):
        read_card(card_of(tmp_path, ("kind: png", "kind: nifti"), ("spacing: [3.0, 1.5, 1.0]\n", "")))


# ------------------------------------------------------------------------------------------------- audit


def test_a_sound_folder_has_no_problems(dataset: Make, root: Path) -> None:
    data = dataset()
    assert data.missing(["A"]) == []
    assert lines(data, root) == []
    assert lines(dataset(), root) == []  # as remembered


def _rewrite(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = root / "p" / name
    write_png(path, change(np.asarray(Image.open(path))))


def _jpeg(root: Path, name: str) -> None:
    pixels = np.asarray(Image.open(root / "p" / name))
    Image.fromarray(pixels).save(root / "p" / name, "JPEG")


def _blank(root: Path) -> None:
    for k in range(SLICES):
        _rewrite(root, f"s1-{k}-brain.png", np.zeros_like)


def _black(root: Path) -> None:
    for k in range(SLICES):
        _rewrite(root, f"s1-{k}-t1.png", lambda old: np.where(head(1)[1][4] > 0, 0, old).astype(np.uint8))


WRONG: dict[str, tuple[Callable[[Path], object], tuple[tuple[str, str], ...], str]] = {
    "damaged": (
        lambda root: (root / "p/s1-3-t1.png").write_bytes(SOUND[:-30]),
        (),
        "p/s1-3-t1.png: the image cannot be read (Truncated File Read); copy or export it again",
    ),
    "huge": (
        lambda root: (root / "p/s1-3-seg.png").write_bytes(HUGE["PNG"]),
        (),
        "p/s1-3-seg.png: its header claims 60000 × 60000 pixels, where a side has 1 to 4096; export the label again",
    ),
    "other size within a scan": (
        lambda root: [_rewrite(root, f"s1-3-{role}.png", lambda old: old[:-1]) for role in ("t1", "brain", "seg")],
        (),
        "p/s1-3-t1.png: has 25 × 22 pixels, the scan's first slice p/s1-0-t1.png has 26 × 22; export all of a scan in"
        " one size",
    ),
    "other size of labels": (
        lambda root: [_rewrite(root, f"s1-{k}-seg.png", lambda old: old[:, 1:]) for k in (3, 4, 5)],
        (),
        "p/s1-3-seg.png: the label has 26 × 21 pixels, its image p/s1-3-t1.png 26 × 22; export it on the image's grid"
        " (and 2 more of the 12 slices)",
    ),
    "lossy label": (
        lambda root: _jpeg(root, "s1-4-seg.png"),
        (),
        "p/s1-4-seg.png: is a JPEG, which blurs the edge of a label; export it as PNG",
    ),
    "lossy image without a mask": (
        lambda root: _jpeg(root, "s1-4-t1.png"),
        (NO_MASK,),
        "p/s1-4-t1.png: is a JPEG, whose black is not quite black, so that the brain cannot be told; give the site a"
        " mask",
    ),
    "16 bits": (
        lambda root: _rewrite(root, "s1-4-t1.png", lambda old: old.astype(np.uint16) * 200),
        (),
        "p/s1-4-t1.png: has 16 bits a pixel, but intensity: none needs 8; set intensity: {percentile: 98}",
    ),
    "unknown labels": (
        lambda root: None,
        (("1-65535: lesion", "1: lesion"),),
        "p/s0-4-seg.png: label ids 255 are in no group; add them to the label table's grouping, or choose another (and"
        " 2 more of the 12 slices)",
    ),
    "no brain": (_blank, (), "p/s1-0-brain.png: all masks of the scan are empty; mend the files, or exclude the scan"),
    "black brain": (
        _black,
        (("spacing", "intensity: {percentile: 98}\nspacing"),),
        "p/s1-0-t1.png: the brain's 98th percentile is 0: the image is empty; mend the images or masks, or exclude the"
        " scan",
    ),
    "too large": (
        lambda root: None,
        (("size: 32", "size: 17"),),
        "p/s0-0-t1.png: the brain takes 20 × 16 pixels and would be cut off at slices.size 17; raise size, or skull-"
        "strip the images (mask:)",
    ),
    "too few slices": (
        lambda root: None,
        (("size: 32", "size: 32, count: 11"),),
        "p/s0-0-t1.png: the range holds 10 slices, slices.count asks for 11; lower count, widen range, or write count:"
        " all",
    ),
    "most_voxels": (
        lambda root: None,
        (("spacing", "most_voxels: 6000\nspacing"),),
        "p/s0-0-t1.png: the scan has 6,864 pixels, more than the card's most_voxels (6,000); tell scans apart by the"
        " pattern, or raise it",
    ),
    "same image": (
        lambda root: [
            (root / f"p/s1-{k}-t1.png").write_bytes((root / f"p/s0-{k}-t1.png").read_bytes()) for k in range(SLICES)
        ],
        (),
        "p/s1-6-t1.png: is the same image as p/s0-6-t1.png, yet subjects differ (A-s1, A-s0); exclude one, or declare"
        " same_subject, cohort or of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(dataset: Make, root: Path, name: str) -> None:
    spoil, replacements, expected = WRONG[name]
    spoil(root)
    told = lines(dataset(*replacements), root)
    assert expected in told
    alone = {"unknown labels", "too large", "too few slices", "most_voxels"}  # true of every scan
    assert len(told) == (4 if name in alone else 1)


def test_all_problems_of_a_scan_are_told_at_once(dataset: Make, root: Path) -> None:
    (root / "p/s1-3-t1.png").write_bytes(b"no")
    (root / "p/s1-5-brain.png").write_bytes(SOUND[:30])
    _jpeg(root, "s1-4-seg.png")
    assert [line.partition(":")[0] for line in lines(dataset(), root)] == [
        "p/s1-3-t1.png",
        "p/s1-5-brain.png",
        "p/s1-4-seg.png",
    ]


def test_a_choice_that_leaves_nothing_is_known_before_a_run(dataset: Make, root: Path) -> None:
    data = dataset()
    assert data.audit_choice("A", "all", "largest") == []
    for k in LESIONS:
        for scan in range(4):
            _rewrite(root, f"s{scan}-{k}-seg.png", np.zeros_like)
    told = [str(problem) for problem in dataset().audit_choice("A", "all", "largest")]
    assert len(told) == 1
    assert "A all, 4 scans: there is no slice with a lesion" in told[0]


# ------------------------------------------------------------------------------------------------ stages


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_keep_their_place_in_a_volume(plane: str) -> None:
    planes = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    volume = png_scan.stack(list(planes), plane)
    # x to the right, y anterior, z superior: the first row is superior (axial: anterior), the first column left
    place = {
        "axial": lambda k, i, j: volume[j, 2 - i, k],
        "coronal": lambda k, i, j: volume[j, k, 2 - i],
        "sagittal": lambda k, i, j: volume[k, j, 2 - i],
    }[plane]
    assert all(place(k, i, j) == planes[k, i, j] for k, i, j in np.ndindex(planes.shape))
    assert (
        png_scan.voxel_size((3.0, 2.0, 1.0), plane)
        == {
            "axial": (1.0, 2.0, 3.0),
            "coronal": (1.0, 3.0, 2.0),
            "sagittal": (3.0, 1.0, 2.0),
        }[plane]
    )


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_come_out_as_they_lie_in_the_files(dataset: Make, run_stage: RunStage, plane: str) -> None:
    data = dataset(("plane: axial", f"plane: {plane}"))
    images = arrays.load_images(run_stage(data.images("A", "all")))
    labels = arrays.load_labels(run_stage(data.labels("A", "all")))
    assert images.pixels.shape == (4 * len(BRAIN), 32, 32)
    assert [scan.id for scan in images.scans] == [f"A-s{i}" for i in range(4)]
    # 26 × 22 about the brain's middle, which is the image's, in 32 × 32
    rows, columns = slice(3, 3 + SHAPE[0]), slice(5, 5 + SHAPE[1])
    for index, scan in enumerate(images.scans):
        pixels, mask, lesion = (volume[BRAIN.start : BRAIN.stop] for volume in head(index))
        assert np.array_equal(images.pixels[scan.slices, rows, columns], np.where(mask > 0, pixels, 0))
        assert np.array_equal(images.mask[scan.slices, rows, columns], mask > 0)
        assert np.array_equal(labels.labels[scan.slices, rows, columns], lesion > 0)
        assert scan.spacing == (3.0, 1.5, 1.0)
        assert scan.modality == "FLAIR"
    assert images.mask.sum() == 4 * (head(0)[1] > 0).sum()
    assert labels.names == ("background", "lesion")


def test_without_a_mask_the_brain_is_what_is_not_black(dataset: Make, root: Path, run_stage: RunStage) -> None:
    for index in range(4):
        image, mask, _ = head(index)
        write_scan(root, f"s{index}", index, np.where(mask > 0, image, 0).astype(np.uint8))
    masked, unmasked = (
        arrays.load_images(run_stage(dataset(*replace).images("A", "test"))) for replace in ((), (NO_MASK,))
    )
    assert np.array_equal(masked.pixels, unmasked.pixels)
    assert np.array_equal(masked.mask, unmasked.mask)


def test_16_bits_are_scaled_scan_by_scan(dataset: Make, root: Path, run_stage: RunStage) -> None:
    for index in range(4):
        write_scan(root, f"s{index}", index, head(index)[0].astype(np.uint16) * (20 + 60 * index))
    data = dataset(("spacing", "intensity: {percentile: 98}\nspacing"))
    assert lines(data, root) == []
    images = arrays.load_images(run_stage(data.images("A", "all")))
    for index, scan in enumerate(images.scans):
        pixels, mask, _ = head(index)
        top = np.percentile(pixels[mask > 0], 98)
        inside = images.pixels[scan.slices][images.mask[scan.slices]]
        expected = np.clip(pixels[BRAIN.start : BRAIN.stop][mask[BRAIN.start : BRAIN.stop] > 0] / top, 0, 1) * 255
        assert np.abs(inside - expected).max() <= 0.51


def test_a_brain_off_the_middle_is_not_cut(dataset: Make, tmp_path: Path, run_stage: RunStage) -> None:
    root = tmp_path / "off"
    for index in range(4):
        image, mask, _ = head(index)
        for k in (4, 5):
            wide = np.zeros((60, 70), np.uint8)
            wide[30:56, 46:68] = np.where(mask[k] > 0, image[k], 0)
            write_png(root / "p" / f"s{index}-{k}-t1.png", wide)
    data = dataset(NO_MASK, NO_LABEL, ("    grouping: any\n", "    healthy: true\n"), at=root)
    assert lines(data, root) == []
    images = arrays.load_images(run_stage(data.images("A", "all")))
    assert images.mask.sum() == 4 * 2 * (head(0)[1][4] > 0).sum()
    assert not arrays.load_labels(run_stage(data.labels("A", "all"))).labels.any()


def test_count_and_range_speak_of_the_slices_that_show_brain(dataset: Make, run_stage: RunStage) -> None:
    data = dataset(("size: 32", "size: 32, count: 2, range: [0.2, 0.8]"))
    images = arrays.load_images(run_stage(data.images("A", "test")))
    assert images.pixels.shape[0] == 2 * len(images.scans)
    pixels, mask, _ = head(int(images.scans[0].id[-1]))
    assert np.array_equal(images.pixels[0, 3:29, 5:27], np.where(mask[4] > 0, pixels[4], 0))
    assert np.array_equal(images.pixels[1, 3:29, 5:27], np.where(mask[7] > 0, pixels[7], 0))
    assert images.scans[0].spacing[0] == 9.0


def test_slices_are_chosen_by_their_lesions(dataset: Make, run_stage: RunStage) -> None:
    data = dataset()
    for choice, kept in (("healthy", [1, 2, 3, 7, 8, 9, 10]), ("lesions", [4, 5, 6]), ("largest", [5])):
        images = arrays.load_images(run_stage(data.images("A", "train", choice=choice)))
        labels = arrays.load_labels(run_stage(data.labels("A", "train", choice=choice)))
        for scan in images.scans:
            pixels, mask, lesion = head(int(scan.id[-1]))
            assert np.array_equal(images.pixels[scan.slices, 3:29, 5:27], np.where(mask > 0, pixels, 0)[kept])
            assert np.array_equal(labels.labels[scan.slices, 3:29, 5:27], (lesion > 0)[kept])


def test_a_shifted_copy_has_the_same_brains_and_lesions(dataset: Make, run_stage: RunStage) -> None:
    data = dataset(more="  S: {of: A, shift: {gamma: 2, noise: 0.02}}\n")
    ours, theirs = (arrays.load_images(run_stage(data.images(site, "test"))) for site in ("A", "S"))
    assert np.array_equal(ours.mask, theirs.mask)
    assert not np.array_equal(ours.pixels, theirs.pixels)
    labels = [arrays.load_labels(run_stage(data.labels(site, "test"))).labels for site in ("A", "S")]
    assert np.array_equal(*labels)


def test_the_key_follows_contents_and_what_is_asked(dataset: Make, root: Path, tmp_path: Path) -> None:
    images, labels = dataset().images("A", "test"), dataset().labels("A", "test")
    for replace in (("[3.0, 1.5, 1.0]", "[3.0, 1.5, 1.1]"), ("size: 32", "size: 33"), NO_MASK):
        assert dataset(replace).images("A", "test").key != images.key
    assert dataset(("ask a friend", "ask")).images("A", "test").key == images.key
    moved = root.rename(tmp_path / "elsewhere")
    assert dataset(at=moved).images("A", "test").key == images.key
    assert dataset(at=moved).labels("A", "test").key == labels.key
    scan = images.params["scans"][0]["id"].removeprefix("A-")
    _rewrite(moved, f"{scan}-9-seg.png", lambda old: 255 - old)
    assert dataset(at=moved).images("A", "test").key == images.key
    assert dataset(at=moved).labels("A", "test").key != labels.key


def test_a_plan_can_be_made_without_the_data(dataset: Make) -> None:
    absent = dataset(at=None)
    assert "To get the data: ask a friend" in absent.missing()[0]
    assert absent.images("A", "train", choice="healthy").key != absent.images("A", "test", choice="largest").key
    assert absent.summary()["sites"]["A"]["scans"] == 0
    assert absent.summary()["kind"] == "png"


def test_a_file_that_is_spoilt_after_the_audit_fails_in_one_line(
    dataset: Make, root: Path, run_stage: RunStage
) -> None:
    data = dataset()
    assert lines(data, root) == []
    stage = data.images("A", "test")
    name = stage.params["scans"][0]["id"].removeprefix("A-")
    write_png(root / "p" / f"{name}-3-t1.png", np.ones((5, 5), np.uint8))
    with pytest.raises(BadImage, match=f"p/{name}-3-t1.png: it has 5 × 5 pixels, the scan's first slice 26 × 22"):
        run_stage(stage)


def test_the_template_gathers_slices_where_the_layout_of_volumes_sees_one_scan_twice(tmp_path: Path) -> None:
    card = read_card("png_folder")
    for k in (9, 10):
        for kind in ("flair", "segmentation", "brainmask"):
            write_png(tmp_path / "patients" / f"x-slice_{k}-{kind}.png", GREY)
    scans = png_layout.find_slices(tmp_path, card, "PATIENTS").scans
    assert [scan.images for scan in scans] == [("patients/x-slice_9-flair.png", "patients/x-slice_10-flair.png")]
    assert any("again" in problem.what for problem in find_scans(tmp_path, card, "PATIENTS").problems)

"""What lies in a data folder is not trusted: links, pipes, names, tables, and images that claim too much."""

from __future__ import annotations

import gzip
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from harness.data import imagefile, layout, volumes
from harness.data.audit import Checks, check_scan
from harness.data.card import read_card
from harness.data.dataset import open_dataset
from harness.data.imagefile import BadImage
from harness.data.layout import ScanFiles
from harness.data.schema import Slices
from harness.problems import UserError

CARD = """\
id: small
name: Small
kind: nifti
simulated: false
modality: T1w
reference: ours
licence: none
access: none
labels: {names: [background, left, right]}
slices: {plane: coronal, size: 16, count: 2}
sites:
  A: {image: "a/{scan}_T1w.nii", label: "a/{scan}_seg.nii", subjects: people.csv}
"""
SHAPE = (8, 9, 7)


def volume() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    for i in range(4):
        for kind in ("T1w", "seg"):
            nib.Nifti1Image(volume(), np.eye(4)).to_filename(folder / f"a/s{i}_{kind}.nii")
    (folder / "people.csv").write_text("scan,age\n" + "".join(f"s{i},30\n" for i in range(4)))
    (tmp_path / "card.yaml").write_text(CARD)
    return folder


@pytest.fixture
def problems(root: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """What is wrong with how the site's files lie, without the root."""

    def look(card: str = CARD) -> list[str]:
        (tmp_path / "card.yaml").write_text(card)
        found = open_dataset(read_card(tmp_path / "card.yaml"), root, tmp_path / "cache").layout("A").problems
        assert all(str(problem).isprintable() for problem in found)
        return [str(problem).replace(f"{root}/", "") for problem in found]

    return look


Look = Callable[..., list[str]]


def test_sound_files_have_no_problems(problems: Look) -> None:
    assert problems() == []


def test_links_do_not_lead_out_of_the_root(root: Path, tmp_path: Path, problems: Look) -> None:
    outside = tmp_path / "secret"
    outside.mkdir()
    for name in ("s0_T1w.nii", "s1_seg.nii"):
        (root / "a" / name).rename(outside / name)
        (root / "a" / name).symlink_to(outside / name)
    lines = problems()
    assert len(lines) == 2
    for name, line in zip(("s0_T1w.nii", "s1_seg.nii"), sorted(lines), strict=True):
        assert line.startswith(f"a/{name}: is a link out of the data root, to {outside / name}; copy the file")


def test_a_linked_folder_leads_nowhere_else(root: Path, tmp_path: Path, problems: Look) -> None:
    (root / "a").rename(tmp_path / "elsewhere")
    (root / "a").symlink_to(tmp_path / "elsewhere")
    assert all("is a link out of the data root" in line for line in problems())
    assert len(problems()) == 4


def test_links_within_the_root_and_a_linked_root_are_fine(root: Path, tmp_path: Path, problems: Look) -> None:
    (root / "store").mkdir()
    (root / "a" / "s0_T1w.nii").rename(root / "store" / "x")
    (root / "a" / "s0_T1w.nii").symlink_to("../store/x")
    assert problems() == []
    (tmp_path / "way").symlink_to(root)
    found = open_dataset(read_card(tmp_path / "card.yaml"), tmp_path / "way", tmp_path / "cache").layout("A")
    assert found.problems == ()
    assert len(found.scans) == 4


def test_a_table_is_a_file_of_the_root(root: Path, tmp_path: Path, problems: Look) -> None:
    table = root / "people.csv"
    table.rename(tmp_path / "people.csv")
    table.symlink_to(tmp_path / "people.csv")
    assert problems()[0].startswith("people.csv: is a link out of the data root")
    table.unlink()
    os.mkfifo(table)
    assert problems()[0] == "people.csv: the table cannot be read: it is a pipe or a device, no regular file"
    table.unlink()
    table.mkdir()
    assert problems()[0] == "people.csv: the table cannot be read: Is a directory"
    table.rmdir()
    table.write_bytes(b"scan,age\n\xff\x00,1\n")
    assert "save it as UTF-8 text" in problems()[0]
    table.write_bytes(b"scan,age\ns0," + b"9" * 200_000 + b"\n")
    assert "field larger than field limit" in problems()[0]


def test_a_table_without_end(root: Path, problems: Look) -> None:
    with (root / "people.csv").open("wb") as file:
        file.truncate(layout.LARGEST_TABLE + 1)
    assert problems()[0].startswith("people.csv: the table has 256 MiB; keep the rows")


def test_pipes_are_no_scans(root: Path, tmp_path: Path, problems: Look) -> None:
    (root / "a" / "s0_seg.nii").unlink()
    os.mkfifo(root / "a" / "s0_seg.nii")
    assert problems() == ["a/s0_seg.nii: no such label for a/s0_T1w.nii; add the file, or exclude 's0'"]
    nib.Nifti1Pair(volume(), np.eye(4)).to_filename(root / "a" / "s9_T1w.img")
    (root / "a" / "s9_T1w.hdr").unlink()
    os.mkfifo(root / "a" / "s9_T1w.hdr")
    (tmp_path / "card.yaml").write_text(CARD.replace("_T1w.nii", "_T1w.img").replace('label: "a/{scan}_seg.nii", ', ""))
    (root / "people.csv").write_text("scan\ns9\n")
    lines = [str(p) for p in open_dataset(read_card(tmp_path / "card.yaml"), root, tmp_path / "cache").audit(["A"])]
    assert any("s9_T1w.img: the image cannot be read (" in line and "a pipe or a device" in line for line in lines), (
        lines
    )


def test_names_that_cannot_be_shown(root: Path, problems: Look) -> None:
    (root / "a" / "s1\x1b[2J_T1w.nii").write_bytes(b"x")
    (root / "a" / "s2\n_T1w.nii").write_bytes(b"x")
    with open(os.fsencode(root / "a") + b"/s3\xff_T1w.nii", "wb"):
        pass
    lines = problems()
    assert len(lines) == 3
    assert all("its name holds a character that cannot be shown; rename it" in line for line in lines)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("../{scan}.nii", "leaves the data root"),
        ("a/../../{scan}.nii", "leaves the data root"),
        ("/etc/{scan}", "is absolute"),
        ("~/{scan}", "is absolute"),
        ("a\nb/{scan}", "holds a character that cannot be shown"),
        ("a/" + "*a" * 5 + "{scan}", "has more than 4 fields and *"),
        ("a/" + "b" * 2000 + "{scan}", "has 2008 characters"),
        ("**/{scan}", "** is not known"),
    ],
)
def test_patterns_stay_below_the_root(problems: Look, pattern: str, message: str) -> None:
    for key in ("image", "label"):
        card = CARD.replace("a/{scan}_T1w.nii" if key == "image" else "a/{scan}_seg.nii", pattern.replace("\n", "\\n"))
        with pytest.raises(UserError) as caught:
            problems(card)
        assert message in str(caught.value)


def test_the_longest_pattern_and_name_take_seconds(root: Path, problems: Look) -> None:
    (root / "a" / ("a" * 240 + "c")).write_bytes(b"x")
    start = time.process_time()
    problems(CARD.replace("a/{scan}_T1w.nii", "a/*a*a*a{scan}b"))
    assert time.process_time() - start < 10


# --------------------------------------------------------------------------------------------- image files


def write(path: Path, patch: dict[int, bytes] | None = None, more: bytes = b"", header: type = nib.Nifti1Image) -> Path:
    """A NIfTI file with bytes of its header replaced, and more at its end."""
    raw = bytearray(header(volume(), np.eye(4)).to_bytes())
    for at, value in (patch or {}).items():
        raw[at : at + len(value)] = value
    raw += more
    path.write_bytes(gzip.compress(bytes(raw), 1) if path.suffix == ".gz" else raw)
    return path


def dims(*sizes: int) -> dict[int, bytes]:
    return {40: struct.pack(f"<{1 + len(sizes)}h", len(sizes), *sizes)}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (dims(8, 9, 0), "its header claims 8 × 9 × 0 voxels"),
        (dims(8, -9, 7), "its header claims 8 × -9 × 7 voxels"),
        (dims(32767, 32767, 32767), "more than any head has"),
        (dims(4000, 4000, 4000), "more than the card's most_voxels (536,870,912)"),
        (dims(8, 9, 1, 1, 1, 1, 7), "has 7 dimensions"),
        (dims(8, 9), "has 2 dimensions"),
        (dims(800, 800, 800), "too few for the 512000352 that its header promises"),
        ({70: struct.pack("<h", 32)}, "its voxels are of type complex64, no plain numbers"),
        ({70: struct.pack("<h", 128)}, "no plain numbers"),
        ({70: struct.pack("<h", 999)}, "cannot be read"),
        ({108: struct.pack("<f", np.nan)}, "cannot be read"),
        ({108: struct.pack("<f", 1e9)}, "the voxels begin at byte 1000000000"),
        ({108: struct.pack("<f", 16)}, "cannot be read"),
        ({76: struct.pack("<4f", 1, np.nan, 1, 1)}, "its header claims voxels of nan"),
        ({80: struct.pack("<3f", 1e-9, 1, 1)}, "its header claims voxels of 1e-09"),
        ({280: struct.pack("<4f", np.inf, 0, 0, 0)}, "no usable orientation"),
        ({280: struct.pack("<4f", 1e30, 0, 0, 0)}, "no usable orientation"),
        ({280: struct.pack("<12f", *[1.0] * 12)}, "no usable orientation"),
        ({112: struct.pack("<2f", 1, np.nan)}, "cannot be read"),
        ({112: struct.pack("<2f", 1e38, 0)}, None),
        ({112: struct.pack("<2f", 3e38, 0)}, "voxels are NaN or infinite"),
        ({112: struct.pack("<2f", np.nan, 0)}, None),
        ({112: struct.pack("<2f", np.inf, 0)}, None),
        ({112: struct.pack("<2f", 0, 5)}, None),
        ({0: b"\0\0\0\0"}, "it does not begin as an image does"),
        ({344: b"abc\0"}, "it is no NIfTI file"),
    ],
)
def test_headers_are_judged_before_they_are_believed(
    tmp_path: Path, patch: dict[int, bytes], message: str | None, ending: str
) -> None:
    path = write(tmp_path / f"x{ending}", patch)
    tracemalloc.start()
    try:
        findings = check_scan(tmp_path, ScanFiles("x", "A-x", "A-x", path.name), Checks(Slices(size=16)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    if message is None:  # a scale that says nothing is no scale
        assert findings == []
        assert np.isfinite(volumes.read_image(path)[0]).all()
    else:
        ((_, what),) = findings
        assert message in what


def test_a_card_can_ask_for_larger_volumes(root: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii")
    assert volumes.read_image(path, 8 * 9 * 7)[0].shape == SHAPE
    with pytest.raises(BadImage, match=r"most_voxels \(503\)"):
        volumes.read_image(path, 8 * 9 * 7 - 1)
    (tmp_path / "card.yaml").write_text(CARD + "most_voxels: 503\n")
    lines = open_dataset(read_card(tmp_path / "card.yaml"), root, tmp_path / "cache").audit(["A"])
    assert any("more than the card's most_voxels (503)" in str(line) for line in lines)


def test_a_stream_is_read_no_further_than_its_header_promises(tmp_path: Path) -> None:
    bomb = write(tmp_path / "x.nii.gz", more=bytes(100 * 2**20))
    assert bomb.stat().st_size < 2**20
    tracemalloc.start()
    start = time.process_time()
    try:
        image, _ = volumes.read_image(bomb)
        peak, took = tracemalloc.get_traced_memory()[1], time.process_time() - start
    finally:
        tracemalloc.stop()
    assert np.array_equal(image, volume())
    assert peak < 4 * 2**20
    assert took < 1


@pytest.mark.parametrize("size", [16, 1, 0, -16, 2**31 - 1, -(2**31)])
def test_extensions_are_never_read(tmp_path: Path, size: int) -> None:
    extension = b"\1\0\0\0" + struct.pack("<2i", size, 6) + bytes(24)
    raw = nib.Nifti1Image(volume(), np.eye(4)).to_bytes()
    changed = bytearray(raw[:348] + extension + bytes(64) + raw[352:])
    changed[108:112] = struct.pack("<f", 348 + len(extension) + 64)
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(changed), 1))
    assert np.array_equal(volumes.read_image(tmp_path / "x.nii.gz")[0], volume())


def test_pairs_and_other_endings(tmp_path: Path) -> None:
    nib.Nifti1Pair(volume(), np.eye(4)).to_filename(tmp_path / "x.img")
    assert np.array_equal(volumes.read_image(tmp_path / "x.img")[0], volume())
    assert np.array_equal(volumes.read_image(tmp_path / "x.hdr")[0], volume())
    (tmp_path / "x.mat").write_bytes(b"anything")
    with pytest.raises(BadImage, match=r"a \.mat file beside it would move it unseen"):
        volumes.read_image(tmp_path / "x.img")
    (tmp_path / "x.mat").unlink()
    (tmp_path / "x.img").unlink()
    with pytest.raises(FileNotFoundError):
        volumes.read_image(tmp_path / "x.hdr")
    for name in ("x.nii.bz2", "x.mnc", "x.par", "x.gii", "x.npy", "x"):
        (tmp_path / name).write_bytes(b"x" * 1000)
        with pytest.raises(BadImage, match="it is none of"):
            volumes.read_image(tmp_path / name)


def test_the_readers_reading_agrees_with_nibabels(tmp_path: Path) -> None:
    """Choosing the class and the place of the voxels ourselves changes nothing in what is read."""
    flipped = np.array([[0, -1, 0, 3], [0, 0, 2, -4], [-1.5, 0, 0, 9], [0, 0, 0, 1.0]])
    values = volume().astype(np.int16) * 7
    scaled = nib.Nifti1Image(values, flipped)
    scaled.header.set_slope_inter(0.25, -3)
    images = {
        "scaled.nii.gz": scaled,
        "big.nii": nib.Nifti1Image(values, np.eye(4), nib.Nifti1Header(endianness=">")),
        "two.nii.gz": nib.Nifti2Image(values.astype(np.float64), flipped),
        "axes.nii": nib.Nifti1Image(values[..., None], flipped),
        "x.mgz": nib.MGHImage(values, flipped),
        "pair.img": nib.Nifti1Pair(values, flipped),
        "analyze.img": nib.Spm2AnalyzeImage(values, None),
    }
    for name, image in images.items():
        image.to_filename(tmp_path / name)
        (tmp_path / "analyze.mat").unlink(missing_ok=True)
        theirs = nib.as_closest_canonical(nib.funcs.squeeze_image(nib.load(tmp_path / name)))
        ours = imagefile.canonical(imagefile.open_image(tmp_path / name))
        assert np.array_equal(imagefile.read_voxels(ours), np.asarray(theirs.dataobj)), name
        assert np.array_equal(ours.affine, theirs.affine), name
        assert ours.header.get_zooms()[:3] == theirs.header.get_zooms()[:3], name
        assert type(ours) is type(theirs), name

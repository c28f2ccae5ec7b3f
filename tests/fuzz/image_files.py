"""What the fuzzers of image files hand to the reader, and what they hold it to. The first byte is the kind of file."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from harness.data import audit, volumes
from harness.data.imagefile import BadImage
from harness.data.layout import ScanFiles
from harness.data.schema import Slices

SHAPE = (6, 5, 4)
SLICES = Slices(size=16)
MOST_VOXELS = 2**22
PAIR_HEADER = 352

KINDS = ("x.nii", "x.nii.gz", "packed x.nii.gz", "x.mgh", "packed x.mgz", "x.img")
"""`packed` kinds are compressed here: a fuzzer that changes a gzip stream seldom gets past its checksum."""


def lay(raw: bytes, folder: Path) -> str:
    """Write an input as a file; its name."""
    kind = KINDS[raw[0] % len(KINDS)] if raw else KINDS[0]
    packed, _, name = kind.rpartition(" ")
    content = gzip.compress(raw[1:], 1) if packed else raw[1:]
    if name.endswith(".img"):
        (folder / "x.hdr").write_bytes(content[:PAIR_HEADER])
        content = content[PAIR_HEADER:]
    (folder / name).write_bytes(content)
    return name


def examine(raw: bytes, folder: Path) -> bool:
    """Read an input as image, mask and labels; whether the audit passes it as a scan.

    Raises whatever the readers raise beyond BadImage, and AssertionError where the audit passes a file that cannot be
    cut into slices, or tells a problem in more than one line.
    """
    name = lay(raw, folder)
    checks = audit.Checks(SLICES, groups=[(0, 2, 1)], most_voxels=MOST_VOXELS)
    whole = ScanFiles("x", "A-x", "A-x", name, name, name)
    for scan in (ScanFiles("x", "A-x", "A-x", name), whole):
        findings = audit.check_scan(folder, scan, checks)
        assert all(what.isprintable() for _, what in findings), findings
        if not findings:
            _cut(folder / name, masked=scan.mask is not None)
    refused = _refusal(folder / name)
    assert refused is None or (findings and refused.isprintable()), refused
    return not findings


def _refusal(path: Path) -> str | None:
    """What the stages' readers say of a file, None where they read it as image, mask and labels alike."""
    try:
        volumes.read_image(path, MOST_VOXELS)
        volumes.read_mask(path, MOST_VOXELS)
    except BadImage as error:
        return str(error)
    try:
        volumes.read_integers(path, MOST_VOXELS)
    except ValueError as error:
        return str(error)
    return None


def _cut(path: Path, masked: bool) -> None:
    """What the stages do with a scan that the audit has passed."""
    image, voxel = volumes.read_image(path, MOST_VOXELS)
    mask = volumes.read_mask(path, MOST_VOXELS) if masked else image > 0
    cut = volumes.Cut.of(mask, voxel, SLICES)
    inside = cut.labels(mask)
    levels = volumes.eight_bits(cut.image(volumes.to_unit(image, mask, 99.5)), inside)
    assert levels.shape == inside.shape == (len(cut.indexes), SLICES.size, SLICES.size)
    if masked:
        grouped, unknown = volumes.group_labels(volumes.read_integers(path, MOST_VOXELS), [(0, 2, 1)])
        assert not unknown
        assert cut.labels(grouped).shape == inside.shape


def seeds(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Sound inputs of every kind, from files that nibabel writes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, SHAPE).astype(np.uint8)
    flipped = np.array([[0, -1, 0, 3], [0, 0, 2, -4], [-1.5, 0, 0, 9], [0, 0, 0, 1.0]])
    scaled = nib.Nifti1Image(labels.astype(np.int16), np.eye(4))
    scaled.header.set_slope_inter(0.5, 0)
    extended = nib.Nifti1Image(labels, flipped)
    extended.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment"))
    images = {
        "x.nii": {
            "plain": nib.Nifti1Image(labels, np.eye(4)),
            "scaled": scaled,
            "extended": extended,
            "floats": nib.Nifti1Image(labels.astype(np.float32), flipped),
            "doubles": nib.Nifti1Image(labels.astype(np.float64) - 0.5, np.eye(4)),
            "axes": nib.Nifti1Image(labels[..., None, None], np.eye(4)),
            "big-endian": nib.Nifti1Image(labels, np.eye(4), nib.Nifti1Header(endianness=">")),
            "nifti2": nib.Nifti2Image(labels.astype(np.int32), np.eye(4)),
        },
        "x.mgh": {
            "mgh": nib.MGHImage(labels, flipped),
            "mgh-floats": nib.MGHImage(labels.astype(np.float32), np.eye(4)),
        },
        "x.img": {"pair": nib.Nifti1Pair(labels, np.eye(4)), "analyze": nib.Spm2AnalyzeImage(labels, None)},
    }
    for name, group in images.items():
        for title, image in group.items():
            image.to_filename(folder / name)
            (folder / "x.mat").unlink(missing_ok=True)
            content = (folder / name).read_bytes()
            if name == "x.img":
                content = (folder / "x.hdr").read_bytes().ljust(PAIR_HEADER, b"\0")[:PAIR_HEADER] + content
            yield title, bytes([KINDS.index(name)]) + content
            if name != "x.img":
                packed = name.replace("nii", "nii.gz").replace("mgh", "mgz")
                yield f"{title}-packed", bytes([KINDS.index(f"packed {packed}")]) + content
            if name == "x.nii":
                yield f"{title}-gz", bytes([KINDS.index("x.nii.gz")]) + gzip.compress(content, 1, mtime=0)

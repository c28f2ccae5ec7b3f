"""The audit of slices in PNG or JPEG files: every file is opened, every problem is one line, and all are told at once.

What `harness.data.audit` is for volumes. Findings of one kind in one scan share a line: a study has a hundred thousand
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data import png_scan, volumes
from harness.data.audit import Checks, Finding
from harness.data.imagefile import BadHeader, BadImage
from harness.data.layout import ScanFiles
from harness.data.png_layout import SlicedScan
from harness.data.png_reader import Slice, read_slice
from harness.data.schema import Slices

ROLES = ("image", "label", "mask")
_ONE_MM = (1.0, 1.0, 1.0)
"""Slices are never resampled: what size a pixel has is of no importance here."""


def check_scan(root: Path, scan: ScanFiles, checks: Checks) -> list[Finding]:
    """Everything wrong with the files of one scan. Never raises for what they hold."""
    assert isinstance(scan, SlicedScan)
    findings: list[Finding] = []
    read = {role: _read(root, scan.files(role), role, findings) for role in ROLES}
    images = read["image"]
    findings += _one_size(scan, images)
    for role in ("label", "mask"):
        findings += _fits(scan, role, read[role], images)
        findings += _lossless(scan.files(role), role, read[role])
    findings += _images(scan, images, checks)
    if checks.groups is not None:
        findings += _labels(scan, read["label"], checks.groups)
    return findings or _brain(scan, read, checks)


def lesion_slices(root: Path, scan: ScanFiles, slices: Slices, groups: volumes.Ranges, most_voxels: int) -> list[int]:
    """[slices with a lesion, slices of brain without] among those that are cut; [] of files that are not sound.

    What is not sound is `check_scan`'s to say.
    """
    assert isinstance(scan, SlicedScan)
    if not scan.labels:
        return []
    try:
        files = {"image": scan.images, "mask": scan.masks}
        head = png_scan.read_head(root, files, slices.plane, most_voxels)
        ids = png_scan.read_volume(root, scan.labels, slices.plane, most_voxels)
        labels, _ = volumes.group_labels(ids, groups)
        if labels.shape != head.mask.shape:
            return []
        cut = volumes.Cut.of(head.mask, _ONE_MM, slices)
    except (OSError, ValueError):
        return []
    lesion = cut.labels(labels).any(axis=(1, 2))
    return [int(lesion.sum()), int((cut.labels(head.mask).any(axis=(1, 2)) & ~lesion).sum())]


# ---------------------------------------------------------------------------------------------- one scan


_Read = dict[str, Slice]
"""Files of one role that could be read, by path."""


def _read(root: Path, paths: Sequence[str], role: str, findings: list[Finding]) -> _Read:
    read: _Read = {}
    for path in dict.fromkeys(paths):
        try:
            read[path] = read_slice(root / path)
        except FileNotFoundError:
            findings.append([path, f"no such {role}; add the file, or exclude the scan"])
        except BadHeader as error:
            findings.append([path, f"{error}; export the {role} again"])
        except BadImage as error:
            findings.append([path, f"the {role} cannot be read ({error}); copy or export it again"])
    return read


def _told(paths: Sequence[str], what: str, of: int) -> list[Finding]:
    """One line for all files that have the same wrong with them; none for none."""
    if not paths:
        return []
    others = f" (and {len(paths) - 1} more of the {of} slices)" if len(paths) > 1 else ""
    return [[paths[0], f"{what}{others}"]]


def _size(pixels: npt.NDArray[Any]) -> str:
    return " × ".join(map(str, pixels.shape))


def _one_size(scan: SlicedScan, images: _Read) -> list[Finding]:
    read = [path for path in scan.images if path in images]
    other = [path for path in read if images[path].pixels.shape != images[read[0]].pixels.shape]
    if not other:
        return []
    ours, first = _size(images[other[0]].pixels), _size(images[read[0]].pixels)
    what = f"has {ours} pixels, the scan's first slice {read[0]} has {first}; export all of a scan in one size"
    return _told(other, what, len(scan.images))


def _fits(scan: SlicedScan, role: str, partners: _Read, images: _Read) -> list[Finding]:
    """Labels and masks lie on the pixels of their images."""
    pairs = [
        (path, image)
        for path, image in zip(scan.files(role), scan.images, strict=False)
        if path in partners and image in images and partners[path].pixels.shape != images[image].pixels.shape
    ]
    if not pairs:
        return []
    path, image = pairs[0]
    ours, theirs = _size(partners[path].pixels), _size(images[image].pixels)
    what = f"the {role} has {ours} pixels, its image {image} {theirs}; export it on the image's grid"
    return _told(list(dict.fromkeys(path for path, _ in pairs)), what, len(scan.images))


def _lossless(paths: Sequence[str], role: str, read: _Read) -> list[Finding]:
    lossy = [path for path in dict.fromkeys(paths) if path in read and read[path].lossy]
    return _told(lossy, f"is a JPEG, which blurs the edge of a {role}; export it as PNG", len(paths))


def _images(scan: SlicedScan, images: _Read, checks: Checks) -> list[Finding]:
    findings: list[Finding] = []
    if checks.percentile is None:
        deep = [path for path in images if images[path].bits != 8]
        if deep:
            what = f"has {images[deep[0]].bits} bits a pixel, but intensity: none needs 8"
            findings += _told(deep, f"{what}; set intensity: {{percentile: 98}}", len(scan.images))
    if not scan.masks:
        lossy = [path for path in images if images[path].lossy]
        what = "is a JPEG, whose black is not quite black, so that the brain cannot be told; give the site a mask"
        findings += _told(lossy, what, len(scan.images))
    return findings


def _labels(scan: SlicedScan, labels: _Read, groups: volumes.Ranges) -> list[Finding]:
    unknown: dict[str, list[int]] = {}
    for path, label in labels.items():
        _, ids = volumes.group_labels(np.unique(label.pixels), groups)
        if ids:
            unknown[path] = ids
    if not unknown:
        return []
    ids = sorted({value for values in unknown.values() for value in values})
    shown = ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    what = f"label ids {shown} are in no group; add them to the label table's grouping, or choose another"
    return _told(list(unknown), what, len(scan.images))


def _brain(scan: SlicedScan, read: dict[str, _Read], checks: Checks) -> list[Finding]:
    """Whether there is a brain, whether it fits the slices, and whether it is bright; of files sound so far."""
    slices = checks.slices
    volume = {
        role: png_scan.stack([read[role][path].pixels for path in scan.files(role)], slices.plane)
        for role in ("image", "mask")
        if scan.files(role)
    }
    image = volume["image"]
    first = scan.images[0]
    if image.size > checks.most_voxels:
        what = f"the scan has {image.size:,} pixels, more than the card's most_voxels ({checks.most_voxels:,})"
        return [[first, f"{what}; tell scans apart by the pattern, or raise it"]]
    inside = volume.get("mask", image) > 0
    if not inside.any():
        what = "all masks of the scan are empty" if scan.masks else "no pixel of the scan is above 0: there is no brain"
        return [[scan.masks[0] if scan.masks else first, f"{what}; mend the files, or exclude the scan"]]
    if image.min() == image.max():
        return [[first, f"every pixel of the scan is {image.flat[0]}; export it again, or exclude the scan"]]
    cut = volumes.Cut.of(inside, _ONE_MM, slices)
    findings: list[Finding] = []
    if max(cut.extent) > slices.size:
        rows, columns = (f"{n:.0f}" for n in cut.extent)
        what = f"the brain takes {rows} × {columns} pixels and would be cut off at slices.size {slices.size}"
        findings.append([first, f"{what}; raise size, or skull-strip the images (mask:)"])
    if slices.count != "all" and len(cut.indexes) < slices.count:
        what = f"the range holds {len(cut.indexes)} slices, slices.count asks for {slices.count}"
        findings.append([first, f"{what}; lower count, widen range, or write count: all"])
    try:
        volumes.to_unit(image.astype(np.float32), inside, checks.percentile)
    except ValueError as error:
        findings.append([first, f"{error}; mend the images or masks, or exclude the scan"])
    return findings

"""The audit of scans: every file is opened, every problem is one line, and all are told at once.

Files are untrusted: sizes in a header are judged before anything of that size is allocated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data import imagefile, volumes
from harness.data.layout import ScanFiles
from harness.data.nifti_volumes import outside
from harness.data.schema import MOST_VOXELS, Slices, Volumes
from harness.data.volume_sets import kept_box
from harness.problems import Problem

SAME_VOXEL = 1e-3
"""Fraction by which the edges of a voxel, and voxels of a site's scans, may differ where surfaces are counted on them.
Ours."""

SAME_PLACE_MM = 0.1
"""Affines of one scan's files may differ by this much at the volume's far corner. Ours."""

Finding = list[str]
"""[path below the root, what is wrong and what to do]"""


@dataclass(frozen=True)
class Checks:
    """What a scan is held to.

    percentile: of the brain, becomes white; None: levels are kept, so files must be 8-bit. groups: ids of labels.
    whole: scans are kept so, and need not fit `slices`. ignored: labels that are no region.
    """

    slices: Slices
    percentile: float | None = 99.5
    groups: volumes.Ranges | None = None
    most_voxels: int = MOST_VOXELS
    whole: Volumes | None = None
    ignored: tuple[int, ...] = ()


def check_scan(root: Path, scan: ScanFiles, checks: Checks) -> list[Finding]:
    """Everything wrong with the files of one scan. Never raises for what they hold."""
    findings: list[Finding] = []
    most = checks.most_voxels
    image = _read(root, scan.image, "image", findings, most)
    label = _read(root, scan.label, "label", findings, most) if scan.label else None
    mask = _read(root, scan.mask, "mask", findings, most) if scan.mask else None
    if image is not None:
        findings += _image(scan.image, image, checks)
    for role, path, volume in (("label", scan.label, label), ("mask", scan.mask, mask)):
        if image is not None and path and volume is not None:
            findings += _alignment(path, role, volume, image, scan.image)
    if label is not None and scan.label:
        findings += _labels(scan.label, label, checks)
    findings += _brain(scan, image, mask, checks, sound=not findings)
    if checks.whole is not None and checks.groups is not None and image and label and scan.label and not findings:
        findings += _margin(scan.label, label, image.data > 0 if mask is None else mask.data > 0.5, checks)
    return findings


def unlike_voxels(root: Path, scans: Iterable[ScanFiles], most_voxels: int) -> list[Problem]:
    """Scans whose voxels are not cubes, or not those of most scans: features of surfaces then do not compare.

    Reads headers only; what cannot be read is `check_scan`'s to say.
    """
    voxels: dict[str, list[float]] = {}
    for scan in scans:
        try:
            header = imagefile.open_image(root / scan.image, most_voxels).header
        except (OSError, ValueError):
            continue
        voxels[scan.image] = [float(size) for size in header.get_zooms()[:3]]
    usual = float(np.median([edges[0] for edges in voxels.values()])) if voxels else 0.0
    problems = []
    for path, edges in voxels.items():
        shown = " × ".join(f"{size:.4g}" for size in edges)
        what = None
        if max(edges) > min(edges) * (1 + SAME_VOXEL):
            what = f"has voxels of {shown} mm, and surfaces are counted on cubes"
        elif abs(edges[0] - usual) > SAME_VOXEL * usual:
            what = f"has voxels of {shown} mm, the site's other scans {usual:.4g} mm: surfaces would not compare"
        if what:
            problems.append(Problem(str(root / path), f"{what}; resample image, mask and label, or exclude the scan"))
    return problems


def check_labels(root: Path, path: str, groups: volumes.Ranges) -> list[Finding]:
    """Everything wrong with a label map that has no image."""
    findings: list[Finding] = []
    volume = _read(root, path, "label", findings)
    if volume is not None:
        findings += _labels(path, volume, Checks(Slices(), groups=groups))
        if not findings and not volume.data.any():
            findings.append([path, "is background only; mend the label map, or remove it"])
    return findings


def lesion_slices(root: Path, scan: ScanFiles, slices: Slices, groups: volumes.Ranges, most_voxels: int) -> list[int]:
    """[slices with a lesion, slices of brain without] among those that are cut; [] of files that are not sound.

    What is not sound is `check_scan`'s to say.
    """
    if scan.label is None:
        return []
    try:
        brain = root / (scan.mask or scan.image)
        voxel = volumes.read_image(root / scan.image, most_voxels)[1]
        mask = volumes.read_mask(brain, most_voxels) if scan.mask else volumes.read_image(brain, most_voxels)[0] > 0
        labels, _ = volumes.group_labels(volumes.read_integers(root / scan.label, most_voxels), groups)
        if labels.shape != mask.shape:
            return []
        cut = volumes.Cut.of(mask, voxel, slices)
    except (OSError, ValueError, imagefile.BadImage):
        return []
    lesion = cut.labels(labels).any(axis=(1, 2))
    return [int(lesion.sum()), int((cut.labels(mask).any(axis=(1, 2)) & ~lesion).sum())]


def same_contents(root: Path, scans: Iterable[tuple[ScanFiles, str | None]]) -> list[Problem]:
    """Images that are byte for byte the same but stand for different people: a leak between splits."""
    first: dict[str, ScanFiles] = {}
    problems = []
    for scan, digest in scans:
        if digest is None:
            continue
        other = first.setdefault(digest, scan)
        if other.subject != scan.subject:
            what = f"is the same image as {other.image}, yet subjects differ ({scan.subject}, {other.subject})"
            todo = "exclude one, or declare same_subject, cohort or of"
            problems.append(Problem(str(root / scan.image), f"{what}; {todo}"))
    return problems


# ---------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True, eq=False)
class _Volume:
    """A file as read: data [X, Y, Z] and affine in canonical orientation; `stored` is the type on disk."""

    data: np.ndarray
    affine: np.ndarray
    zooms: tuple[float, ...]
    stored: np.dtype[Any]
    scaled: bool


def _read(root: Path, path: str, role: str, findings: list[Finding], most_voxels: int = MOST_VOXELS) -> _Volume | None:
    """The file's volume, or None with a finding."""

    def refuse(what: str) -> None:
        findings.append([path, what])

    try:
        image = imagefile.open_image(root / path, most_voxels)
        proxy = image.dataobj  # reorienting loads and scales: ask for what is stored before
        scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
        stored = image.get_data_dtype()
        image = imagefile.canonical(image)
        data = imagefile.read_voxels(image)
    except FileNotFoundError:
        refuse(f"no such {role}; add the file, or exclude the scan")
        return None
    except imagefile.BadHeader as error:
        refuse(f"{error}; export the {role} again")
        return None
    except imagefile.BadImage as error:
        refuse(f"the {role} cannot be read ({error}); it is damaged or cut short: copy or export it again")
        return None
    return _Volume(data, image.affine, image.header.get_zooms()[:3], stored, scaled)


def _image(path: str, image: _Volume, checks: Checks) -> list[Finding]:
    findings: list[Finding] = []
    if image.data.dtype.kind == "f":
        # Images are held in float32: what does not fit becomes infinite.
        bad = int(np.count_nonzero(~(np.abs(image.data) <= np.finfo(np.float32).max)))
        if bad:
            findings.append([path, f"{bad} voxels are NaN or infinite; mend the image, or exclude the scan"])
            return findings
    if image.data.min() == image.data.max():
        findings.append([path, f"every voxel is {image.data.flat[0]:g}; export the image again, or exclude the scan"])
    if checks.percentile is None and (image.stored != np.uint8 or image.scaled):
        what = f"is stored as {image.stored}{' with scaling' if image.scaled else ''}, but intensity: none needs 8 bits"
        findings.append([path, f"{what}; set intensity: {{percentile: 99.5}}"])
    return findings


def _alignment(path: str, role: str, volume: _Volume, image: _Volume, image_path: str) -> list[Finding]:
    if volume.data.shape != image.data.shape:
        ours, theirs = (" × ".join(map(str, v.data.shape)) for v in (volume, image))
        what = f"the {role} has {ours} voxels, its image {image_path} {theirs}"
        return [[path, f"{what}; resample it to the image's grid"]]
    corners = np.array([[*corner, 1.0] for corner in ((0, 0, 0), image.data.shape)]).T
    distance = float(np.abs((volume.affine - image.affine) @ corners).max())
    if distance > SAME_PLACE_MM:
        what = f"the {role} lies up to {distance:.3g} mm from its image {image_path} (affines differ)"
        return [[path, f"{what}; resample it to the image's grid"]]
    return []


def _labels(path: str, label: _Volume, checks: Checks) -> list[Finding]:
    if not volumes.are_integers(label.data):
        return [[path, "labels are not whole numbers; resample them by nearest neighbour"]]
    if checks.groups is None:
        return []
    values = np.unique(label.data).astype(np.int64)
    _, unknown = volumes.group_labels(values, checks.groups)
    if not unknown:
        return []
    shown = ", ".join(map(str, unknown[:8])) + (f" and {len(unknown) - 8} more" if len(unknown) > 8 else "")
    return [[path, f"label ids {shown} are in no group; add them to the label table's grouping, or choose another"]]


def _brain(scan: ScanFiles, image: _Volume | None, mask: _Volume | None, checks: Checks, sound: bool) -> list[Finding]:
    """Whether there is a brain, whether it fits the slices, and, of files that are `sound`, whether it is bright."""
    volume, path = (mask, scan.mask) if scan.mask else (image, scan.image)
    if volume is None or path is None:
        return []
    inside = volume.data > (0.5 if scan.mask else 0)
    if not inside.any():
        what = "the mask is empty" if scan.mask else "no voxel is above 0, so there is no brain"
        return [[path, f"{what}; mend the file, or exclude the scan"]]
    findings = _fit(path, inside, volume.zooms, checks.slices) if checks.whole is None else []
    if sound and image is not None and checks.percentile is not None:
        try:
            volumes.to_unit(image.data.astype(np.float32), inside, checks.percentile)
        except ValueError as error:
            findings.append([scan.image, f"{error}; mend the image or its mask, or exclude the scan"])
    return findings


def _fit(path: str, inside: volumes.Bool, zooms: tuple[float, ...], slices: Slices) -> list[Finding]:
    """Whether a brain fits the slices that are cut."""
    x, y, z = (float(size) for size in zooms)
    try:
        cut = volumes.Cut.of(inside, (x, y, z), slices)
    except ValueError as error:
        return [[path, f"{error}; mend slices.at, or exclude the scan"]]
    findings: list[Finding] = []
    if max(cut.extent) > slices.size:
        rows, columns = (f"{n:.0f}" for n in cut.extent)
        what = f"the brain takes {rows} × {columns} pixels and would be cut off at slices.size {slices.size}"
        findings.append([path, f"{what}; raise size, set a larger pixel_mm, or skull-strip the image"])
    if slices.count != "all" and len(cut.indexes) < slices.count:
        what = f"the range holds {len(cut.indexes)} slices, slices.count asks for {slices.count}"
        findings.append([path, f"{what}; lower count, widen range, or write count: all"])
    return findings


def _margin(path: str, label: _Volume, inside: volumes.Bool, checks: Checks) -> list[Finding]:
    """Whether all regions lie within what is kept of the volume."""
    assert checks.whole is not None
    assert checks.groups is not None
    grouped, _ = volumes.group_labels(label.data.astype(np.int64), checks.groups)
    lost = outside(grouped, kept_box(inside, checks.whole.margin), checks.ignored)
    if not lost:
        return []
    what = f"{lost} voxels of regions lie more than {checks.whole.margin} voxels beyond the box of the brain"
    return [[path, f"{what}; raise volumes.margin, or mend the label map or the mask"]]

"""How whole volumes and their label maps lie in an artifact folder: files of their own for each scan.

So writing holds one scan, and reading maps the one that is asked for; workers of a machine share what is mapped.

    scans.json          what each scan is, in order
    00000_image.npy     uint16 [X, Y, Z], 0..65535 for 0..1
    00000_mask.npy      uint8, the bits of the brain's mask in C order, eight to a byte
    00000_labels.npy    uint8 [X, Y, Z]
    names.json          names of the labels by value, and the values that are ignored
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.brain_age import RegionSet, Volume, VolumeScan, VolumeSet
from harness.data.volumes import brain_box

LEVELS = 65535
"""What 1 is stored as. Steps of 1/65535 lie below the noise of any scan; 8-bit levels k/255 come back as they were."""

Box = tuple[slice, slice, slice]


def kept_box(mask: npt.NDArray[np.bool_], margin: int) -> Box:
    """What is kept of a volume: the brain's box and so many voxels about it, as far as the volume goes.

    Raises ValueError where there is no brain.
    """
    low, high = brain_box(mask)
    x, y, z = (slice(max(a - margin, 0), min(b + margin, n)) for a, b, n in zip(low, high, mask.shape, strict=True))
    return x, y, z


def cropped(scan: dict[str, Any], box: Box, whole: tuple[int, ...], spacing: tuple[float, float, float]) -> VolumeScan:
    """The entry of a scan that is cropped to `box`. scan: the other fields of `VolumeScan`; whole: the file's shape."""
    shape, start = (tuple(one.stop - one.start for one in box), tuple(one.start for one in box))
    return VolumeScan(**scan, shape=_three(shape), start=_three(start), whole=_three(whole), spacing=spacing)


def save_volumes(folder: Path, volumes: Iterable[tuple[VolumeScan, Volume]]) -> None:
    """Write volumes one after the other, as they come; what lies outside the mask is written as 0.

    Raises ValueError where there are none, or where an image, its mask and its scan differ in shape.
    """
    scans: list[VolumeScan] = []
    for scan, volume in volumes:
        _require(scan, image=volume.image, mask=volume.mask)
        levels = np.rint(np.clip(volume.image, 0, 1) * np.float32(LEVELS))
        _save(folder, len(scans), "image", np.where(volume.mask, levels, 0).astype(np.uint16))
        _save(folder, len(scans), "mask", np.packbits(volume.mask))
        scans.append(scan)
    _save_scans(folder, scans)


def save_regions(
    folder: Path,
    names: Sequence[str],
    ignored: Sequence[int],
    labels: Iterable[tuple[VolumeScan, npt.NDArray[np.uint8]]],
) -> None:
    """Write label maps one after the other, as they come.

    Raises ValueError where there are none, where a label map and its scan differ in shape, or for a value without name.
    """
    scans: list[VolumeScan] = []
    for scan, values in labels:
        _require(scan, labels=values)
        if int(values.max()) >= len(names):
            raise ValueError(f"{scan.id}: label {int(values.max())} has no name; there are {len(names)} labels")
        _save(folder, len(scans), "labels", values)
        scans.append(scan)
    (folder / "names.json").write_text(json.dumps({"names": list(names), "ignored": list(ignored)}))
    _save_scans(folder, scans)


def load_volumes(*folders: Path) -> VolumeSet:
    """The volumes in a folder; or in several, the chunks of one set, joined in the order given.

    Files are read when a volume is asked for. Raises ValueError for a scan that is there twice.
    """
    places = list(_places(folders))
    return VolumeSet(tuple(scan for scan, _ in places), _Volumes(tuple(places)))


def load_regions(*folders: Path) -> RegionSet:
    """The label maps in a folder or in several, as `load_volumes`; mapped into memory, read-only.

    Raises ValueError for a scan that is there twice, or folders whose labels differ.
    """
    first, *others = [json.loads((folder / "names.json").read_text()) for folder in folders]
    if any(other != first for other in others):
        raise ValueError("label maps of different labels cannot be joined")
    places = list(_places(folders))
    scans = tuple(scan for scan, _ in places)
    return RegionSet(scans, tuple(first["names"]), _Regions(tuple(places)), tuple(first["ignored"]))


@dataclass(frozen=True)
class _Volumes:
    """Reads volume `index`. A class, so that a set can be handed to another process."""

    places: tuple[tuple[VolumeScan, Path], ...]

    def __call__(self, index: int) -> Volume:
        scan, stem = self.places[index]
        bits = np.unpackbits(_mapped(stem, "mask"), count=int(np.prod(scan.shape)))
        image = np.divide(_mapped(stem, "image"), np.float32(LEVELS), dtype=np.float32)
        return Volume(image, bits.view(np.bool_).reshape(scan.shape))


@dataclass(frozen=True)
class _Regions:
    places: tuple[tuple[VolumeScan, Path], ...]

    def __call__(self, index: int) -> npt.NDArray[np.uint8]:
        return _mapped(self.places[index][1], "labels")


def _places(folders: Sequence[Path]) -> Iterator[tuple[VolumeScan, Path]]:
    """Every scan, and what the names of its files begin with."""
    seen: set[tuple[str, str]] = set()
    for folder in folders:
        for index, row in enumerate(json.loads((folder / "scans.json").read_text())):
            triples = {name: row[name] and _three(row[name]) for name in ("shape", "start", "whole")}
            scan = VolumeScan(**{**row, **triples, "spacing": tuple(row["spacing"])})
            if (scan.site, scan.id) in seen:
                raise ValueError(f"scan {scan.id} of {scan.site} is there twice: these are no chunks of one set")
            seen.add((scan.site, scan.id))
            yield scan, folder / f"{index:05}"


def _require(scan: VolumeScan, **arrays: npt.NDArray[Any]) -> None:
    for what, array in arrays.items():
        if array.shape != scan.shape:
            raise ValueError(f"{scan.id}: {what} of {array.shape} voxels for a scan of {scan.shape}")


def _save(folder: Path, index: int, what: str, array: npt.NDArray[Any]) -> None:
    np.save(folder / f"{index:05}_{what}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _save_scans(folder: Path, scans: Sequence[VolumeScan]) -> None:
    if not scans:
        raise ValueError("no volumes: this split of the site has no scans")
    (folder / "scans.json").write_text(json.dumps([asdict(scan) for scan in scans], indent=1))


def _mapped(stem: Path, what: str) -> npt.NDArray[Any]:
    # A plain array, not a memmap: arithmetic on those gives memmaps of no file.
    return np.asarray(np.load(f"{stem}_{what}.npy", mmap_mode="r", allow_pickle=False))


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (int(value) for value in values)
    return x, y, z

"""Data sets of slices in PNG or JPEG files, and their stage functions.

All but the files is as for NIfTI: splits, limits, shifts, labels, choices of slices. See `schema.PngCard`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import ImageSet, LabelSet
from harness.data import arrays, png_scan, volumes
from harness.data.layout import Layout, ScanFiles
from harness.data.nifti import NiftiDataset, scan_of
from harness.data.png_layout import SlicedScan, find_slices
from harness.data.schema import Intensity, PngCard, Shift, Slices
from harness.data.shift import apply_shift
from harness.data.stack import Stack
from harness.engine.plan import Stage, canonical, seed_of
from harness.engine.worker import StageRun


class PngDataset(NiftiDataset):
    """Slices below a root folder, laid out as the card's patterns say. Planning works without the folder."""

    card: PngCard

    _checker = "harness.data.png_audit"

    def _find(self, base: str) -> Layout:
        return find_slices(self._root, self.card, base)

    def _files(self, scan: ScanFiles) -> list[str]:
        return list(_sliced(scan).paths)

    def _stage(
        self, kind: str, site: str, scans: tuple[ScanFiles, ...], params: dict[str, Any], roles: tuple[str, ...]
    ) -> Stage:
        sliced = [_sliced(scan) for scan in scans]
        files = {s.id: {role: list(s.files(role)) for role in roles if s.files(role)} for s in sliced}
        hashes = self.hashes(site)
        contents = {
            scan: {role: [hashes[path] for path in paths] for role, paths in by_role.items()}
            for scan, by_role in files.items()
        }
        return Stage(
            kind=kind,
            title="",
            fn=f"harness.data.pngfolder:png_{kind}",
            params={**params, "spacing": list(self.card.spacing)},
            resources="prepare",
            data="absent" if self._absent else hashlib.sha256(canonical(contents).encode()).hexdigest(),
            local={} if self._absent else self._slices(files),
        )

    def _slices(self, files: Mapping[str, Mapping[str, list[str]]]) -> dict[str, Any]:
        """Where the files lie, and how large they may be: nothing that an artifact depends on."""
        return {"root": str(self._root.absolute()), "files": files, "most_voxels": self.card.most_voxels}


def _sliced(scan: ScanFiles) -> SlicedScan:
    assert isinstance(scan, SlicedScan)
    return scan


# ----------------------------------------------------------------------------------------- stage functions


def png_images(run: StageRun) -> None:
    """Scale and cut the slices of one site and split; leaves an image set of 8-bit slices."""
    params = run.params
    intensity = Intensity.model_validate(params["intensity"])
    slices, voxel = _geometry(params)
    shift = Shift.model_validate(params["shift"]) if params["shift"] else None
    with Stack(run.scratch / "pixels.raw", np.uint8) as pixels, Stack(run.scratch / "mask.raw", np.bool_) as masks:
        scans = []
        for who in params["scans"]:
            head = _head(run.local, who["id"], slices.plane)
            unit = volumes.to_unit(head.image, head.mask, intensity.percentile)
            if shift is not None:
                seeds = [seed_of("shift", params["site"], shift.seed, *more) for more in ((), (who["id"],))]
                unit = apply_shift(unit, head.mask, voxel, shift, *seeds)
                # A scanner's scale is its own: the percentile becomes white again, as for any real scan.
                if intensity.percentile is not None:
                    unit = volumes.to_unit(unit, head.mask, intensity.percentile)
            cut = volumes.Cut.of(head.mask, voxel, slices)
            inside = cut.labels(head.mask)
            scans.append(scan_of(who, params, len(masks), len(inside), cut.spacing))
            pixels.append(volumes.eight_bits(cut.image(unit), inside))
            masks.append(inside)
        arrays.save_images(run.out, ImageSet(pixels.array(), masks.array(), tuple(scans)))


def png_labels(run: StageRun) -> None:
    """Group and cut the labels of one site and split; leaves a label set on the slices of its images."""
    params = run.params
    slices, voxel = _geometry(params)
    with Stack(run.scratch / "labels.raw", np.uint8) as labels:
        scans = []
        for who in params["scans"]:
            head = _head(run.local, who["id"], slices.plane)
            paths = run.local["files"][who["id"]]["label"]
            ids = png_scan.read_volume(Path(run.local["root"]), paths, slices.plane, run.local["most_voxels"])
            grouped, unknown = volumes.group_labels(ids, params["groups"])
            if unknown or ids.shape != head.mask.shape:
                raise ValueError(f"{paths[0]}: labels do not fit the table or the image; audit the data set again")
            cut = volumes.Cut.of(head.mask, voxel, slices)
            inside = cut.labels(grouped)
            scans.append(scan_of(who, params, len(labels), len(inside), cut.spacing))
            labels.append(inside)
        arrays.save_labels(run.out, LabelSet(labels.array(), tuple(params["names"]), tuple(scans)))


def _geometry(params: Mapping[str, Any]) -> tuple[Slices, tuple[float, float, float]]:
    slices = Slices.model_validate(params["slices"])
    return slices, png_scan.voxel_size(params["spacing"], slices.plane)


def _head(local: Mapping[str, Any], scan: str, plane: str) -> png_scan.Head:
    return png_scan.read_head(Path(local["root"]), local["files"][scan], plane, local["most_voxels"])

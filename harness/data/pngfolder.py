"""Data sets of slices in PNG or JPEG files, and their stage functions.

All but the files is as for NIfTI: splits, limits, shifts, labels, choices of slices. See `schema.PngCard`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.api import ImageSet, LabelSet, Scan
from harness.data import arrays, png_scan, volumes
from harness.data.fingerprint import JsonCache, fingerprints
from harness.data.layout import Layout, ScanFiles
from harness.data.nifti import NiftiDataset
from harness.data.png_layout import SlicedScan, find_slices
from harness.data.schema import Intensity, Part, PngCard, Shift, Slices
from harness.data.shift import apply_shift
from harness.data.stack import Stack
from harness.engine.plan import Stage, canonical, seed_of
from harness.engine.worker import StageRun
from harness.problems import Problem


class PngDataset(NiftiDataset):
    """Slices below a root folder, laid out as the card's patterns say. Planning works without the folder."""

    card: PngCard

    def layout(self, site: str) -> Layout:
        base = self.card.scanned(site)
        if base not in self._layouts:
            self._layouts[base] = Layout() if self._absent else find_slices(self._root, self.card, base)
        return self._layouts[base]

    def hashes(self, site: str) -> dict[str, str | None]:
        base = self.card.scanned(site)
        if base not in self._hashes:
            names = [path for scan in self.layout(site).scans for path in _sliced(scan).paths]
            found = fingerprints((self._root / name for name in names), self.cache)
            self._hashes[base] = {name: found[self._root / name] for name in names}
        return self._hashes[base]

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

    # --------------------------------------------------------------------------------------------- audit

    def _audit_files(self, base: str, memory: JsonCache) -> list[Problem]:
        from harness.data import audit, png_audit

        labels = self.card.labels
        groups = labels.ranges(self.card.sites[base].grouping) if labels and self.labelled(base) else None
        checks = audit.Checks(self.card.slices, self.card.intensity.percentile, groups, self.card.most_voxels)
        asked = self._asked("check_scan", [checks.percentile, groups])
        return [
            Problem(str(self._root / path), what)
            for scan in self.scans(base)
            for path, what in self._remembered(
                memory, base, scan, asked, lambda scan: png_audit.check_scan(self._root, scan, checks)
            )
        ]

    def _lesion_slices(self, site: str, split: Part) -> list[tuple[int, int]] | None:
        from harness.data import png_audit

        table, card = self.card.labels, self.card
        if self._absent or table is None:
            return None
        groups = table.ranges(card.sites[card.scanned(site)].grouping)
        asked = self._asked("lesion_slices", [groups])
        memory = JsonCache(self.cache / "audits.json" if self.cache else None)
        counts = [
            self._remembered(
                memory,
                site,
                scan,
                asked,
                lambda scan: png_audit.lesion_slices(self._root, scan, card.slices, groups, card.most_voxels),
            )
            for scan in self.scans(site, split)
        ]
        memory.save()
        return None if any(not row for row in counts) else [(row[0], row[1]) for row in counts]

    def _asked(self, check: str, more: list[Any]) -> list[Any]:
        """What the answer to a check depends on, besides the files."""
        from harness.engine import code

        reached = code.fingerprint((f"harness.data.png_audit:{check}",))
        return [reached, self.card.slices.model_dump(mode="json"), self.card.most_voxels, *more]

    def _remembered(
        self, memory: JsonCache, site: str, scan: ScanFiles, asked: list[Any], check: Callable[[ScanFiles], list[Any]]
    ) -> list[Any]:
        """What a check says of a scan; one whose files and checks are unchanged is not read again."""
        hashes, sliced = self.hashes(site), _sliced(scan)
        contents = {role: [[path, hashes[path]] for path in sliced.files(role)] for role in ("image", "label", "mask")}
        key = hashlib.sha256(canonical([asked, contents]).encode()).hexdigest()
        found = memory.get(key)
        if found is None:
            found = check(scan)
            memory.put(key, found)
        return found


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
            scans.append(_scan(who, params, len(masks), len(inside), cut.spacing))
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
            scans.append(_scan(who, params, len(labels), len(inside), cut.spacing))
            labels.append(inside)
        arrays.save_labels(run.out, LabelSet(labels.array(), tuple(params["names"]), tuple(scans)))


def _geometry(params: Mapping[str, Any]) -> tuple[Slices, tuple[float, float, float]]:
    slices = Slices.model_validate(params["slices"])
    return slices, png_scan.voxel_size(params["spacing"], slices.plane)


def _head(local: Mapping[str, Any], scan: str, plane: str) -> png_scan.Head:
    return png_scan.read_head(Path(local["root"]), local["files"][scan], plane, local["most_voxels"])


def _scan(
    who: Mapping[str, Any], params: Mapping[str, Any], start: int, n: int, spacing: tuple[float, float, float]
) -> Scan:
    site, modality = params["site"], params["modality"]
    return Scan(who["id"], who["subject"], site, start, start + n, spacing, who["age"], who["sex"], modality)

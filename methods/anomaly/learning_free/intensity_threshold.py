"""The intensity itself: on FLAIR a row that many learnt methods do not beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from harness.anomaly import AnomalyDetector, AnomalyMaps, Processing
from harness.api import Context, ImageSet, State, hyper

Direction = Literal["bright", "dark", "both"]
BY_MODALITY: dict[str, Direction] = {"FLAIR": "bright", "T2w": "bright", "T1w": "dark"}


class IntensityThreshold(AnomalyDetector):
    """Brain intensity as the map, after histogram equalisation within the brain of each slice.

    bright: the intensity. dark: 1 − the intensity. both: its distance from the median of the slice's brain.
    """

    id = "intensity_threshold"
    reference = "Meissen et al., Challenging current semi-supervised anomaly segmentation methods for brain MRI, 2021"
    notes = (
        "Published on FLAIR with `bright`, equalised over whole volumes and filtered by regions of volumes: here both "
        "are of a slice. Directions for other modalities are ours."
    )
    late_fields = ("equalise", "direction")

    equalise: bool = hyper(
        True,
        "replace each intensity by the share of the slice's brain that is not brighter",
        origin="Meissen et al. 2021",
    )
    direction: Direction | Literal["auto"] = hyper(
        "auto",
        "what is abnormal: bright, dark or both; auto: bright for FLAIR and T2w, dark for T1w, both for all others",
        origin="Meissen et al. 2021 (bright, on FLAIR); others ours",
    )

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        maps = np.zeros(images.pixels.shape, np.float32)
        for scan, pixels, mask in images.volumes():
            for x, brain, out in zip(self._shown(pixels, mask), mask, maps[scan.slices], strict=True):
                if brain.any():
                    out[brain] = abnormal(x[brain], self._direction(scan.modality))
        return AnomalyMaps(maps)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        if not self.equalise:
            return {}
        return {"equalised": self._shown(images.floats(), np.asarray(images.mask))}

    def published_processing(self) -> Processing:
        """Regions of at most 20 pixels removed (public code; there voxels, at 128 × 128)."""
        return Processing(smallest=20)

    def deviations(self) -> tuple[str, ...]:
        found = {
            "auto": ("dark on T1w, either way where the modality is neither FLAIR, T2w nor T1w",),
            "dark": ("dark is abnormal",),
            "both": ("either way is abnormal",),
        }.get(self.direction, ())
        return found if self.equalise else (*found, "no histogram equalisation")

    def _direction(self, modality: str) -> Direction:
        return BY_MODALITY.get(modality, "both") if self.direction == "auto" else self.direction

    def _shown(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Slices [n, H, W] as they are judged."""
        return np.stack([equalised(x, own) for x, own in zip(pixels, mask, strict=True)]) if self.equalise else pixels


def abnormal(values: np.ndarray, direction: Direction) -> np.ndarray:
    """How abnormal intensities [V] of one slice's brain are, 0 or more."""
    if direction == "both":
        return np.abs(values - np.median(values))
    return values if direction == "bright" else 1 - values


def equalised(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A slice [H, W] in which each brain pixel is the share of the brain's pixels that are not brighter, 0 outside."""
    out = np.zeros(x.shape, np.float32)
    if mask.any():
        _, place, count = np.unique(x[mask], return_inverse=True, return_counts=True)
        out[mask] = (np.cumsum(count) / count.sum())[place]
    return out

"""Distance to the mean of the healthy slices: an autoencoder that always answers the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from harness.anomaly import AnomalyDetector, AnomalyMaps, NormalData
from harness.api import Context, ImageSet, MethodError, State, hyper

BATCH = 64  # slices read at once


class MeanImage(AnomalyDetector):
    """|x − mean of the healthy slices|, over their standard deviation at the pixel where `standardise` says so.

    The mean is taken over all training slices, whatever their place in the head, with their background of 0.
    """

    id = "mean_image"
    reference = "ours"
    late_fields = ("standardise", "least_deviation")

    smooth: float = hyper(
        0.0,
        "standard deviation of a Gaussian filter on slices before they are averaged or compared, in pixels of slices "
        "whose longer side is 128",
        origin="ours",
        ge=0,
    )
    standardise: bool = hyper(
        False, "divide by the standard deviation of the healthy slices at each pixel", origin="ours"
    )
    least_deviation: float = hyper(0.02, "standardise: smaller standard deviations count as this", origin="ours", gt=0)

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns "mean" and "deviation" of the smoothed slices, float32 [H, W]. Raises MethodError without slices."""
        count, shape = len(data.images), data.images.pixels.shape[1:]
        if not count:
            raise MethodError(f"{self.id}: there is no training slice; give that split more subjects")
        mean, square = np.zeros(shape), np.zeros(shape)
        for start in range(0, count, BATCH):
            mean += self._slices(data.images, slice(start, start + BATCH)).sum(axis=0) / count
        for start in range(0, count, BATCH):
            square += ((self._slices(data.images, slice(start, start + BATCH)) - mean) ** 2).sum(axis=0) / count
        return {"mean": mean.astype(np.float32), "deviation": np.sqrt(square).astype(np.float32)}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        """Raises MethodError where slices have another size than those learnt from."""
        mean = np.asarray(state["mean"])
        if images.pixels.shape[1:] != mean.shape:
            own, other = (" × ".join(map(str, shape)) for shape in (mean.shape, images.pixels.shape[1:]))
            raise MethodError(f"{self.id}: slices are {other} pixels, those learnt from {own}; prepare both alike")
        scale = np.maximum(state["deviation"], self.least_deviation) if self.standardise else np.ones_like(mean)
        maps = np.empty(images.pixels.shape, np.float32)
        for start in range(0, len(images), BATCH):
            chosen = slice(start, start + BATCH)
            maps[chosen] = np.abs(self._slices(images, chosen) - mean) / scale
        return AnomalyMaps(maps, np.broadcast_to(mean, maps.shape))

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        shape = images.pixels.shape
        spread = np.asarray(state["deviation"])
        return {
            "mean of the healthy": np.broadcast_to(state["mean"], shape),
            "their deviation (largest: 1)": np.broadcast_to(spread / max(float(spread.max()), 1e-12), shape),
        }

    def _slices(self, images: ImageSet, chosen: slice) -> np.ndarray:
        """Slices as they are compared, float64 [n, H, W]."""
        found = images.floats(chosen).astype(np.float64)
        deviation = self.smooth * max(found.shape[1:]) / 128
        return ndimage.gaussian_filter(found, (0, deviation, deviation), mode="constant") if deviation else found

"""Small anomaly detectors for track tests: real plugins whose maps can be worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, NormalData, Processing, part
from harness.api import Context, ImageSet, State, hyper


class Level(Component):
    """Mean brightness of healthy brains, raised by `lift`."""

    id = "toy_level"
    reference = "ours"

    lift: float = hyper(0.0, "added to the mean", origin="ours")
    file: str | None = hyper(None, "a file that changes nothing but the key", origin="ours")

    def files(self) -> tuple[str, ...]:
        return () if self.file is None else (self.file,)

    def fit(self, data: NormalData, ctx: Context) -> State:
        ctx.log("brightness", 0, 1.0)
        return {"mean": self.lift + float(data.images.floats()[np.asarray(data.images.mask)].mean())}


class Spread(Component):
    """Deviation of healthy brains from a level."""

    id = "toy_spread"
    reference = "ours"

    level: Level = hyper(Level(), "from which it deviates", origin="ours")

    def components(self) -> Mapping[str, Component]:
        return {"level": self.level}

    def fit(self, data: NormalData, ctx: Context) -> State:
        brain = data.images.floats()[np.asarray(data.images.mask)]
        return {"sd": float(np.abs(brain - data.components["level"]["mean"]).mean())}


class FarFromLevel(AnomalyDetector):
    """|x − level|, learnt by a component alone; `gain` is late."""

    id = "far_from_level"
    reference = "ours"
    late_fields = ("gain",)

    level: Level = hyper(Level(), "of healthy brains", origin="ours")
    gain: float = hyper(1.0, "factor of the map", origin="ours")

    def components(self) -> Mapping[str, Component]:
        return {"level": self.level}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        maps = self.gain * np.abs(images.floats() - part(state, "level")["mean"])
        return AnomalyMaps(maps, reconstruction=np.full(images.pixels.shape, part(state, "level")["mean"]))

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        return {"input": images.floats(), "level": np.full(images.pixels.shape, part(state, "level")["mean"])}

    def published_processing(self) -> Processing:
        return Processing(smooth=1.0)


class InDeviations(AnomalyDetector):
    """|x − level| / spread, of two components of which one needs the other, plus what its own fit learnt."""

    id = "in_deviations"
    reference = "ours"

    spread: Spread = hyper(Spread(), "of healthy brains", origin="ours")
    floor: float = hyper(0.01, "added to the spread", origin="ours")

    def components(self) -> Mapping[str, Component]:
        return {"spread": self.spread, "level": self.spread.level}

    def fit(self, data: NormalData, ctx: Context) -> State:
        return {"scale": data.components["spread"]["sd"] + self.floor}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        maps = np.abs(images.floats() - state["level.mean"]) / state["scale"]
        return AnomalyMaps(maps, image_scores=maps.reshape(len(maps), -1).mean(1))

    def deviations(self) -> tuple[str, ...]:
        return ("a toy",)


class Broken(AnomalyDetector):
    """Raises when it is to detect."""

    id = "broken_detector"
    reference = "ours"

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        raise RuntimeError("no map today")

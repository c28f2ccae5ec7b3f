"""THOR at work: a descent whose estimates are, at a few times, joined with the input where that looks healthy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, part
from harness.api import Context, ImageSet, State, hyper
from methods.anomaly.components.diffusion_prior import DiffusionPrior
from methods.anomaly.components.learning import check_size
from methods.anomaly.components.perceptual import Distance, Perceptual
from methods.anomaly.components.sampling import Diffusion, Noise, slice_batches
from methods.anomaly.components.schedules import descent
from methods.anomaly.thor.maps import REFERENCE_SIDE, HarmonicMean, anomaly, replacement, scaled_radius

CODE = "THOR (Bercea et al., MICCAI 2024), code"
Look = Callable[[slice, str, Tensor], None]


class Thor(AnomalyDetector):
    """Descend from a noised slice, and return to the input wherever the map of the time finds nothing.

    At the times of `harmonise` and at every `map_every` a map a_t is made of the input x and of what the network takes
    it for, x̂0: the smoothed perceptual distance times |x̂0 − x|, over its largest value. At those of `harmonise` x̂0
    replaces x where a_t, closed and widened, is high, and the result is noised with the noise of the start. The map is
    the harmonic mean of all a_t; a slice's score is the mean of its map, which is 0 outside the brain.
    """

    id = "thor"
    reference = "Bercea et al., Diffusion models with implicit guidance for medical anomaly detection, MICCAI 2024"
    notes = (
        "A slice's map is divided by its own largest value (the code takes the batch's, for batches of one), so maps "
        "of healthy slices peak near 1 as well; the image score, a mean, is ours. The code's rescaling of predicted "
        "noise is left out, as its author advises. After harmonising it noises to the time it has just left (renoise: "
        "same). Squares for the closing and widening are ours. With simplex noise the publication has level 250 and "
        "harmonises at 200, 150, 100 and 50."
    )

    prior: DiffusionPrior = hyper(DiffusionPrior(), "the diffusion model of healthy slices", origin="component")
    level: int = hyper(350, "time to which slices are noised", origin=CODE, ge=0)
    harmonise: tuple[int, ...] = hyper((300, 150, 50), "times at which the input returns", origin=CODE)
    map_every: int = hyper(50, "maps are also made at the multiples of this, up to the level", origin=CODE, ge=1)
    steps: int | None = hyper(
        None, "evaluations, spread from the level to 0, without new noise; null: every time", origin="ours", ge=1
    )
    perceptual: Perceptual = hyper(Perceptual(), "the perceptual distance", origin=CODE)
    smooth: float = hyper(
        2.0, "standard deviation of the Gaussian over perceptual distances, pixels of slices of 128", origin=CODE, ge=0
    )
    kernel: int = hyper(
        13, "side of the squares that close and widen a map, pixels of slices of 128; odd", origin=CODE, ge=1
    )
    renoise: Literal["next", "same"] = hyper(
        "next", "after harmonising, noise to the time that the next step expects; same: to the present", origin="ours"
    )
    ceiling: float = hyper(0.999, "largest value of a map", origin=CODE, gt=0, le=1)
    batch_size: int = hyper(32, "slices at once", origin="ours", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Thor:
        if self.level >= self.prior.times:
            raise ValueError(f"level {self.level} is beyond the last time of the prior, {self.prior.times - 1}")
        if any(not 0 <= time <= self.level for time in self.harmonise):
            raise ValueError(f"harmonise names times {list(self.harmonise)}; 0 to level = {self.level} can be")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, not {self.kernel}")
        self._descent()
        return self

    @classmethod
    def example(cls) -> Thor:
        return cls.model_validate(
            {
                "prior": DiffusionPrior.example().model_dump(),
                "level": 3,
                "harmonise": [2],
                "map_every": 3,
                "batch_size": 4,
            }
        )

    def files(self) -> tuple[str, ...]:
        return () if self.perceptual.weights is None else (self.perceptual.weights,)

    def components(self) -> Mapping[str, Component]:
        return {"prior": self.prior}

    def map_times(self) -> frozenset[int]:
        """Times at which a map is made."""
        return frozenset({*self.harmonise, *range(0, self.level + 1, self.map_every)})

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        maps, found = self._run(state, images, ctx)
        maps *= np.asarray(images.mask)
        return AnomalyMaps(maps, found, maps.mean((1, 2), dtype=np.float64))

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """For each time of `harmonise`: what the slice is taken for, its map, and both joined."""
        pictures: dict[str, np.ndarray] = {}

        def look(at: slice, caption: str, slices: Tensor) -> None:
            picture = pictures.setdefault(caption, np.zeros(images.pixels.shape, np.float32))
            picture[at] = slices[:, 0].clamp(0, 1).cpu().numpy()

        maps, found = self._run(state, images, ctx, look)
        return {**pictures, "reconstruction": found, "harmonic mean of the maps": maps}

    def deviations(self) -> tuple[str, ...]:
        strided = (f"DDIM-{self.steps} in place of {self.level + 1} steps",) if self.steps is not None else ()
        same = ("noised to the present time after harmonising, as in the code",) if self.renoise == "same" else ()
        return (*strided, *self.perceptual.deviations(), *same, *self.prior.deviations())

    def _descent(self) -> list[tuple[int, int]]:
        return descent(self.level, self.steps, self.map_times())

    @torch.inference_mode()
    def _run(
        self, state: State, images: ImageSet, ctx: Context, look: Look | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(maps, healthy slices), both float32 [N, H, W] in 0..1. `look` is shown (which, caption, slices)."""
        model = Diffusion(self.prior, part(state, "prior"), ctx.device)
        check_size(images, model.multiple, self.id)
        distance, noise = Distance(self.perceptual, ctx.device), Noise(self.prior, self.prior.noise, ctx.device)
        maps, healthy = (np.zeros(images.pixels.shape, np.float32) for _ in range(2))
        for at, slices, generators in slice_batches(images, ctx.seed, self.batch_size, ctx.device):
            shown = None if look is None else partial(look, at)
            found, y = self._descended(model, noise, distance, slices, generators, shown)
            maps[at], healthy[at] = found[:, 0].cpu().numpy(), y[:, 0].clamp(0, 1).cpu().numpy()
        return maps, healthy

    def _descended(
        self,
        model: Diffusion,
        noise: Noise,
        distance: Distance,
        slices: Tensor,
        generators: list[np.random.Generator],
        look: Callable[[str, Tensor], None] | None,
    ) -> tuple[Tensor, Tensor]:
        """(maps, the ends of the descent) of slices [B, 1, H, W] in 0..1."""
        size, map_times = slices.shape[-2:], self.map_times()
        radius, deviation = scaled_radius(self.kernel // 2, max(size)), self.smooth * max(size) / REFERENCE_SIDE
        compare, mean = distance.against(slices), HarmonicMean()
        start = noise.draw(generators, *size)
        y = model.schedule.noised(model.inward(slices), self.level, start)
        for time, before in self._descent():
            estimate = model.clean(y, time)
            if time in map_times:
                clean = model.outward(estimate)
                found = anomaly(clean, slices, compare, deviation)
                mean.add(found)
            if time in self.harmonise:
                replaced = replacement(found, radius)
                joined = (replaced * clean + (1 - replaced) * slices).clamp(0, 1)
                y = model.schedule.noised(model.inward(joined), before if self.renoise == "next" else time, start)
                if look is not None:
                    for caption, picture in (("taken for", clean), ("map", found), ("harmonised", joined)):
                        look(f"{caption}, t = {time}", picture)
            else:
                drawn = noise.draw(generators, *size) if self.steps is None and time > 0 else None
                y = model.step(y, time, before, estimate, drawn)
        return mean.value().clamp(max=self.ceiling), model.outward(y)

"""Partial noising: a slice is drowned in noise up to a level, and what a diffusion model of healthy slices makes of it
is taken for the healthy slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, part
from harness.api import Context, ImageSet, State, hyper
from methods.anomaly.components.diffusion_prior import DiffusionPrior
from methods.anomaly.components.learning import check_size
from methods.anomaly.components.sampling import Diffusion, Noise, slice_batches
from methods.anomaly.components.schedules import Variance, descent

PICTURES = 3  # intermediate slices in an illustration


class DDPM(AnomalyDetector):
    """Noise a slice to a level, descend to a healthy one; the map is what they differ by.

    Every time from the level to 0 is visited, level + 1 evaluations, or `steps` of them without new noise (DDIM). The
    map is |x − x̂| with x̂ clamped to 0..1; a slice's score is the mean of its map, which is 0 outside the brain.
    """

    id = "ddpm"
    reference = "Ho et al. 2020; as the baseline of Bercea et al. 2023 (AutoDDPM) and 2024 (THOR)"
    notes = (
        "The level is 200 in AutoDDPM's code, 350 in THOR's. With prior.noise: simplex, variance: large and level: 250 "
        "it is AnoDDPM's sampler with the network of the Gaussian one. The publication has no brain mask."
    )

    prior: DiffusionPrior = hyper(DiffusionPrior(), "the diffusion model of healthy slices", origin="component")
    level: int = hyper(200, "time to which slices are noised", origin="AutoDDPM, configuration; THOR: 350", ge=0)
    steps: int | None = hyper(
        None, "evaluations, evenly spread from the level to 0, without new noise; null: every time", origin="ours", ge=1
    )
    variance: Variance = hyper(
        "small", "variance of what is drawn on the way: of the posterior, or β", origin="AutoDDPM; AnoDDPM: large"
    )
    reverse_noise: Literal["prior", "gaussian"] = hyper(
        "prior", "noise drawn on the way: that of the training, or Gaussian", origin="AnoDDPM, code"
    )
    batch_size: int = hyper(32, "slices at once", origin="ours", ge=1)

    @model_validator(mode="after")
    def _check(self) -> DDPM:
        if self.level >= self.prior.times:
            raise ValueError(f"level {self.level} is beyond the last time of the prior, {self.prior.times - 1}")
        descent(self.level, self.steps)
        return self

    @classmethod
    def example(cls) -> DDPM:
        return cls.model_validate({"prior": DiffusionPrior.example().model_dump(), "level": 3, "batch_size": 4})

    def components(self) -> Mapping[str, Component]:
        return {"prior": self.prior}

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        found = self._reconstructed(state, images, ctx)
        maps = np.abs(images.floats() - found) * np.asarray(images.mask)
        return AnomalyMaps(maps, found, maps.mean((1, 2), dtype=np.float64))

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """The noised slice, what the network takes it for on the way, and the end."""
        times = [time for time, _ in descent(self.level, self.steps)]
        shown = {times[i] for i in np.linspace(0, len(times) - 1, PICTURES + 1).astype(int)[:-1]}
        pictures = {f"noised, t = {self.level}": np.zeros(images.pixels.shape, np.float32)}
        pictures |= {_caption(time): np.zeros(images.pixels.shape, np.float32) for time in sorted(shown)[::-1]}

        def look(at: slice, caption: str, slices: Tensor) -> None:
            if caption in pictures:
                pictures[caption][at] = slices[:, 0].clamp(0, 1).cpu().numpy()

        found = self._reconstructed(state, images, ctx, look)
        return {**pictures, "reconstruction": found}

    def deviations(self) -> tuple[str, ...]:
        strided = (f"DDIM-{self.steps} in place of {self.level + 1} steps",) if self.steps is not None else ()
        return (*strided, *self.prior.deviations())

    @torch.inference_mode()
    def _reconstructed(
        self, state: State, images: ImageSet, ctx: Context, look: Callable[[slice, str, Tensor], None] | None = None
    ) -> np.ndarray:
        """Healthy slices, float32 [N, H, W] in 0..1. `look` is shown (which slices, caption, slices) on the way."""
        model = Diffusion(self.prior, part(state, "prior"), ctx.device, self.variance)
        check_size(images, model.multiple, self.id)
        first = Noise(self.prior, self.prior.noise, ctx.device)
        later = Noise(self.prior, "gaussian" if self.reverse_noise == "gaussian" else self.prior.noise, ctx.device)
        out = np.zeros(images.pixels.shape, np.float32)
        for at, slices, generators in slice_batches(images, ctx.seed, self.batch_size, ctx.device):
            size = slices.shape[-2:]
            x = model.schedule.noised(model.inward(slices), self.level, first.draw(generators, *size))
            if look is not None:
                look(at, f"noised, t = {self.level}", model.outward(x))
            for time, before in descent(self.level, self.steps):
                clean = model.clean(x, time)
                if look is not None:
                    look(at, _caption(time), model.outward(clean))
                noise = later.draw(generators, *size) if self.steps is None and time > 0 else None
                x = model.step(x, time, before, clean, noise)
            out[at] = model.outward(x)[:, 0].clamp(0, 1).cpu().numpy()
        return out


def _caption(time: int) -> str:
    return f"taken for, t = {time}"

"""A learnt diffusion prior at work: noise for slices, each its own, and steps back from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.anomaly import slice_generators
from harness.api import ImageSet, State
from harness.cost import counted
from harness.training import load_weights, seeded
from methods.anomaly.components.diffusion_prior import WEIGHTS, DiffusionPrior
from methods.anomaly.components.learning import portions
from methods.anomaly.components.schedules import Variance
from methods.anomaly.components.simplex import Simplex, simplex_field


class Noise:
    """Noise for the slices of a batch, each drawn from a generator of its own."""

    def __init__(self, prior: DiffusionPrior, kind: Literal["gaussian", "simplex"], device: str):
        self.simplex, self.kind, self.device = prior.simplex, kind, device

    def draw(self, generators: Sequence[np.random.Generator], height: int, width: int) -> Tensor:
        """[B, 1, H, W] on the device."""
        if self.kind == "simplex":
            return simplex_noise(generators, height, width, self.simplex).to(self.device)
        fields = [generator.standard_normal((height, width), np.float32) for generator in generators]
        return torch.from_numpy(np.stack(fields))[:, None].to(self.device)


def simplex_noise(generators: Sequence[np.random.Generator], height: int, width: int, settings: Simplex) -> Tensor:
    """A new field for each generator, [B, 1, H, W]."""
    return torch.from_numpy(np.stack([simplex_field(g, height, width, settings) for g in generators]))[:, None]


class Diffusion:
    """A learnt prior at work. Slices are [B, 1, H, W] in the network's range; see `inward` and `outward`.

    What the network takes a slice for is clamped to −1..1, also where its range is 0..1, as published.
    """

    def __init__(self, prior: DiffusionPrior, state: State, device: str, variance: Variance = "small"):
        with seeded(0):  # the weights are replaced; torch's own generator stays as it is
            network = prior.network.build()
        load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
        self.network = counted(network.to(device).eval())
        self.multiple = network.multiple
        self.schedule = prior.time_schedule()
        self.signed = prior.image_range == "signed"
        self.variance: Variance = variance

    def inward(self, slices: Tensor) -> Tensor:
        """Intensities 0..1 as the network sees them."""
        return 2 * slices - 1 if self.signed else slices

    def outward(self, slices: Tensor) -> Tensor:
        """The way back; not clamped."""
        return (slices + 1) / 2 if self.signed else slices

    def clean(self, x: Tensor, time: int) -> Tensor:
        """What the network takes the slices for that became x at a time: one evaluation."""
        times = torch.full((len(x),), time, dtype=torch.int64, device=x.device)
        noise = self.network(x, times)
        return self.schedule.clean_from(x, time, noise).clamp(-1, 1)

    def step(self, x: Tensor, time: int, before: int, clean: Tensor, noise: Tensor | None) -> Tensor:
        """One step back: ancestral where there is noise, else implicit, over any distance. To CLEAN both are equal."""
        if noise is None:
            return self.schedule.implicit(x, time, clean, before)
        return self.schedule.ancestral(x, time, clean, noise, self.variance)


def slice_batches(
    images: ImageSet, seed: int, size: int, device: str
) -> Iterator[tuple[slice, Tensor, list[np.random.Generator]]]:
    """(which slices, the slices [B, 1, H, W] in 0..1 on the device, a generator for each), at most `size` at once."""
    generators = list(slice_generators(images, seed))
    for at in portions(len(images), size):
        yield at, torch.from_numpy(images.floats(at))[:, None].to(device), generators[at]

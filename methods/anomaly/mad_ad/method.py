"""MAD-AD: the method as the harness calls it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn import functional as F

from harness.anomaly import AnomalyDetector, AnomalyMaps, Component, part, slice_generators
from harness.api import Context, ImageSet, State, hyper
from harness.cost import counted
from methods.anomaly.components.autoencoder import Autoencoder, check_size, load_autoencoder
from methods.anomaly.components.autoencoder_training import in_batches
from methods.anomaly.mad_ad.denoiser import CODE, THESIS, MadAdDenoiser
from methods.anomaly.mad_ad.schedule import Step, cosine_schedule, respaced, sampling_steps

SIDE = 256  # pixels of the slices that lengths are given for


class MadAd(AnomalyDetector):
    """The latents of a slice, with no noise added, go through the steps of a diffusion model.

    At each step the model predicts the healthy latents and which ones are noisy. Those that are, with a probability
    above 1/2, take the step (DDIM with η); all others stay as they are, to the bit. What was abnormal is so replaced,
    and the map is the difference between the decoded latents before and after:

    score image:  |difference| of decoded slices, in units of slices in [-1, 1], clipped at `gamma` and divided by it.
    score latent: the same of latents, mean over channels, clipped at `latent_gamma`, resized.
    score mask:   the mean over steps of the probability of being noisy, resized.

    All are smoothed. A slice's score is the largest value of its map.
    """

    id = "mad_ad"
    reference = "MAD-AD (Beizaee et al., IPMI 2025; thesis ch. 3)"
    notes = (
        "Sampling, mask and reference are the authors' code, whose formulas the thesis prints with slips; η is 0.5 "
        "where the thesis calls it the noise's deviation. gamma is the thesis's (the code has 0.25). The code has no "
        "sampling in one step. Reconstructed: the map of latents, as DeCo-Diff has it; the score of a slice."
    )
    late_fields = (
        "steps",
        "one_step_at",
        "eta",
        "blend",
        "score",
        "reference_image",
        "gamma",
        "latent_gamma",
        "sigma",
        "batch_size",
    )

    denoiser: MadAdDenoiser = hyper(MadAdDenoiser(), "diffusion model", origin=THESIS)
    steps: int = hyper(10, "steps of the sampling, in equal strides from time 0; 1: `one_step_at`", origin=THESIS, ge=1)
    one_step_at: int = hyper(9, "time of a sampling in one step", origin="ours; the code has none", ge=0)
    eta: float = hyper(0.5, "randomness of the sampling: 0 none, 1 that of DDPM", origin=CODE, ge=0, le=1)
    blend: Literal["per_step", "none"] = hyper(
        "per_step",
        "what a step changes: latents found noisy in it, or all",
        origin=f"{THESIS} and {CODE}; none in its first version",
    )
    score: Literal["image", "latent", "mask"] = hyper("image", "what the map is made of", origin=f"{THESIS}, table 3.3")
    reference_image: Literal["decoded", "image"] = hyper(
        "decoded",
        "score image: what is compared, the slice as the autoencoder has it or as it is",
        origin=f"{CODE}; image in the thesis's formulas",
    )
    gamma: float | None = hyper(0.2, "where differences are clipped; null: not", origin=f"{THESIS}, table 3.4", gt=0)
    latent_gamma: float | None = hyper(0.4, "score latent: the same", origin="DeCo-Diff", gt=0)
    sigma: float = hyper(
        5.0, "standard deviation of the Gaussian that smooths maps, in pixels of slices of 256", origin=CODE, ge=0
    )
    batch_size: int = hyper(16, "slices at a time", origin="ours", ge=1)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        total = self.denoiser.timesteps
        if self.steps > 1 and respaced(total, self.steps) is None:
            known = [n for n in range(1, total + 1) if respaced(total, n)]
            raise ValueError(f"steps: no equal strides over {total} times make {self.steps} steps; choose of {known}")
        if self.steps == 1 and self.one_step_at >= total:
            raise ValueError(f"one_step_at must be below the {total} times of denoiser.timesteps")
        return self

    @classmethod
    def example(cls) -> MadAd:
        return cls(denoiser=MadAdDenoiser.example())

    def components(self) -> Mapping[str, Component]:
        return {"denoiser": self.denoiser, "autoencoder": self.denoiser.latents.autoencoder}

    def sampling(self) -> tuple[Step, ...]:
        """The steps, the latest time first."""
        total = self.denoiser.timesteps
        times = (self.one_step_at,) if self.steps == 1 else respaced(total, self.steps)
        assert times is not None
        return sampling_steps(cosine_schedule(total), times, self.eta)

    @torch.inference_mode()
    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        maps = np.empty(images.pixels.shape, np.float32)
        healthy = np.empty(images.pixels.shape, np.float32)
        for here, pixels, autoencoder, course in self._courses(state, images, ctx):
            after = autoencoder.decode(course.latents[-1])
            if self.score == "image":
                before = autoencoder.decode(course.latents[0]) if self.reference_image == "decoded" else 2 * pixels - 1
                found = clipped((after - before).abs().amax(1), self.gamma)
            elif self.score == "latent":
                difference = (course.latents[-1] - course.latents[0]).abs().mean(1)
                found = resized(clipped(difference, self.latent_gamma), pixels)
            else:
                found = resized(torch.stack(course.probabilities).mean(0)[:, 0], pixels)
            maps[here], healthy[here] = found.cpu().numpy(), unsigned(after)
        spread = self.sigma * max(images.pixels.shape[1:]) / SIDE
        return AnomalyMaps(gaussian_filter(maps, (0, spread, spread)), healthy)

    @torch.inference_mode()
    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        """The slice as the autoencoder has it, after each step, and what was found noisy on the way."""
        captions = ["autoencoder", *(f"t={step.time}" for step in self.sampling()[:-1]), "corrected", "found noisy"]
        found = {caption: np.empty(images.pixels.shape, np.float32) for caption in captions}
        for here, pixels, autoencoder, course in self._courses(state, images, ctx):
            for caption, latents in zip(captions, course.latents, strict=False):
                found[caption][here] = unsigned(autoencoder.decode(latents))
            noisy = torch.stack(course.probabilities).mean(0)[:, 0]
            found["found noisy"][here] = resized(noisy, pixels).cpu().numpy()
        return found

    def deviations(self) -> tuple[str, ...]:
        return self.denoiser.departures()

    def _courses(
        self, state: State, images: ImageSet, ctx: Context
    ) -> Iterator[tuple[slice, Tensor, Autoencoder, Course]]:
        """Batch by batch: its place, its slices [B, 1, H, W] in [0, 1], the autoencoder, and the way of its latents."""
        check_size(self.denoiser.latents.autoencoder, images)
        autoencoder = load_autoencoder(part(state, "autoencoder"), self.denoiser.latents.autoencoder, ctx.device)
        network = counted(self.denoiser.load(part(state, "denoiser"), ctx.device))
        steps, generators, done = self.sampling(), list(slice_generators(images, ctx.seed)), 0
        for pixels, _ in in_batches(images, self.batch_size):
            here = slice(done, done + len(pixels))
            pixels = pixels.to(ctx.device)
            latents = autoencoder.encode(pixels)
            noise = slice_noise(generators[here], len(steps), latents)
            yield here, pixels, autoencoder, sample(network, latents, steps, noise, self.blend == "per_step")
            done = here.stop


@dataclass(frozen=True)
class Course:
    """latents: before the first step and after each, [B, C, h, w]. probabilities: of being noisy, at each step,
    [B, 1, h, w]."""

    latents: tuple[Tensor, ...]
    probabilities: tuple[Tensor, ...]


def sample(network: nn.Module, latents: Tensor, steps: Sequence[Step], noise: Tensor, blend: bool) -> Course:
    """Take latents [B, C, h, w] through the steps with noise [steps, B, C, h, w].

    With `blend`, a step moves only the latents that it finds noisy.
    """
    course, probabilities = [latents], []
    for step, drawn in zip(steps, noise, strict=True):
        clean, logits = network(latents, torch.full((len(latents),), step.time, device=latents.device))
        moved = step(latents, clean, drawn)
        latents = torch.where(logits > 0, moved, latents) if blend else moved
        course.append(latents)
        probabilities.append(logits.sigmoid())
    return Course(tuple(course), tuple(probabilities))


def slice_noise(generators: Sequence[np.random.Generator], steps: int, latents: Tensor) -> Tensor:
    """Standard normal [steps, B, C, h, w], each slice's drawn from its own generator, on the device of the latents."""
    shape = (steps, *latents.shape[1:])
    drawn = [rng.standard_normal(shape, dtype=np.float32) for rng in generators]
    return torch.from_numpy(np.stack(drawn, 1)).to(latents.device)


def clipped(difference: Tensor, gamma: float | None) -> Tensor:
    """Differences up to gamma as 0..1; as they are without gamma."""
    return difference if gamma is None else difference.clamp(max=gamma) / gamma


def resized(values: Tensor, pixels: Tensor) -> Tensor:
    """Values [B, h, w] on the grid of slices [B, 1, H, W], bilinear: [B, H, W]."""
    size = (pixels.shape[2], pixels.shape[3])
    return F.interpolate(values[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def unsigned(decoded: Tensor) -> np.ndarray:
    """Decoded slices [B, 1, H, W], about [-1, 1], as [B, H, W] in [0, 1]."""
    return ((decoded[:, 0] + 1) / 2).clamp(0, 1).cpu().numpy()

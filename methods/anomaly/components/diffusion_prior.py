"""The diffusion model of healthy slices that DDPM, THOR and AutoDDPM share: how it is learnt, and how it is used.

Their code has one network, one noise schedule and one training in common; they differ in what they do with the model
once it is learnt, so nothing here says which of them will.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from harness.anomaly import Component, NormalData
from harness.api import Context, Settings, State, hyper
from harness.training import TrainingSettings, seeded, train
from methods.anomaly.components.learning import check_size, not_empty, portions, spread, updates
from methods.anomaly.components.schedules import Schedule, cosine_schedule, linear_schedule
from methods.anomaly.components.simplex import Fields, Simplex
from methods.networks.diffusion_unet import DiffusionUNet
from methods.networks.resampling import affine_grid, affine_matrices, resample

CODE = "AutoDDPM and THOR (Bercea et al., 2023, 2024), code"
WEIGHTS = "weights."
VALIDATION_DRAWS = 2  # a stream of random numbers beside those of the training loop

Batch = dict[str, Tensor]


class PriorNetwork(Settings):
    """The U-Net. The published sizes have 18,500,993 parameters."""

    widths: tuple[int, ...] = hyper(
        (128, 256, 256), "channels of each level, each half as large as the one before it", origin=CODE, min_length=1
    )
    attention: tuple[int, ...] = hyper((1, 2), "levels, from 0, that attend at every block", origin=CODE)
    blocks: int = hyper(1, "residual blocks of a level", origin=CODE, ge=1)
    head_width: int | None = hyper(256, "channels of an attention head; null: one head a level", origin=CODE, ge=1)
    groups: int = hyper(32, "groups of the normalisations", origin=CODE, ge=1)

    @model_validator(mode="after")
    def _check(self) -> PriorNetwork:
        if any(width % self.groups or width % 2 for width in self.widths):
            raise ValueError(f"widths {list(self.widths)} must be even multiples of groups = {self.groups}")
        attending = {*self.attention, len(self.widths) - 1}
        if not attending <= set(range(len(self.widths))):
            raise ValueError(f"attention names levels {list(self.attention)}; there are 0..{len(self.widths) - 1}")
        if self.head_width and any(self.widths[level] % self.head_width for level in attending):
            raise ValueError(f"head_width {self.head_width} does not divide the widths of levels that attend")
        return self

    def build(self) -> DiffusionUNet:
        """A new network; its weights come from torch's global generator."""
        return DiffusionUNet(self.widths, self.blocks, self.attention, head_width=self.head_width, groups=self.groups)


class PriorAugmentation(Settings):
    """Random shapes, as the published training has them."""

    rotation: float = hyper(10.0, "limit of the angle, degrees", origin=CODE, ge=0)
    shift: float = hyper(0.1, "limit of the shift along rows and columns, a fraction of the side", origin=CODE, ge=0)
    scale: float = hyper(0.1, "limit of the change of size, a fraction", origin=CODE, ge=0, lt=1)
    mirror: float = hyper(0.5, "share of slices whose columns are mirrored", origin=CODE, ge=0, le=1)


class PriorTraining(TrainingSettings):
    """The published schedule, Adam at 1e-4 in mixed precision, up to a number of updates."""

    iterations: int = hyper(
        57_000,
        "most updates: what 1,500 epochs of the published 600 slices come to. Larger sets see fewer epochs",
        origin="ours",
        ge=1,
    )
    learning_rate: float = hyper(1e-4, "learning rate", origin=CODE, ge=0)
    validate_every: int = hyper(1000, "iterations between two validations", origin="ours", ge=1)
    checkpoint_every: int = hyper(1000, "iterations between two checkpoints", origin="ours", ge=1)


class DiffusionPrior(Component):
    """A diffusion model that predicts the noise in healthy slices, with Gaussian or simplex noise.

    State: "weights.*", "iteration" (updates after which they were taken) and "score" (their validation).
    """

    id = "diffusion_prior"
    reference = "Ho et al. 2020; network and training of Bercea et al. 2023, 2024"
    notes = (
        "The publications train equal models for 1,500 (THOR) and 3,000 epochs (AutoDDPM); one of 1,500 serves both "
        "here. Epochs are counted in slices and end at training.iterations. Weights of the best validation are kept."
    )

    noise: Literal["gaussian", "simplex"] = hyper("gaussian", "what slices are drowned in", origin=CODE)
    simplex: Simplex = hyper(Simplex(), "the simplex noise", origin="AnoDDPM (Wyatt et al. 2022), code")
    schedule: Literal["linear", "cosine"] = hyper("linear", "how a slice fades with time", origin=CODE)
    times: int = hyper(1000, "times of the schedule", origin=CODE, ge=2)
    betas: tuple[float, float] = hyper((1e-4, 0.02), "linear: first and last share of added noise", origin=CODE)
    image_range: Literal["unit", "signed"] = hyper(
        "unit", "intensities that the network sees: 0..1, or −1..1", origin=CODE
    )
    loss: Literal["l2", "l1"] = hyper("l2", "distance of predicted and true noise", origin=CODE)
    network: PriorNetwork = hyper(PriorNetwork(), "the network", origin=CODE)
    augmentation: PriorAugmentation = hyper(PriorAugmentation(), "changes of training slices", origin=CODE)
    epochs: int = hyper(
        1500, "passes over the training slices; training.iterations ends them earlier", origin="THOR; AutoDDPM: 3,000",
        ge=1,
    )  # fmt: skip
    validation_slices: int = hyper(256, "validation slices that are used, at most", origin="ours", ge=1)
    training: PriorTraining = hyper(PriorTraining(), "optimisation", origin=CODE)

    @model_validator(mode="after")
    def _check(self) -> DiffusionPrior:
        if not 0 < self.betas[0] <= self.betas[1] < 1:
            raise ValueError("betas must be [first, last] with 0 < first <= last < 1")
        return self

    @classmethod
    def example(cls) -> DiffusionPrior:
        return cls.model_validate(
            {
                "network": {"widths": [8, 16, 16], "attention": [2], "head_width": None, "groups": 8},
                "validation_slices": 4,
                "training": {"iterations": 2, "batch_size": 2},
            }
        )

    def deviations(self) -> tuple[str, ...]:
        """Phrases for the rows of methods that use this model."""
        found = self.simplex.deviations() if self.noise == "simplex" else ()
        return (*found, "intensities −1..1 fed to the network") if self.image_range == "signed" else found

    def time_schedule(self) -> Schedule:
        return linear_schedule(self.times, *self.betas) if self.schedule == "linear" else cosine_schedule(self.times)

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Raises MethodError where a split is empty, or slices cannot be halved often enough for the network."""
        images = not_empty(data.images, self.id, "training")
        validation = not_empty(data.validation, self.id, "validation")
        with seeded(ctx.seed, ctx.device):
            network = self.network.build()
        check_size(images, network.multiple, self.id)
        schedule, (height, width) = self.time_schedule(), images.pixels.shape[1:]
        fields = Fields(self.simplex, height, width, ctx.seed) if self.noise == "simplex" else None

        def batches(rng: np.random.Generator, size: int) -> Batch:
            index = np.sort(rng.integers(len(images), size=size))
            batch = {"slices": torch.from_numpy(images.floats(index))[:, None]}
            return batch if fields is None else {**batch, "noise": fields.batch(rng, size)}

        def step(module: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            slices = augmented(batch["slices"], self.augmentation, generator)
            times = torch.randint(self.times, (len(slices),), generator=generator, device=slices.device)
            noise = batch.get("noise")
            if noise is None:
                noise = torch.randn(slices.shape, generator=generator, device=slices.device)
            return self._loss(module, schedule, slices, times, noise).mean()

        chosen = spread(len(validation), self.validation_slices)
        every = np.arange(len(chosen)) * self.times // len(chosen)

        def validate(module: nn.Module) -> float:
            rng, losses = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), []
            for at in portions(len(chosen), self.training.batch_size):
                slices, times = torch.from_numpy(validation.floats(chosen[at]))[:, None], torch.from_numpy(every[at])
                if fields is None:
                    noise = torch.from_numpy(rng.standard_normal(slices.shape, np.float32))
                else:
                    noise = fields.batch(rng, len(slices))
                losses.append(self._loss(module, schedule, *(x.to(ctx.device) for x in (slices, times, noise))))
            return -float(torch.cat(losses).mean())

        training = self.training.model_copy(update={"iterations": updates(self.epochs, len(images), self.training)})
        result = train(network, training, batches, step, ctx=ctx, validate=validate)
        weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
        return {**weights, "iteration": result.iteration, "score": result.score}

    def _loss(self, module: nn.Module, schedule: Schedule, slices: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """Of each slice, [B]."""
        clean = 2 * slices - 1 if self.image_range == "signed" else slices
        wrong = module(schedule.noised(clean, times, noise), times).float() - noise
        return (wrong.square() if self.loss == "l2" else wrong.abs()).mean((1, 2, 3))


def augmented(slices: Tensor, settings: PriorAugmentation, generator: torch.Generator) -> Tensor:
    """Slices [B, 1, H, W] mirrored, turned, resized and shifted at random; 0 where nothing was."""
    n, _, height, width = slices.shape
    draws = torch.rand(5, n, generator=generator, device=slices.device)
    mirror = torch.where(draws[0] < settings.mirror, -1.0, 1.0)
    angle, size = ((2 * draw - 1) for draw in draws[1:3])
    theta = affine_matrices(mirror, angle * math.radians(settings.rotation), 1 + size * settings.scale, height / width)
    # Contents move by a fraction of the side, which is 2 long in these coordinates, whatever their turn and size.
    moved = 2 * settings.shift * (2 * draws[3:].T - 1)
    theta[:, :, 2] = -(theta[:, :, :2] * moved[:, None]).sum(2)
    return resample(slices, affine_grid(theta, height, width))

"""What REFLECT learns: the velocity of a flow from corrupted to healthy latents, and a straighter one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from pydantic import ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from harness.anomaly import Component, NormalData
from harness.api import Context, MethodError, State, hyper
from harness.training import TrainingSettings, load_weights, seeded, train
from methods.anomaly.components.autoencoder import LatentAutoencoder
from methods.anomaly.components.latents import EncodedLatents, LatentSlices
from methods.anomaly.components.textures import PROCEDURAL, TextureLatents
from methods.anomaly.reflect.flow import carried, velocity_loss
from methods.anomaly.reflect.pairs import brain_cells, corrupt
from methods.anomaly.reflect.settings import (
    CODE,
    THESIS,
    Corruption,
    StudentTraining,
    VelocityAugmentation,
    VelocityTraining,
    VelocityUNet,
    over_epochs,
)
from methods.networks.latent_unet import SIZES, LatentUNet

REFERENCE = "REFLECT (Beizaee et al., MICCAI 2025, arXiv:2508.02889; thesis ch. 5)"
WEIGHTS = "network."
VALIDATION_DRAWS = 1  # added to a seed for what validation draws, the same whenever it is measured


class VelocityLatents(EncodedLatents):
    """Latents of slices under REFLECT's augmentation, which does not rotate."""

    id = "reflect_latents"
    reference = REFERENCE

    augmentation: VelocityAugmentation = hyper(VelocityAugmentation(), "of the copies", origin=CODE)

    @classmethod
    def example(cls) -> VelocityLatents:
        return cls(autoencoder=LatentAutoencoder.example(), views=2)


class ReflectVelocity(Component):
    """Velocity of the flow from corrupted latents at time 0 to healthy ones at time 1, learnt from pairs of them.

    A pair is a healthy slice's latent and its corruption (`pairs`): up to four regions of the brain in the shape of
    filled random walks, filled with textures or Gaussian noise. On the straight line between the two, at uniform
    times, the U-Net learns their difference by the mean squared error over all latent cells.

    What replaces a latent has unit variance, and so should latents: where the autoencoder is trained here, set its
    scale to "calibrated". Published is one model for each modality: give each a benchmark of its own.
    """

    id = "reflect_velocity"
    reference = REFERENCE
    notes = (
        "Where the thesis and the authors' code differ, defaults follow the code and fields offer the thesis's values: "
        "filled walks, counts of regions, severities, the learning rate. Ours: regions end at the brain's edge; a "
        "batch of 192 for two accumulated ones of 96; all that the autoencoder, the latents "
        "and the textures say of themselves."
    )

    latents: VelocityLatents = hyper(VelocityLatents(), "what is corrupted", origin=CODE)
    textures: TextureLatents = hyper(
        TextureLatents(), "what fills regions; its autoencoder, left out, is that of the latents", origin=CODE
    )
    corruption: Corruption = hyper(Corruption(), "how", origin=CODE)
    unet: VelocityUNet = hyper(VelocityUNet(), "network", origin=THESIS)
    epochs: float | None = hyper(
        200, "passes over the slices; null: training.iterations", origin=f"{THESIS}, BraTS; 400 for ATLAS", gt=0
    )
    warmup_epochs: float = hyper(5, "passes of linear rise of the rate, where `epochs` is set", origin=CODE, ge=0)
    training: VelocityTraining = hyper(VelocityTraining(), "optimisation", origin=CODE)

    @field_validator("textures", mode="before")
    @classmethod
    def _encode_alike(cls, textures: Any, info: ValidationInfo) -> Any:
        """Textures that name no autoencoder take that of the latents."""
        latents = info.data.get("latents")
        if latents is None:  # refused already
            return textures
        if isinstance(textures, TextureLatents) and "autoencoder" not in textures.model_fields_set:
            return textures.model_copy(update={"autoencoder": latents.autoencoder})
        if isinstance(textures, dict):
            return {"autoencoder": latents.autoencoder, **textures}
        return textures

    @model_validator(mode="after")
    def _check_autoencoders(self) -> Self:
        if self.corruption.texture_probability and self.textures.autoencoder != self.latents.autoencoder:
            raise ValueError("textures.autoencoder must be that of the latents; leave it out, and it is")
        return self

    @classmethod
    def example(cls) -> ReflectVelocity:
        return cls.model_validate(
            {
                "latents": VelocityLatents.example(),
                "textures": {"count": 6, "size": 64},
                "unet": {"width": 16, "heads": 2, "groups": 4, "multipliers": (1, 2)},
                "epochs": None,
                "training": {"iterations": 8, "batch_size": 4, "learning_rate": 2e-3, "validate_every": 4},
            }
        )

    def components(self) -> dict[str, Component]:
        """What is corrupted, "latents", and "textures" where the corruption asks for any."""
        found: dict[str, Component] = {"latents": self.latents}
        if self.corruption.texture_probability:
            found["textures"] = self.textures
        return found

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns the weights as "network.*", and "score" and "iteration" of those that were selected.

        Raises MethodError for slices too small for the U-Net, and for textures smaller than slices.
        """
        with seeded(ctx.seed, ctx.device):
            network = self.build()
        return learn(network, self, self._training_of, data, ctx)

    def _training_of(self, slices: int) -> TrainingSettings:
        return over_epochs(self.training, slices, self.epochs, self.warmup_epochs)

    def build(self) -> LatentUNet:
        """The network, its weights drawn from torch's global generator."""
        channels = self.latents.autoencoder.latent_channels
        return self.unet.build(channels, channels, "scalar")

    def load(self, state: State, device: str) -> LatentUNet:
        """What `fit`, or that of a student, left: on the device, in eval mode and frozen."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = self.build()
        load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
        return network.to(device).eval().requires_grad_(False)

    @property
    def multiple(self) -> int:
        """What rows and columns of slices must be divisible by."""
        return self.latents.autoencoder.factor * 2 ** (len(self.unet.multipliers) - 1)

    def departures(self) -> tuple[str, ...]:
        """Where these settings depart from the publication, for `AnomalyDetector.deviations`."""
        found = {
            f"U-Net of width {self.unet.shape()[0]}": self.unet.shape() not in SIZES.values(),
            "textures drawn at random": self.textures.source == PROCEDURAL and self.corruption.texture_probability > 0,
        }
        return (*(phrase for phrase, holds in found.items() if holds), *self.latents.departures())


class ReflectStudent(Component):
    """A straighter velocity: the teacher, trained on from corrupted latents to where it carries them.

    The teacher is frozen. Along the straight line from a corrupted latent to its end after `steps` Euler steps of the
    teacher, the student learns their difference (the second rectification of Liu et al., ICLR 2023).
    """

    id = "reflect_student"
    reference = REFERENCE
    notes = "Ours: as of the teacher."

    teacher: ReflectVelocity = hyper(ReflectVelocity(), "the velocity that is straightened", origin=THESIS)
    steps: int = hyper(5, "Euler steps of the teacher", origin=CODE, ge=1)
    epochs: float | None = hyper(50, "passes over the slices; null: training.iterations", origin=CODE, gt=0)
    training: StudentTraining = hyper(StudentTraining(), "optimisation", origin=CODE)

    @classmethod
    def example(cls) -> ReflectStudent:
        training = StudentTraining(iterations=4, batch_size=4, learning_rate=1e-3, validate_every=4)
        return cls(teacher=ReflectVelocity.example(), epochs=None, training=training)

    def components(self) -> dict[str, Component]:
        """What is straightened, "teacher", and what it needs itself."""
        return {"teacher": self.teacher, **self.teacher.components()}

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns what `ReflectVelocity.fit` does."""
        weights = data.components["teacher"]
        teacher = self.teacher.load(weights, ctx.device)
        student = self.teacher.load(weights, ctx.device).requires_grad_(True).train()

        def end_of(start: Tensor, end: Tensor) -> Tensor:
            with torch.no_grad():
                return carried(teacher, start, self.steps)

        return learn(student, self.teacher, self._training_of, data, ctx, end_of)

    def _training_of(self, slices: int) -> TrainingSettings:
        return over_epochs(self.training, slices, self.epochs)

    def departures(self) -> tuple[str, ...]:
        """Where these settings depart from the publication, for `AnomalyDetector.deviations`."""
        return self.teacher.departures()


def learn(
    network: LatentUNet,
    settings: ReflectVelocity,
    training_of: Callable[[int], TrainingSettings],
    data: NormalData,
    ctx: Context,
    end_of: Callable[[Tensor, Tensor], Tensor] = lambda corrupted, healthy: healthy,
) -> State:
    """Train the network on pairs.

    training_of: number of slices → the optimisation. end_of: where (corrupted, healthy) latents are to be carried.
    """
    state = data.components["latents"]
    slices, held_out = LatentSlices(state, "train"), LatentSlices(state, "validation")
    training = training_of(len(slices))
    check_size(settings, slices.image_shape)
    textures = None
    if settings.corruption.texture_probability:
        textures = np.asarray(data.components["textures"]["latents"])

    def pair(latents: Tensor, masks: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        brain = brain_cells(masks.numpy(), slices.shape[1:])
        corrupted = corrupt(latents.numpy(), brain, textures, settings.corruption, rng)
        times = rng.random(len(latents), np.float32)
        return {"start": torch.from_numpy(corrupted), "end": latents, "times": torch.from_numpy(times)}

    def batches(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        return pair(*slices.draw(rng, size), rng)

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        start = batch["start"]
        return velocity_loss(module, start, end_of(start, batch["end"]), batch["times"])

    def validate(module: nn.Module) -> float:
        rng, total = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), 0.0
        for latents, masks in held_out.batches(training.batch_size):
            batch = {name: each.to(ctx.device) for name, each in pair(latents, masks, rng).items()}
            end = end_of(batch["start"], batch["end"])
            total += float(velocity_loss(module, batch["start"], end, batch["times"])) * len(latents)
        return -total / len(held_out)

    result = train(network, training, batches, step, ctx=ctx, validate=validate if len(held_out) else None)
    weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
    return {**weights, "score": result.score, "iteration": result.iteration}


def check_size(settings: ReflectVelocity, shape: tuple[int, ...]) -> None:
    """Raises MethodError for slices [H, W] that the networks cannot halve often enough."""
    rows, columns = shape
    if rows % settings.multiple or columns % settings.multiple:
        raise MethodError(
            f"reflect: slices are {rows} × {columns} pixels, but need multiples of {settings.multiple}; pad them"
        )

"""Hyper-parameters of REFLECT: how latents are corrupted, and how the two velocities are trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings
from methods.anomaly.components.augmentation import MildAugmentation
from methods.networks.latent_unet import Size, UNetSettings

THESIS = "REFLECT thesis ch. 5"
CODE = "authors' code"
Steps = Annotated[int, Field(ge=1)]


class Corruption(Settings):
    """How a healthy latent becomes one that is to be corrected; see `walks` and `pairs`.

    Where the thesis and the authors' code differ, the code's rule is the default: the thesis draws the number of
    regions uniformly, severities from 0 to 1, and takes the visited cells alone.
    """

    identity: float = hyper(0.1, "share of slices that stay as they are", origin=CODE, ge=0, le=1)
    region_counts: Literal["inverse", "uniform"] = hyper(
        "inverse",
        "number k of regions of a slice: in proportion to 1/k, or each as likely",
        origin=f"{CODE}; uniform in {THESIS}",
    )
    longest: tuple[Steps, ...] = hyper(
        (200, 120, 100, 80),
        "steps that walks stay below in slices of one, two, ... regions, on a grid of 32 × 32 latent cells; on others "
        "in proportion to their cells. As many entries as regions",
        origin=f"{CODE}; 200 in {THESIS}",
        min_length=1,
        max_length=255,
    )
    decline: float = hyper(
        10.0,
        "how much likelier no step is than the longest walk, linear between",
        origin=f"{CODE}; 1 in {THESIS}",
        ge=1,
    )
    walk: Literal["polygon", "visited"] = hyper(
        "polygon", "a region is the walk's path, filled, or its cells alone", origin=f"{CODE}; visited in {THESIS}"
    )
    texture_probability: float = hyper(
        0.5, "share of regions filled with a texture, else with Gaussian noise; 0: no textures", origin=CODE, ge=0, le=1
    )
    severity: tuple[float, float] = hyper(
        (0.2, 1.0), "range of the share of a region's variance that is replaced", origin=f"{CODE}; 0 to 1 in {THESIS}"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 <= self.severity[0] <= self.severity[1] <= 1:
            raise ValueError("severity must be [low, high] with 0 ≤ low ≤ high ≤ 1")
        return self


class VelocityUNet(UNetSettings):
    """Size M: 144.86 M weights for latents of four channels."""

    size: Size = hyper("M", "published size: XS, S, M, L or XL", origin=f"{THESIS}; the code's default is L")


class VelocityAugmentation(MildAugmentation):
    """REFLECT's augmentation: MAD-AD's without rotation."""

    rotation: float = hyper(0.0, "limit of the angle, in degrees", origin=CODE, ge=0)


class VelocityTraining(TrainingSettings):
    """AdamW at a rate that rises, then falls along half of a cosine's descent; the last weights are kept.

    Published are batches of 96 whose gradients are summed over two, without division. AdamW does not mind the factor,
    so a batch here has all 192. The cosine goes on to twice the training, so that it ends at half the rate.
    """

    iterations: int = hyper(20_000, "updates, where `epochs` is null", origin="ours", ge=1)
    batch_size: int = hyper(192, "slices in a batch", origin=f"{CODE}: 96, accumulated over 2", ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adamw", "update rule", origin=CODE)
    learning_rate: float = hyper(1e-4, "learning rate after warmup", origin=f"{CODE}; 5e-4 in {THESIS}", ge=0)
    weight_decay: float = hyper(1e-4, "decoupled weight decay", origin=CODE, ge=0)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("cosine", "course of the rate", origin=CODE)
    cosine_stretch: float = hyper(2.0, "cosine: length of the whole curve over the training's", origin=CODE, ge=1)
    select: Literal["best", "last"] = hyper("last", "weights that are kept", origin=CODE)
    validate_every: int = hyper(1000, "iterations between two validations", origin="ours", ge=1)
    checkpoint_every: int = hyper(500, "iterations between two checkpoints", origin="ours", ge=1)


class StudentTraining(VelocityTraining):
    """The same at a constant, lower rate."""

    learning_rate: float = hyper(1e-5, "learning rate", origin=CODE, ge=0)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("constant", "course of the rate", origin="ours")


def over_epochs(
    training: TrainingSettings, slices: int, epochs: float | None, warmup_epochs: float = 0
) -> TrainingSettings:
    """The training with the iterations, and the warmup, that passes over so many slices take; as it is without any."""
    if epochs is None:
        return training
    epoch = slices / training.batch_size
    length = {"iterations": max(1, round(epochs * epoch)), "warmup": round(warmup_epochs * epoch)}
    return training.model_copy(update=length)

"""The hyper-parameters of ImUnity, which its two modes share. All are reconstructed or ours: see the methods' notes."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings

RECONSTRUCTED = "reconstructed; neither the paper's text nor its code was available"


class ImUnityTraining(TrainingSettings):
    """50,000 iterations of Adam at 1e-4; the last weights are kept, since no score tells when a GAN is done."""

    iterations: int = hyper(50_000, "iterations, in each of which every player is updated", origin=RECONSTRUCTED, ge=1)
    batch_size: int = hyper(16, "pairs of slices in a batch; also slices of inference", origin=RECONSTRUCTED, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adam", "update rule", origin=RECONSTRUCTED)
    learning_rate: float = hyper(1e-4, "learning rate of every player", origin=RECONSTRUCTED, ge=0)
    betas: tuple[float, float] = hyper((0.5, 0.999), "moments of adam", origin=RECONSTRUCTED)
    select: Literal["best", "last"] = hyper("last", "weights that are kept; nothing is validated", origin="ours")
    checkpoint_every: int = hyper(1000, "iterations between two checkpoints", origin="ours", ge=1)


class Hyperparameters(Settings):
    """Fields of both modes."""

    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2)] = hyper(
        (32, 64, 128, 256),
        "channels of each level, fine to coarse; each halves the resolution, so four leave a latent of 16 × 16 at 256",
        origin=RECONSTRUCTED,
    )
    latent_channels: int = hyper(256, "channels of the spatial latent", origin="ours", ge=1)
    skips: bool = hyper(
        True,
        "join encoder and decoder at the levels between full resolution, which has no skip, and the latent",
        origin="reconstructed: U-shaped, no skip at full resolution, where contrast would leak",
    )
    discriminator_width: int = hyper(
        64, "channels of the PatchGAN's first layer", origin="ours: the usual PatchGAN", ge=1
    )
    discriminator_layers: int = hyper(
        2,
        "its layers of stride 2; its receptive field is 34 pixels with 2",
        origin=RECONSTRUCTED,
        ge=1,
        le=4,
    )
    site_width: int = hyper(64, "channels of the site classifier", origin="ours", ge=1)

    content_gamma: tuple[float, float] = hyper(
        (0.5, 2.0),
        "the content slice is raised to a power, log-uniform in this range, which the style slice must undo",
        origin=RECONSTRUCTED,
    )
    pair_gamma: tuple[float, float] = hyper(
        (1.0, 1.0),
        "before that, content and style are raised to one power, log-uniform in this range, in which the content is "
        "to be painted; [1, 1]: off. On one site, whose contrast is always the same, it is what makes the style count",
        origin="ours; off, as in the reconstruction",
    )
    reconstruction_weight: float = hyper(100.0, "weight of L1 + ssim_weight (1 − SSIM)", origin=RECONSTRUCTED, ge=0)
    ssim_weight: float = hyper(
        0.0, "share of 1 − SSIM in the reconstruction; 0.5 is the alternative", origin=RECONSTRUCTED, ge=0
    )
    kl_weight: float = hyper(0.01, "weight of the KL divergence, a mean over the latent", origin=RECONSTRUCTED, ge=0)
    adversarial_weight: float = hyper(1.0, "weight of the least-squares GAN loss", origin=RECONSTRUCTED, ge=0)
    confusion_weight: float = hyper(
        1.0,
        "weight of the cross-entropy between the site classifier's answer and the uniform distribution; with scans of "
        "one site there is nothing to confuse and no classifier",
        origin=RECONSTRUCTED,
        ge=0,
    )
    training: ImUnityTraining = hyper(ImUnityTraining(), "optimisation", origin=RECONSTRUCTED)

    references: int = hyper(
        1,
        "source scans that serve as style, the most typical by mean brain intensity; outputs are averaged",
        origin="ours; the thesis does not say which",
        ge=1,
    )

    @field_validator("content_gamma", "pair_gamma")
    @classmethod
    def _powers(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not (0 < value[0] <= value[1] and math.isfinite(value[1])):
            raise ValueError("must be [low, high] with 0 < low <= high")
        return value

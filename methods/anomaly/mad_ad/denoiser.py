"""What MAD-AD learns: to say which latents of a healthy slice were made noisy, and what they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from harness.anomaly import Component, NormalData
from harness.api import Context, MethodError, State, hyper
from harness.training import TrainingSettings, load_weights, seeded, train
from methods.anomaly.components.latents import EncodedLatents, LatentSlices
from methods.anomaly.mad_ad.masks import inside, random_patches
from methods.anomaly.mad_ad.network import MaskedDenoiser
from methods.anomaly.mad_ad.schedule import cosine_schedule, noised
from methods.networks.latent_unet import UNetSettings

THESIS = "thesis ch. 3"
CODE = "authors' code"
WEIGHTS = "network."
VALIDATION_DRAWS = 1  # a stream of random numbers beside the training's

Batch = dict[str, Tensor]


class MadAdUNet(UNetSettings):
    """Size L, as the authors' instructions have it; the thesis does not name one. Their XL cannot be built."""

    @model_validator(mode="after")
    def _no_xl(self) -> Self:
        if self.size == "XL" and self.width is None:
            raise ValueError("MAD-AD's size XL cannot be built: it is 320 wide with 12 heads, which do not divide it")
        return self


class MadAdTraining(TrainingSettings):
    """AdamW; a rise over ten epochs, then a cosine to 7 % of the peak."""

    iterations: int = hyper(20_000, "updates, where `epochs` is null", origin="ours", ge=1)
    batch_size: int = hyper(96, "slices in a batch", origin=THESIS, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adamw", "update rule", origin=THESIS)
    learning_rate: float = hyper(
        4e-5, "learning rate after warmup; the thesis has 5e-4, which suits size XS at most", origin=CODE, ge=0
    )
    weight_decay: float = hyper(1e-4, "decoupled weight decay", origin=THESIS, ge=0)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("cosine", "course of the rate", origin=CODE)
    cosine_stretch: float = hyper(1.2, "cosine: length of the whole curve over the training's", origin=CODE, ge=1)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper("off", "mixed precision on a GPU", origin=CODE)
    checkpoint_every: int = hyper(500, "iterations between two checkpoints", origin="ours", ge=1)


class MadAdDenoiser(Component):
    """A U-Net with two heads is shown latents that are noisy in random patches and clean elsewhere.

    One head predicts the clean latents, everywhere; the other the probability that a latent is noisy. Times are drawn
    uniformly from a cosine schedule of ten. The sides of the patches are drawn once for a batch, and for each slice the
    share of them that is noisy. Noise stays inside the brain: blocks of `block` × `block` latents that are less than
    `coverage` brain are left clean. Loss: mean squared error of the clean latents + `mask_weight` × that of the
    probability.

    The length of training is `epochs` × slices / batch, or `training.iterations` where `epochs` is null.
    """

    id = "mad_ad_denoiser"
    reference = "MAD-AD (Beizaee et al., IPMI 2025; thesis ch. 3)"
    notes = (
        "Where the thesis and the authors' code differ: squared error for the mask (the authors say that the "
        "experiments had it) at 0.001, 4e-5 and 200 epochs. Ours: the number of noisy patches is rounded; blocks are "
        "of as many latents for every autoencoder; validation takes posterior means."
    )

    latents: EncodedLatents = hyper(EncodedLatents(), "what is learnt from", origin=CODE)
    unet: MadAdUNet = hyper(MadAdUNet(), "network", origin=CODE)
    timesteps: int = hyper(10, "times of the schedule", origin=THESIS, ge=2)
    noisy_share: float = hyper(0.4, "largest share of a slice's patches that is noisy", origin=THESIS, gt=0, le=1)
    validation_share: float = hyper(0.3, "the same for validation", origin=CODE, gt=0, le=1)
    patch_sides: tuple[int, ...] = hyper((1, 2, 4, 8), "sides of the patches, in latents", origin=THESIS, min_length=1)
    patch_chances: tuple[float, ...] = hyper((0.2, 0.3, 0.3, 0.2), "how often each is drawn", origin=CODE)
    coverage: float = hyper(
        0.9, "share of a block that must be brain to be noisy; 0: anywhere", origin=CODE, ge=0, le=1
    )
    block: int = hyper(
        2, "side of those blocks in latents; on few latents, large blocks leave the cortex out", origin=CODE, ge=1
    )
    mask_loss: Literal["mse", "bce"] = hyper("mse", "loss of the mask", origin=f"{CODE}; bce in the thesis")
    mask_weight: float = hyper(0.001, "weight of the mask's loss", origin=f"{CODE}; 0.01 in its first version", ge=0)
    epochs: float | None = hyper(
        200, "passes over the slices; null: training.iterations", origin=f"{CODE}; thesis: 300", gt=0
    )
    warmup_epochs: float = hyper(10, "passes of linear rise of the rate, where `epochs` is set", origin=CODE, ge=0)
    training: MadAdTraining = hyper(MadAdTraining(), "optimisation", origin=CODE)

    @model_validator(mode="after")
    def _check_patches(self) -> Self:
        if len(self.patch_sides) != len(self.patch_chances) or min(self.patch_sides) < 1:
            raise ValueError("patch_sides and patch_chances must have as many entries, and sides must be at least 1")
        if min(self.patch_chances) < 0 or not sum(self.patch_chances):
            raise ValueError("patch_chances must not be negative, nor all 0")
        return self

    @classmethod
    def example(cls) -> MadAdDenoiser:
        return cls.model_validate(
            {
                "latents": EncodedLatents.example(),
                "unet": {"width": 16, "heads": 2, "groups": 4, "multipliers": (1, 2)},
                "epochs": None,
                "training": {"iterations": 12, "batch_size": 4, "learning_rate": 2e-3, "validate_every": 6},
            }
        )

    def components(self) -> Mapping[str, Component]:
        return {"latents": self.latents}

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns the weights as "network.*", and "score" and "iteration" of those that were selected.

        Raises MethodError for slices too small for the U-Net.
        """
        slices = LatentSlices(data.components["latents"], "train")
        validation = LatentSlices(data.components["latents"], "validation")
        self._check_size(slices)
        with seeded(ctx.seed, ctx.device):
            network = self.build()
        schedule = torch.tensor(cosine_schedule(self.timesteps), dtype=torch.float32, device=ctx.device)

        def batches(rng: np.random.Generator, size: int) -> Batch:
            latents, brain = slices.draw(rng, size)
            return {"latents": latents, "brain": brain, **self._draw(rng, latents, brain, self.noisy_share)}

        def step(module: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
            latents = batch["latents"]
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            return losses(module, batch, noise)

        def losses(module: nn.Module, batch: Batch, noise: Tensor) -> Batch:
            latents, where, times = batch["latents"], batch["where"], batch["times"]
            clean, logits = module(noised(latents, noise, times, where, schedule), times)
            error = F.mse_loss(clean.float(), latents)
            mask = self._mask_error(logits.float(), where.float())
            return {"loss": error + self.mask_weight * mask, "latents": error.detach(), "mask": mask.detach()}

        def validate(module: nn.Module) -> float:
            rng, total = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), 0.0
            for latents, brain in validation.batches(self.training.batch_size):
                drawn = {"latents": latents, **self._draw(rng, latents, brain, self.validation_share)}
                noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
                batch = {key: tensor.to(ctx.device) for key, tensor in drawn.items()}
                total += float(losses(module, batch, noise.to(ctx.device))["latents"]) * len(latents)
            return -total / len(validation)

        training = self.training_of(len(slices))
        result = train(network, training, batches, step, ctx=ctx, validate=validate if len(validation) else None)
        weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
        return {**weights, "score": result.score, "iteration": result.iteration}

    def training_of(self, slices: int) -> TrainingSettings:
        """The optimisation of so many training slices, its length in iterations."""
        if self.epochs is None:
            return self.training
        epoch = slices / self.training.batch_size
        length = {"iterations": max(1, round(self.epochs * epoch)), "warmup": round(self.warmup_epochs * epoch)}
        return self.training.model_copy(update=length)

    def build(self) -> MaskedDenoiser:
        """The network, its weights drawn from torch's global generator."""
        return MaskedDenoiser(self.latents.autoencoder.latent_channels, self.unet)

    def load(self, state: State, device: str) -> MaskedDenoiser:
        """What `fit` left, on the device, in eval mode and frozen."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = self.build()
        load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
        return network.to(device).eval().requires_grad_(False)

    def departures(self) -> tuple[str, ...]:
        """Where these settings depart from the publication, for `AnomalyDetector.deviations`."""
        length = f"{self.training.iterations} iterations" if self.epochs is None else f"{self.epochs:g} epochs"
        found = {
            f"U-Net of width {self.unet.shape()[0]}": self.unet.shape() != UNetSettings().shape(),
            f"denoiser trained for {length}": self.epochs != MadAdDenoiser.model_fields["epochs"].default,
            f"mask weighted by {self.mask_weight:g}": self.mask_weight
            != MadAdDenoiser.model_fields["mask_weight"].default,
            f"noise in patches of {', '.join(map(str, self.patch_sides))} latents, within blocks of {self.block}": (
                self.patch_sides,
                self.block,
            )
            != tuple(MadAdDenoiser.model_fields[name].default for name in ("patch_sides", "block")),
        }
        return (*(phrase for phrase, holds in found.items() if holds), *self.latents.departures())

    def _draw(self, rng: np.random.Generator, latents: Tensor, brain: Tensor, share: float) -> Batch:
        """Times [B], and where there is noise [B, 1, h, w]."""
        n, shape = len(latents), (latents.shape[2], latents.shape[3])
        times = torch.from_numpy(rng.integers(self.timesteps, size=n))
        where = random_patches(rng, n, shape, share, self.patch_sides, self.patch_chances)
        brain_cells = inside(brain, self.latents.autoencoder.factor, self.coverage, self.block)
        return {"times": times, "where": where & brain_cells}

    def _mask_error(self, logits: Tensor, where: Tensor) -> Tensor:
        if self.mask_loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, where)
        return F.mse_loss(logits.sigmoid(), where)

    def _check_size(self, slices: LatentSlices) -> None:
        multiple = math.lcm(2 ** (len(self.unet.multipliers) - 1), self.block)
        if slices.shape[1] % multiple or slices.shape[2] % multiple:
            rows, columns = slices.image_shape
            raise MethodError(
                f"mad_ad_denoiser: slices are {rows} × {columns} pixels, but their latents need multiples of "
                f"{multiple * self.latents.autoencoder.factor} pixels; pad them"
            )

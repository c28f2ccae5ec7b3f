"""How pDDPM learns: a slice is noised within one box only, and predicted there from what surrounds it."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from harness.anomaly import Component, NormalData
from harness.api import Context, ImageSet, MethodError, Settings, State, hyper
from harness.training import TrainingSettings, seeded, train
from methods.anomaly.components.learning import check_size, not_empty, portions, spread
from methods.anomaly.components.schedules import Schedule, cosine_schedule, linear_schedule
from methods.anomaly.components.simplex import Fields, Simplex
from methods.anomaly.pddpm.boxes import box_masks
from methods.networks.diffusion_unet import DiffusionUNet

CODE = "pDDPM (Behrendt et al., MIDL 2023), code"
WEIGHTS = "weights."
VALIDATION_DRAWS = 2  # a stream of random numbers beside those of the training loop

Batch = dict[str, Tensor]
"""slices and noise [B, 1, H, W]; boxes, their numbers, and times, int64 [B]."""


class PlaneSimplex(Simplex):
    """The noise of pDDPM: scales of AnoDDPM, made in the plane."""

    dimensions: Literal[2, 3] = hyper(2, "fields are made in the plane, or cut from space", origin=CODE)


class PatchedNetwork(Settings):
    """The guided-diffusion U-Net. The published sizes have 37,513,857 parameters."""

    widths: tuple[int, ...] = hyper(
        (128, 256, 256), "channels of each level, each half as large as the one before it", origin=CODE, min_length=1
    )
    attention: tuple[int, ...] = hyper(
        (),
        "levels, from 0, that attend at every block. The code lists three, by sizes that never occur, so that only the "
        "middle attends",
        origin=CODE,
    )
    blocks: int = hyper(3, "residual blocks of a level", origin=CODE, ge=1)
    groups: int = hyper(32, "groups of the normalisations; they divide all widths", origin=CODE, ge=1)

    def build(self) -> DiffusionUNet:
        """A new network; its weights come from torch's global generator."""
        return DiffusionUNet(
            self.widths,
            self.blocks,
            self.attention,
            groups=self.groups,
            scale_shift=True,
            resize_blocks=True,
            silent_attention=True,
        )


class PatchedTraining(TrainingSettings):
    """The published schedule, Adam at 1e-4, up to a number of updates; the weights of the best validation."""

    iterations: int = hyper(
        20_800, "most updates: what 1,600 epochs of the published 387 volumes come to", origin="ours", ge=1
    )
    batch_size: int = hyper(32, "slices in a batch", origin=CODE, ge=1)
    learning_rate: float = hyper(1e-4, "learning rate", origin=CODE, ge=0)
    validate_every: int = hyper(500, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin=CODE)


class PatchedPrior(Component):
    """A diffusion model that predicts one box of a healthy slice from its noised self and its clean surroundings.

    Outside the box the slice is handed over clean and copied through, so the loss counts the box alone. An epoch takes
    one random slice of each scan. State: "weights.*", "iteration" and "score".
    """

    id = "patched_prior"
    reference = "Behrendt et al., Patched diffusion models for unsupervised anomaly detection in brain MRI, MIDL 2023"
    notes = (
        "Fields of noise differ within a batch; the public code draws one for all (shared_noise). The number of heads "
        "of the one attention is ours, one. Epochs are counted in scans and end at training.iterations."
    )

    grid: int = hyper(2, "boxes along a side", origin=CODE, ge=1)
    simplex: PlaneSimplex = hyper(PlaneSimplex(), "the noise", origin=CODE)
    shared_noise: bool = hyper(False, "one field of noise for all slices of a batch", origin="ours; pDDPM, code: true")
    schedule: Literal["linear", "cosine"] = hyper("cosine", "how a slice fades with time", origin=CODE)
    times: int = hyper(1000, "times of the schedule", origin=CODE, ge=2)
    image_range: Literal["unit", "signed"] = hyper(
        "signed", "intensities that the network sees: 0..1, or −1..1", origin=CODE
    )
    network: PatchedNetwork = hyper(PatchedNetwork(), "the network", origin=CODE)
    epochs: int = hyper(1600, "passes over the scans; training.iterations ends them earlier", origin=CODE, ge=1)
    validation_slices: int = hyper(256, "validation slices that are used, at most", origin="ours", ge=1)
    training: PatchedTraining = hyper(PatchedTraining(), "optimisation", origin=CODE)

    @classmethod
    def example(cls) -> PatchedPrior:
        return cls.model_validate(
            {
                "network": {"widths": [8, 8, 16], "blocks": 1, "groups": 8},
                "validation_slices": 4,
                "training": {"iterations": 2, "batch_size": 2},
            }
        )

    def deviations(self) -> tuple[str, ...]:
        """Phrases for the rows of methods that use this model."""
        found = self.simplex.deviations()
        return (*found, "intensities 0..1 fed to the network") if self.image_range == "unit" else found

    def time_schedule(self) -> Schedule:
        return linear_schedule(self.times, 1e-4, 0.02) if self.schedule == "linear" else cosine_schedule(self.times)

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Raises MethodError where a split is empty, or slices cannot be cut into boxes or halved often enough."""
        images = not_empty(data.images, self.id, "training")
        validation = not_empty(data.validation, self.id, "validation")
        with seeded(ctx.seed, ctx.device):
            network = self.network.build()
        check_slices(images, self, network.multiple)
        schedule, (height, width) = self.time_schedule(), images.pixels.shape[1:]
        starts, stops = (np.array([getattr(scan, end) for scan in images.scans]) for end in ("start", "stop"))
        fields = Fields(self.simplex, height, width, ctx.seed)

        def batch_of(pictures: ImageSet, index: np.ndarray, times: np.ndarray, rng: np.random.Generator) -> Batch:
            n = len(index)
            return {
                "slices": torch.from_numpy(pictures.floats(index))[:, None],
                "noise": fields.batch(rng, 1).expand(n, -1, -1, -1) if self.shared_noise else fields.batch(rng, n),
                "boxes": torch.from_numpy(rng.integers(self.grid**2, size=n)),
                "times": torch.from_numpy(times),
            }

        def batches(rng: np.random.Generator, size: int) -> Batch:
            scans = rng.integers(len(starts), size=size)
            index = np.sort(rng.integers(starts[scans], stops[scans]))
            return batch_of(images, index, rng.integers(self.times, size=size), rng)

        def step(module: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
            return self._loss(module, schedule, batch).mean()

        chosen = spread(len(validation), self.validation_slices)
        every = np.arange(len(chosen)) * self.times // len(chosen)

        def validate(module: nn.Module) -> float:
            rng, losses = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), []
            for at in portions(len(chosen), self.training.batch_size):
                batch = batch_of(validation, chosen[at], every[at], rng)
                losses.append(self._loss(module, schedule, {k: v.to(ctx.device) for k, v in batch.items()}))
            return -float(torch.cat(losses).mean())

        updates = min(self.training.iterations, self.epochs * math.ceil(len(starts) / self.training.batch_size))
        training = self.training.model_copy(update={"iterations": updates})
        result = train(network, training, batches, step, ctx=ctx, validate=validate)
        weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
        return {**weights, "iteration": result.iteration, "score": result.score}

    def _loss(self, module: nn.Module, schedule: Schedule, batch: Batch) -> Tensor:
        """Mean |x̂ − x| within the box of each slice, in the network's range, [B]."""
        clean = 2 * batch["slices"] - 1 if self.image_range == "signed" else batch["slices"]
        inside = box_masks(batch["boxes"], clean.shape[-2], clean.shape[-1], self.grid)
        found = module(noised_within(schedule, clean, inside, batch["times"], batch["noise"]), batch["times"]).float()
        return ((found - clean).abs() * inside).sum((1, 2, 3)) / inside.sum((1, 2, 3))


def noised_within(schedule: Schedule, clean: Tensor, inside: Tensor, times: Tensor | int, noise: Tensor) -> Tensor:
    """Slices noised where `inside` is 1, and as they are elsewhere."""
    return torch.where(inside > 0, schedule.noised(clean, times, noise), clean)


def check_slices(images: ImageSet, prior: PatchedPrior, multiple: int) -> None:
    """Raises MethodError where slices cannot be halved as often as the network does, or cut into equal boxes."""
    check_size(images, multiple, prior.id)
    height, width = images.pixels.shape[1:]
    if height % prior.grid or width % prior.grid:
        raise MethodError(
            f"{prior.id}: slices of {height} × {width} pixels cannot be cut into {prior.grid} × {prior.grid} equal "
            "boxes; set grid, or the size in the data's preparation"
        )

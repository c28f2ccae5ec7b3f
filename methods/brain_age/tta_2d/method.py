"""The slice-wise estimator of Hong et al., augmented at test time."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Context, State, hyper
from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining, VolumeScan
from harness.training import seeded, train
from methods.brain_age.augmentation import DRAWS, Augmentation
from methods.brain_age.learning import (
    PassTraining,
    ages_to_learn,
    batches_of,
    departures,
    kept,
    restored,
    samples,
    scan_generator,
)
from methods.brain_age.slices import Cut, Plane, cut_all
from methods.brain_age.tta_2d.balance import balanced
from methods.brain_age.tta_2d.mode import histogram_mode
from methods.brain_age.tta_2d.network import ResnetV2

CODE = "public code of Hong et al."
KERAS = "ResNet101V2 of Keras"


class TtaTraining(PassTraining):
    """Adam from a rate of 0.1, divided by 1 + 0.001 × updates, until 150 validations bring no better one."""

    epochs: int | None = hyper(
        10_000,
        "passes over the over-sampled training slices at most, with a validation after each; null: `iterations` and "
        "`validate_every` count",
        origin=CODE,
        ge=1,
    )
    batch_size: int = hyper(80, "slices in a batch; also of prediction", origin=CODE, ge=2)
    learning_rate: float = hyper(0.1, "learning rate before it decays", origin=CODE, ge=0)
    schedule: Literal["constant", "step", "cosine", "linear", "inverse_time"] = hyper(
        "inverse_time", "course of the rate", origin=CODE
    )
    inverse_decay: float = hyper(1e-3, "the rate is divided by 1 + this × updates so far", origin=CODE, ge=0)
    patience: int | None = hyper(
        150, "validations in a row without a new best after which training ends; null: never", origin=CODE, ge=1
    )


class TtaAugmentation(Augmentation):
    """Any rotation, shifts by a fifth of the side, both mirrors, and dimming to a half."""

    rotate_degrees: float = hyper(360.0, "rotation, uniform within ± this", origin=CODE, ge=0, le=360)
    shift: float = hyper(
        0.2, "shift along rows and columns, uniform within ± this part of the side", origin=CODE, ge=0, lt=1
    )
    flip_rows: bool = hyper(True, "turn every second slice upside down", origin=CODE)
    flip_columns: bool = hyper(True, "mirror every second slice", origin=CODE)
    dim_to: float = hyper(
        0.5, "intensities are multiplied by a number uniform between this and 1", origin=CODE, gt=0, le=1
    )


class Tta2d(AgeEstimator):
    """A ResNet-101 V2 learns the age of single slices; a scan's is the mode of its slices' predictions.

    Slices through the middle of the brain, in three planes, each have their scan's age. Scans are over-sampled until
    every rounded age is as frequent as the most frequent. The loss is Huber's, in the data set's unit. A slice's
    prediction is the mean over augmented passes, drawn anew in each; that of a scan the mode of these (see
    `histogram_mode`), and its standard deviation theirs.
    """

    id = "2dtta"
    reference = (
        "Hong et al., Optimal method for fetal brain age prediction using multiplanar slices, Front. Neurosci. 2021"
    )
    notes = (
        "Published for stacks of fetal slices of any plane; ours are cut from volumes, and resampled (`pixel_mm`) so "
        "that a newborn's brain fits. A rate of 0.001 is safer than the published 0.1. Slices are drawn with "
        "replacement, scans over-sampled by whole repetitions, each validation slice is moved once, alike each time, "
        "and what a move brings in is 0 (ours). In the public code moves repeat the border, and dimming stretches the "
        "grey levels of a slice first."
    )
    late_fields = ("passes", "bin_width")

    planes: Annotated[tuple[Plane, ...], Field(min_length=1)] = hyper(
        ("sagittal", "coronal", "axial"), "planes of the slices", origin="published for stacks in three planes"
    )
    slices: int = hyper(
        5, "slices in each plane, odd", origin="ours; the code's default of 4, which its slicing makes 5", ge=1
    )
    apart_mm: float | None = hyper(
        None, "millimetres between slices; null: neighbouring ones", origin="public code (neighbouring)", gt=0
    )
    size: tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]] = hyper(
        (138, 176), "rows and columns of a slice, cut or padded about the middle of the brain", origin=CODE
    )
    pixel_mm: float | None = hyper(
        0.8, "millimetres of a pixel; null: voxels as they are, as published", origin="ours", gt=0
    )

    widths: Annotated[tuple[int, ...], Field(min_length=1)] = hyper(
        (64, 128, 256, 512), "channels of each stage, four times as many between blocks", origin=KERAS
    )
    blocks: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = hyper(
        (3, 4, 23, 3), "residual blocks of each stage", origin=KERAS
    )
    block: Literal["bottleneck", "basic"] = hyper(
        "bottleneck",
        "basic: two 3×3 convolutions, no wider between blocks; ResNet-18 has 2, 2, 2, 2 of them",
        origin=KERAS,
    )
    dropout: float = hyper(0.3, "dropout before the linear unit", origin=CODE, ge=0, lt=1)
    norm_momentum: float = hyper(
        0.01, "weight of a batch in the running statistics of normalisations", origin="Keras default", gt=0, le=1
    )
    start_at_mean: bool = hyper(
        True, "the bias of the linear unit begins at the mean training age; false: at 0", origin="ours"
    )

    balance: float | None = hyper(
        1.0, "ages rounded to multiples of this are over-sampled to one frequency; null: none are", origin=CODE, gt=0
    )
    huber_delta: float = hyper(1.0, "error from which the loss is linear, in the data set's unit", origin=CODE, gt=0)
    training: TtaTraining = hyper(TtaTraining(), "optimisation", origin=CODE)
    augmentation: TtaAugmentation = hyper(TtaAugmentation(), "moves in training and in prediction", origin=CODE)

    passes: int = hyper(20, "augmented passes of a slice when it predicts; 0: one, as it is", origin=CODE, ge=0)
    bin_width: float = hyper(
        0.2, "bins of the histogram of which the mode is taken, in the data set's unit", origin="Hong et al. 2021", gt=0
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.slices % 2 == 0:
            raise ValueError(f"slices must be odd, about one in the middle, not {self.slices}")
        if len(self.widths) != len(self.blocks):
            raise ValueError(f"widths names {len(self.widths)} stages, blocks {len(self.blocks)}")
        return self

    @classmethod
    def example(cls) -> Tta2d:
        return cls.model_validate(
            {
                "slices": 1,
                "size": (64, 64),
                "pixel_mm": 2.0,
                "widths": (4, 8),
                "blocks": (1, 1),
                "block": "basic",
                "norm_momentum": 0.1,
                "training": {
                    "epochs": None,
                    "iterations": 8,
                    "validate_every": 4,
                    "batch_size": 8,
                    "learning_rate": 1e-3,
                },
                "passes": 2,
            }
        )

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """Returns "network.*" (weights), "score" (minus the error of balanced validation slices) and "iteration".

        Raises MethodError where a split is empty, or ages are unknown or all equal.
        """
        ages, validation_ages = ages_to_learn(data)
        pixels = cut_all(data.train.volumes, self._cut())
        drawn = self._balanced(ages, ctx.rng)
        with seeded(ctx.seed, ctx.device):
            network = self._network(float(ages.mean()) if self.start_at_mean else 0.0)

        def batches(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
            scans = drawn[rng.integers(len(drawn), size=size)]
            chosen = pixels[scans, rng.integers(pixels.shape[1], size=size)]
            return samples(chosen[:, None]), torch.from_numpy(ages[scans].astype(np.float32))

        def step(module: nn.Module, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
            moved = self.augmentation.random(batch[0], generator)
            return F.huber_loss(module(moved), batch[1], delta=self.huber_delta)

        seen = cut_all(data.validation.volumes, self._cut())
        draws = np.stack([self._draws(scan, ctx.seed, 1) for scan in data.validation.scans])[:, :, 0]
        weights = np.bincount(self._balanced(validation_ages, ctx.rng), minlength=len(validation_ages))

        def validate(module: nn.Module) -> float:
            found = self._slice_ages(module, seen.reshape(-1, *self.size), draws.reshape(-1, DRAWS), ctx.device)
            errors = np.abs(found.reshape(seen.shape[:2]) - validation_ages[:, None]).mean(1)
            return -float(np.average(errors, weights=weights))

        settings = self.training.over(len(drawn) * pixels.shape[1])
        result = train(network, settings, batches, step, ctx=ctx, validate=validate)
        return {"score": result.score, "iteration": result.iteration, **kept(result, "network")}

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        """The mode of each scan's slices, and their standard deviation. A scan's draws depend on the scan alone."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = self._network(0.0)
        restored(network, state, "network", ctx.device)
        volumes, cut = data.volumes, self._cut()
        ages, sds = np.empty(len(volumes)), np.empty(len(volumes))
        for index, scan in enumerate(volumes.scans):
            pixels = cut.of(volumes[index], scan)
            if self.passes:
                draws = self._draws(scan, ctx.seed, self.passes).reshape(-1, DRAWS)
                found = self._slice_ages(network, pixels.repeat(self.passes, axis=0), draws, ctx.device)
                found = found.reshape(-1, self.passes).mean(1)
            else:
                found = self._slice_ages(network, pixels, None, ctx.device)
            ages[index], sds[index] = histogram_mode(found, self.bin_width), found.std()
        return AgePredictions(ages, sds)

    def deviations(self) -> tuple[str, ...]:
        resampled = () if self.pixel_mm is None else (f"slices resampled to {self.pixel_mm:g} mm",)
        return (*resampled, *departures(self))

    # ------------------------------------------------------------------------------------------- parts

    def _cut(self) -> Cut:
        return Cut(self.planes, self.slices, self.size, self.pixel_mm, self.apart_mm)

    def _network(self, bias: float) -> ResnetV2:
        return ResnetV2(self.widths, self.blocks, self.block, self.dropout, self.norm_momentum, bias)

    def _balanced(self, ages: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Indices of scans, over-sampled where that is asked for."""
        return np.arange(len(ages)) if self.balance is None else balanced(ages, self.balance, rng)

    def _draws(self, scan: VolumeScan, seed: int, passes: int) -> np.ndarray:
        """What moves each pass of each slice, float32 [slices, passes, 7], the scan's own."""
        return scan_generator(scan, seed).random((self._cut().count, passes, DRAWS), dtype=np.float32)

    @torch.inference_mode()
    def _slice_ages(self, network: nn.Module, pixels: np.ndarray, draws: np.ndarray | None, device: str) -> np.ndarray:
        """Ages of slices [N, H, W] by a network in eval mode, each moved as its draws [N, 7] say; float64 [N]."""
        found = np.empty(len(pixels))
        for chosen in batches_of(len(pixels), self.training.batch_size):
            x = samples(pixels[chosen, None]).to(device)
            if draws is not None:
                x = self.augmentation.apply(x, torch.from_numpy(draws[chosen]).to(device))
            found[chosen] = network(x).cpu().numpy()
        return found

"""The global-local transformer of He et al."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from harness.api import Context, State, hyper
from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining
from harness.training import seeded
from methods.brain_age.augmentation import Augmentation
from methods.brain_age.glt.network import GlobalLocal, starts
from methods.brain_age.learning import (
    PassTraining,
    ages_to_learn,
    applied,
    departures,
    enter,
    learnt,
    own_context,
    restored,
)
from methods.brain_age.slices import Cut, Plane, cut_all, in_chunks

CODE = "public code of He et al. (global-local-transformer)"


class GltTraining(PassTraining):
    """80 passes of Adam at 1e-4, halved every 20; the public code has no training."""

    in_passes: ClassVar[tuple[str, ...]] = ("step_every",)

    epochs: int | None = hyper(
        80,
        "passes over the training scans, with a validation after each; null: `iterations` and `validate_every` count, "
        "and `step_every` is in iterations",
        origin="ours",
        ge=1,
    )
    batch_size: int = hyper(8, "scans in a batch; also of prediction", origin="ours", ge=2)
    learning_rate: float = hyper(1e-4, "learning rate before it drops", origin="ours", ge=0)
    schedule: Literal["constant", "step", "cosine", "linear", "inverse_time"] = hyper(
        "step", "course of the rate", origin="ours"
    )
    step_every: int = hyper(20, "passes between two drops", origin="ours", ge=1)
    step_factor: float = hyper(0.5, "factor of a drop", origin="ours", gt=0, le=1)


class GltAugmentation(Augmentation):
    """Shifts."""

    shift: float = hyper(
        0.05, "shift along rows and columns, uniform within ± this part of the side", origin="ours", ge=0, lt=1
    )


class Glt(AgeEstimator):
    """A window's view of a few slices, put into the context of the whole of them, gives an age; so does the whole.

    Neighbouring slices through the middle of the brain are the channels of a sample. The age of a scan is the mean of
    all outputs, the whole's and each window's, over networks of one plane each; its standard deviation is theirs.
    """

    id = "glt"
    reference = "He, Grant & Ou, Global-local transformer for brain age estimation, IEEE TMI 2022"
    notes = (
        "The public code holds the network and no training: loss (the mean over outputs of absolute errors), schedule, "
        "augmentation, and the mean over outputs and planes are ours. Published for adults at 1 mm; slices are "
        "resampled (`pixel_mm`) so that a newborn's brain fits. The published windows leave out the last where the "
        "step divides what is left of the side (`last_window`). Scans are drawn with replacement (ours)."
    )

    planes: Annotated[tuple[Plane, ...], Field(min_length=1)] = hyper(
        ("sagittal", "coronal", "axial"), "planes; a network is trained for each", origin="ours"
    )
    slices: int = hyper(5, "neighbouring slices that are the channels of a sample", origin=CODE, ge=1)
    apart_mm: float | None = hyper(None, "millimetres between slices; null: neighbouring ones", origin="ours", gt=0)
    size: tuple[int, int] = hyper(
        (130, 170), "rows and columns of a slice, cut or padded about the middle of the brain", origin=CODE
    )
    pixel_mm: float | None = hyper(0.8, "millimetres of a pixel; null: voxels as they are", origin="ours", gt=0)

    widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = hyper(
        (64, 128, 256, 512), "channels of the pairs of convolutions", origin=CODE
    )
    patch: int = hyper(64, "side of a window", origin=CODE, ge=2)
    step: int = hyper(32, "pixels between windows", origin=CODE, ge=1)
    last_window: bool = hyper(
        False, "a window may end where the slice ends; false: none does, which the code's range excludes", origin=CODE
    )
    blocks: int = hyper(6, "blocks of attention", origin=CODE, ge=1)
    heads: int = hyper(8, "heads of each attention", origin=CODE, ge=1)
    dropout: float = hyper(0.5, "dropout of attention and of what it finds", origin=CODE, ge=0, lt=1)
    start_at_mean: bool = hyper(
        True, "biases of the linear units begin at the mean training age; false: at 0", origin="ours"
    )
    training: GltTraining = hyper(GltTraining(), "optimisation", origin="ours")
    augmentation: GltAugmentation = hyper(GltAugmentation(), "moves in training", origin="ours")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least = 2 ** len(self.widths)
        if self.patch < least:
            raise ValueError(f"patch must be {least} at least, since {len(self.widths)} widths halve it as often")
        for side in self.size:
            if not len(starts(side, self.patch, self.step, self.last_window)):
                raise ValueError(
                    f"size {side} has no window of {self.patch}; make size larger, patch smaller, or set last_window"
                )
        if self.widths[-1] % self.heads:
            raise ValueError(f"heads must divide the last of widths, {self.widths[-1]}, and {self.heads} do not")
        return self

    @classmethod
    def example(cls) -> Glt:
        return cls.model_validate(
            {
                "planes": ("axial",),
                "slices": 3,
                "size": (64, 64),
                "pixel_mm": 2.0,
                "widths": (4, 8),
                "patch": 32,
                "step": 16,
                "blocks": 1,
                "heads": 2,
                "training": {
                    "epochs": None,
                    "iterations": 8,
                    "validate_every": 4,
                    "batch_size": 4,
                    "learning_rate": 1e-3,
                },
            }
        )

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """For each plane "PLANE.*" (weights); "score" (minus validation errors) and "iteration", of each plane too.

        Raises MethodError where a split is empty, or ages are unknown or all equal.
        """
        ages, validation_ages = ages_to_learn(data)
        state: State = {}
        for number, plane in enumerate(self.planes):
            cut = self._cut(plane)
            pixels, seen = cut_all(data.train.volumes, cut), cut_all(data.validation.volumes, cut)
            result = learnt(
                lambda mean: self._network(mean if self.start_at_mean else 0.0),
                (pixels, ages),
                (seen, validation_ages),
                self.training,
                self.augmentation,
                loss=lambda outputs, known: (outputs - known[:, None]).abs().mean(),
                error=lambda outputs, known: float(np.abs(outputs.mean(1) - known).mean()),
                ctx=own_context(ctx, number),
                name=plane,
            )
            enter(state, result, plane)
        return state

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        """Mean and standard deviation of each scan's outputs."""
        networks = {}
        for plane in self.planes:
            with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
                networks[plane] = self._network(0.0)
            restored(networks[plane], state, plane, ctx.device)
        ages, sds = np.empty(len(data.volumes)), np.empty(len(data.volumes))
        every = Cut(self.planes, self.slices, self.size, self.pixel_mm, self.apart_mm)
        for chosen, pixels in in_chunks(data.volumes, every, self.training.batch_size):
            by_plane = np.split(pixels, len(self.planes), axis=1)
            outputs = [
                applied(networks[plane], own, self.training.batch_size, ctx.device)
                for plane, own in zip(self.planes, by_plane, strict=True)
            ]
            together = np.concatenate(outputs, axis=1)
            ages[chosen], sds[chosen] = together.mean(1), together.std(1)
        return AgePredictions(ages, sds)

    def deviations(self) -> tuple[str, ...]:
        resampled = () if self.pixel_mm is None else (f"slices resampled to {self.pixel_mm:g} mm",)
        return (*resampled, *departures(self))

    def _cut(self, plane: Plane) -> Cut:
        return Cut((plane,), self.slices, self.size, self.pixel_mm, self.apart_mm)

    def _network(self, mean: float) -> GlobalLocal:
        return GlobalLocal(
            self.slices,
            self.widths,
            patch=self.patch,
            step=self.step,
            last_window=self.last_window,
            blocks=self.blocks,
            heads=self.heads,
            dropout=self.dropout,
            mean=mean,
        )

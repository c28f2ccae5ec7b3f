"""The attention-based deep ensemble of Shi et al."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from harness.api import Context, State, hyper
from harness.brain_age import AgeEstimator, AgeInputs, AgePredictions, AgeTraining
from harness.training import seeded
from methods.brain_age.arn.network import MULTIPLE, AttentionNetwork, negative_log_likelihood
from methods.brain_age.augmentation import Augmentation
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
from methods.brain_age.slices import Cut, Plane, cut_all

CODE = "public code of Shi et al. (dl4fetalBA)"


class ArnTraining(PassTraining):
    """50 passes of SGD at 0.01 with momentum; from the 22nd on the rate is 0.01 / (1 + 0.05 × passes done)."""

    in_passes: ClassVar[tuple[str, ...]] = ("inverse_every", "inverse_after")

    epochs: int | None = hyper(
        50,
        "passes over the training scans, with a validation after each; null: `iterations` and `validate_every` count, "
        "and the lengths below are iterations",
        origin=CODE,
        ge=1,
    )
    batch_size: int = hyper(16, "slices in a batch; also of prediction", origin=CODE, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("sgd", "update rule", origin=CODE)
    learning_rate: float = hyper(1e-2, "learning rate before it decays", origin=CODE, ge=0)
    momentum: float = hyper(0.9, "momentum of sgd", origin=CODE, ge=0, lt=1)
    clip_norm: float | None = hyper(1.0, "largest L2 norm of the gradient; null: no limit", origin=CODE, gt=0)
    schedule: Literal["constant", "step", "cosine", "linear", "inverse_time"] = hyper(
        "inverse_time", "course of the rate", origin=CODE
    )
    inverse_decay: float = hyper(0.05, "the rate is divided by 1 + this × passes so far", origin=CODE, ge=0)
    inverse_every: int = hyper(1, "passes between two decays", origin=CODE, ge=1)
    inverse_after: int = hyper(21, 'passes at the full rate: the code has "epoch > 20", from 0 on', origin=CODE, ge=0)


class ArnAugmentation(Augmentation):
    """Turns by up to 22°, shifts by a fiftieth of the side, both mirrors, and hardly any shear."""

    rotate_degrees: float = hyper(22.0, "rotation, uniform within ± this", origin=CODE, ge=0, le=360)
    shift: float = hyper(
        0.02, "shift along rows and columns, uniform within ± this part of the side", origin=CODE, ge=0, lt=1
    )
    shear_degrees: float = hyper(0.01, "shear of the columns, uniform within ± this", origin=CODE, ge=0, lt=90)
    flip_rows: bool = hyper(True, "turn every second slice upside down", origin=CODE)
    flip_columns: bool = hyper(True, "mirror every second slice", origin=CODE)


class Arn(AgeEstimator):
    """Residual attention networks predict the age of the central slice, and the variance of what they predict.

    Each minimises the negative log-likelihood of a normal distribution, in the data set's unit. The ensemble's age is
    the mean of its members'; its variance the mean of theirs plus the variance between their ages.
    """

    id = "arn"
    reference = (
        "Shi et al., Fetal brain age estimation and anomaly detection using attention-based deep ensembles, 2020"
    )
    notes = (
        "The public code reduces the rate on plateaus too, which its schedule overwrites in the next pass, and divides "
        "it by 1 + 0.05 × updates, which its description does not have; ours does neither. It enlarges maps from their "
        "corners, ours from pixels' centres. Slices are resampled (`pixel_mm`) so that a newborn's brain fits, and "
        "drawn with replacement; the age of a member begins at the mean training age (ours)."
    )

    plane: Plane = hyper("axial", "plane of the slice", origin="ours")
    size: int = hyper(
        192,
        "side of the slice, cut or padded about the middle of the brain; a multiple of 64",
        origin=CODE,
        ge=MULTIPLE,
    )
    pixel_mm: float | None = hyper(
        0.7, "millimetres of a pixel; null: voxels as they are, as published", origin="ours", gt=0
    )

    widths: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = hyper(
        (32, 64, 128), "channels within the first stage's bottlenecks, doubled in the second and third", origin=CODE
    )
    norm_momentum: float = hyper(
        0.01, "weight of a batch in the running statistics of normalisations", origin="Keras default", gt=0, le=1
    )
    start_at_mean: bool = hyper(True, "the bias of the age begins at the mean training age; false: at 0", origin="ours")
    members: int = hyper(5, "networks of the ensemble", origin=CODE, ge=1)
    training: ArnTraining = hyper(ArnTraining(), "optimisation of each", origin=CODE)
    augmentation: ArnAugmentation = hyper(ArnAugmentation(), "moves in training", origin=CODE)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % MULTIPLE:
            raise ValueError(f"size must be a multiple of {MULTIPLE}, not {self.size}")
        return self

    @classmethod
    def example(cls) -> Arn:
        return cls.model_validate(
            {
                "size": 64,
                "pixel_mm": 2.0,
                "widths": (4, 4, 8),
                "norm_momentum": 0.1,
                "members": 2,
                "training": {"epochs": None, "iterations": 6, "validate_every": 3, "batch_size": 4},
            }
        )

    def fit(self, data: AgeTraining, ctx: Context) -> State:
        """For each member "member_I.*" (weights); "score" (minus validation squared errors) and "iteration" of each.

        Raises MethodError where a split is empty, or ages are unknown or all equal.
        """
        ages, validation_ages = ages_to_learn(data)
        pixels, seen = cut_all(data.train.volumes, self._cut()), cut_all(data.validation.volumes, self._cut())
        state: State = {}
        for number in range(self.members):
            result = learnt(
                lambda mean: self._network(mean if self.start_at_mean else 0.0),
                (pixels, ages),
                (seen, validation_ages),
                self.training,
                self.augmentation,
                loss=negative_log_likelihood,
                error=lambda outputs, known: float(((outputs[:, 0] - known) ** 2).mean()),
                ctx=own_context(ctx, number),
                name=f"member_{number}",
            )
            enter(state, result, f"member_{number}")
        return state

    def predict(self, state: State, data: AgeInputs, ctx: Context) -> AgePredictions:
        """The ensemble's ages, and the root of its variances."""
        pixels = cut_all(data.volumes, self._cut())
        outputs = np.empty((self.members, len(pixels), 2))
        for number in range(self.members):
            with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
                network = self._network(0.0)
            restored(network, state, f"member_{number}", ctx.device)
            outputs[number] = applied(network, pixels, self.training.batch_size, ctx.device)
        means, variances = outputs[..., 0], outputs[..., 1]
        return AgePredictions(means.mean(0), np.sqrt(variances.mean(0) + means.var(0)))

    def deviations(self) -> tuple[str, ...]:
        resampled = () if self.pixel_mm is None else (f"slice resampled to {self.pixel_mm:g} mm",)
        return (*resampled, *departures(self))

    def _cut(self) -> Cut:
        return Cut((self.plane,), 1, (self.size, self.size), self.pixel_mm)

    def _network(self, mean: float) -> AttentionNetwork:
        return AttentionNetwork(self.widths, self.size, self.norm_momentum, mean)

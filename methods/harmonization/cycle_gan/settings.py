"""The hyper-parameters of CycleGAN."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings

PAPER = "Zhu et al., ICCV 2017, section 4 and appendix"
CODE = "authors' code"


class CycleGANTraining(TrainingSettings):
    """Adam at 2e-4, constant for half of the iterations, then falling to 0; the last weights are kept."""

    iterations: int = hyper(
        40_000, "updates of every player, for one pair of sites", origin="ours; published: 200 epochs", ge=1
    )
    batch_size: int = hyper(1, "slices of each site in a batch", origin=PAPER, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adam", "update rule", origin=PAPER)
    learning_rate: float = hyper(2e-4, "learning rate of every player, before it falls", origin=PAPER, ge=0)
    betas: tuple[float, float] = hyper((0.5, 0.999), "moments of adam", origin=CODE)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("linear", "course of the rate", origin=PAPER)
    linear_from: float = hyper(
        0.5,
        "linear: fraction of the iterations at the full rate",
        origin="Zhu et al.: 100 epochs, then 100 of decay",
        ge=0,
        lt=1,
    )
    select: Literal["best", "last"] = hyper(
        "last", "weights that are kept; nothing is validated, since choosing by the target would leak", origin=CODE
    )
    checkpoint_every: int = hyper(1000, "iterations between two checkpoints", origin="ours", ge=1)


class Hyperparameters(Settings):
    """Networks, losses, augmentation and training."""

    width: int = hyper(
        64, "channels of the generators' first layer; four times as many in the blocks", origin=PAPER, ge=1
    )
    blocks: int = hyper(9, "residual blocks; the paper has 6 for slices of 128 pixels", origin=PAPER, ge=0)
    upsampling: Literal["transposed", "resize"] = hyper(
        "transposed", "doubling by transposed convolutions, or by resizing, which leaves no checkerboard", origin=PAPER
    )
    discriminator_width: int = hyper(64, "channels of the discriminators' first layer", origin=PAPER, ge=1)
    discriminator_layers: Literal[1, 2, 3] = hyper(
        2,
        "their layers of stride 2: 3 is CycleGAN's own, which judges patches of 70 pixels; 2 (34 pixels) and 1 (16) "
        "leave anatomy alone more often in MRI",
        origin="Modanwal et al., SPIE Medical Imaging 2020, who shrank the field; that 2 is enough is ours",
    )
    initial_deviation: float = hyper(0.02, "standard deviation of the initial weights", origin=CODE, gt=0)

    cycle_weight: float = hyper(10.0, "weight of the cycle's L1, there and back again", origin=PAPER, ge=0)
    identity_weight: float = hyper(
        0.5,
        "weight of the identity's L1, as a fraction of cycle_weight: a generator leaves slices of its own site alone",
        origin=PAPER,
        ge=0,
    )
    history: int = hyper(50, "earlier fakes that the discriminators are shown; 0: only the latest", origin=PAPER, ge=0)

    resize: int | None = hyper(
        286, "shorter side that slices are brought to before they are cropped; null: as they are", origin=CODE, ge=16
    )
    crop: int | None = hyper(256, "side of the random window; null: whole slices", origin=CODE, ge=16)
    flip: bool = hyper(True, "mirror the columns of every second slice", origin=CODE)
    training: CycleGANTraining = hyper(CycleGANTraining(), "optimisation", origin=PAPER)
    inference_batch: int = hyper(8, "slices that are translated at a time", origin="ours", ge=1)

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        if self.resize is not None and self.crop is not None and self.crop > self.resize:
            raise ValueError(f"crop is {self.crop}, larger than the slices of {self.resize} that resize makes")
        return self

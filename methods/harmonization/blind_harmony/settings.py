"""Hyper-parameters of BlindHarmony."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings

PAPER = "BlindHarmony (Jeong et al., ICCV 2023)"
CODE = "authors' code"


class FlowTraining(TrainingSettings):
    """The published schedule: 10,000 updates of Adam, cosine to 0, the weights of the best validation."""

    iterations: int = hyper(10_000, "number of optimiser updates", origin=CODE, ge=1)
    batch_size: int = hyper(256, "slices in a batch", origin=CODE, ge=1)
    learning_rate: float = hyper(5e-4, "learning rate of the first update", origin=CODE, ge=0)
    schedule: Literal["constant", "step", "cosine", "linear"] = hyper("cosine", "course of the rate", origin=CODE)
    validate_every: int = hyper(250, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin=CODE)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "off", "mixed precision on a GPU: a level of 12-bit images is finer than bf16 resolves", origin="ours"
    )


class FlowSettings(Settings):
    """The neural-spline Glow. The published sizes have 14,486,534 parameters."""

    levels: int = hyper(4, "scales; slices are padded to a multiple of 2^levels", origin=CODE, ge=1, le=7)
    steps: int = hyper(7, "normalisation, mixing and coupling, so many times at each scale", origin=CODE, ge=1)
    hidden: int = hyper(96, "channels of the coupling networks", origin=CODE, ge=1)
    blocks: int = hyper(3, "residual blocks of a coupling network", origin=CODE, ge=0)
    bins: int = hyper(8, "bins of a spline", origin=CODE, ge=2)
    bound: float = hyper(3.0, "splines bend within ± this, and are the identity outside", origin=CODE, gt=0)
    minimum: float = hyper(1e-3, "least width, height and slope of a spline's bin", origin=CODE, gt=0)
    training: FlowTraining = hyper(FlowTraining(), "optimisation", origin=CODE)

    @model_validator(mode="after")
    def _check_bins(self) -> FlowSettings:
        if self.bins * self.minimum >= 1:
            raise ValueError(f"{self.bins} bins of at least {self.minimum} do not fit; lower bins or minimum")
        return self


class Search(Settings):
    """How a slice that resembles the input and is likely at the source is sought."""

    iterations: int = hyper(10, "gradient steps, each followed by a pass through the flow and back", origin=CODE, ge=1)
    likeness_step: float = hyper(
        1000.0,
        "step along the gradient of the cosine to the input. A step turns a slice x by about likeness_step / ‖x‖² of "
        "the way, so fewer pixels want a smaller one: it suits 144 × 176; above 2 ‖x‖² it overshoots",
        origin=CODE,
        ge=0,
    )
    edge_step: float = hyper(1e-3, "step against edges where the input has none", origin=CODE, ge=0)
    latent_shrink: float = hyper(
        1e-3, "fraction by which the latent moves towards 0, the likeliest slice", origin=CODE, ge=0, lt=1
    )
    flat_percentile: float = hyper(
        30.0, "the input is flat where its gradient is below this percentile", origin=CODE, ge=0, le=100
    )
    flat_within: Literal["foreground", "slice"] = hyper(
        "foreground",
        "pixels of which that percentile is taken; of whole slices it is 0 where much of them is background",
        origin="ours; the code's images are not skull-stripped",
    )
    foreground: float = hyper(0.05, "intensity above which the input is no background", origin=CODE, ge=0, lt=1)
    start: Literal["place", "site"] = hyper(
        "place", "first guess: the mean source slice at the same place, or that of the whole site", origin=CODE
    )
    batch_size: int = hyper(32, "slices sought at once", origin="ours", ge=1)

"""The hyper-parameters of the style transfer."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings

STARGAN = "StarGAN v2, Choi et al., CVPR 2020, appendix B"
CODE = "code of Liu et al."


class StyleTransferTraining(TrainingSettings):
    """200,000 iterations of Adam at 1e-4; the averaged weights of the last are kept."""

    iterations: int = hyper(200_000, "iterations, in each of which every player is updated twice", origin=CODE, ge=1)
    batch_size: int = hyper(4, "slices in a batch, and of each of the two style references", origin=CODE, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adam", "update rule", origin=STARGAN)
    learning_rate: float = hyper(1e-4, "learning rate of every player", origin=STARGAN, ge=0)
    betas: tuple[float, float] = hyper((0.0, 0.99), "moments of adam", origin=STARGAN)
    weight_decay: float = hyper(1e-4, "L2 penalty", origin=STARGAN, ge=0)
    ema: float | None = hyper(
        0.999,
        "decay of the moving average of weights, which harmonises; null: none",
        origin=STARGAN,
        gt=0,
        lt=1,
    )
    select: Literal["best", "last"] = hyper(
        "last", "weights that are kept; nothing is validated, since choosing by the target would leak", origin=CODE
    )
    checkpoint_every: int = hyper(1000, "iterations between two checkpoints", origin="ours", ge=1)


class Hyperparameters(Settings):
    """Networks, losses, augmentation, training, and what harmonisation does with them."""

    adjacent_slices: Literal[1, 3] = hyper(
        3,
        "slices of a scan that enter as channels, in the way of RGB; outputs that overlap are averaged",
        origin=CODE,
    )
    base_width: int = hyper(
        64, "channels at full resolution of generator, style encoder and discriminator", origin=CODE
    )
    max_width: int = hyper(512, "largest number of channels", origin=STARGAN, ge=1)
    downs: int = hyper(4, "halvings of the generator; 2 for 64 pixels", origin=STARGAN, ge=1)
    trunk_downs: int = hyper(
        6, "halvings of style encoder and discriminator, which must leave 4 pixels or more", origin=STARGAN, ge=1
    )
    style_dim: int = hyper(64, "length of a style", origin=STARGAN, ge=1)
    latent_dim: int = hyper(16, "length of the latent that is mapped to a style", origin=STARGAN, ge=1)
    mapping_width: int = hyper(512, "units of the mapping network's hidden layers", origin=STARGAN, ge=1)
    mapping_rate: float = hyper(0.01, "learning rate of the mapping network, as a factor", origin=STARGAN, ge=0)

    style_weight: float = hyper(1.0, "weight of the L1 of a fake's style from that asked for", origin=STARGAN, ge=0)
    diversity_weight: float = hyper(
        1.0, "weight, at first, of the L1 by which two styles must set fakes apart", origin=STARGAN, ge=0
    )
    diversity_iterations: int = hyper(
        200_000, "iterations over which diversity_weight falls linearly to 0", origin=CODE, ge=1
    )
    cycle_weight: float = hyper(
        100.0, "weight of the L1 of a slice repainted in its own style", origin="Liu et al.; StarGAN v2 has 1", ge=0
    )
    gradient_penalty: float = hyper(
        1.0, "weight of R1, half the discriminator's squared gradient at real slices", origin=STARGAN, ge=0
    )

    crop_probability: float = hyper(0.5, "share of slices that are cropped and enlarged", origin=STARGAN, ge=0, le=1)
    crop_area: tuple[float, float] = hyper((0.8, 1.0), "area of a crop, as a fraction of the slice", origin=STARGAN)
    crop_ratio: tuple[float, float] = hyper((0.9, 1.1), "columns to rows of a crop, of the slice's", origin=STARGAN)
    flip: bool = hyper(True, "mirror the columns of every second slice", origin=STARGAN)
    training: StyleTransferTraining = hyper(StyleTransferTraining(), "optimisation", origin=CODE)

    style_from: Literal["nearest", "site"] = hyper(
        "nearest",
        "source slices whose mean style is used: those at the same place in their scans, or all of the site",
        origin="ours; published: the slice of the same index of one reference volume",
    )
    references: int = hyper(16, "nearest: number of source slices whose styles are averaged", origin="ours", ge=1)
    range_percentiles: tuple[float, float] = hyper(
        (0.0, 100.0),
        "percentiles of a scan's brain that are moved to those of the source scans, on average; "
        "(0, 100) are minimum and maximum",
        origin=CODE,
    )
    inference_batch: int = hyper(8, "slices that are translated at a time", origin="ours", ge=1)

    @field_validator("crop_area", "crop_ratio")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not (0 < value[0] <= value[1] and math.isfinite(value[1])):
            raise ValueError("must be [low, high] with 0 < low <= high")
        return value

    @field_validator("crop_area")
    @classmethod
    def _part_of_a_slice(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop cannot be larger than the slice: at most 1")
        return value

    @field_validator("range_percentiles")
    @classmethod
    def _percentiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("must be [low, high] with 0 <= low < high <= 100")
        return value

"""Hyper-parameters of Harmonizing Flows, group by group."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.api import Settings, hyper
from harness.training import TrainingSettings

THESIS = "Harmonizing Flows thesis ch. 2"
CODE = "authors' code"
Range = tuple[float, float]
Widths = Annotated[tuple[int, ...], Field(min_length=2)]


class FlowTraining(TrainingSettings):
    """The thesis's schedule; clipping and the last weights are the authors' code's."""

    iterations: int = hyper(20_000, "number of optimiser updates", origin=THESIS, ge=1)
    batch_size: int = hyper(32, "slices in a batch; also when BPD is measured", origin=THESIS, ge=1)
    learning_rate: float = hyper(1e-3, "learning rate of the first updates", origin=THESIS, ge=0)
    schedule: Literal["constant", "step", "cosine"] = hyper("step", "course of the rate", origin=THESIS)
    step_every: int = hyper(2000, "step: iterations between two drops", origin=THESIS, ge=1)
    step_factor: float = hyper(
        0.5, "step: factor of a drop", origin=f'{THESIS}, called "weight decay of 0.5"', gt=0, le=1
    )
    clip_norm: float | None = hyper(1.0, "largest L2 norm of the gradient; null: no limit", origin=CODE, gt=0)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "off", "mixed precision on a GPU", origin="ours: likelihoods are sums of many small terms"
    )
    validate_every: int = hyper(1000, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper("last", "weights that are kept", origin=CODE)


class HarmonizerTraining(TrainingSettings):
    """The thesis's schedule: 5000 updates of Adam, halved every 500, best on source validation."""

    iterations: int = hyper(5000, "number of optimiser updates", origin=THESIS, ge=1)
    batch_size: int = hyper(64, "slices in a batch", origin=THESIS, ge=1)
    learning_rate: float = hyper(1e-3, "learning rate of the first updates", origin=THESIS, ge=0)
    schedule: Literal["constant", "step", "cosine"] = hyper("step", "course of the rate", origin=THESIS)
    step_every: int = hyper(500, "step: iterations between two drops", origin=THESIS, ge=1)
    step_factor: float = hyper(0.5, "step: factor of a drop", origin=THESIS, gt=0, le=1)
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "off", "mixed precision on a GPU", origin="ours: 256 grey levels need more than eight bits"
    )
    validate_every: int = hyper(100, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin=THESIS)


class IntensityAugmentation(Settings):
    """Random changes of contrast, each a table of 256 grey levels; see `augment.random_tables`."""

    lut: float = hyper(0.4, "share of a random monotone curve", origin=f"{THESIS}, harmoniser mix", ge=0)
    photometric: float = hyper(0.4, "share of shift, factor and gamma", origin=f"{THESIS}, harmoniser mix", ge=0)
    both: float = hyper(0.2, "share of photometric, then curve", origin=f"{THESIS}, harmoniser mix", ge=0)
    probability: float = hyper(0.75, "photometric: chance of each of its operations", origin=CODE, ge=0, le=1)
    shift: Range = hyper((-30.0, 30.0), "photometric: added grey levels", origin=CODE)
    factor: Range = hyper((0.5, 2.0), "photometric: factor", origin=CODE)
    gamma: Range = hyper((0.5, 1.5), "photometric: exponent of levels / 255", origin=CODE)

    @model_validator(mode="after")
    def _check(self) -> IntensityAugmentation:
        if not self.lut + self.photometric + self.both > 0:
            raise ValueError("lut, photometric and both are all 0: give at least one of them a share")
        for name, (low, high) in {"shift": self.shift, "factor": self.factor, "gamma": self.gamma}.items():
            if low > high or (name != "shift" and low <= 0):
                raise ValueError(f"{name} must be [low, high] with low ≤ high{'' if name == 'shift' else ', above 0'}")
        return self


class GuidanceAugmentation(IntensityAugmentation):
    """Milder than the harmoniser's, and never both kinds at once."""

    lut: float = hyper(0.5, "share of a random monotone curve", origin=f"{THESIS}, guidance mix", ge=0)
    photometric: float = hyper(0.5, "share of shift, factor and gamma", origin=f"{THESIS}, guidance mix", ge=0)
    both: float = hyper(0.0, "share of photometric, then curve", origin=f"{THESIS}, guidance mix", ge=0)
    probability: float = hyper(0.6, "photometric: chance of each of its operations", origin=CODE, ge=0, le=1)
    factor: Range = hyper((0.5, 1.5), "photometric: factor", origin=CODE)


class Geometry(Settings):
    """Random changes of shape, alike for input and target. The thesis names them without ranges."""

    enabled: bool = hyper(True, "apply them at all", origin=f"{THESIS} sec. 2.4.2.4; absent from the authors' code")
    probability: float = hyper(0.5, "chance of each operation", origin="ours", ge=0, le=1)
    scale: Range = hyper((0.9, 1.1), "magnification, once for both axes and once for each", origin="ours")
    shear_degrees: float = hyper(5.0, "shear along each axis, uniform within ± this", origin="ours", ge=0, lt=45)
    perspective: Range = hyper((0.02, 0.05), "SD of the perspective terms, over half a side", origin="ours")
    piecewise: Range = hyper((0.01, 0.03), "SD of a node's displacement, as a fraction of a side", origin="ours")
    nodes: int = hyper(4, "nodes of the piecewise map along each axis", origin="ours", ge=2)

    @model_validator(mode="after")
    def _check(self) -> Geometry:
        for name in ("scale", "perspective", "piecewise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "scale" and low == 0):
                raise ValueError(f"{name} must be [low, high] with 0 ≤ low ≤ high, a scale above 0")
        return self


class FlowSettings(Settings):
    """The source flow. At the published sizes it has 4.02 M parameters, the dequantiser included."""

    couplings: int = hyper(
        12,
        "couplings, split evenly over three scales",
        origin=f"{THESIS}; 6 and 18 in its ablation",
        ge=0,
        multiple_of=3,
    )
    widths: Widths = hyper((16, 32, 48, 64), "channels of each scale of a conditioner", origin=CODE)
    dequantizer_couplings: int = hyper(4, "couplings of the variational dequantiser", origin=CODE, ge=0)
    alpha: float = hyper(1e-5, "shrinkage towards 1/2 before a logit", origin=CODE, gt=0, lt=1)
    training: FlowTraining = hyper(FlowTraining(), "optimisation", origin=THESIS)


class Guidance(Settings):
    """Augmented slices as negatives of the flow's training."""

    enabled: bool = hyper(True, "train against augmented slices", origin=f"{THESIS}, ablated")
    margin: float = hyper(
        1.2, "bits per dimension up to which negatives are pushed", origin=f"{THESIS}, grid .8/1.2/1.6; code: 1", gt=0
    )
    augmented_fraction: float = hyper(0.2, "share of slices that are augmented", origin=CODE, ge=0, le=1)
    rule: Literal["mse", "code"] = hyper(
        "mse",
        "when an augmented slice is far enough to be a negative: mse: mean d² over the brain > threshold; "
        "code: mean |d| + 2 SD(d) > code_threshold",
        origin=THESIS,
    )
    threshold: float = hyper(100.0, "mse: in squared grey levels", origin=f"{THESIS}, grid 50/100/150", ge=0)
    code_threshold: float = hyper(20.0, "code: in grey levels", origin=CODE, ge=0)
    augmentation: GuidanceAugmentation = hyper(GuidanceAugmentation(), "changes of contrast", origin=THESIS)


class HarmonizerSettings(Settings):
    """The harmoniser. At the published sizes it has 0.82 M parameters."""

    head: Literal["plain", "affine"] = hyper(
        "plain", "plain: the network's output; affine: α·x + β", origin=f"{THESIS}; affine is its ablation and the code"
    )
    widths: Widths = hyper((16, 32, 48, 64, 64), "channels of each scale", origin=CODE)
    scale: float = hyper(
        255.0, "grey levels are divided by it inside the network; 1: raw, as in the authors' code", origin="ours", gt=0
    )
    loss: Literal["l1_ssim", "mse"] = hyper(
        "l1_ssim",
        "L1 + (1 − SSIM), or the mean squared error",
        origin=f"{THESIS} eq. 2.5, whose sign of SSIM is mended",
    )
    augmentation: IntensityAugmentation = hyper(IntensityAugmentation(), "changes of contrast", origin=THESIS)
    geometry: Geometry = hyper(Geometry(), "changes of shape", origin=THESIS)
    training: HarmonizerTraining = hyper(HarmonizerTraining(), "optimisation", origin=THESIS)


class Adaptation(Settings):
    """Adaptation of the harmoniser to a target."""

    learning_rate: float = hyper(5e-7, "learning rate of Adam", origin=f"{THESIS}; the code has 4e-6", ge=0)
    batch_size: int = hyper(
        32, "most slices in a batch; also of harmonising", origin=f"{THESIS}; the code has 16", ge=1
    )
    max_epochs: int = hyper(20, "passes over the target's slices", origin=CODE, ge=1)
    images: Literal["test", "train"] = hyper(
        "test", "adapt to the slices to be harmonised (transductive), or to the target's training slices", origin=CODE
    )

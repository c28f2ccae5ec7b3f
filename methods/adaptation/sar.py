"""SAR: sharpness-aware and reliable entropy minimisation at test time (Niu et al., ICLR 2023).

TENT with three safeguards: uncertain pixels do not teach, the update looks for a flat minimum, and a model that is
about to collapse is reset. Published for whole images; here each pixel is a sample.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from harness.api import ApplyData, Context, State, TestTimeAdapter, hyper
from harness.training import seeded
from methods.adaptation._online import OnlineLearner, adapt_online, normalize_by_batch, pixel_entropy

PAPER = "Niu et al., ICLR 2023, sec. 3"
CODE = "authors' code"
NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


class Sar(TestTimeAdapter):
    """Reliable, sharpness-aware entropy minimisation through the scales and shifts of normalisation layers.

    One online pass, as TENT's. On each batch: the entropy of pixels below the margin gives a gradient; along it
    the weights climb a distance `rho`; the same pixels' entropy there, filtered again, gives the gradient of the
    update, which is made from where the weights were. A moving average of that second entropy tells a collapse,
    after which the source weights and a new optimiser take over.
    """

    id = "sar"
    reference = "Niu et al., Towards Stable Test-Time Adaptation in Dynamic Wild World, ICLR 2023"
    notes = (
        "Published for classification. Filtering pixel by pixel, the region, the scale of the reset threshold and "
        "the choice of frozen layers for a U-Net are ours. The published code does not clear its average at a reset."
    )
    source_free, task_agnostic, unknown_domains = True, False, True
    outcomes = ("labels",)  # an age has no entropy

    learning_rate: float = hyper(2.5e-4, "learning rate of sgd", origin="authors' code, ResNet at batch 64", ge=0)
    momentum: float = hyper(0.9, "momentum of sgd", origin=CODE, ge=0, lt=1)
    weight_decay: float = hyper(0.0, "L2 penalty", origin=CODE, ge=0)
    batch_size: int = hyper(64, "most slices in a batch; batches are of nearly equal size", origin=CODE, ge=1)
    steps: int = hyper(1, "updates on each batch", origin=CODE, ge=1)
    epochs: int = hyper(1, "passes over the slices; predictions are those of the last", origin=PAPER, ge=1)
    episodic: bool = hyper(False, "forget before every batch what others have taught", origin=CODE)
    final_pass: bool = hyper(
        False, "predict in a pass of its own after the last update, instead of before each", origin="ours"
    )

    rho: float = hyper(0.05, "distance that the weights climb along the gradient", origin=f"{PAPER}, eq. 4", ge=0)
    margin: float | None = hyper(
        0.4,
        "entropy below which a pixel teaches, in units of ln C; null: all pixels do",
        origin=f"{PAPER}, eq. 2",
        gt=0,
    )
    region: Literal["predicted", "foreground", "unmasked"] = hyper(
        "predicted",
        "pixels that may teach: those predicted as other than background, those in the brain mask, or all",
        origin="ours; certain background would hold the average near 0",
    )
    reset_below: float | None = hyper(
        0.2 / math.log(1000),
        "average entropy that counts as collapse, in units of ln C; null: no reset",
        origin="authors' code has 0.2 for the 1000 classes of ImageNet; the scale is ours",
        gt=0,
    )
    average_decay: float = hyper(0.9, "decay of the average entropy", origin=f"{PAPER}, model recovery", ge=0, lt=1)
    clear_average: bool = hyper(
        True, "start the average anew at a reset; off: keep it, as the published code does", origin="ours"
    )
    frozen_norms: int = hyper(
        2,
        "last normalisation layers that do not learn; 2 are those of the last decoder stage of segmenter_2d",
        origin="ours; the paper freezes the top block of its classifiers",
        ge=0,
    )

    @model_validator(mode="after")
    def _check_final_pass(self) -> Sar:
        if self.final_pass and self.episodic:
            raise ValueError("final_pass predicts with what all batches taught, which episodic forgets: drop one")
        return self

    @classmethod
    def example(cls) -> Sar:
        return cls(frozen_norms=0, batch_size=4)  # the network of the checks has a single normalisation layer

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Labels uint8 [N, H, W] in the order of `data.target`, from the logits before a batch's last update.

        Logs, for each batch: "entropy" of the pixels that taught, the fraction "selected" of all pixels that did,
        and the number of "resets" so far. Raises MethodError where no normalisation layer is left to adapt, or
        an entropy is not finite.
        """
        with seeded(ctx.seed, ctx.device):
            learner = _Learner(data.task.network(), self)
            return adapt_online(
                learner,
                data.target,
                ctx,
                name=self.id,
                batch_size=self.batch_size,
                epochs=self.epochs,
                final_pass=self.final_pass,
            )


class _Learner(OnlineLearner):
    """`average` is the moving average of the second entropy, None at the start; `resets` counts collapses."""

    def __init__(self, network: nn.Module, settings: Sar):
        self.settings = settings
        self.average: float | None = None
        self.resets = 0
        super().__init__(network, normalize_by_batch(network, NORMS, settings.frozen_norms))

    def new_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        return torch.optim.SGD(self.parameters, s.learning_rate, s.momentum, weight_decay=s.weight_decay)

    def learn(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        if self.settings.episodic:
            self.reset()
            self.average = None
        for _ in range(self.settings.steps):
            logits, points = self._update(pixels, mask)
        return logits, {**points, "resets": float(self.resets)}

    def _update(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """One update, left out where no pixel teaches. Returns the first logits, and what their entropy was."""
        logits = self.network(pixels)
        entropy = pixel_entropy(logits)
        chosen = self.reliable(entropy.detach(), logits.shape[1]) & self._in_region(logits.detach(), mask)
        loss = mean_over(entropy, chosen)
        points = {"entropy": float(loss.detach()), "selected": float(chosen.float().mean())}
        if not torch.isfinite(entropy.detach()).all():
            points["entropy"] = math.nan  # the margin filters NaN out, which must not pass for certainty
        elif chosen.any():
            self.optimizer.zero_grad()
            loss.backward()
            self._descend(pixels, chosen)
        return logits.detach(), points

    def _descend(self, pixels: Tensor, chosen: Tensor) -> None:
        """The update, by the gradient found up the slope; then the check for a collapse."""
        before = self.climb()
        logits = self.network(pixels)
        entropy = pixel_entropy(logits)
        still = chosen & self.reliable(entropy.detach(), logits.shape[1])
        loss = mean_over(entropy, still)
        self.optimizer.zero_grad()
        loss.backward()
        self.restore(before)
        if still.any():
            self.optimizer.step()
            self._watch(float(loss.detach()), logits.shape[1])

    def reliable(self, entropy: Tensor, n_labels: int) -> Tensor:
        """Whether pixels are certain enough to teach, bool of the shape of `entropy`."""
        margin = self.settings.margin
        return torch.ones_like(entropy, dtype=torch.bool) if margin is None else entropy < margin * math.log(n_labels)

    @torch.no_grad()
    def climb(self) -> list[Tensor]:
        """Move the parameters by `rho` along their gradient, as one vector; return what they were."""
        before = [p.clone() for p in self.parameters]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        length = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.add_(gradient * (self.settings.rho / (length + 1e-12)))
        return before

    @torch.no_grad()
    def restore(self, before: list[Tensor]) -> None:
        for p, value in zip(self.parameters, before, strict=True):
            p.copy_(value)

    def _in_region(self, logits: Tensor, mask: Tensor) -> Tensor:
        if self.settings.region == "predicted":
            return logits.argmax(1) > 0
        return mask > 0 if self.settings.region == "foreground" else torch.ones_like(mask, dtype=torch.bool)

    def _watch(self, entropy: float, n_labels: int) -> None:
        """Follow with the average, and start again from the source weights where it tells a collapse."""
        s = self.settings
        if self.average is None:
            self.average = entropy
        else:
            self.average = s.average_decay * self.average + (1 - s.average_decay) * entropy
        if s.reset_below is not None and self.average < s.reset_below * math.log(n_labels):
            self.reset()
            self.resets += 1
            if s.clear_average:
                self.average = None


def mean_over(entropy: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen pixels, 0 where there are none; the others get a gradient of exactly 0."""
    return (entropy * chosen).sum() / chosen.sum().clamp(min=1)

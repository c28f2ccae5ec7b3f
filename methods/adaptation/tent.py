"""TENT: fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021).

Only the affine parameters of batch normalisation learn, from the entropy of the network's own predictions;
normalisation uses the statistics of the test batch itself. Slices come online, in shuffled batches.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from harness.api import ApplyData, Context, State, TestTimeAdapter, hyper
from harness.training import seeded
from methods.adaptation._online import OnlineLearner, adapt_online, normalize_by_batch, pixel_entropy

PAPER = "Wang et al., ICLR 2021, sec. 3"


class Tent(TestTimeAdapter):
    """Entropy minimisation on the target's test slices, through batch-norm scales and shifts only.

    One online pass: each batch is predicted, then learnt from, so its own update helps later batches only. With
    `update` off, or `learning_rate` 0, what is left is normalisation by test-batch statistics, known as "norm".
    Each target starts from the source network again, since every run is handed a fresh copy.
    """

    id = "tent"
    reference = "Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021"
    notes = "Published for classification: batch size and rate for segmentation are ours, as is the region option."
    source_free, task_agnostic, unknown_domains = True, False, True
    outcomes = ("labels",)  # an age has no entropy

    optimizer: Literal["adam", "sgd"] = hyper("adam", "update rule", origin="Wang et al., sec. 4 (adam for CIFAR)")
    learning_rate: float = hyper(
        1e-4, "learning rate", origin="ours, from segmentation users; the paper has 1e-3 at batch 200", ge=0
    )
    betas: tuple[float, float] = hyper((0.9, 0.999), "moments of adam", origin="authors' code")
    momentum: float = hyper(0.9, "momentum of sgd", origin="Wang et al., sec. 4 (sgd for ImageNet)", ge=0, lt=1)
    weight_decay: float = hyper(0.0, "L2 penalty", origin="authors' code", ge=0)
    batch_size: int = hyper(32, "most slices in a batch; batches are of nearly equal size", origin="ours", ge=1)
    steps: int = hyper(1, "updates on each batch", origin=PAPER, ge=1)
    epochs: int = hyper(1, "passes over the slices; predictions are those of the last", origin=PAPER, ge=1)
    episodic: bool = hyper(False, "forget before every batch what others have taught", origin=PAPER)
    region: Literal["unmasked", "foreground"] = hyper(
        "unmasked", "pixels whose entropy counts: all, or those in the brain mask", origin="unmasked: the paper's loss"
    )
    update: bool = hyper(True, "learn at all; off: batch statistics only (norm)", origin=PAPER)
    final_pass: bool = hyper(
        False, "predict in a pass of its own after the last update, instead of before each", origin="ours"
    )

    @model_validator(mode="after")
    def _check_final_pass(self) -> Tent:
        if self.final_pass and self.episodic:
            raise ValueError("final_pass predicts with what all batches taught, which episodic forgets: drop one")
        return self

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Labels uint8 [N, H, W] in the order of `data.target`, from the logits before a batch's last update.

        Raises MethodError where the network has no batch normalisation, or the entropy is not finite.
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
    def __init__(self, network: nn.Module, settings: Tent):
        self.settings = settings
        super().__init__(network, normalize_by_batch(network))

    def new_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        if s.optimizer == "sgd":
            return torch.optim.SGD(self.parameters, s.learning_rate, s.momentum, weight_decay=s.weight_decay)
        return torch.optim.Adam(self.parameters, s.learning_rate, s.betas, weight_decay=s.weight_decay)

    def learn(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """`steps` updates on a batch; the entropy is its mean in nats, also from before the last update."""
        if self.settings.episodic:
            self.reset()
        for _ in range(self.settings.steps if self.settings.update else 1):
            with torch.set_grad_enabled(self.settings.update):
                logits = self.network(pixels)
                entropy = self._mean_entropy(logits, mask)
            if self.settings.update:
                self.optimizer.zero_grad()
                entropy.backward()
                self.optimizer.step()
        return logits.detach(), {"entropy": float(entropy.detach())}

    def _mean_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        entropy = pixel_entropy(logits)
        if self.settings.region == "unmasked":
            return entropy.mean()
        return (entropy * mask).sum() / mask.sum().clamp(min=1)  # slices without brain teach nothing

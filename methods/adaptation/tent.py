"""TENT: fully test-time adaptation by entropy minimisation (Wang et al., ICLR 2021).

Only the affine parameters of batch normalisation learn, from the entropy of the network's own predictions;
normalisation uses the statistics of the test batch itself. Slices come online, in shuffled batches.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from harness.api import ApplyData, Context, ImageSet, MethodError, State, TestTimeAdapter, hyper
from harness.training import seeded

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
        images = data.target
        predicted = np.empty(images.pixels.shape, np.uint8)
        with seeded(ctx.seed, ctx.device):
            learner = _Learner(data.task.network(), self)
            rng = ctx.rng
            for epoch in range(self.epochs):
                for number, index in enumerate(shuffled_batches(len(images), self.batch_size, rng)):
                    logits, entropy = learner.learn(*_batch(images, index, ctx.device))
                    _check_finite(entropy, epoch, number)
                    ctx.log("entropy", learner.batches, entropy)
                    predicted[index] = labels_of(logits)
            if self.final_pass:
                for index in shuffled_batches(len(images), self.batch_size, rng):
                    pixels, _ = _batch(images, index, ctx.device)
                    with torch.no_grad():
                        predicted[index] = labels_of(learner.network(pixels))
        return predicted


class _Learner:
    """A network under adaptation and its optimiser."""

    def __init__(self, network: nn.Module, settings: Tent):
        self.network, self.settings = network, settings
        self.parameters = normalize_by_batch(network)
        self.start = copy.deepcopy([p.detach() for p in self.parameters])
        self.optimizer = self._new_optimizer()
        self.batches = 0

    def learn(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, float]:
        """`steps` updates on a batch. Returns logits and mean entropy (nats), both before the last update."""
        if self.settings.episodic:
            self.reset()
        self.batches += 1
        for _ in range(self.settings.steps if self.settings.update else 1):
            with torch.set_grad_enabled(self.settings.update):
                logits = self.network(pixels)
                entropy = self._mean_entropy(logits, mask)
            if self.settings.update:
                self.optimizer.zero_grad()
                entropy.backward()
                self.optimizer.step()
        return logits.detach(), float(entropy.detach())

    def reset(self) -> None:
        """The source network and a new optimiser."""
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.copy_(start)
        self.optimizer = self._new_optimizer()

    def _mean_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        entropy = pixel_entropy(logits)
        if self.settings.region == "unmasked":
            return entropy.mean()
        return (entropy * mask).sum() / mask.sum().clamp(min=1)  # slices without brain teach nothing

    def _new_optimizer(self) -> torch.optim.Optimizer:
        s = self.settings
        if s.optimizer == "sgd":
            return torch.optim.SGD(self.parameters, s.learning_rate, s.momentum, weight_decay=s.weight_decay)
        return torch.optim.Adam(self.parameters, s.learning_rate, s.betas, weight_decay=s.weight_decay)


def normalize_by_batch(network: nn.Module) -> list[nn.Parameter]:
    """Make batch normalisation use the batch's own statistics, in place; return its scales and shifts.

    The network is put in train mode, and these parameters are the only ones left with gradients. Raises
    MethodError where there are none: instance and group normalisation keep no statistics to replace.
    """
    network.train()
    network.requires_grad_(False)
    parameters: list[nn.Parameter] = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
            parameters += layer.parameters(recurse=False)
    if not parameters:
        raise MethodError("the task network has no BatchNorm2d with scale and shift, so there is nothing to adapt")
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def pixel_entropy(logits: Tensor) -> Tensor:
    """−Σ_c p log p in nats, logits [B, C, H, W] to [B, H, W] in 0..ln C."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def shuffled_batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Indices 0..n−1 in random order, in ⌈n / size⌉ batches whose sizes differ by at most one.

    Equal sizes, because the statistics of a short last batch would be its own slices' alone.
    """
    yield from np.array_split(rng.permutation(n), max(1, math.ceil(n / size)))


def labels_of(logits: Tensor) -> np.ndarray:
    """Most probable labels, uint8 [B, H, W]."""
    return logits.argmax(1).to(torch.uint8).cpu().numpy()


def _batch(images: ImageSet, index: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Pixels [B, 1, H, W] in [0, 1] and brain mask [B, H, W] as 0 and 1."""
    pixels = torch.from_numpy(images.floats(index))[:, None]
    mask = torch.from_numpy(np.asarray(images.mask[index], dtype=np.float32))
    return pixels.to(device), mask.to(device)


def _check_finite(entropy: float, epoch: int, number: int) -> None:
    if not math.isfinite(entropy):
        raise MethodError(
            f"tent: the entropy became {entropy} in batch {number + 1} of pass {epoch + 1}; lower learning_rate"
        )

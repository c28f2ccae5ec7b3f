"""Online adaptation by entropy, as TENT and SAR share it: what learns, on which batches, and what is predicted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Context, ImageSet, MethodError


class OnlineLearner(ABC):
    """A network under adaptation: the parameters that learn, their optimiser, and the way back to the start."""

    def __init__(self, network: nn.Module, parameters: list[nn.Parameter]):
        self.network, self.parameters = network, parameters
        self.start = [p.detach().clone() for p in parameters]
        self.optimizer = self.new_optimizer()

    @abstractmethod
    def new_optimizer(self) -> torch.optim.Optimizer:
        """The update rule over `parameters`, without memory."""

    @abstractmethod
    def learn(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Learn from a batch. Returns its logits, as they were before the last update, and points of curves.

        pixels [B, 1, H, W] in [0, 1]; mask [B, H, W], the brain as 0 and 1. Among the points is "entropy".
        """

    def reset(self) -> None:
        """The source network and a new optimiser."""
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.copy_(start)
        self.optimizer = self.new_optimizer()


def adapt_online(
    learner: OnlineLearner, images: ImageSet, ctx: Context, *, name: str, batch_size: int, epochs: int, final_pass: bool
) -> np.ndarray:
    """Learn from all slices in shuffled batches, `epochs` times. Labels uint8 [N, H, W], in the order of `images`.

    They are those of the last epoch, each batch's from before its own last update; or, with `final_pass`, those
    of one more pass without learning. Raises MethodError, naming the batch, where an entropy is not finite.
    """
    predicted = np.empty(images.pixels.shape, np.uint8)
    rng, batches = ctx.rng, 0
    for epoch in range(epochs):
        for number, index in enumerate(shuffled_batches(len(images), batch_size, rng)):
            logits, points = learner.learn(*batch_of(images, index, ctx.device))
            if not math.isfinite(points["entropy"]):
                raise MethodError(
                    f"{name}: the entropy became {points['entropy']} in batch {number + 1} of pass {epoch + 1}; "
                    "lower learning_rate"
                )
            batches += 1
            for curve, value in points.items():
                ctx.log(curve, batches, value)
            predicted[index] = labels_of(logits)
    if final_pass:
        for index in shuffled_batches(len(images), batch_size, rng):
            pixels, _ = batch_of(images, index, ctx.device)
            with torch.no_grad():
                predicted[index] = labels_of(learner.network(pixels))
    return predicted


def normalize_by_batch(
    network: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm2d,), frozen_last: int = 0
) -> list[nn.Parameter]:
    """Make batch normalisation use the batch's own statistics, in place; return the scales and shifts that learn.

    These belong to the layers of these `kinds` but the last `frozen_last`, in the order the network registers
    them. The network is put in train mode, and they are the only parameters left with gradients. Raises
    MethodError where there are none.
    """
    network.train()
    network.requires_grad_(False)
    layers = []
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = None
        if isinstance(layer, kinds) and any(True for _ in layer.parameters(recurse=False)):
            layers.append(layer)
    if not layers:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise MethodError(f"the task network has no {names} with scale and shift, so there is nothing to adapt")
    if frozen_last >= len(layers):
        raise MethodError(
            f"frozen_norms is {frozen_last}, but the task network has only {len(layers)} normalisation layers, so "
            f"nothing is left to adapt; set it below {len(layers)}"
        )
    parameters = [p for layer in layers[: len(layers) - frozen_last] for p in layer.parameters(recurse=False)]
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


def batch_of(images: ImageSet, index: np.ndarray, device: str) -> tuple[Tensor, Tensor]:
    """Pixels [B, 1, H, W] in [0, 1] and brain mask [B, H, W] as 0 and 1."""
    pixels = torch.from_numpy(images.floats(index))[:, None]
    mask = torch.from_numpy(np.asarray(images.mask[index], dtype=np.float32))
    return pixels.to(device), mask.to(device)

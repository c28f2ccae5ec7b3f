"""What the dense autoencoders share: their training, in passes over the slices, and residuals of either sign."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from harness.anomaly import NormalData, Processing
from harness.api import Context, ImageSet, MethodError, State, hyper
from harness.training import TrainingSettings, load_weights, train
from methods.networks.dense_autoencoder import CODE

Network = TypeVar("Network", bound=nn.Module)
Loss = Callable[[nn.Module, Tensor, torch.Generator], "dict[str, Tensor]"]
Residual = Literal["auto", "positive", "absolute"]

WEIGHTS = "network."
BRIGHT_LESIONS = ("FLAIR", "T2w", "")
PUBLISHED = Processing(erode=12, median=5, smallest=7)


class AutoencoderTraining(TrainingSettings):
    """Adam at 1e-4 for at most 1000 passes over the slices, ended by 5 without a better validation."""

    epochs: int | None = hyper(
        1000,
        "passes over the training slices at most, with a validation after each; null: `iterations` and "
        "`validate_every` count",
        origin=CODE,
        ge=1,
    )
    batch_size: int = hyper(8, "slices in a batch", origin=f"{CODE}; its other entry point has 128", ge=1)
    learning_rate: float = hyper(1e-4, "learning rate", origin=CODE, ge=0)
    betas: tuple[float, float] = hyper((0.5, 0.999), "moments of adam", origin=CODE)
    patience: int | None = hyper(
        5, "validations without a better one after which training ends; null: none", origin=CODE, ge=1
    )
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin="ours")
    amp: Literal["auto", "bf16", "fp16", "off"] = hyper(
        "off", "mixed precision on a GPU; residuals are finer than bf16 resolves", origin=CODE
    )

    def over(self, slices: int) -> Self:
        """The same with passes over so many slices as iterations."""
        if self.epochs is None:
            return self
        each = math.ceil(slices / self.batch_size)
        return self.model_copy(update={"iterations": self.epochs * each, "validate_every": each})


def learn(network: nn.Module, settings: AutoencoderTraining, data: NormalData, loss: Loss, ctx: Context) -> State:
    """Train on slices of `data.images`, drawn with replacement. Returns "network.*", "size", "score" and "iteration".

    loss: (network, slices [B, 1, H, W], generator) → "loss" and its parts, means over slices. The validation score is
    minus that of all validation slices, with the same draws each time.
    """
    for images, split in ((data.images, "training"), (data.validation, "validation")):
        if not len(images):
            raise MethodError(f"there is no {split} slice; give that split more subjects")

    def batches(rng: np.random.Generator, size: int) -> Tensor:
        return torch.from_numpy(data.images.floats(np.sort(rng.integers(len(data.images), size=size))))[:, None]

    def validate(module: nn.Module) -> float:
        generator, total = torch.Generator(ctx.device).manual_seed(ctx.seed), 0.0
        for chosen in runs(len(data.validation), settings.batch_size):
            x = torch.from_numpy(data.validation.floats(chosen))[:, None].to(ctx.device)
            total += float(loss(module, x, generator)["loss"]) * len(x)
        return -total / len(data.validation)

    result = train(network, settings.over(len(data.images)), batches, loss, ctx=ctx, validate=validate)
    weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
    height, width = data.images.pixels.shape[1:]
    return {**weights, "size": [height, width], "score": result.score, "iteration": result.iteration}


def restored(network: Network, state: State, device: str) -> Network:
    """The network with the weights of `state`, frozen and in eval mode, on the device."""
    load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
    return network.eval().requires_grad_(False).to(device)


def size_of(state: State, images: ImageSet) -> tuple[int, int]:
    """Height and width of the slices that were learnt from. Raises MethodError where `images` have others."""
    height, width = state["size"]
    if images.pixels.shape[1:] != (height, width):
        other = " × ".join(map(str, images.pixels.shape[1:]))
        raise MethodError(f"slices are {other} pixels, those learnt from {height} × {width}; prepare both alike")
    return height, width


def runs(total: int, size: int) -> Iterator[slice]:
    """Slices of 0..total in turn, each `size` long but the last."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def residuals(x: np.ndarray, reconstruction: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """x − reconstruction [N, H, W]: its positive part in the slices that `positive` [N] says, else its size."""
    difference = x - reconstruction
    return np.where(positive[:, None, None], np.maximum(difference, 0), np.abs(difference))


def takes_positive(images: ImageSet, residual: Residual) -> np.ndarray:
    """For each slice whether only what is brighter than its reconstruction counts, bool [N].

    auto: by the modality, as lesions are bright in FLAIR and T2w; a scan without one counts as the published FLAIR.
    """
    if residual != "auto":
        return np.full(len(images), residual == "positive")
    bright = np.zeros(len(images), bool)
    for scan in images.scans:
        bright[scan.slices] = scan.modality in BRIGHT_LESIONS
    return bright


def residual_deviations(residual: Residual) -> tuple[str, ...]:
    """How the residual departs from the published positive part."""
    if residual == "auto":
        return ("absolute residual on T1w and T1CE, positive part elsewhere",)
    return ("absolute residual",) if residual == "absolute" else ()

"""The segmenter of the published cross-site benchmark: a plain 2-D U-Net in the manner of nnU-Net.

Trained on raw source slices with geometric augmentation only, so that any harmoniser must bring a scan to the
intensities of the source and nothing else.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Augment, Context, ImageSet, LabelSet, MethodError, State, TaskData, TaskModel, hyper
from harness.training import TrainingSettings, load_weights, seeded, train
from methods.networks.resampling import random_grid, resample, resample_labels

THESIS = "Harmonizing Flows thesis ch. 2, segmentation network"
NNUNET = "nnU-Net 2-D defaults (Isensee et al., Nature Methods 2021)"
PREFIX = "network."


class SegmenterTraining(TrainingSettings):
    """The published schedule: 5000 updates of Adam, halved every 500, best source-validation weights."""

    iterations: int = hyper(5000, "number of optimiser updates", origin=THESIS, ge=1)
    batch_size: int = hyper(64, "slices in a batch; also of prediction", origin=THESIS, ge=1)
    optimizer: Literal["adam", "adamw", "sgd"] = hyper("adam", "update rule", origin=THESIS)
    learning_rate: float = hyper(1e-3, "learning rate of the first updates", origin=THESIS, ge=0)
    schedule: Literal["constant", "step", "cosine"] = hyper("step", "course of the rate", origin=THESIS)
    step_every: int = hyper(500, "step: iterations between two drops", origin=THESIS, ge=1)
    step_factor: float = hyper(0.5, "step: factor of a drop", origin=THESIS, gt=0, le=1)
    validate_every: int = hyper(100, "iterations between two validations", origin="ours", ge=1)
    select: Literal["best", "last"] = hyper("best", "weights that are kept", origin=THESIS)


class Segmenter2d(TaskModel):
    """2-D U-Net with batch normalisation: slices [B, 1, H, W] in [0, 1] to logits [B, C, H, W].

    Two 3×3 convolutions a stage, stride 2 between stages, transposed convolutions upwards, no deep
    supervision. The loss is cross-entropy plus soft Dice. The published width has 33.46 M parameters for 15
    labels. H and W must be divisible by 2^(stages − 1), where `filters` has one entry for each stage.
    """

    id = "segmenter_2d"
    reference = "nnU-Net, Isensee et al., Nature Methods 2021; schedule of the Harmonizing Flows thesis"
    notes = "The thesis states neither loss nor augmentation: Dice + cross-entropy and the ranges below are ours."

    filters: Annotated[tuple[int, ...], Field(min_length=3)] = hyper(
        (32, 64, 128, 256, 512, 512, 512), "channels of each stage, from full resolution down", origin=NNUNET
    )
    training: SegmenterTraining = hyper(SegmenterTraining(), "optimisation", origin=THESIS)
    dice_weight: float = hyper(1.0, "weight of the soft Dice loss", origin=NNUNET, ge=0)
    cross_entropy_weight: float = hyper(1.0, "weight of the cross-entropy", origin=NNUNET, ge=0)
    dice_smooth: float = hyper(1e-5, "smoothing term of the soft Dice", origin=NNUNET, gt=0)
    flip: bool = hyper(
        True, "mirror the columns of every second slice; switch off where labels tell left from right", origin="ours"
    )
    rotate_degrees: float = hyper(15.0, "rotation, uniform within ± this", origin="ours", ge=0, le=180)
    scale: float = hyper(0.1, "magnification, uniform within 1 ± this", origin="ours", ge=0, lt=1)

    @classmethod
    def example(cls) -> Segmenter2d:
        schedule = SegmenterTraining(
            iterations=40, batch_size=8, learning_rate=1e-2, schedule="cosine", validate_every=20
        )
        return cls(filters=(4, 8, 16), training=schedule)

    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        """Train on `data`. Returns "network.*" (the weights), "n_labels", "score" and "iteration".

        `augment` replaces the geometric augmentation. Raises MethodError when the slices' size does not fit
        `filters`.
        """
        for images in (data.images, data.validation_images):
            self._check_size(images)
        with seeded(ctx.seed, ctx.device):
            network = self._build(data.n_labels)

        def batches(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
            index = np.sort(rng.integers(len(data.images), size=size))
            mask = torch.from_numpy(np.array(data.images.mask[index]))
            labels = torch.from_numpy(np.array(data.labels.labels[index]))
            return torch.from_numpy(data.images.floats(index))[:, None], mask, labels

        def step(
            module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
        ) -> dict[str, Tensor]:
            pixels, mask, labels = batch
            if augment is None:
                return self._losses(module, *self._augment(pixels, labels, generator))
            pixels, moved = augment(pixels, mask, labels, generator)
            if moved is None:
                raise MethodError(f"{self.id}: the augmentation returned no labels, which training needs")
            return self._losses(module, pixels, moved)

        def validate(module: nn.Module) -> float:
            predicted = self._predict(module, data.validation_images, ctx.device)
            return mean_dice(predicted, data.validation_labels)

        result = train(network, self.training, batches, step, ctx=ctx, validate=validate)
        weights = {PREFIX + key: tensor for key, tensor in result.state_dict.items()}
        return {"n_labels": data.n_labels, "score": result.score, "iteration": result.iteration, **weights}

    def network(self, state: State) -> nn.Module:
        """A new network on the CPU, in eval mode, with the weights of `state`."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = self._build(state["n_labels"])
        load_weights(network, {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
        return network.eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        """Most probable label of each pixel, uint8 [N, H, W]. Raises MethodError on a size that does not fit."""
        self._check_size(images)
        return self._predict(self.network(state).to(ctx.device), images, ctx.device)

    def _build(self, n_labels: int) -> nn.Module:
        from monai.networks.nets.dynunet import DynUNet  # `import monai` takes seconds

        stages = len(self.filters)
        return DynUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=n_labels,
            kernel_size=[3] * stages,
            strides=[1] + [2] * (stages - 1),
            upsample_kernel_size=[2] * (stages - 1),
            filters=list(self.filters),
            norm_name=("batch", {"affine": True}),
        )

    def _check_size(self, images: ImageSet) -> None:
        height, width = images.pixels.shape[1:]
        divisor = 2 ** (len(self.filters) - 1)
        if height % divisor or width % divisor:
            raise MethodError(
                f"{self.id}: slices are {height} × {width} pixels, but filters has {len(self.filters)} stages and "
                f"needs multiples of {divisor}; give filters fewer entries, or prepare slices of another size"
            )

    def _losses(self, module: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = module(pixels).float()  # sums over a batch need more than half precision
        cross_entropy = F.cross_entropy(logits, labels.long())
        dice = soft_dice_loss(logits, labels.long(), self.dice_smooth)
        loss = self.dice_weight * dice + self.cross_entropy_weight * cross_entropy
        return {"loss": loss, "dice": dice, "cross_entropy": cross_entropy}

    def _augment(self, pixels: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mirror, turn and magnify each slice about its centre; pixels bilinear, labels nearest, outside 0."""
        grid = random_grid(pixels, generator, flip=self.flip, rotate_degrees=self.rotate_degrees, scale=self.scale)
        if grid is None:
            return pixels, labels
        return resample(pixels, grid), resample_labels(labels, grid)

    def _predict(self, network: nn.Module, images: ImageSet, device: str) -> np.ndarray:
        """Argmax labels, uint8 [N, H, W], in batches; the network is put in eval mode."""
        network.eval()
        predicted = np.empty(images.pixels.shape, np.uint8)
        with torch.inference_mode():
            for start in range(0, len(images), self.training.batch_size):
                chosen = slice(start, start + self.training.batch_size)
                pixels = torch.from_numpy(images.floats(chosen))[:, None].to(device)
                predicted[chosen] = network(pixels).argmax(1).to(torch.uint8).cpu().numpy()
        return predicted


def soft_dice_loss(logits: Tensor, labels: Tensor, smooth: float) -> Tensor:
    """1 − mean over labels 1..C−1 of (2 Σ p·y + s) / (Σ p + Σ y + s), sums over all pixels of the batch.

    logits [B, C, H, W], labels int64 [B, H, W]. With one label only, background, the loss is 0.
    """
    probabilities = logits.softmax(1)[:, 1:]
    if probabilities.shape[1] == 0:
        return logits.sum() * 0
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(logits.dtype)
    overlap = (probabilities * truth).sum((0, 2, 3))
    size = probabilities.sum((0, 2, 3)) + truth.sum((0, 2, 3))
    return 1 - ((2 * overlap + smooth) / (size + smooth)).mean()


def mean_dice(predicted: np.ndarray, reference: LabelSet) -> float:
    """Mean over foreground labels of the Dice of a whole split, all slices counted together; in [0, 1].

    A label that is neither predicted nor present does not count; 0 where no label counts. This is for choosing
    a checkpoint; benchmark figures come from harness.metrics, per subject, whose code a training must not import:
    a change there would train every segmenter anew.
    """
    n = len(reference.names)
    joint = np.zeros((n, n), np.int64)
    for truth, guess in zip(reference.labels, predicted, strict=True):
        pairs = truth.astype(np.int64).ravel() * n + guess.ravel()
        joint += np.bincount(pairs, minlength=n * n).reshape(n, n)
    sizes = (joint.sum(0) + joint.sum(1))[1:]
    twice = 2 * joint.diagonal()[1:]
    counted = sizes > 0
    return float((twice[counted] / sizes[counted]).mean()) if counted.any() else 0.0

"""The age regressor of the published cross-site benchmark: a ResNet18 on single slices.

Trained on raw source slices with geometric augmentation only. A scan's age is the mean over its slices.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from harness.api import Augment, Context, ImageSet, MethodError, State, TaskData, TaskModel, hyper
from harness.training import load_weights, seeded, train
from methods.networks.resampling import random_grid, resample
from methods.tasks.segmenter_2d import SegmenterTraining

THESIS = "Harmonizing Flows thesis ch. 2, age regression network"
RESNET = "ResNet18 (He et al., CVPR 2016, table 1)"
PREFIX = "network."


class AgeTraining(SegmenterTraining):
    """The schedule of the segmenter, as published: 5000 updates of Adam, halved every 500."""

    batch_size: int = hyper(64, "slices in a batch; also of prediction", origin=THESIS, ge=2)  # batch norm needs two


class AgeResnet18(TaskModel):
    """ResNet18 with one input channel: slices [B, 1, H, W] in [0, 1] to ages [B] in the data set's unit.

    A 7×7 stem and max-pooling, four stages of two residual blocks, the mean over the plane, one linear unit. The
    loss is the squared error of the age in standard deviations of the training scans' ages. The published width
    has 11.17 M parameters.
    """

    id = "age_resnet18"
    reference = "ResNet18, He et al., CVPR 2016; schedule of the Harmonizing Flows thesis"
    notes = (
        "The thesis states neither loss nor augmentation: squared error of z-scored age and the ranges below are ours. "
        "Slices are not magnified, since the size of a newborn's head tells its age. Slices' ages are averaged (ours)."
    )
    outcome = "age"

    widths: Annotated[tuple[int, ...], Field(min_length=1)] = hyper(
        (64, 128, 256, 512), "channels of each stage; the first is also the stem's", origin=RESNET
    )
    training: AgeTraining = hyper(AgeTraining(), "optimisation", origin=THESIS)
    flip: bool = hyper(True, "mirror the columns of every second slice", origin="ours")
    rotate_degrees: float = hyper(15.0, "rotation, uniform within ± this", origin="ours", ge=0, le=180)
    scale: float = hyper(0.0, "magnification, uniform within 1 ± this", origin="ours", ge=0, lt=1)

    @classmethod
    def example(cls) -> AgeResnet18:
        schedule = AgeTraining(iterations=100, batch_size=8, learning_rate=3e-3, schedule="cosine", select="last")
        return cls(widths=(8, 16), training=schedule)

    def train(self, data: TaskData, ctx: Context, augment: Augment | None = None) -> State:
        """Train on `data`. Returns "network.*" (weights, and mean and spread of the ages), "score", "iteration".

        The score is minus the mean absolute error over validation scans. `augment` replaces the geometric
        augmentation. Raises MethodError for ages that are unknown or all equal.
        """
        ages = _known_ages(data.ages, data.images)
        validation_ages = _known_ages(data.validation_ages, data.validation_images)
        if not ages.std() > 0:
            raise MethodError(f"{self.id}: all {len(ages)} training scans have the same age; there is nothing to learn")
        with seeded(ctx.seed, ctx.device):
            network = AgeNetwork(self.widths, float(ages.mean()), float(ages.std()))
        slice_ages = np.zeros(len(data.images), np.float32)
        for scan, age in zip(data.images.scans, ages, strict=True):
            slice_ages[scan.slices] = age

        def batches(rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor, Tensor]:
            index = np.sort(rng.integers(len(data.images), size=size))
            mask = torch.from_numpy(np.array(data.images.mask[index]))
            return torch.from_numpy(data.images.floats(index))[:, None], mask, torch.from_numpy(slice_ages[index])

        def step(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator) -> Tensor:
            pixels, mask, truth = batch
            if augment is None:
                pixels = self._augment(pixels, generator)
            else:
                pixels, _ = augment(pixels, mask, None, generator)
            assert isinstance(module, AgeNetwork)
            return F.mse_loss(module.standardized(pixels), (truth - module.age_mean) / module.age_sd)

        def validate(module: nn.Module) -> float:
            predicted = self._predict(module, data.validation_images, ctx.device)
            return -float(np.abs(predicted - validation_ages).mean())

        result = train(network, self.training, batches, step, ctx=ctx, validate=validate)
        weights = {PREFIX + key: tensor for key, tensor in result.state_dict.items()}
        return {"score": result.score, "iteration": result.iteration, **weights}

    def network(self, state: State) -> nn.Module:
        """A new network on the CPU, in eval mode, with the weights of `state`."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = AgeNetwork(self.widths)
        load_weights(network, {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
        return network.eval()

    def predict(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        """Age of each scan, the mean over its slices, float64 [number of scans]."""
        return self._predict(self.network(state).to(ctx.device), images, ctx.device)

    def _augment(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        grid = random_grid(pixels, generator, flip=self.flip, rotate_degrees=self.rotate_degrees, scale=self.scale)
        return pixels if grid is None else resample(pixels, grid)

    def _predict(self, network: nn.Module, images: ImageSet, device: str) -> np.ndarray:
        network.eval()
        ages = np.empty(len(images))
        with torch.inference_mode():
            for start in range(0, len(images), self.training.batch_size):
                chosen = slice(start, start + self.training.batch_size)
                ages[chosen] = network(torch.from_numpy(images.floats(chosen))[:, None].to(device)).cpu().numpy()
        return images.per_scan(ages)


class AgeNetwork(nn.Module):
    """ResNet18 whose output is an age: what it learns is in units of `age_sd`, around `age_mean`, both buffers."""

    age_mean: Tensor
    age_sd: Tensor

    def __init__(self, widths: tuple[int, ...], age_mean: float = 0.0, age_sd: float = 1.0):
        super().__init__()
        stem = [nn.Conv2d(1, widths[0], 7, 2, 3, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        self.stages = nn.Sequential(_stage(widths[0], widths[0], 1), *(_stage(a, b, 2) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], 1)
        self.register_buffer("age_mean", torch.tensor(age_mean))
        self.register_buffer("age_sd", torch.tensor(age_sd))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def standardized(self, pixels: Tensor) -> Tensor:
        """Slices [B, 1, H, W] to ages [B] in standard deviations from the mean of the training scans."""
        return self.head(self.stages(self.stem(pixels)).mean((2, 3)))[:, 0].float()

    def forward(self, pixels: Tensor) -> Tensor:
        """Slices [B, 1, H, W] to ages [B] in the data set's unit."""
        return self.age_mean + self.age_sd * self.standardized(pixels)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions added to the input, which a 1×1 convolution fits to their size where it differs."""

    def __init__(self, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def _stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, ResidualBlock(channels_out, channels_out, 1))


def _known_ages(ages: np.ndarray, images: ImageSet) -> np.ndarray:
    """`ages` as float64. Raises MethodError for one that is not a number."""
    values = np.asarray(ages, np.float64)
    unknown = ~np.isfinite(values)
    if unknown.any():
        first = images.scans[int(unknown.argmax())].id
        raise MethodError(f"the ages of {int(unknown.sum())} scans are unknown, first {first}; leave these scans out")
    return values

"""The segmenter of 3-D patches, as the harness calls it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from harness.api import Context, MethodError, State, hyper
from harness.brain_age import SegmentationTraining, VolumeSegmenter, VolumeSet
from harness.training import load_weights, seeded, train
from methods.brain_age.patch_segmenter.losses import Sums, cross_entropy, soft_dice, sums_of
from methods.brain_age.patch_segmenter.networks import NetworkName, build, strides_of
from methods.brain_age.patch_segmenter.patches import Grid, PatchSource
from methods.brain_age.patch_segmenter.settings import CODE, THESIS, PatchTraining
from methods.brain_age.patch_segmenter.windows import Windows, label_map

WEIGHTS = "network."
VALIDATION_SHIFTS = 1  # a stream of random numbers beside the training's

Batch = tuple[Tensor, Tensor]


class PatchSegmenter(VolumeSegmenter):
    """Labels every voxel of the brain from cubic patches, by a 3-D network as deep as the patch allows.

    Training: a grid of overlapping patches over the brain's box, its start shifted at random; patches whose labels add
    up to less than `least_labels` are drawn again; intensities are scaled at random. The loss is cross-entropy + soft
    Dice with squared denominators, over all labels and the batch as one: a label that the batch lacks counts 0 there.
    The weights with the best soft Dice of the validation scans are kept: of all their patches as one, mean over labels
    that occur. Volumes are read when a patch is cut from them, so memory does not grow with their number.

    Segmentation: probabilities of windows over the brain's box are summed, and the largest taken. Network and windows
    see the image inside the brain mask, and labels outside it are 0.
    """

    id = "patch_segmenter"
    reference = "Beizaee et al., neonatal brain age, thesis ch. 6; DynUNet of MONAI after nnU-Net (Isensee et al. 2021)"
    notes = (
        "Where the thesis and the authors' code differ (patches of 64³ or 128³, 0.001 or 0.01, halved or quartered "
        "once), the code's values are the defaults. The published test images are also set to 0 wherever the manual "
        "label is 0, which tells the network where background is: here labels never reach what is segmented, only the "
        "brain mask does. Ours: the grid is shifted anew for every patch where the code cuts patches once; the last "
        "window lies at the far end of the brain, where the code's grid is fixed; the validation score, which the code "
        "averages over batches; the plain U-Net, whose width and depth are the other network's. Spacing plays no part: "
        "the published voxels are cubic."
    )
    late_fields = ("window_stride", "window_batch")

    network: NetworkName = hyper("dynunet", "DynUNet (nnU-Net's architecture), or the plain U-Net", origin=THESIS)
    filters: tuple[int, ...] = hyper(
        (32, 64, 128, 256, 320, 320),
        "channels of each level, from full resolution down; a smaller patch has fewer levels and leaves the rest",
        origin=CODE,
        min_length=1,
    )
    patch: int = hyper(128, "voxels a side of patches and windows", origin=f"{CODE}; 64 in the {THESIS}", ge=16)
    stride: int = hyper(64, "voxels between patches that are learnt from", origin=CODE, ge=1)
    jitter: int = hyper(15, "voxels before the brain's box at which the grid starts, at most", origin=CODE, ge=0)
    least_labels: int = hyper(20, "sum of labels below which a patch is drawn again", origin=CODE, ge=0)
    intensity: tuple[float, float] = hyper((0.6, 1.4), "range of the factor of a patch's intensities", origin=CODE)
    mask_input: Literal["brain"] = hyper(
        "brain", "what the image is masked by; the code's test images are masked by their labels too", origin="ours"
    )
    cross_entropy_weight: float = hyper(1.0, "weight of the cross-entropy", origin=CODE, ge=0)
    dice_weight: float = hyper(1.0, "weight of the soft Dice loss", origin=CODE, ge=0)
    training: PatchTraining = hyper(PatchTraining(), "optimisation", origin=CODE)
    window_stride: int | None = hyper(
        None, "voxels between windows that are summed; null: `stride`", origin=f"{CODE}: 64", ge=1
    )
    window_batch: int = hyper(1, "windows at a time", origin=CODE, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        levels = len(strides_of(self.patch))
        multiple = 2 ** (levels - 1)
        if self.patch % multiple:
            near = self.patch // multiple * multiple
            raise ValueError(
                f"patch: {self.patch} voxels are halved {levels - 1} times and must be a multiple of {multiple}, such "
                f"as {near} or {near + multiple}"
            )
        if len(self.filters) < levels or min(self.filters) < 1:
            raise ValueError(f"filters: a patch of {self.patch} has {levels} levels; give as many numbers of channels")
        if max(self.stride, self.window_stride or 1) > self.patch:
            raise ValueError(f"stride and window_stride must not exceed patch, {self.patch}: voxels would be left out")
        if not 0 < self.intensity[0] <= self.intensity[1]:
            raise ValueError("intensity must be [low, high] with 0 < low ≤ high")
        return self

    @classmethod
    def example(cls) -> PatchSegmenter:
        return cls.model_validate(
            {
                "filters": (4, 8, 16),
                "patch": 16,
                "stride": 8,
                "jitter": 3,
                "window_batch": 8,
                "training": {"epochs": None, "iterations": 20, "batch_size": 4, "validate_every": 10},
            }
        )

    def fit(self, data: SegmentationTraining, ctx: Context) -> State:
        """Returns the weights as "network.*", "n_labels", and "score" and "iteration" of those that were selected.

        Raises MethodError for scans without brain or labels, and label maps that do not fit.
        """
        n_labels = len(data.regions.names)
        source = self._patches(data, "training")
        validation = self._patches(data, "validation") if len(data.validation_volumes) else None
        with seeded(ctx.seed, ctx.device):
            network = build(self.network, self.patch, self.filters, n_labels)

        def batches(rng: np.random.Generator, size: int) -> Batch:
            images, labels = zip(*(source.draw(rng) for _ in range(size)), strict=True)
            factors = rng.uniform(*self.intensity, size=(size, 1, 1, 1, 1)).astype(np.float32)
            return torch.from_numpy(np.stack(images)[:, None] * factors), torch.from_numpy(np.stack(labels))

        def step(module: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            images, labels = batch
            sums = sums_of(module(images), labels)
            entropy, dice = cross_entropy(sums), 1 - soft_dice(sums).mean()
            loss = self.cross_entropy_weight * entropy + self.dice_weight * dice
            return {"loss": loss, "cross_entropy": entropy.detach(), "dice": dice.detach()}

        def validate(module: nn.Module) -> float:
            assert validation is not None
            patches, total = validation.every(np.random.default_rng([ctx.seed, VALIDATION_SHIFTS])), None
            while group := list(islice(patches, self.training.batch_size)):
                images, labels = (torch.from_numpy(np.stack(part)).to(ctx.device) for part in zip(*group, strict=True))
                found = Sums(*(part.double() for part in sums_of(module(images[:, None]), labels)))
                total = found if total is None else total.plus(found)
            if total is None:
                raise MethodError(f"{self.id}: no validation patch has labels; give that split scans with labels")
            return float(soft_dice(total)[total.sizes > 0].mean())

        training = self.training.over(len(source))
        result = train(network, training, batches, step, ctx=ctx, validate=None if validation is None else validate)
        weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
        return {**weights, "n_labels": n_labels, "score": result.score, "iteration": result.iteration}

    def segment(self, state: State, volumes: VolumeSet, ctx: Context) -> Iterator[np.ndarray]:
        """Label maps of the volumes in turn, uint8 [X, Y, Z] each, 0 outside the brain; each from its volume alone."""
        network = self.load(state, ctx.device)
        windows = Windows(self.patch, self.window_stride or self.stride, self.window_batch)
        for volume in volumes:
            yield label_map(network, volume, windows, state["n_labels"], ctx.device)

    def load(self, state: State, device: str) -> nn.Module:
        """What `fit` left, on the device, in eval mode and frozen."""
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = build(self.network, self.patch, self.filters, state["n_labels"])
        load_weights(network, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
        return network.to(device).eval().requires_grad_(False)

    def _patches(self, data: SegmentationTraining, split: Literal["training", "validation"]) -> PatchSource:
        grid = Grid(self.patch, self.stride, self.jitter, self.least_labels)
        if split == "training":
            return PatchSource(data.volumes, data.regions, grid, split)
        return PatchSource(data.validation_volumes, data.validation_regions, grid, split)

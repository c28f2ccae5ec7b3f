"""What is learnt on the source: the flow, guided by augmented slices, and the harmoniser, as their inverse."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Context, FitData, ImageSet, MethodError, State
from harness.training import seeded, train
from methods.harmonization.harmonizing_flows.augment import (
    apply_tables,
    far_enough,
    random_tables,
    random_warps,
    warp,
)
from methods.harmonization.harmonizing_flows.blocks import nhwc
from methods.harmonization.harmonizing_flows.flow import SliceFlow, guided_loss
from methods.harmonization.harmonizing_flows.harmonizer_net import (
    WINDOW,
    HarmonizerNet,
    harmonized,
    reconstruction_loss,
)
from methods.harmonization.harmonizing_flows.settings import FlowSettings, Guidance, HarmonizerSettings
from methods.harmonization.harmonizing_flows.slices import Batch, Crops

WEIGHTS = "weights."
VALIDATION_DRAWS = 1  # streams of random numbers beside those of the training loop
BPD_NOISE = 2
NEGATIVE_EVERY = 5  # validation slices, of which one is augmented: the authors' code
MOST_DRAWS = 20  # of an augmentation that is to be far enough; a slice that none moves far stays as it is


def build_flow(settings: FlowSettings) -> SliceFlow:
    """A new flow; its weights come from torch's global generator."""
    return nhwc(SliceFlow(settings.couplings, settings.widths, settings.dequantizer_couplings, settings.alpha))


def build_harmonizer(settings: HarmonizerSettings) -> HarmonizerNet:
    """A new harmoniser; its weights come from torch's global generator."""
    return nhwc(HarmonizerNet(settings.widths, settings.head, settings.scale))


# --------------------------------------------------------------------------------------------- flow


def train_flow(settings: FlowSettings, guidance: Guidance, crops: Crops, data: FitData, ctx: Context) -> State:
    """Train the flow on source slices; leaves "weights.*" and "source_bpd".

    source_bpd: mean bits per dimension of the clean validation slices, as `mean_bpd` measures it on a target.
    """
    source, validation = _not_empty(data.source, "training"), _not_empty(data.validation, "validation")
    with seeded(ctx.seed, ctx.device):
        flow = build_flow(settings)
    fraction = guidance.augmented_fraction if guidance.enabled else 0.0

    def batches(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        index = np.sort(rng.integers(len(source), size=size))
        pixels, mask = crops.random(source, index, rng)
        tables = torch.from_numpy(random_tables(rng, size, guidance.augmentation))
        chosen = torch.from_numpy(rng.random(size) < fraction)
        return {"pixels": pixels, "mask": mask, "tables": tables, "chosen": chosen}

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x, label = guided_batch(batch["pixels"], batch["mask"], batch["tables"], batch["chosen"], guidance)
        bpd = module(x, generator)
        clean = label > 0
        mean = (bpd * clean).sum() / clean.sum().clamp(min=1)
        return {"loss": guided_loss(bpd, label, guidance.margin), "bpd": mean, "negatives": (~clean).float().mean()}

    def validate(module: nn.Module) -> float:
        rng, generator = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), _noise(ctx.seed, ctx.device)
        total = 0.0
        for pixels, mask in crops.batches(validation, settings.training.batch_size):
            x, label = _with_negatives(pixels, mask, guidance, rng)
            bpd = module(x.to(ctx.device), generator)
            total += float(guided_loss(bpd, label.to(ctx.device), guidance.margin)) * len(x)
        return -total / len(validation)

    result = train(flow, settings.training, batches, step, ctx=ctx, validate=validate)
    source_bpd = mean_bpd(flow, validation, crops, settings.training.batch_size, ctx)
    ctx.log("source_bpd", 0, source_bpd)
    weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
    return {**weights, "source_bpd": source_bpd, "iteration": result.iteration}


def guided_batch(
    pixels: Tensor, mask: Tensor, tables: Tensor, chosen: Tensor, guidance: Guidance
) -> tuple[Tensor, Tensor]:
    """Slices and their labels: −1 for those `chosen` [B] whose augmentation is far enough, 1 for the others, clean."""
    augmented = apply_tables(pixels, tables) * mask
    negative = chosen & far_enough(pixels, augmented, mask, guidance)
    label = 1.0 - 2.0 * negative.to(pixels.dtype)
    return torch.where(negative[:, None, None, None], augmented, pixels), label


def _with_negatives(
    pixels: Tensor, mask: Tensor, guidance: Guidance, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A validation batch: every fifth slice augmented, drawn again until it is far enough."""
    n = len(pixels)
    wanted = torch.arange(n) % NEGATIVE_EVERY == 0 if guidance.enabled else torch.zeros(n, dtype=torch.bool)
    x, label = pixels, torch.ones(n)
    for _ in range(MOST_DRAWS):
        missing = wanted & (label > 0)
        if not missing.any():
            break
        tables = torch.from_numpy(random_tables(rng, n, guidance.augmentation))
        drawn, drawn_label = guided_batch(pixels, mask, tables, missing, guidance)
        x = torch.where(missing[:, None, None, None], drawn, x)
        label = torch.where(missing, drawn_label, label)
    return x, label


@torch.no_grad()
def mean_bpd(
    flow: SliceFlow, images: ImageSet, crops: Crops, batch_size: int, ctx: Context, network: nn.Module | None = None
) -> float:
    """Mean bits per dimension of all slices' central windows, harmonised by `network` if there is one.

    One draw of the dequantisation noise for each slice; the same draws at each call of one context.
    """
    generator, total = _noise(ctx.seed, ctx.device), 0.0
    for pixels, mask in crops.batches(images, batch_size):
        x = pixels.to(ctx.device)
        if network is not None:
            x = harmonized(network, x, mask.to(ctx.device))
        total += float(flow(x, generator).double().sum())
    return total / len(images)


# --------------------------------------------------------------------------------------- harmoniser


def train_harmonizer(settings: HarmonizerSettings, crops: Crops, data: FitData, ctx: Context) -> State:
    """Train the harmoniser to undo augmentations of source slices; leaves "weights.*", "score" and "iteration".

    Raises MethodError when the slices are smaller than SSIM's window.
    """
    source, validation = _not_empty(data.source, "training"), _not_empty(data.validation, "validation")
    _check_window(settings, crops, source)
    with seeded(ctx.seed, ctx.device):
        network = build_harmonizer(settings)

    def batches(rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        index = np.sort(rng.integers(len(source), size=size))
        pixels, mask = crops.random(source, index, rng)
        batch = {"pixels": pixels, "mask": mask}
        if settings.geometry.enabled:
            matrices, nodes = random_warps(rng, size, settings.geometry)
            batch |= {"matrices": torch.from_numpy(matrices), "nodes": torch.from_numpy(nodes)}
        return {**batch, "tables": torch.from_numpy(random_tables(rng, size, settings.augmentation))}

    def step(module: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        pixels, mask = batch["pixels"], batch["mask"]
        if "nodes" in batch:
            pixels, mask = warp(pixels, mask, batch["matrices"], batch["nodes"])
        return losses(module, (pixels, mask), batch["tables"])

    def losses(module: nn.Module, clean: Batch, tables: Tensor) -> dict[str, Tensor]:
        pixels, mask = clean
        output = module(apply_tables(pixels, tables) * mask) * mask
        return reconstruction_loss(output, pixels, settings.loss)

    def validate(module: nn.Module) -> float:
        rng, total = np.random.default_rng([ctx.seed, VALIDATION_DRAWS]), 0.0
        for pixels, mask in crops.batches(validation, settings.training.batch_size):
            tables = torch.from_numpy(random_tables(rng, len(pixels), settings.augmentation)).to(ctx.device)
            clean = pixels.to(ctx.device), mask.to(ctx.device)
            total += float(losses(module, clean, tables)["loss"]) * len(pixels)
        return -total / len(validation)

    result = train(network, settings.training, batches, step, ctx=ctx, validate=validate)
    weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
    return {**weights, "score": result.score, "iteration": result.iteration}


# ------------------------------------------------------------------------------------------- helpers


def _noise(seed: int, device: str) -> torch.Generator:
    """The generator of dequantisation noise, the same for each measurement of a run."""
    return torch.Generator(device).manual_seed(int(np.random.default_rng([seed, BPD_NOISE]).integers(2**62)))


def _not_empty(images: ImageSet, split: str) -> ImageSet:
    if len(images) == 0:
        raise MethodError(f"harmonizing_flows: the source has no {split} slices; give the data set's split more scans")
    return images


def _check_window(settings: HarmonizerSettings, crops: Crops, images: ImageSet) -> None:
    smallest = min(crops.central(images, slice(0, 1))[0].shape[2:])
    if settings.loss == "l1_ssim" and smallest < WINDOW:
        raise MethodError(
            f"harmonizing_flows: windows of {smallest} pixels are smaller than the {WINDOW} of SSIM; raise crop, "
            'or set harmonizer.loss to "mse"'
        )

"""What BlindHarmony learns at the source: the flow, mean slices to start from, and the range of intensities."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from harness.api import Context, ImageSet, MethodError, State
from harness.training import load_weights, seeded, train
from methods.harmonization._places import nearest_in_place
from methods.harmonization.blind_harmony.flow import SplineGlow
from methods.harmonization.blind_harmony.levels import pad, slice_bits, unit_range
from methods.harmonization.blind_harmony.settings import FlowSettings

WEIGHTS = "flow."


def learn_flow(settings: FlowSettings, source: ImageSet, validation: ImageSet, ctx: Context) -> State:
    """Train the flow on slices with brain. Returns "flow.*", "bits" (per pixel, of validation slices), "iteration".

    Raises MethodError where a split has no such slice.
    """
    chosen, held_out = with_brain(source, "training"), with_brain(validation, "validation")
    size = settings.training.batch_size
    with seeded(ctx.seed, ctx.device):
        flow = SplineGlow(settings)

    def batches(rng: np.random.Generator, size: int) -> Tensor:
        return unit_slices(source, np.sort(rng.choice(chosen, size)), flow.multiple)

    def step(module: nn.Module, batch: Tensor, generator: torch.Generator) -> Tensor:
        assert isinstance(module, SplineGlow)
        return slice_bits(module, batch, generator).mean()

    def validate(module: nn.Module) -> float:
        assert isinstance(module, SplineGlow)
        return -mean_bits(module, validation, held_out, size, ctx)

    # Before the loop copies any weight: the layers that take their scale from a first batch.
    flow.to(ctx.device).train()
    with torch.no_grad():
        first = batches(ctx.rng, size).to(ctx.device)
        slice_bits(flow, first, torch.Generator(ctx.device).manual_seed(ctx.seed))
    result = train(flow, settings.training, batches, step, ctx=ctx, validate=validate)
    weights = {WEIGHTS + key: tensor for key, tensor in result.state_dict.items()}
    return {**weights, "bits": -(result.score or 0.0), "iteration": result.iteration}


@torch.no_grad()
def mean_bits(flow: SplineGlow, images: ImageSet, chosen: np.ndarray, size: int, ctx: Context) -> float:
    """Mean bits per pixel of the `chosen` slices, with the same noise at each call of one context."""
    generator = torch.Generator(ctx.device).manual_seed(ctx.seed)
    total = 0.0
    for start in range(0, len(chosen), size):
        x = unit_slices(images, chosen[start : start + size], flow.multiple).to(ctx.device)
        total += float(slice_bits(flow, x, generator).double().sum())
    return total / len(chosen)


def load_flow(settings: FlowSettings, state: State) -> SplineGlow:
    """The trained flow on the CPU, in eval mode."""
    with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
        flow = SplineGlow(settings)
    load_weights(flow, {k.removeprefix(WEIGHTS): v for k, v in state.items() if k.startswith(WEIGHTS)})
    return flow.eval()


def unit_slices(images: ImageSet, index: np.ndarray, multiple: int) -> Tensor:
    """Slices [B, 1, H, W] in 0..1, each over its own range, padded to a multiple."""
    return pad(unit_range(torch.from_numpy(images.floats(index))[:, None]), multiple)


def with_brain(images: ImageSet, split: str) -> np.ndarray:
    """Indices of slices with brain; at least one, else MethodError."""
    chosen = np.flatnonzero([np.asarray(mask).any() for mask in images.mask])
    if not len(chosen):
        raise MethodError(f"blind_harmony: the source has no {split} slice with brain; give the split more scans")
    return chosen


def mean_slices(images: ImageSet) -> np.ndarray:
    """Mean over scans of the slices at each place, each over its own range first; float32 [K, H, W] in 0..1.

    K is the largest number of slices of a scan; those of others are taken by place. Scans without brain do not count.
    """
    count = max(scan.stop - scan.start for scan in images.scans)
    total, scans = np.zeros((count, *images.pixels.shape[1:])), 0
    for _, image, mask in images.volumes():
        brain = mask.any(axis=(1, 2))
        if brain.any():
            total += unit_range(torch.from_numpy(image)).numpy()[nearest_in_place(brain, count)]
            scans += 1
    return (total / max(1, scans)).astype(np.float32)


def mean_percentiles(images: ImageSet, percentiles: tuple[float, float]) -> np.ndarray:
    """Mean over scans with brain of two percentiles of their brain intensities, float64 [2]."""
    rows = [np.percentile(image[mask], percentiles) for _, image, mask in images.volumes() if mask.any()]
    return np.mean(rows, axis=0)

"""ImUnity at work: target slices painted in the contrast of source slices."""

from __future__ import annotations

import numpy as np
import torch

from harness.api import ApplyData, Context, ImageSet, MethodError, Scan, State
from harness.training import load_weights, seeded
from methods.harmonization._places import nearest_in_place, typical_scans
from methods.harmonization.imunity.learning import PREFIX, build_generator, pad
from methods.harmonization.imunity.networks import Generator
from methods.harmonization.imunity.settings import Hyperparameters


def translate(settings: Hyperparameters, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
    """`data.target` in the contrast of the reference scans of `data.source`, float32 [N, H, W] in [0, 1].

    Each slice takes for its style the reference's slice at the same place; with several references outputs are
    averaged. The code is its mean, mu, so nothing is drawn.
    """
    source, target = data.source, data.target
    if source.pixels.shape[1:] != target.pixels.shape[1:]:
        raise MethodError(
            f"imunity: target slices are {_size(target)} pixels, source slices {_size(source)}; prepare both alike"
        )
    network = load_generator(settings, state).to(ctx.device)
    references = typical_scans(source, settings.references)
    if len(references) < settings.references:
        what = f"references is {settings.references}, but the source has {len(references)} scans with brain"
        raise MethodError(f"imunity: {what}")
    styles = [style_slices(target, source, reference) for reference in references]
    out = np.zeros(target.pixels.shape, np.float32)
    for start in range(0, len(target), settings.training.batch_size):
        chosen = slice(start, start + settings.training.batch_size)
        painted = [_paint(network, settings, target.floats(chosen), source.floats(s[chosen]), ctx) for s in styles]
        out[chosen] = np.mean(painted, axis=0) * target.mask[chosen]
    return np.clip(out, 0, 1, out=out)


def load_generator(settings: Hyperparameters, state: State) -> Generator:
    """The trained generator on the CPU, in eval mode."""
    with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
        network = build_generator(settings)
    load_weights(network, {k.removeprefix(PREFIX): v for k, v in state.items() if k.startswith(PREFIX)})
    return network.eval()


def style_slices(target: ImageSet, source: ImageSet, reference: Scan) -> np.ndarray:
    """For each slice of `target` the index in `source` of the reference's slice nearest in place, int64 [N]."""
    brain = np.asarray(source.mask[reference.slices]).any(axis=(1, 2))
    nearest = [nearest_in_place(brain, scan.stop - scan.start) for scan in target.scans]
    return reference.start + np.concatenate(nearest)


def _paint(
    network: Generator, settings: Hyperparameters, content: np.ndarray, style: np.ndarray, ctx: Context
) -> np.ndarray:
    """Slices [B, H, W] and their styles, painted; [B, H, W]."""
    height, width = content.shape[1:]
    pair = [pad(torch.from_numpy(a)[:, None], 2 ** len(settings.widths)).to(ctx.device) for a in (content, style)]
    with torch.inference_mode():
        return network(*pair)[:, 0, :height, :width].cpu().numpy()


def _size(images: ImageSet) -> str:
    return " × ".join(map(str, images.pixels.shape[1:]))

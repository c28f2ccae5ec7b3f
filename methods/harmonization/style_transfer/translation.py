"""Style transfer at work: styles read off source slices, target slices painted in them, scan by scan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from harness.api import ApplyData, Context, ImageSet, MethodError, Scan, State
from harness.training import load_weights, seeded
from methods.harmonization.style_transfer.learning import Painters
from methods.harmonization.style_transfer.settings import Hyperparameters
from methods.harmonization.style_transfer.stacks import Stacks, check_size, pad


def translate(settings: Hyperparameters, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
    """`data.target` in the style of `data.source`, float32 [N, H, W] in [0, 1].

    Raises MethodError where the source has no brain, or slices are too small for the networks.
    """
    for images in (data.source, data.target):
        check_size(settings, images.pixels.shape)
    painters = load_painters(settings, state).to(ctx.device)
    source, target = (Stacks(images, settings.adjacent_slices) for images in (data.source, data.target))
    if not len(source.brain):
        raise MethodError("style_transfer: the source has no slice with brain to take a style from; check its mask")
    styles = Styles(painters, settings, source, ctx.device)
    goal = _source_range(data.source, settings.range_percentiles)
    out = np.zeros(data.target.pixels.shape, np.float32)
    for scan in data.target.scans:
        style = styles.at(places(scan))
        painted = np.clip(_paint(painters, settings, target, scan, style, ctx.device), 0, 1)
        mask = np.asarray(data.target.mask[scan.slices])
        if mask.any():
            low, high = np.percentile(painted[mask], settings.range_percentiles)
            gain = (goal[1] - goal[0]) / (high - low) if high > low else 0.0
            out[scan.slices][mask] = np.clip((painted[mask] - low) * gain + goal[0], 0, 1)
    return out


def load_painters(settings: Hyperparameters, state: State) -> Painters:
    """The trained networks on the CPU, in eval mode."""
    with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
        painters = Painters(settings)
    load_weights(painters, {k.removeprefix("painters."): v for k, v in state.items() if k.startswith("painters.")})
    return painters.eval()


def places(scan: Scan) -> np.ndarray:
    """Where a scan's slices lie between its first, 0, and its last, 1: the index, where scans have equally many."""
    return np.linspace(0, 1, scan.stop - scan.start)


class Styles:
    """Mean styles of source slices. Each slice is encoded once, when it is first needed."""

    def __init__(self, painters: Painters, settings: Hyperparameters, source: Stacks, device: str):
        self.painters, self.settings, self.source, self.device = painters, settings, source, device
        self._places = np.concatenate([places(scan) for scan in source.images.scans])[source.brain]
        self._known = np.zeros(len(source.brain), bool)
        self._styles = np.zeros((len(source.brain), settings.style_dim), np.float32)

    def at(self, wanted: np.ndarray) -> Tensor:
        """Styles [n, style_dim] for slices at these places [n] of their scan."""
        if self.settings.style_from == "site":
            self._learn(np.arange(len(self._known)))
            return torch.from_numpy(self._styles.mean(axis=0)).expand(len(wanted), -1)
        # Rounded, so that equal places stay equal; of equally near slices, those of the first scans.
        distance = np.abs(wanted[:, None] - self._places).round(9)
        chosen = np.argsort(distance, axis=1, kind="stable")[:, : self.settings.references]
        self._learn(np.unique(chosen))
        return torch.from_numpy(self._styles[chosen].mean(axis=1))

    def _learn(self, wanted: np.ndarray) -> None:
        """Encode those of the slices that are not yet known."""
        new = wanted[~self._known[wanted]]
        for start in range(0, len(new), self.settings.inference_batch):
            some = new[start : start + self.settings.inference_batch]
            x = pad(self.source[self.source.brain[some]], self.settings.downs).to(self.device)
            with torch.inference_mode():
                self._styles[some] = self.painters.encoder(x).cpu().numpy()
        self._known[new] = True


def _paint(
    painters: Painters, settings: Hyperparameters, target: Stacks, scan: Scan, style: Tensor, device: str
) -> np.ndarray:
    """A scan's slices painted, [n, H, W], about 0..1: the mean over the stacks that a slice is part of."""
    n, (height, width) = scan.stop - scan.start, target.images.pixels.shape[1:]
    total, count = np.zeros((n, height, width), np.float32), np.zeros((n, 1, 1), np.float32)
    middle = settings.adjacent_slices // 2
    for start in range(0, n, settings.inference_batch):
        index = np.arange(start, min(start + settings.inference_batch, n))
        x = pad(target[scan.start + index], settings.downs).to(device)
        with torch.inference_mode():
            y = painters.generator(x, style[index].to(device))[:, :, :height, :width].cpu().numpy()
        for channel in range(settings.adjacent_slices):
            place = index + channel - middle
            real = (place >= 0) & (place < n)  # beyond the ends, the end slice had only been repeated
            total[place[real]] += y[real, channel]
            count[place[real]] += 1
    return (total / count + 1) / 2


def _source_range(source: ImageSet, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Mean over the source scans of two percentiles of the brain."""
    found = [np.percentile(pixels[mask], percentiles) for _, pixels, mask in source.volumes() if mask.any()]
    low, high = np.mean(found, axis=0)
    return float(low), float(high)

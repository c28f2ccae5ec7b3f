"""Label maps of whole volumes from the summed probabilities of overlapping windows, in bounded memory.

The sums of 88 labels over a newborn's volume are 6 GB. Windows are taken in order along the longest axis of the brain's
box, so only as many planes as a window is long are open at a time. Sums are float32 and complete before the largest is
taken: the label map is that of sums over the whole volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from harness.brain_age import Volume
from methods.brain_age.patch_segmenter.patches import brain_box, window


@dataclass(frozen=True)
class Windows:
    """Cubes of `patch` voxels a side, at most `stride` apart, `batch` of them shown to the network at a time."""

    patch: int
    stride: int
    batch: int = 1

    def starts(self, extent: int) -> list[int]:
        """First voxels of windows that cover 0..extent, the last one's end at its end. extent is at least `patch`."""
        return [*range(0, extent - self.patch, self.stride), extent - self.patch]

    def at(self, place: Sequence[int]) -> tuple[slice, ...]:
        """Voxels of the window that starts there."""
        return tuple(slice(start, start + self.patch) for start in place)


def label_map(network: nn.Module, volume: Volume, windows: Windows, n_labels: int, device: str) -> np.ndarray:
    """Labels uint8 [X, Y, Z] of a volume, 0 outside its mask.

    network: patches [B, 1, P, P, P] on the device → logits [B, n_labels, P, P, P], in eval mode. Windows cover the
    brain's box, the last at its far end; those without brain are left out. What they show depends on the brain alone,
    and not on how the volume is cropped. A box smaller than a window is padded with 0.
    """
    out = np.zeros(volume.mask.shape, np.uint8)
    start, extent = brain_box(volume.mask)
    if not all(extent):
        return out
    size = tuple(max(windows.patch, n) for n in extent)
    mask = window(volume.mask, start, size)
    image = torch.from_numpy(window(volume.image, start, size) * mask)
    with torch.inference_mode():
        labels = _largest_sums(network, image, mask, windows, n_labels, device)
    inside = tuple(slice(0, n) for n in extent)
    there = tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))
    out[there] = np.where(mask[inside], labels[inside], 0)
    return out


def _largest_sums(
    network: nn.Module, image: Tensor, mask: np.ndarray, windows: Windows, n_labels: int, device: str
) -> np.ndarray:
    """For every voxel of `image` the label whose probabilities add up to most, uint8 [X, Y, Z]."""
    size = list(image.shape)
    axis = int(np.argmax(size))
    across = [[0] if a == axis else windows.starts(n) for a, n in enumerate(size)]
    along = windows.starts(size[axis])
    labels = torch.empty(size, dtype=torch.uint8)
    sums = torch.zeros((n_labels, *(windows.patch if a == axis else n for a, n in enumerate(size))), device=device)
    for first, following in zip(along, [*along[1:], size[axis]], strict=True):
        shift = [first if a == axis else 0 for a in range(3)]
        places = [(p, windows.at(np.add(p, shift).tolist())) for p in product(*across)]
        places = [(p, there) for p, there in places if mask[there].any()]
        for chosen in range(0, len(places), windows.batch):
            group = places[chosen : chosen + windows.batch]
            shown = torch.stack([image[there] for _, there in group])[:, None].to(device)
            for (place, _), logits in zip(group, network(shown), strict=True):
                sums[(slice(None), *windows.at(place))] += logits.float().softmax(0)
        done = following - first
        for plane in range(done):
            labels.select(axis, first + plane).copy_(sums.select(axis + 1, plane).argmax(0))
        _advance(sums, axis + 1, done)
    return labels.numpy()


def _advance(sums: Tensor, axis: int, done: int) -> None:
    """Move the planes that are still open to the front, in place, and clear those behind."""
    left = sums.shape[axis] - done
    for first in range(0, left, done):  # in steps that do not overlap what they overwrite
        n = min(done, left - first)
        sums.narrow(axis, first, n).copy_(sums.narrow(axis, first + done, n))
    sums.narrow(axis, left, done).zero_()

"""Training and validation slices as latents, encoded once for all denoisers that learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from harness.anomaly import Component, NormalData
from harness.api import Context, ImageSet, State, hyper
from methods.anomaly.components.augmentation import MildAugmentation, change, draw_changes
from methods.anomaly.components.autoencoder import Autoencoder, LatentAutoencoder, check_size, load_autoencoder
from methods.anomaly.components.autoencoder_training import in_batches

CODE = "authors' code of MAD-AD"
Split = Literal["train", "validation"]


class EncodedLatents(Component):
    """Scaled posteriors of all slices: means and standard deviations, and the brain masks that go with them.

    The published training encodes a newly augmented slice whenever it meets one. Here `views` augmented copies of each
    slice are drawn and encoded once, and a training draws one of them, and from its posterior, whenever it meets the
    slice: the same where there are many views, and no denoiser pays for the autoencoder again. Validation slices are
    encoded as they are. Memory: 32 kB (float16: 16 kB) for each view of a slice of 256 × 256 with kind f8.
    """

    id = "latents"
    reference = "MAD-AD (Beizaee et al., 2025), data pipeline"
    notes = (
        "Ours: a number of augmented views of each slice, encoded once; ranges of the augmentation are symmetric "
        "unless augmentation.strict."
    )

    autoencoder: LatentAutoencoder = hyper(LatentAutoencoder(), "what encodes", origin=CODE)
    views: int = hyper(
        8,
        "augmented copies of each training slice; 0: the slices as they are",
        origin="ours; published: a new one whenever a slice is met",
        ge=0,
    )
    augmentation: MildAugmentation = hyper(MildAugmentation(), "of the copies", origin=CODE)
    precision: Literal["float32", "float16"] = hyper("float32", "numbers that are kept", origin="ours")

    @classmethod
    def example(cls) -> EncodedLatents:
        return cls(autoencoder=LatentAutoencoder.example(), views=2)

    def components(self) -> Mapping[str, Component]:
        return {"autoencoder": self.autoencoder}

    def fit(self, data: NormalData, ctx: Context) -> State:
        """For each split S: "S.mean" and "S.deviation" [views, N, C, h, w], and "S.mask" [views, N, bytes], packed
        brain masks of "shape" [H, W]; validation has one view."""
        check_size(self.autoencoder, data.images)
        autoencoder = load_autoencoder(data.components["autoencoder"], self.autoencoder, ctx.device)
        views = []
        for number in range(self.views or 1):
            rng = np.random.default_rng([ctx.seed, number])
            views.append(self._encode(autoencoder, data.images, rng if self.views else None, ctx.device))
        split = {"train": views, "validation": [self._encode(autoencoder, data.validation, None, ctx.device)]}
        state: State = {"shape": list(data.images.pixels.shape[1:])}
        for name, encoded in split.items():
            for entry, arrays in zip(("mean", "deviation", "mask"), zip(*encoded, strict=True), strict=True):
                state[f"{name}.{entry}"] = np.stack(arrays)
        return state

    def departures(self) -> tuple[str, ...]:
        """Where these settings depart from the publications, for `AnomalyDetector.deviations`."""
        views = f"{self.views} augmented views of each slice" if self.views else "no augmentation"
        return (views, *self.autoencoder.departures())

    @torch.inference_mode()
    def _encode(
        self, autoencoder: Autoencoder, images: ImageSet, rng: np.random.Generator | None, device: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means and deviations [N, C, h, w] and packed masks [N, bytes], augmented where there is a generator."""
        rows, columns = images.pixels.shape[1:]
        shape = (len(images), autoencoder.latent_channels, rows // autoencoder.factor, columns // autoencoder.factor)
        means, deviations = np.empty(shape, self.precision), np.empty(shape, self.precision)
        masks = np.empty((len(images), -(-rows * columns // 8)), np.uint8)
        done = 0
        for pixels, mask in in_batches(images, self.autoencoder.batch_size):
            if rng is not None:
                pixels, mask = change(pixels, mask, draw_changes(rng, len(pixels), (rows, columns), self.augmentation))
            here = slice(done, done + len(pixels))
            mean, deviation = autoencoder.moments(pixels.to(device))
            means[here], deviations[here] = mean.cpu().numpy(), deviation.cpu().numpy()
            masks[here] = np.packbits(mask.numpy().reshape(len(mask), -1), axis=1)
            done += len(pixels)
        return means, deviations, masks


class LatentSlices:
    """The slices of one split of what `EncodedLatents` left, as denoisers are trained on them.

    shape: (C, h, w) of a latent. image_shape: (H, W) of its slice and brain mask.
    """

    def __init__(self, state: State, split: Split):
        self._mean, self._deviation = np.asarray(state[f"{split}.mean"]), np.asarray(state[f"{split}.deviation"])
        self._mask = np.asarray(state[f"{split}.mask"])
        rows, columns = (int(side) for side in state["shape"])
        self.image_shape = rows, columns
        channels, height, width = self._mean.shape[2:]
        self.shape = channels, height, width

    def __len__(self) -> int:
        """Slices, each counted once whatever its views."""
        return self._mean.shape[1]

    def draw(self, rng: np.random.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Of random slices, a random view each: a draw from the posterior, float32 [size, C, h, w], and the brain mask,
        bool [size, H, W]."""
        index = rng.integers(len(self), size=size)
        view = rng.integers(len(self._mean), size=size)
        noise = rng.standard_normal((size, *self.shape), dtype=np.float32)
        mean, deviation = (each[view, index].astype(np.float32) for each in (self._mean, self._deviation))
        return torch.from_numpy(mean + deviation * noise), self._masks(view, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first view of all slices in order: posterior means [B, C, h, w] and brain masks [B, H, W]."""
        for start in range(0, len(self), size):
            index = np.arange(start, min(start + size, len(self)))
            first = np.zeros_like(index)
            yield torch.from_numpy(self._mean[first, index].astype(np.float32)), self._masks(first, index)

    def _masks(self, view: np.ndarray, index: np.ndarray) -> Tensor:
        rows, columns = self.image_shape
        bits = np.unpackbits(self._mask[view, index], axis=1, count=rows * columns)
        return torch.from_numpy(bits.reshape(-1, rows, columns).astype(bool))

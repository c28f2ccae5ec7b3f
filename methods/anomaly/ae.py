"""The autoencoder with a dense bottleneck: what it cannot reconstruct is abnormal."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from harness.anomaly import AnomalyDetector, AnomalyMaps, NormalData, Processing
from harness.api import Context, ImageSet, State, hyper
from harness.cost import counted
from harness.training import seeded
from methods.anomaly._autoencoding import (
    PUBLISHED,
    AutoencoderTraining,
    Residual,
    learn,
    residual_deviations,
    residuals,
    restored,
    runs,
    size_of,
    takes_positive,
)
from methods.networks.dense_autoencoder import CODE, PAPER, DenseArchitecture, DenseAutoencoder


class Ae(AnomalyDetector):
    """An autoencoder learns to reconstruct healthy slices; the map is what a slice has above its reconstruction.

    Sums over pixels of |x − x̂| are minimised, slices being in [0, 1]. The map is max(x − x̂, 0), for lesions that are
    bright, or |x − x̂|; x̂ is the network's own output, which nothing holds within [0, 1].
    """

    id = "ae"
    reference = "Baur et al., Autoencoders for unsupervised anomaly segmentation in brain MR images, MedIA 2021"
    notes = (
        "The public code normalises over pixels where batch normalisation is off; ours then normalises nothing. "
        "Training slices are drawn with replacement (ours); convolutions of stride 2 are padded alike on both sides "
        "(TensorFlow pads one more behind). The published median filter is of 5 × 5 × 5 voxels, ours within a slice, "
        "and so are small regions. The prior of bright lesions takes a quantile of each slice's brain, the code of the "
        "volume."
    )
    late_fields = ("residual", "prior_quantile", "batch_size")

    architecture: DenseArchitecture = hyper(DenseArchitecture(), "sizes of the network", origin=PAPER)
    training: AutoencoderTraining = hyper(AutoencoderTraining(), "optimisation", origin=CODE)
    residual: Residual = hyper(
        "auto",
        "positive: max(x − x̂, 0); absolute: |x − x̂|; auto: absolute for T1w and T1CE, whose lesions may be dark, "
        "positive for all others",
        origin=f"{PAPER} (positive, on FLAIR); auto is ours",
    )
    prior_quantile: float | None = hyper(
        None,
        "where residuals are positive: pixels darker than this quantile of the slice's brain are normal (the code "
        "offers 0.9); null: no such prior",
        origin=CODE,
        gt=0,
        lt=1,
    )
    batch_size: int = hyper(64, "slices mapped at once", origin="ours", ge=1)

    @classmethod
    def example(cls) -> Ae:
        return cls.model_validate(
            {
                "architecture": {"width": 4, "latent": 8},
                "training": {"epochs": None, "iterations": 8, "validate_every": 4, "batch_size": 4},
            }
        )

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns "network.*" (weights), "size" (H, W), "score" and "iteration".

        Raises MethodError where slices cannot be halved to 8 to 15 pixels, or a split has none.
        """
        height, width = data.images.pixels.shape[1:]
        with seeded(ctx.seed, ctx.device):
            network = DenseAutoencoder((height, width), self.architecture)
        return learn(network, self.training, data, _loss, ctx)

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        """Raises MethodError where slices have another size than those learnt from."""
        found = self._reconstructed(state, images, ctx)
        positive = takes_positive(images, self.residual)
        maps = np.empty_like(found)
        for chosen in runs(len(images), self.batch_size):
            x = images.floats(chosen)
            maps[chosen] = residuals(x, found[chosen], positive[chosen])
            if self.prior_quantile is not None:
                maps[chosen] *= bright(x, images.mask[chosen], self.prior_quantile) | ~positive[chosen, None, None]
        return AnomalyMaps(maps, found)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        return {"reconstruction": np.clip(self._reconstructed(state, images, ctx), 0, 1) * images.mask}

    def published_processing(self) -> Processing:
        """The mask eroded by 12, a median over 5, and regions of at most 7 removed; at 128 × 128."""
        return PUBLISHED

    def deviations(self) -> tuple[str, ...]:
        return residual_deviations(self.residual)

    def _reconstructed(self, state: State, images: ImageSet, ctx: Context) -> np.ndarray:
        """float32 [N, H, W], of any range."""
        size = size_of(state, images)
        with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
            network = DenseAutoencoder(size, self.architecture)
        counted(restored(network, state, ctx.device))
        out = np.empty(images.pixels.shape, np.float32)
        with torch.inference_mode():
            for chosen in runs(len(images), self.batch_size):
                x = torch.from_numpy(images.floats(chosen))[:, None].to(ctx.device)
                out[chosen] = network(x)[:, 0].float().cpu().numpy()
        return out


def bright(x: np.ndarray, mask: np.ndarray, quantile: float) -> np.ndarray:
    """Which pixels of slices [N, H, W] are not below the quantile of their own slice's brain, bool."""
    found = np.zeros(x.shape, bool)
    for own, brain, out in zip(x, np.asarray(mask), found, strict=True):
        if brain.any():
            out[:] = own >= np.quantile(own[brain], quantile)
    return found


def _loss(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Absolute differences, summed over pixels, mean over slices."""
    return {"loss": (module(x) - x).abs().flatten(1).sum(1).mean()}

"""The variational autoencoder, with or without context: its errors, and how it would change a slice to be likelier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import field_validator
from scipy import ndimage
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
from methods.networks.dense_autoencoder import CODE, PAPER, DenseArchitecture, DenseVariational, divergence

ZIMMERER = "Zimmerer et al., MICCAI 2019"
CONTEXT = "Zimmerer et al., Context-encoding variational autoencoder, 2018"
Likelihood = Literal["laplace", "gaussian"]
Score = Literal["reconstruction", "kl_gradient", "elbo_gradient", "combi", "combi_elbo"]


class Vae(AnomalyDetector):
    """A variational autoencoder of healthy slices. What makes a slice unlikely is abnormal, by one of several scores.

    The loss is −log p(x | z), with one draw of z for each slice, plus the divergence of z from N(0, 1). Scores, with
    the mean of z:

    reconstruction: x − x̂ as of `ae`.
    kl_gradient:    |∂KL/∂x|, smoothed.        elbo_gradient: |∂(−log p(x | z) + KL)/∂x|, smoothed.
    combi:          |∂KL/∂x|, smoothed and divided by the slice's largest value, times the residual.
    combi_elbo:     the same with |∂(−log p(x | z) + KL)/∂x|: the map of the context-encoding variant.
    """

    id = "vae"
    reference = (
        "Baur et al., MedIA 2021 (network, training, reconstruction); Zimmerer et al., MICCAI 2019 (gradients) and "
        "2018 (context)"
    )
    notes = (
        "One network serves all scores, that of Baur et al.; Zimmerer et al. have their own, of 64 × 64 slices. How "
        "gradients are smoothed, and that they are divided by each slice's largest value within the brain, is ours. "
        "As in `ae`, training slices are drawn with replacement, and median filter and small regions are within a "
        "slice. At the test the mean of z is used (the code draws it)."
    )
    late_fields = ("score", "residual", "smooth", "batch_size")

    architecture: DenseArchitecture = hyper(DenseArchitecture(), "sizes of the network", origin=PAPER)
    training: AutoencoderTraining = hyper(AutoencoderTraining(), "optimisation", origin=CODE)
    likelihood: Likelihood = hyper(
        "laplace",
        "p(x | z) about x̂, up to a constant: exp(−Σ|x − x̂|), or gaussian exp(−Σ(x − x̂)² / 2)",
        origin=f"{CODE} (laplace); {ZIMMERER} (gaussian)",
    )
    divergence_weight: float = hyper(1.0, "weight of the divergence", origin=PAPER, ge=0)
    context_weight: float = hyper(
        0.0,
        "weight of reconstructing whole slices from ones with squares cut out, by the mean of z; 1: the "
        "context-encoding variant",
        origin=f"{PAPER} (0); {CONTEXT} (1)",
        ge=0,
    )
    context_squares: tuple[int, int] = hyper((1, 3), "fewest and most squares cut out", origin=CONTEXT)
    context_side: float = hyper(
        20 / 64, "side of a square over that of the slice", origin=f"{CONTEXT}: 20 pixels of 64", gt=0, le=1
    )
    score: Score = hyper("reconstruction", "what the map shows", origin=f"{PAPER}; {ZIMMERER}; {CONTEXT}")
    residual: Residual = hyper(
        "auto",
        "where a score has the residual: positive: max(x − x̂, 0); absolute: |x − x̂|; auto: absolute for T1w and T1CE, "
        "whose lesions may be dark, positive for all others",
        origin=f"{PAPER} (positive, on FLAIR), {ZIMMERER} (absolute); auto is ours",
    )
    smooth: float = hyper(
        2.0, "standard deviation that smooths gradients, in pixels of slices of 128 × 128", origin="ours", ge=0
    )
    batch_size: int = hyper(64, "slices mapped at once", origin="ours", ge=1)

    @field_validator("context_squares")
    @classmethod
    def _counts(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError("context_squares must be [fewest, most] with 1 <= fewest <= most")
        return value

    @classmethod
    def example(cls) -> Vae:
        return cls.model_validate(
            {
                "architecture": {"width": 4, "latent": 8},
                "training": {"epochs": None, "iterations": 8, "validate_every": 4, "batch_size": 4},
                "context_weight": 1.0,
                "score": "combi",
            }
        )

    def fit(self, data: NormalData, ctx: Context) -> State:
        """Returns "network.*" (weights), "size" (H, W), "score" and "iteration".

        Raises MethodError where slices cannot be halved to 8 to 15 pixels, or a split has none.
        """
        height, width = data.images.pixels.shape[1:]
        with seeded(ctx.seed, ctx.device):
            network = DenseVariational((height, width), self.architecture)
        return learn(network, self.training, data, self._loss, ctx)

    def detect(self, state: State, images: ImageSet, ctx: Context) -> AnomalyMaps:
        """Raises MethodError where slices have another size than those learnt from."""
        found, gradients = self._seen(state, images, ctx)
        error = residuals(images.floats(), found, takes_positive(images, self.residual))
        if gradients is None:
            return AnomalyMaps(error, found)
        smoothed = smoothed_within(gradients, images.mask, self.smooth)
        if self.score.startswith("combi"):
            return AnomalyMaps(by_largest(smoothed) * error, found)
        return AnomalyMaps(smoothed, found)

    def illustrate(self, state: State, images: ImageSet, ctx: Context) -> Mapping[str, np.ndarray]:
        found, gradients = self._seen(state, images, ctx)
        pictures = {"reconstruction": np.clip(found, 0, 1) * images.mask}
        if gradients is not None:
            of = "KL" if self.score in ("kl_gradient", "combi") else "ELBO"
            pictures[f"gradient of the {of}"] = by_largest(smoothed_within(gradients, images.mask, self.smooth))
        return pictures

    def published_processing(self) -> Processing:
        """For reconstruction the mask eroded by 12, a median over 5, and regions of at most 7 removed; at 128 × 128."""
        return PUBLISHED if self.score == "reconstruction" else Processing()

    def deviations(self) -> tuple[str, ...]:
        if self.score == "reconstruction":
            return residual_deviations(self.residual)
        found: tuple[str, ...] = ("network of Baur et al., not of Zimmerer et al.",)
        if self.score.startswith("combi") and self.residual != "absolute":
            found += ("positive residual" + (" except on T1w and T1CE" if self.residual == "auto" else ""),)
        return found

    # The loss, and what it says of a slice.

    def _loss(self, module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """−log p(x | z) and divergence, and what is lost without context; means over slices."""
        assert isinstance(module, DenseVariational)
        noise = torch.randn((len(x), *module.description), generator=generator, device=generator.device)
        found, mean, log_deviation = module(x, noise)
        error = unlikeliness(x, found, self.likelihood).mean()
        kl = divergence(mean, log_deviation).mean()
        parts = {"loss": error + self.divergence_weight * kl, "reconstruction": error, "divergence": kl}
        if self.context_weight:
            cut = without_squares(x, self.context_squares, self.context_side, generator)
            parts["context"] = unlikeliness(x, module(cut)[0], self.likelihood).mean()
            parts["loss"] = parts["loss"] + self.context_weight * parts["context"]
        return parts

    def _seen(self, state: State, images: ImageSet, ctx: Context) -> tuple[np.ndarray, np.ndarray | None]:
        """Reconstructions of any range, and the absolute gradients that the score wants, both float32 [N, H, W]."""
        size, wants = size_of(state, images), self.score != "reconstruction"
        out = np.empty(images.pixels.shape, np.float32)
        gradients = np.empty_like(out) if wants else None
        # A caller may have switched gradients off; weights that are made in inference mode can never have any.
        with torch.inference_mode(not wants), torch.set_grad_enabled(wants):
            with seeded(0):  # building draws weights that are overwritten: leave the caller's generator alone
                network = DenseVariational(size, self.architecture)
            counted(restored(network, state, ctx.device))
            for chosen in runs(len(images), self.batch_size):
                x = torch.from_numpy(images.floats(chosen))[:, None].to(ctx.device).requires_grad_(wants)
                found, mean, log_deviation = network(x)
                out[chosen] = found.detach()[:, 0].float().cpu().numpy()
                if gradients is not None:
                    total = self.divergence_weight * divergence(mean, log_deviation)
                    if self.score in ("elbo_gradient", "combi_elbo"):
                        total = total + unlikeliness(x, found, self.likelihood)
                    (gradient,) = torch.autograd.grad(total.sum(), x)
                    gradients[chosen] = gradient[:, 0].abs().float().cpu().numpy()
        return out, gradients


def unlikeliness(x: Tensor, found: Tensor, likelihood: Likelihood) -> Tensor:
    """−log p(x | z) of each of B slices up to a constant, [B]."""
    difference = x - found
    each = difference.abs() if likelihood == "laplace" else 0.5 * difference.square()
    return each.flatten(1).sum(1)


def without_squares(x: Tensor, squares: tuple[int, int], side: float, generator: torch.Generator) -> Tensor:
    """Slices [B, 1, H, W] in which squares are 0: from the fewest to the most, all numbers alike likely, anywhere.

    side: over the shorter side of the slice, rounded to whole pixels.
    """
    batch, _, height, width = x.shape
    length = max(1, math.floor(side * min(height, width) + 0.5))
    device = generator.device
    number = torch.randint(squares[0], squares[1] + 1, (batch, 1), generator=generator, device=device)
    top = torch.randint(height - length + 1, (batch, squares[1], 1, 1), generator=generator, device=device)
    left = torch.randint(width - length + 1, (batch, squares[1], 1, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width, device=device)
    inside = (rows >= top) & (rows < top + length) & (columns >= left) & (columns < left + length)
    used = torch.arange(squares[1], device=device) < number
    return x * ~(inside & used[:, :, None, None]).any(1, keepdim=True)


def smoothed_within(maps: np.ndarray, mask: np.ndarray, deviation: float) -> np.ndarray:
    """Maps [N, H, W], 0 outside the mask, before and after a Gaussian filter within each slice.

    deviation: in pixels of slices whose longer side is 128.
    """
    deviation *= max(maps.shape[1:]) / 128
    maps = maps * mask
    return ndimage.gaussian_filter(maps, (0, deviation, deviation), mode="constant") * mask if deviation else maps


def by_largest(maps: np.ndarray) -> np.ndarray:
    """Maps [N, H, W] divided by the largest value of each slice; one of zeros stays."""
    largest = maps.max(axis=(1, 2), keepdims=True)
    return maps / np.where(largest > 0, largest, 1)

"""AUE: predictions and their aleatoric uncertainty by test-time augmentation (Wang et al., Neurocomputing 2019).

A scan is taken for one of many that could have been acquired: moved by T and with noise e. Both are drawn again
and again and undone, the result is predicted, and the predictions, moved back, are put together.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn

from harness.api import ApplyData, Context, ImageSet, Scan, State, TestTimeAdapter, hyper
from methods.networks.resampling import affine_grid, affine_matrices, resample, resample_labels

PRIORS = "Wang et al. 2019, priors of the acquisition model, reconstructed"


class Aue(TestTimeAdapter):
    """Test-time augmentation: flips, rotation, magnification and noise; votes of many predictions.

    A draw moves all slices of a scan alike, as a head that lies differently would, and noise is drawn for each
    pixel. What a draw moves out of the frame is background in it. Draws depend on the seed and the scan alone, so
    results do not depend on other scans.
    """

    id = "aue"
    reference = (
        "Wang et al., Aleatoric uncertainty estimation with test-time augmentation for medical image segmentation, "
        "Neurocomputing 2019"
    )
    notes = (
        "Ranges and number of draws are reconstructed. The paper trains with the same augmentation, the harness does "
        "not: the task model is shared. A mild setting stays near what it was trained on: rotate_degrees 15, "
        "flip_rows 0, scale [0.9, 1.1]. For ages, the mean over draws; nothing is moved back."
    )
    source_free, task_agnostic, unknown_domains = True, False, True

    draws: int = hyper(20, "predictions of each slice", origin="Wang et al. 2019, reconstructed", ge=1)
    flip_rows: float = hyper(0.5, "probability that the rows are mirrored", origin=PRIORS, ge=0, le=1)
    flip_columns: float = hyper(
        0.5,
        "probability that the columns are mirrored; 0 where labels tell left from right",
        origin=PRIORS,
        ge=0,
        le=1,
    )
    rotate_degrees: float = hyper(180.0, "rotation, uniform within ± this", origin=PRIORS, ge=0, le=180)
    scale: tuple[float, float] = hyper((0.8, 1.2), "magnification, uniform within [low, high]", origin=PRIORS)
    noise_sd: float = hyper(
        0.05, "standard deviation of the noise, in units of that of the scan's brain", origin=PRIORS, ge=0
    )
    fusion: Literal["vote", "probability"] = hyper(
        "vote", "label with the most votes (the lower one of equals), or of the highest mean probability", origin=PRIORS
    )
    batch_size: int = hyper(32, "slices in a batch", origin="ours", ge=1)

    @field_validator("scale")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("scale must be [low, high] with 0 < low <= high")
        return value

    @classmethod
    def example(cls) -> Aue:
        return cls(draws=3)

    def adapt(self, state: State, data: ApplyData, ctx: Context) -> np.ndarray:
        """Labels uint8 [N, H, W], or ages float64 [number of scans], of `data.target`.

        Logs for each scan its "uncertainty": for labels, the mean over the brain of the entropy of votes (nats);
        for ages, their standard deviation over draws. For labels also "volume_variation", the mean over structures
        of the standard deviation of the volume over draws, relative to its mean.
        """
        images, network = data.target, data.task.network().to(ctx.device).eval()
        with torch.inference_mode():
            if data.task.outcome == "age":
                return self._ages(network, images, ctx)
            return self._labels(network, images, ctx)

    def _labels(self, network: nn.Module, images: ImageSet, ctx: Context) -> np.ndarray:
        predicted = np.zeros(images.pixels.shape, np.uint8)
        for number, scan in enumerate(images.scans):
            draws = _Draws(self, images, scan, ctx)
            entropy, volumes = 0.0, torch.zeros(1)
            for chosen, pixels, mask in draws.chunks():
                total = torch.zeros(1, device=ctx.device)
                counts = []
                for k in range(self.draws):
                    votes = draws.back(k, network(draws.moved(k, pixels, mask)), self.fusion)
                    total = total + votes
                    counts.append(votes.sum((0, 2, 3)).cpu())
                shares = total / self.draws
                predicted[chosen] = shares.argmax(1).to(torch.uint8).cpu().numpy()
                entropy += float((share_entropy(shares) * mask[:, 0]).sum())
                volumes = volumes + torch.stack(counts)
            ctx.log("uncertainty", number, entropy / max(1, int(np.asarray(images.mask[scan.slices]).sum())))
            ctx.log("volume_variation", number, variation(volumes.numpy()))
        return predicted

    def _ages(self, network: nn.Module, images: ImageSet, ctx: Context) -> np.ndarray:
        ages = np.zeros((self.draws, len(images)))
        for number, scan in enumerate(images.scans):
            draws = _Draws(self, images, scan, ctx)
            for chosen, pixels, mask in draws.chunks():
                for k in range(self.draws):
                    ages[k, chosen] = network(draws.moved(k, pixels, mask)).float().cpu().numpy()
            ctx.log("uncertainty", number, float(ages[:, scan.slices].mean(1).std()))
        return images.per_scan(ages.mean(0))


class _Draws:
    """The draws of one scan, slices of which are worked on in chunks."""

    def __init__(self, settings: Aue, images: ImageSet, scan: Scan, ctx: Context):
        self.settings, self.images, self.scan, self.device = settings, images, scan, ctx.device
        own = int.from_bytes(hashlib.sha256(scan.id.encode()).digest()[:8], "little")
        rng = np.random.default_rng([ctx.seed, own])
        self.there, self.home = self._matrices(torch.from_numpy(rng.random((4, settings.draws))))
        # Drawn on the CPU, so that a GPU sees the same noise.
        self.generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        brain = images.floats(scan.slices)[np.asarray(images.mask[scan.slices])]
        self.noise = settings.noise_sd * float(brain.std()) if brain.size else 0.0

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(which slices of the image set, pixels [B, 1, H, W], brain mask [B, 1, H, W] as 0 and 1)."""
        for start in range(self.scan.start, self.scan.stop, self.settings.batch_size):
            chosen = slice(start, min(start + self.settings.batch_size, self.scan.stop))
            pixels = torch.from_numpy(self.images.floats(chosen))[:, None].to(self.device)
            mask = torch.from_numpy(np.asarray(self.images.mask[chosen], dtype=np.float32))[:, None]
            yield chosen, pixels, mask.to(self.device)

    def moved(self, k: int, pixels: Tensor, mask: Tensor) -> Tensor:
        """The slices without the noise and the movement of draw `k`; background 0, values in [0, 1]."""
        if self.noise:
            noise = torch.randn(pixels.shape, generator=self.generator).to(pixels.device)
            pixels = (pixels - self.noise * noise * mask).clamp(0, 1)
        return pixels if self._still else resample(pixels, self._grid(self.there[k], pixels))

    def back(self, k: int, logits: Tensor, fusion: str) -> Tensor:
        """What draw `k` says of each pixel where it was at first: one vote, or probabilities; [B, C, H, W]."""
        grid = None if self._still else self._grid(self.home[k], logits)
        if fusion == "vote":
            labels = logits.argmax(1)
            labels = labels if grid is None else resample_labels(labels, grid)
            return torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
        shares = logits.softmax(1)
        if grid is None:
            return shares
        shares = resample(shares, grid)
        shares[:, 0] += (1 - shares.sum(1)).clamp(min=0)  # out of the frame there is background
        return shares

    @property
    def _still(self) -> bool:
        s = self.settings
        return not (s.flip_rows or s.flip_columns or s.rotate_degrees) and s.scale == (1.0, 1.0)

    def _matrices(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Matrices [N, 2, 3] that undo the movements of N draws, and that move predictions back."""
        s = self.settings
        height, width = self.images.pixels.shape[1:]
        columns = torch.where(uniform[0] < s.flip_columns, -1.0, 1.0).double()
        rows = torch.where(uniform[1] < s.flip_rows, -1.0, 1.0).double()
        angle = (2 * uniform[2] - 1) * math.radians(s.rotate_degrees)
        zoom = s.scale[0] + uniform[3] * (s.scale[1] - s.scale[0])
        there = affine_matrices(columns, angle, zoom, height / width)
        there[:, 1] *= rows[:, None]
        home = torch.cat([torch.linalg.inv(there[:, :, :2]), there[:, :, 2:]], 2)  # nothing is shifted
        return there.float(), home.float()

    def _grid(self, matrix: Tensor, like: Tensor) -> Tensor:
        return affine_grid(matrix.to(like.device).expand(len(like), 2, 3), *like.shape[2:])


def share_entropy(shares: Tensor) -> Tensor:
    """−Σ_c p ln p in nats of shares [B, C, H, W] that sum to 1: [B, H, W] in 0..ln C, 0 where all votes agree."""
    return -torch.xlogy(shares, shares).sum(1).clamp(max=0)


def variation(volumes: np.ndarray) -> float:
    """Mean over labels 1..C−1 of sd / mean of the volumes of N draws, [N, C]; 0 where no label was ever predicted."""
    mean, sd = volumes[:, 1:].mean(0), volumes[:, 1:].std(0)
    found = mean > 0
    return float((sd[found] / mean[found]).mean()) if found.any() else 0.0

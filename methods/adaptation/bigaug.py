"""BigAug: a stack of strong augmentations for generalisation to unseen sites (Zhang et al., IEEE TMI 2020).

The task model is trained as ever, on the source alone, but on batches that went through nine transforms in a row,
each of which is applied to each slice by the toss of a coin.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from pydantic import field_validator, model_validator
from torch import Tensor
from torch.nn import functional as F

from harness.api import Generalizer, hyper
from methods.networks.resampling import affine_grid, affine_matrices, resample, resample_labels

Transform = Literal["sharpen", "blur", "noise", "brightness", "gamma", "perturb", "rotate", "zoom", "elastic"]
Range = tuple[float, float]
ALL: tuple[Transform, ...] = get_args(Transform)
SPATIAL = ("rotate", "zoom", "elastic")
PAPER = "Zhang et al. 2020, table of transforms, by two re-implementations that agree"
RECONSTRUCTED = "Zhang et al. 2020, reconstructed"


class BigAug(Generalizer):
    """Nine stacked transforms: three of quality, three of appearance, three of space; each with probability 0.5.

    Published ranges are those of images with mean 0 and spread 1. So each slice is first brought there by the mean
    and spread of its brain; after the transforms of intensity it is brought back, and cut to [0, 1]. A slice whose
    brain is one grey level, or absent, has no such units and keeps its intensities. Background stays background.
    Transforms of space move pixels, mask and labels by one grid, in one resampling.
    """

    id = "bigaug"
    reference = (
        "Zhang et al., Generalizing deep learning for medical image segmentation to unseen domains via deep stacked "
        "transformation, IEEE TMI 2020"
    )
    notes = (
        "Ranges come from re-implementations. Slice-wise standardisation and the cut to [0, 1] are ours. The elastic "
        "range is one of volumes: the field here has the strength of a slice through such a volume's field."
    )

    transforms: tuple[Transform, ...] = hyper(
        ALL,
        "transforms in use, in order; those of space come last, and are one resampling whatever their order",
        origin=f"{PAPER} (which blur before they sharpen)",
    )
    probability: float = hyper(0.5, "probability of each transform on each slice", origin=PAPER, ge=0, le=1)
    sharpen_alpha: Range = hyper((10.0, 30.0), "sharpen: weight of b1 − b2, added to b1", origin=PAPER)
    sharpen_sigma: Range = hyper((0.25, 1.5), "sharpen: pixels; b1 = G x and b2 = G' b1, drawn apart", origin=PAPER)
    blur_sigma: Range = hyper((0.25, 1.5), "blur: standard deviation of the kernel, pixels", origin=PAPER)
    noise_sd: Range = hyper((0.1, 1.0), "noise: standard deviation, in spreads of the brain", origin=PAPER)
    brightness: Range = hyper((-0.1, 0.1), "brightness: what is added, in spreads of the brain", origin=PAPER)
    gamma: Range = hyper((0.5, 4.5), "gamma: exponent, between the brain's least and greatest value", origin=PAPER)
    perturb_scale: Range = hyper((-0.1, 0.1), "perturb: factor is 1 plus this", origin=PAPER)
    perturb_shift: Range = hyper((-0.1, 0.1), "perturb: what is added, in spreads of the brain", origin=PAPER)
    rotate_degrees: Range = hyper((-20.0, 20.0), "rotate: angle in degrees", origin=PAPER)
    zoom: Range = hyper((0.4, 1.6), "zoom: magnification", origin=PAPER)
    elastic: Literal["gaussian", "control_points"] = hyper(
        "gaussian", "elastic: smoothed noise, or a cubic spline through control points", origin=RECONSTRUCTED
    )
    elastic_sigma: Range = hyper((10.0, 13.0), "gaussian: smoothing, pixels", origin=RECONSTRUCTED)
    elastic_amplitude: Range = hyper(
        (0.0, 1000.0), "gaussian: factor of noise within ±1 that was smoothed in three dimensions", origin=RECONSTRUCTED
    )
    control_points: int = hyper(7, "control_points: number along each side", origin="torchio default", ge=4)
    locked_borders: int = hyper(2, "control_points: outer rings that stay in place", origin="torchio default", ge=0)
    max_displacement: float = hyper(
        7.5, "control_points: each moves uniformly within ± this, pixels", origin="torchio default, there in mm", ge=0
    )

    @field_validator("transforms")
    @classmethod
    def _once(cls, value: tuple[Transform, ...]) -> tuple[Transform, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a transform is named twice")
        if any(first in SPATIAL and second not in SPATIAL for first, second in pairwise(value)):
            raise ValueError(f"{', '.join(SPATIAL)} must come last")
        return value

    @model_validator(mode="after")
    def _check_ranges(self) -> BigAug:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and name != "transforms" and value[0] > value[1]:
                raise ValueError(f"{name} must be [low, high] with low <= high, not {list(value)}")
        for name in ("sharpen_sigma", "blur_sigma", "gamma", "zoom", "elastic_sigma"):
            if getattr(self, name)[0] <= 0:
                raise ValueError(f"{name} must be above 0")
        if self.noise_sd[0] < 0:
            raise ValueError("noise_sd must not be negative")
        if self.perturb_scale[0] <= -1:
            raise ValueError("perturb_scale must stay above -1, or contrast is lost or turned over")
        if 2 * self.locked_borders >= self.control_points:
            raise ValueError("locked_borders leaves no control point to move")
        return self

    def augment(
        self, pixels: Tensor, mask: Tensor, labels: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """See `Generalizer.augment`. A slice that no transform was drawn for comes back bit by bit."""
        with torch.autocast(pixels.device.type, enabled=False):  # grey levels need float32
            fired = self._fired(len(pixels), generator)
            pixels = self._intensities(pixels, mask[:, None], fired, generator)
            moved = fired["rotate"] | fired["zoom"] | fired["elastic"]
            grid = self._grid(pixels, fired, generator)
            brain = resample_labels(mask, grid)
            pixels = torch.where(_each(moved), resample(pixels, grid) * brain[:, None], pixels)
            if labels is not None:
                labels = torch.where(moved[:, None, None], resample_labels(labels, grid), labels)
        return pixels, labels

    def _fired(self, n: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Which slices each transform is applied to, [n] bool."""
        coins = torch.rand(len(ALL), n, generator=generator, device=generator.device) < self.probability
        return {name: coin & (name in self.transforms) for name, coin in zip(ALL, coins, strict=True)}

    # ------------------------------------------------------------------------------------- intensities

    def _intensities(
        self, pixels: Tensor, mask: Tensor, fired: dict[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """Quality and appearance of slices [B, 1, H, W] in [0, 1]; mask [B, 1, H, W] bool."""
        mean, spread, contrast = _brain_moments(pixels, mask)
        background = -mean / spread
        x = (pixels - mean) / spread
        change = {
            "sharpen": self._sharpen,
            "blur": self._blur,
            "noise": self._noise,
            "brightness": self._brighten,
            "gamma": self._gamma,
            "perturb": self._perturb,
        }
        touched = torch.zeros(len(pixels), dtype=torch.bool, device=pixels.device)
        for name in self.transforms:
            if name not in SPATIAL:
                changed = torch.where(mask, change[name](x, mask, generator), background)
                x = torch.where(_each(fired[name]), changed, x)
                touched |= fired[name] & contrast
        back = ((x * spread + mean) * mask).clamp(0, 1)
        return torch.where(_each(touched), back, pixels)

    def _sharpen(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        alpha = _each(_uniform(len(x), self.sharpen_alpha, generator))
        first, second = (_uniform(len(x), self.sharpen_sigma, generator) for _ in range(2))
        once = smooth(x, first, self.sharpen_sigma[1], "replicate")
        return once + alpha * (once - smooth(once, second, self.sharpen_sigma[1], "replicate"))

    def _blur(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        return smooth(x, _uniform(len(x), self.blur_sigma, generator), self.blur_sigma[1], "replicate")

    def _noise(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        sd = _each(_uniform(len(x), self.noise_sd, generator))
        return x + sd * torch.randn(x.shape, generator=generator, device=x.device)

    def _brighten(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        return x + _each(_uniform(len(x), self.brightness, generator))

    def _gamma(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        gamma = _each(_uniform(len(x), self.gamma, generator))
        low = torch.where(mask, x, math.inf).amin((1, 2, 3), keepdim=True)
        high = torch.where(mask, x, -math.inf).amax((1, 2, 3), keepdim=True)
        seen = high > low  # not so in a slice without contrast, or without brain
        low, width = torch.where(seen, low, 0.0), torch.where(seen, high - low, 1.0)
        return torch.where(seen, ((x - low) / width).clamp(0, 1) ** gamma * width + low, x)

    def _perturb(self, x: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
        factor = 1 + _each(_uniform(len(x), self.perturb_scale, generator))
        return x * factor + _each(_uniform(len(x), self.perturb_shift, generator))

    # ------------------------------------------------------------------------------------------- space

    def _grid(self, pixels: Tensor, fired: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Where to read each pixel after turning, magnifying and then bending, [B, H, W, 2]."""
        n, _, height, width = pixels.shape
        angle = torch.deg2rad(_uniform(n, self.rotate_degrees, generator)) * fired["rotate"]
        zoom = torch.where(fired["zoom"], _uniform(n, self.zoom, generator), 1.0)
        theta = affine_matrices(torch.ones_like(angle), angle, zoom, height / width)
        grid = affine_grid(theta, height, width)
        if "elastic" not in self.transforms:
            return grid
        bend = self._smoothed_noise if self.elastic == "gaussian" else self._splines
        shift = bend(n, height, width, generator) * _each(fired["elastic"])
        sides = torch.tensor([2 / width, 2 / height], device=pixels.device)
        # The image is bent last, so the displaced place is looked up in the turned image: theta acts on both.
        return grid + (shift.permute(0, 2, 3, 1) * sides) @ theta[:, None, :, :2].transpose(-1, -2)

    def _smoothed_noise(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Displacements [n, 2, H, W] in pixels: a slice through amplitude × uniform noise, smoothed in 3-D.

        Smoothing along the third axis too would leave √(1 / (2 √π σ)) of the standard deviation.
        """
        sigma = _uniform(n, self.elastic_sigma, generator)
        amplitude = _uniform(n, self.elastic_amplitude, generator)
        noise = 2 * torch.rand(n, 2, height, width, generator=generator, device=generator.device) - 1
        strength = amplitude / (2 * math.sqrt(math.pi) * sigma).sqrt()
        return smooth(noise, sigma, self.elastic_sigma[1], "constant") * _each(strength)

    def _splines(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        """Displacements [n, 2, H, W] in pixels: uniform cubic B-splines of moving control points."""
        k, locked = self.control_points, self.locked_borders
        free = torch.rand(n, 2, k - 2 * locked, k - 2 * locked, generator=generator, device=generator.device)
        points = F.pad((2 * free - 1) * self.max_displacement, [locked] * 4)
        rows, columns = (spline_weights(side, k).to(points.device) for side in (height, width))
        return rows @ points @ columns.T


def smooth(x: Tensor, sigma: Tensor, largest: float, padding: Literal["replicate", "constant"]) -> Tensor:
    """x [B, C, H, W] through Gaussian kernels of standard deviation sigma [B] (pixels), at most `largest`."""
    n, channels, height, width = x.shape
    radius = math.ceil(3 * largest)
    offsets = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    flat = F.pad(x.reshape(1, n * channels, height, width), [radius] * 4, mode=padding)
    flat = F.conv2d(F.conv2d(flat, kernel, groups=n * channels), kernel.transpose(2, 3), groups=n * channels)
    return flat.view_as(x)


def spline_weights(size: int, points: int) -> Tensor:
    """Weights [size, points] of a uniform cubic B-spline at pixel centres; one point lies beyond each end."""
    place = (torch.arange(size) + 0.5) / size * (points - 3)
    distance = (place[:, None] - (torch.arange(points) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _brain_moments(pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation over the mask, each [B, 1, 1, 1]; and whether there is any contrast, [B] bool.

    Where there is none, the standard deviation is given as 1.
    """
    count = mask.sum((1, 2, 3), keepdim=True)
    mean = (pixels * mask).sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    variance = ((pixels - mean).square() * mask).sum((1, 2, 3), keepdim=True) / count.clamp(min=1)
    contrast = variance > 1e-12
    return mean, torch.where(contrast, variance.sqrt(), 1.0), contrast[:, 0, 0, 0]


def _uniform(n: int, span: Range, generator: torch.Generator) -> Tensor:
    return span[0] + (span[1] - span[0]) * torch.rand(n, generator=generator, device=generator.device)


def _each(values: Tensor) -> Tensor:
    """[B] as [B, 1, 1, 1]."""
    return values[:, None, None, None]

"""Intensity agreement: histograms and their Wasserstein distance between sites, PSNR and SSIM of paired images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVELS = 256

Floats = NDArray[np.float64]


def foreground_histogram(pixels: NDArray, mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """How many brain pixels have each grey level: int64 [256].

    pixels: any shape, uint8 or float in [0, 1]; floats are rounded to the nearest level of 1/255, and what a method
    put outside [0, 1] counts at the end it passed. mask: bool of the same shape; None counts the background too.
    Raises ValueError for other shapes or types and for values that are not finite.
    """
    if mask is not None:
        _check_mask(pixels.shape, mask)
    chosen = np.asarray(pixels).reshape(-1) if mask is None else np.asarray(pixels)[mask]
    if chosen.dtype.kind == "f":
        if not np.isfinite(chosen).all():
            raise ValueError("pixels that are nan or infinite have no grey level")
        chosen = np.rint(np.clip(chosen, 0, 1).astype(np.float64) * (LEVELS - 1)).astype(np.uint8)
    elif chosen.dtype != np.uint8:
        raise ValueError(f"pixels must be uint8 or float in [0, 1], not {chosen.dtype}")
    return np.bincount(chosen, minlength=LEVELS)


def site_histogram(volumes: Iterable[tuple[NDArray, NDArray[np.bool_] | None]]) -> Floats:
    """The mean of the volumes' normalised histograms: float64 [256] with sum 1, every volume weighing the same.

    volumes: (pixels, mask) of each subject, as for `foreground_histogram`; several scans of one subject count
    several times. Volumes without foreground are left out; zeros if none remain.
    """
    counts = [foreground_histogram(pixels, mask) for pixels, mask in volumes]
    shares = [c / c.sum() for c in counts if c.any()]
    return np.mean(shares, axis=0) if shares else np.zeros(LEVELS)


def wasserstein(histogram_a: ArrayLike, histogram_b: ArrayLike) -> float:
    """First Wasserstein distance between two grey-level distributions, in [0, 1] (unit: the whole grey range).

    histogram_a, histogram_b: non-negative counts or shares [256]; each is normalised to sum 1. nan if either is
    empty. In one dimension it is the area between the cumulative distributions, one bin being 1/255 wide.
    Raises ValueError for other shapes, negative or non-finite entries.
    """
    a, b = np.asarray(histogram_a, np.float64), np.asarray(histogram_b, np.float64)
    for histogram in (a, b):
        if histogram.shape != (LEVELS,) or not np.isfinite(histogram).all() or (histogram < 0).any():
            raise ValueError(f"a histogram must hold {LEVELS} finite, non-negative numbers")
    if a.sum() == 0 or b.sum() == 0:
        return math.nan
    difference = np.cumsum(a / a.sum() - b / b.sum())
    return float(np.abs(difference[:-1]).sum() / (LEVELS - 1))


def psnr(reference: NDArray, image: NDArray, mask: NDArray[np.bool_]) -> float:
    """Peak signal-to-noise ratio inside the mask, in dB: -10·log10(mean squared error), for images in [0, 1].

    All three have one shape. inf for equal images, nan for an empty mask. Raises ValueError where shapes differ.
    """
    reference, image = _pair(reference, image, mask)
    if not mask.any():
        return math.nan
    error = float(((reference - image)[mask] ** 2).mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(reference: NDArray, image: NDArray, mask: NDArray[np.bool_]) -> float:
    """Mean structural similarity over the pixels of the mask, in [-1, 1]; images in [0, 1], data range 1.

    [H, W], or [N, H, W] which is compared slice by slice and averaged over all pixels of the mask. H and W at least
    11. Window, weights and constants are those of Wang et al., IEEE Trans. Image Processing 2004 (Gaussian, σ = 1.5);
    the window of a pixel at the rim reaches beyond the mask. nan for an empty mask. Raises ValueError where shapes
    differ or are too small.
    """
    from skimage.metrics import structural_similarity

    reference, image = _pair(reference, image, mask)
    if reference.ndim not in (2, 3):
        raise ValueError(f"SSIM compares [H, W] or [N, H, W], not shape {reference.shape}")
    if min(reference.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs slices of at least 11 × 11 pixels, not {reference.shape[-2:]}")
    if not mask.any():
        return math.nan
    size = reference.shape[-2:]
    total = 0.0
    for a, b, inside in zip(
        reference.reshape(-1, *size), image.reshape(-1, *size), mask.reshape(-1, *size), strict=True
    ):
        if inside.any():
            similarity = structural_similarity(
                a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
            )[1]
            total += float(similarity[inside].sum())
    return total / int(mask.sum())


def _pair(reference: NDArray, image: NDArray, mask: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    if reference.shape != image.shape:
        raise ValueError(f"paired images differ in shape: {reference.shape} and {image.shape}")
    _check_mask(reference.shape, mask)
    return np.asarray(reference, np.float64), np.asarray(image, np.float64)


def _check_mask(shape: tuple[int, ...], mask: NDArray[np.bool_]) -> None:
    if mask.shape != shape:
        raise ValueError(f"the mask has shape {mask.shape}, the pixels {shape}")
    if mask.dtype != np.bool_:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")

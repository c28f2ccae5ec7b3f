"""A simulated change of acquisition for real scans: contrast, coil, resolution, noise. See `schema.Shift`.

It makes a second site out of the scans of one, with the same brains, so that harmonisation has a paired truth. What
it makes is always declared as simulated. The models are the usual ones; the strengths are the card's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.data.schema import Bias, Shift
from harness.data.volumes import Bool, Float

FWHM = 2.3548
"""Full width at half maximum of a Gaussian, in standard deviations."""

REACH_MM = 130
"""How far from the middle of the brain the bias field varies; a brain is up to 190 mm long."""


def apply_shift(
    image: Float, mask: Bool, voxel: tuple[float, float, float], shift: Shift, site_seed: int, scan_seed: int
) -> Float:
    """The scan as the simulated site would show it.

    image: [X, Y, Z], brain intensities in 0..1; voxel: mm. Half of the bias field's shape is the site's (its
    coil), half the scan's; noise is the scan's. Returns float32 of the same shape, not below 0, 0 outside the mask.
    """
    rng = np.random.default_rng(scan_seed)
    result = np.where(mask, np.clip(image, 0, 1), np.float32(0)).astype(np.float32)
    if shift.curve:
        inputs, outputs = zip(*shift.curve, strict=True)
        result = np.interp(result, inputs, outputs).astype(np.float32)
    if shift.gamma != 1:
        result **= np.float32(shift.gamma)
    if shift.bias is not None:
        result *= bias_field(mask, voxel, shift.bias, np.random.default_rng(site_seed), rng)
    if shift.blur_mm:
        result = _blur(result, mask, [shift.blur_mm / FWHM / size for size in voxel])
    if shift.noise:
        noise = np.float32(shift.noise) * rng.standard_normal((2, *result.shape), dtype=np.float32)
        result = np.hypot(result + noise[0], noise[1])
    return np.where(mask, np.maximum(result, 0), np.float32(0))


def bias_field(
    mask: Bool, voxel: tuple[float, float, float], bias: Bias, site: np.random.Generator, scan: np.random.Generator
) -> Float:
    """Multiplicative field [X, Y, Z]: exp of a Gaussian random field, within 1/(1+a)..1+a in the brain."""
    bases = [_basis(length, size, bias.sigma_mm) for length, size in zip(mask.shape, voxel, strict=True)]
    nodes = [basis.shape[1] for basis in bases]
    weights = (site.standard_normal(nodes) + scan.standard_normal(nodes)).astype(np.float32)
    field: Float = np.einsum("abc,ia,jb,kc->ijk", weights, *bases, optimize=True)
    inside = field[mask]
    middle = (inside.max() + inside.min()) / 2
    half = max(float(inside.max() - inside.min()) / 2, 1e-6)
    return np.exp(np.log1p(bias.amplitude) * np.clip((field - middle) / half, -1, 1)).astype(np.float32)


def _basis(length: int, voxel_mm: float, sigma_mm: float) -> Float:
    """Gaussian bumps one sigma apart along an axis: [voxels, bumps], counted from the middle.

    Their number follows from sigma alone, so that a coil has one profile whatever the size of the head.
    """
    positions = (np.arange(length) - (length - 1) / 2) * voxel_mm
    reach = int(np.ceil(REACH_MM / sigma_mm)) + 1
    distance = (positions[:, None] - np.arange(-reach, reach + 1) * sigma_mm) / sigma_mm
    return np.exp(-(distance**2) / 2).astype(np.float32)


def _blur(image: Float, mask: Bool, sigma: list[float]) -> Float:
    """Gaussian within the brain: what lies outside neither darkens the edge nor is brightened."""
    from scipy import ndimage

    blurred: npt.NDArray[np.float32] = ndimage.gaussian_filter(image, sigma)
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return np.where(mask, blurred / np.maximum(weight, 1e-3), np.float32(0))

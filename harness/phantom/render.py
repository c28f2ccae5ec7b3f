"""A site's image of a brain: signal, texture, bias field, resolution, noise, stripping, 8 bits.

What belongs to the person (T1 variation, texture) derives from the subject's seed; what belongs to the scan
(gain, B1+, bias, noise) from the subject and the site. So one person scanned at two sites keeps anatomy and
tissue, and neither a cohort's order nor its size changes an image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.phantom.cohort import derive_seed
from harness.phantom.geometry import AnatomySlices, Plane
from harness.phantom.physics import Tissue
from harness.phantom.sites import Site

Float = npt.NDArray[np.float32]

T1_SPREAD = 0.03  # a person's T1s, as a fraction, drawn evenly within it; so the next two. All ours
GAIN_SPREAD = 0.10
B1_SPREAD = 0.08
TEXTURE = 0.012  # SD, fraction of the signal; 0.025 looked mottled
FWHM = 2.3548  # of a Gaussian, in standard deviations
TEXTURE_MM = 1.2  # its correlation length: sigma, 1 to 1.2 voxels


def render(
    anatomy: AnatomySlices,
    site: Site,
    seed: int,
    tissues: tuple[Tissue, ...] | None = None,
    percentile: float = 99.5,
) -> npt.NDArray[np.uint8]:
    """Image `anatomy` at `site`: [n, H, W] uint8, exactly 0 outside the brain and 1..255 inside.

    `seed` is the subject's seed; `tissues` its relaxation times, the site's by default. Intensities are scaled as in
    practice: the volume's `percentile` inside the brain becomes 255. Raises ValueError when no slice holds any
    brain.
    """
    if not anatomy.mask.any():
        raise ValueError("no brain in these slices: the geometry's range misses it")
    person = np.random.default_rng(derive_seed("tissue", seed))
    scan = np.random.default_rng(derive_seed("scan", seed, site.stream))
    tissues = tissues or site.tissues
    t1 = 1 + T1_SPREAD * person.uniform(-1, 1, len(tissues))
    b1 = 1 + B1_SPREAD * scan.uniform(-1, 1)
    gain = 1 + GAIN_SPREAD * scan.uniform(-1, 1)

    reference = [tissue.label for tissue in site.tissues].index(site.reference)
    nominal = float(np.abs(site.acquisition.signal(site.tissues)[reference]))
    levels = gain * site.acquisition.signal(tissues, t1, b1) / nominal
    field = bias_field(anatomy, site, seed)
    pixel = anatomy.spacing[1]
    image = np.empty(anatomy.mask.shape, dtype=np.float32)
    for index in range(len(image)):
        clean = mix(anatomy.fractions[:, index], levels)
        clean *= 1 + TEXTURE * _texture(person, clean.shape, TEXTURE_MM / pixel)
        image[index] = _acquire(clean * field[index], site, pixel, scan, anatomy.plane)
    return _quantise(image, anatomy.mask, percentile)


def mix(fractions: npt.NDArray, levels: npt.ArrayLike) -> Float:
    """Partial volume: |sum of share x signed signal|; fractions [C, H, W], levels [C-1], result [H, W]."""
    return np.abs(np.tensordot(np.asarray(levels, dtype=np.float32), fractions[1:].astype(np.float32), axes=1))


def bias_field(anatomy: AnatomySlices, site: Site, seed: int) -> Float:
    """Multiplicative field [n, H, W]: exp of low-order cosines, at most `site.bias_peak` from 1 in the brain.

    Half of its shape is the site's (the coil's profile), half this scan's (the head's place in it): ours.
    """
    shape = anatomy.mask.shape
    # Cosines over fixed lengths in mm, so that the field has one scale at every resolution.
    axes = [
        (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step / 200
        for n, step in zip(shape, anatomy.spacing, strict=True)
    ]
    coil = np.random.default_rng(derive_seed("coil", site.stream))
    scan = np.random.default_rng(derive_seed("bias", seed, site.stream))
    weights = coil.standard_normal((3, 3, 3)) + scan.standard_normal((3, 3, 3))
    if anatomy.plane == "axial":  # the weights are for (y, downwards, x); slices run along -(downwards), rows along -y
        axes[0], axes[1] = -axes[0], -axes[1]
        weights = weights.swapaxes(0, 1)
    bases = [np.stack([np.cos(np.pi * k * (axis + 0.5)) for k in range(3)]) for axis in axes]
    log_field = np.einsum("abc,ai,bj,ck->ijk", weights.astype(np.float32), *bases, optimize=True)
    inside = log_field[anatomy.mask]
    middle = (inside.max() + inside.min()) / 2
    half = max(float(inside.max() - inside.min()) / 2, 1e-6)
    strength = np.log1p(site.bias_peak) * scan.uniform(0.7, 1.0)
    return np.exp(strength * np.clip((log_field - middle) / half, -1, 1)).astype(np.float32)


def _texture(rng: np.random.Generator, shape: tuple[int, ...], sigma: float) -> Float:
    """Smooth noise of SD 1 over one slice; sigma in pixels."""
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    return noise / noise.std()


def _acquire(clean: Float, site: Site, pixel_mm: float, rng: np.random.Generator, plane: Plane = "coronal") -> Float:
    """One slice through the scanner: blur, sampling on the site's voxels, Rician noise, and back.

    The point spread is a Gaussian with the voxel's full width at half maximum. Where the voxel is larger than
    the pixel, noise is added on the voxel grid and interpolated with the image: it comes back smoother, the
    mark a coarse protocol leaves. Through-plane blur is not modelled.
    """
    from scipy import ndimage

    left_right, front_back, up_down = site.voxel_mm
    voxels = (up_down if plane == "coronal" else front_back, left_right)  # rows, columns
    blurred = ndimage.gaussian_filter(clean, [v / pixel_mm / FWHM for v in voxels])
    rows, columns = (_resampling(n, pixel_mm, v) for n, v in zip(clean.shape, voxels, strict=True))
    native = rows[0] @ blurred @ columns[0].T
    noise = site.noise * rng.standard_normal((2, *native.shape), dtype=np.float32)
    magnitude = np.hypot(native + noise[0], noise[1])
    image = rows[1] @ magnitude @ columns[1].T
    return ndimage.gaussian_filter(image, site.smoothing_mm / pixel_mm / FWHM) if site.smoothing_mm else image


def _resampling(n: int, pixel_mm: float, voxel_mm: float) -> tuple[Float, Float]:
    """Linear interpolation from n pixels to the voxel grid and back: [m, n] and [n, m]; identity if finer."""
    if voxel_mm <= pixel_mm:
        same = np.eye(n, dtype=np.float32)
        return same, same
    pixels = (np.arange(n) - (n - 1) / 2) * pixel_mm
    m = int(np.ceil(n * pixel_mm / voxel_mm)) + 1
    voxels = (np.arange(m) - (m - 1) / 2) * voxel_mm

    def weights(at: npt.NDArray, grid: npt.NDArray) -> Float:
        hats = 1 - np.abs(at[:, None] - grid[None, :]) / (grid[1] - grid[0])
        return np.clip(hats, 0, None).astype(np.float32)

    return weights(voxels, pixels), weights(pixels, voxels)


def _quantise(image: Float, mask: npt.NDArray[np.bool_], percentile: float) -> npt.NDArray[np.uint8]:
    """8 bits: the brain's percentile becomes 255, the brain is at least 1, the rest is 0."""
    top = float(np.percentile(image[mask], percentile))
    levels = np.clip(np.rint(image * (255 / top)), 1, 255)
    return np.where(mask, levels, 0).astype(np.uint8)

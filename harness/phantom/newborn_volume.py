"""A newborn's scan as volumes: DRAW-EM's regions, and images of both contrasts, on a grid of any voxel size.

Shares of tissue are sampled at about 1 mm or finer and averaged to voxels; tissues give signal by the equations of
`physics` with the protocol of a neonatal site, and partial volume, bias field, point spread, Rician noise and smoothing
follow `render`, in three dimensions. Work goes plane by plane: of the volume only labels and images are held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.phantom.brain_growth import brain, maturity
from harness.phantom.cohort import derive_seed
from harness.phantom.geometry import AnatomySlices
from harness.phantom.neonatal import Contrast, neonatal_site, tissues_of
from harness.phantom.newborn import COMPARTMENTS, Newborn
from harness.phantom.newborn_cohort import NewbornScan
from harness.phantom.newborn_regions import CLASS_OF, CLASSES, LOW, REGIONS, RIM, region_table, zones_at
from harness.phantom.physics import Tissue
from harness.phantom.render import (
    B1_SPREAD,
    FWHM,
    GAIN_SPREAD,
    T1_SPREAD,
    TEXTURE,
    TEXTURE_MM,
    bias_field,
)
from harness.phantom.sites import Site
from harness.phantom.template import template
from harness.phantom.warping import Float

NEEDED_MM = (100.0, 128.0, 104.0)
"""Field of view that the largest simulated brain needs, left to right, back to front, bottom to top."""

_DARK = {"low_thalamus": (0.93, 0.85, 1.0), "intracranial": (0.45, 0.06, 0.6)}
"""What splits off a compartment, by factors on its T1, T2 and PD (ours): the part of the thalamus that myelinates first
off the thalamus; blood and dura off the fluid."""

T2_SPREAD = 0.12
"""People's T2 differ by at most this share, half of it alike in all tissues (ours). White matter at 40 weeks then looks
as bright as up to five weeks before or after, so that brightness alone tells an age worse than anatomy does."""

_SPLIT = (("thalamus", "low_thalamus", LOW), ("CSF", "intracranial", RIM))


@dataclass(frozen=True)
class Grid:
    """Voxels about the middle of the brain, RAS. voxel_mm: their edge; the release's is 0.5. field_mm: extent.

    Raises ValueError for a field that would cut brains off, or voxels that are not positive.
    """

    voxel_mm: float = 0.5
    field_mm: tuple[float, float, float] = (112.0, 136.0, 112.0)

    def __post_init__(self) -> None:
        if self.voxel_mm <= 0:
            raise ValueError(f"voxels of {self.voxel_mm:g} mm: the edge must be positive")
        if any(extent < needed for extent, needed in zip(self.field_mm, NEEDED_MM, strict=True)):
            raise ValueError(f"a field of {self.field_mm} mm cuts brains off; needed: {NEEDED_MM}")

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (int(np.ceil(extent / self.voxel_mm)) for extent in self.field_mm)
        return x, y, z

    def ticks(self, axis: int) -> Float:
        """Centres of the voxels along an axis, mm from the middle."""
        n = self.shape[axis]
        return ((np.arange(n) - (n - 1) / 2) * self.voxel_mm).astype(np.float32)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """From voxel to mm, [4, 4]."""
        out = np.diag([*(3 * (self.voxel_mm,)), 1.0])
        out[:3, 3] = [float(self.ticks(axis)[0]) for axis in range(3)]
        return out


@dataclass(frozen=True, eq=False)
class NewbornVolume:
    """One scan. labels: [X, Y, Z] uint8, ids of `REGIONS`, 0 outside the brain. images: [X, Y, Z] uint8 by contrast,
    exactly 0 outside and 1..255 inside, a percentile of the brain at 255."""

    labels: npt.NDArray[np.uint8]
    images: Mapping[Contrast, npt.NDArray[np.uint8]]
    grid: Grid

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        return self.labels > 0


def render_volume(
    scan: NewbornScan,
    grid: Grid | None = None,
    contrasts: Sequence[Contrast] = ("T2w",),
    site: str = "DHCP",
    percentile: float = 99.5,
) -> NewbornVolume:
    """Labels and images of a scan; without contrasts labels only. percentile: of the brain, becomes 255.

    Depends on the infant, age and session, the grid and the site; labels on the site and the contrasts not at all. A
    person's relaxation times follow its maturity. Raises ValueError for an unknown site.
    """
    grid = grid or Grid()
    sites = {contrast: neonatal_site(site, contrast) for contrast in contrasts}
    now = derive_seed("session", scan.subject.seed, scan.session)
    levels = {contrast: _levels(place, scan, now) for contrast, place in sites.items()}
    labels, clean = _cut(brain(scan), grid, levels)
    images = {}
    for contrast, place in sites.items():
        _texture(clean[contrast], grid, scan.subject.seed)
        images[contrast] = _acquired(clean.pop(contrast), labels > 0, grid, place, now, percentile)
    return NewbornVolume(labels, images, grid)


# ------------------------------------------------------------------------------------------ the anatomy

_MERGE = np.array([[CLASS_OF[name] == one for name in COMPARTMENTS] for one in CLASSES], dtype=np.float32)


def _cut(
    person: Newborn, grid: Grid, levels: Mapping[Contrast, Float]
) -> tuple[npt.NDArray[np.uint8], dict[Contrast, Float]]:
    """Labels, and every contrast's signal before the scanner's flaws, plane by plane."""
    table = region_table()
    labels = np.zeros(grid.shape, dtype=np.uint8)
    clean = {contrast: np.zeros(grid.shape, dtype=np.float32) for contrast in levels}
    x, y = (ticks.ravel() for ticks in np.meshgrid(grid.ticks(0), grid.ticks(1), indexing="ij"))
    for plane, z in enumerate(grid.ticks(2)):
        centres = np.stack([x, y, np.full_like(x, z)])
        near = np.flatnonzero(person.source.near(_placed(person, centres)))
        if not near.size:
            continue
        share, warped = _averaged(person, centres[:, near], grid)
        zone = zones_at(warped)
        inside = share[0] < 0.5
        kind = (_MERGE @ share[1:, inside]).argmax(axis=0)
        right = (warped[0, inside] > 0).astype(np.intp)
        flat = np.zeros(x.size, dtype=np.uint8)
        flat[near[inside]] = table[kind, right, zone[inside]]
        labels[:, :, plane] = flat.reshape(grid.shape[:2])
        mixed = _divided(share[1:], zone)
        for contrast, level in levels.items():
            signal = np.zeros(x.size, dtype=np.float32)
            signal[near] = np.abs(level @ mixed)
            clean[contrast][:, :, plane] = signal.reshape(grid.shape[:2])
    return labels, clean


def _placed(person: Newborn, points: Float) -> Float:
    """From points [3, N] in mm of the scan to mm of the unwarped template."""
    centre = np.array(template().centre, dtype=np.float32)[:, None]
    shift = person.head.shift.astype(np.float32)[:, None]
    return person.head.matrix.astype(np.float32) @ (points - shift) + centre


def _averaged(person: Newborn, centres: Float, grid: Grid) -> tuple[Float, Float]:
    """Mean shares in voxels [16, N], background first, and where in the template the voxels' centres lie, [3, N]."""
    times = max(1, round(grid.voxel_mm))
    steps = (np.arange(times, dtype=np.float32) - (times - 1) / 2) * grid.voxel_mm / times
    share = np.zeros((1 + len(COMPARTMENTS), centres.shape[1]), dtype=np.float32)
    for offset in np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3):
        share += person.shares(_placed(person, centres + offset[:, None].astype(np.float32)))
    q = _placed(person, centres)
    return share / np.float32(times**3), q + person.deform.at(q)


def _divided(share: Float, zone: npt.NDArray[np.uint8]) -> Float:
    """Shares of compartments with those of `_SPLIT` behind them: all of a compartment where the zone is flagged."""
    parts = np.zeros((len(_SPLIT), share.shape[1]), dtype=np.float32)
    out = np.concatenate([share, parts])
    for row, (whole, _, flag) in enumerate(_SPLIT, start=len(share)):
        column = COMPARTMENTS.index(whole)
        out[row] = np.where(zone & flag, share[column], 0)
        out[column] -= out[row]
    return out


# ------------------------------------------------------------------------------------------- the signal


def _levels(site: Site, scan: NewbornScan, now: int) -> Float:
    """Signed signal of every compartment and of what splits off, by that of the site's reference tissue at 40 weeks."""
    own = list(tissues_of(maturity(scan), scan.subject.seed))
    for whole, part, _ in _SPLIT:
        tissue: Tissue = own[COMPARTMENTS.index(whole)]
        t1, t2, pd = _DARK[part]
        own.append(
            replace(
                tissue, label=part, t1=tissue.t1 * t1, t2=tissue.t2 * t2, t2_star=tissue.t2_star * t2, pd=tissue.pd * pd
            )
        )
    person = np.random.default_rng(derive_seed("tissue", scan.subject.seed))
    rng = np.random.default_rng(derive_seed("scan", now, site.stream))
    factors = 1 + T1_SPREAD * person.uniform(-1, 1, len(own))
    slower = 1 + T2_SPREAD * (person.uniform(-1, 1) + person.uniform(-1, 1, len(own))) / 2
    own = [replace(tissue, t2=tissue.t2 * by) for tissue, by in zip(own, slower, strict=True)]
    b1, gain = 1 + B1_SPREAD * rng.uniform(-1, 1), 1 + GAIN_SPREAD * rng.uniform(-1, 1)
    reference = [tissue.label for tissue in site.tissues].index(site.reference)
    nominal = float(np.abs(site.acquisition.signal(site.tissues)[reference]))
    return (gain * site.acquisition.signal(own, factors, b1) / nominal).astype(np.float32)


def _texture(clean: Float, grid: Grid, seed: int) -> None:
    """Multiply the person's own smooth unevenness in."""
    from scipy import ndimage

    rng = np.random.default_rng(derive_seed("texture", seed))
    noise = ndimage.gaussian_filter(rng.standard_normal(clean.shape, dtype=np.float32), TEXTURE_MM / grid.voxel_mm)
    clean *= 1 + np.float32(TEXTURE / noise.std()) * noise


def _acquired(
    clean: Float, mask: npt.NDArray[np.bool_], grid: Grid, site: Site, now: int, percentile: float
) -> npt.NDArray[np.uint8]:
    """The volume through the scanner: bias, blur, Rician noise on the site's voxels, smoothing, 8 bits."""
    from scipy import ndimage

    rng = np.random.default_rng(derive_seed("noise", now, site.stream))
    clean *= _bias(mask, grid, site, now)
    image = ndimage.gaussian_filter(clean, [v / grid.voxel_mm / FWHM for v in site.voxel_mm], output=clean)
    image += _noise(rng, grid, site)
    np.hypot(image, _noise(rng, grid, site), out=image)
    if site.smoothing_mm:
        ndimage.gaussian_filter(image, site.smoothing_mm / grid.voxel_mm / FWHM, output=image)
    image *= 255 / float(np.percentile(image[mask], percentile))
    return np.where(mask, np.clip(np.rint(image, out=image), 1, 255), 0).astype(np.uint8)


def _noise(rng: np.random.Generator, grid: Grid, site: Site) -> Float:
    """Noise of one channel; where the site's voxels are larger than the grid's, made on theirs and interpolated."""
    from scipy import ndimage

    native = [
        int(np.ceil(n * grid.voxel_mm / max(v, grid.voxel_mm))) for n, v in zip(grid.shape, site.voxel_mm, strict=True)
    ]
    noise = np.float32(site.noise) * rng.standard_normal(native, dtype=np.float32)
    if tuple(native) == grid.shape:
        return noise
    factors = [n / m for n, m in zip(grid.shape, native, strict=True)]
    return ndimage.zoom(noise, factors, order=1, mode="nearest", grid_mode=True)


def _bias(mask: npt.NDArray[np.bool_], grid: Grid, site: Site, now: int) -> Float:
    """The site's and the session's bias field: that of axial slices (z up; rows down the y axis)."""
    slices = mask.transpose(2, 1, 0)[:, ::-1]
    none = np.zeros(0, dtype=np.float16)
    anatomy = AnatomySlices(slices.view(np.uint8), none, slices, 3 * (grid.voxel_mm,), "axial")
    return bias_field(anatomy, site, now)[:, ::-1].transpose(2, 1, 0)


def region_counts(labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Voxels of every region, in the order of `REGIONS`."""
    return np.bincount(labels.ravel(), minlength=256)[[region.id for region in REGIONS]]

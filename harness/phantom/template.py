"""The ICBM152 template that ships inside nilearn, painted with the 15 structure groups.

nilearn's wheel carries the 1 mm ICBM152 2009a symmetric T1, GM and WM maps (McConnell Brain Imaging Centre,
MNI; their licence permits copying). No label atlas comes with them, so the deep structures are painted by
recipe: every structure is an ellipsoid, or a chain of balls where it is curved, placed at centroids measured
in MNI space and cut to shape by the template's own T1 and tissue maps. Coordinates are mm RAS (x right,
y anterior, z superior); shapes are given for the right side and mirrored.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.phantom.physics import LABELS

Float = npt.NDArray[np.float32]
Point = tuple[float, float, float]

_CELL = 4  # mm; for the quick test whether a point is worth sampling

TISSUES: tuple[str, ...] = LABELS[1:]
"""Order of the membership maps: every label but the background."""


@dataclass(frozen=True, eq=False)
class Template:
    """Soft label maps on a 1 mm RAS grid.

    memberships: [14, X, Y, Z] uint8, 0..255 = 0..1, in the order of `TISSUES`; at each voxel they sum to the
    tissue present there (1 inside the brain, 0 outside, to rounding).
    origin: mm RAS of voxel (0, 0, 0).
    """

    memberships: npt.NDArray[np.uint8]
    origin: Point

    @functools.cached_property
    def centre(self) -> Point:
        """Middle of the brain's bounding box, mm RAS."""
        low, high = np.min([b[0] for b in self.boxes], axis=0), np.max([b[1] for b in self.boxes], axis=0)
        x, y, z = ((low + high) / 2).tolist()
        return x, y, z

    @functools.cached_property
    def boxes(self) -> tuple[tuple[Point, Point], ...]:
        """For every label, the corners in mm RAS of the box outside which its membership is 0."""
        corners = []
        for membership in self.memberships:
            low, high = [], []
            for axis in range(3):
                across = tuple(a for a in range(3) if a != axis)
                inside = np.flatnonzero(membership.any(axis=across))
                first, last = (inside[0], inside[-1]) if inside.size else (0, 0)
                low.append(float(first - 1 + self.origin[axis]))
                high.append(float(last + 1 + self.origin[axis]))
            corners.append(((low[0], low[1], low[2]), (high[0], high[1], high[2])))
        return tuple(corners)

    def near(self, points: Float) -> npt.NDArray[np.bool_]:
        """Which points [3, N] in mm lie in the brain or within some 12 mm of it; [N]."""
        cells = np.floor((points - np.array(self.origin, dtype=np.float32)[:, None]) / _CELL).astype(np.int32) + 4
        limits = np.array(self._neighbourhood.shape)[:, None]
        inside = ((cells >= 0) & (cells < limits)).all(axis=0)
        cells[:, ~inside] = 0
        return inside & self._neighbourhood[tuple(cells)]

    @functools.cached_property
    def _neighbourhood(self) -> npt.NDArray[np.bool_]:
        """The brain in cells of `_CELL` mm with 4 cells of margin, grown by 3 cells."""
        from scipy import ndimage

        brain = self.memberships.max(axis=0) > 0
        pad = [(4 * _CELL, 4 * _CELL + -n % _CELL) for n in brain.shape]
        x, y, z = (n // _CELL for n in np.pad(brain, pad).shape)
        cells = np.pad(brain, pad).reshape(x, _CELL, y, _CELL, z, _CELL).any(axis=(1, 3, 5))
        return ndimage.binary_dilation(cells, iterations=3)


# --------------------------------------------------------------------------------------------- recipe
# Centroids and extents follow the measurements on Mindboggle-MNI and SPM-Neuromorphometrics-MNI (radius =
# SD * sqrt 5, widened by some 15 % where the tissue maps do the cutting); chains are ours, fitted by eye.


@dataclass(frozen=True)
class Shape:
    """Balls or ellipsoids (centre, radii) whose union outlines a structure, and the T1 it may contain.

    `t1` bounds the template's T1, where white matter is 0.87, cortex 0.65 and CSF 0.3.
    """

    label: str
    parts: tuple[tuple[Point, Point], ...]
    t1: tuple[float, float]


def _ball(x: float, y: float, z: float, radius: float) -> tuple[Point, Point]:
    return (x, y, z), (radius, radius, radius)


SHAPES: tuple[Shape, ...] = (
    # Painted in this order; an earlier shape keeps what it has.
    Shape("pallidum", (((20, -3, -1), (8.0, 11.0, 6.6)),), (0.765, 0.86)),
    Shape("putamen", (((26.0, 2, 0), (8.6, 18.5, 12.5)),), (0.62, 0.79)),
    Shape(
        "caudate",
        (
            ((13.0, 15, 3), (8.0, 9.5, 11.0)),
            ((14.0, 6, 12), (6.0, 9.0, 8.5)),
            _ball(15.5, -4, 16.5, 6.0),
            _ball(18, -12, 19, 5.0),
            _ball(21, -20, 19, 4.2),
        ),
        (0.50, 0.80),
    ),
    Shape("thalamus", (((11.5, -17, 7), (13.0, 17.5, 12.0)), ((15, -26, 6), (9.0, 8.0, 8.5))), (0.55, 0.84)),
    Shape("amygdala", (((22, -4, -20), (7.6, 5.2, 7.0)),), (0.50, 0.80)),
    Shape(
        "hippocampus",
        (
            _ball(25, -12, -20, 7.5),
            _ball(27, -18, -16, 7.5),
            _ball(28, -24, -13, 7.0),
            _ball(28, -30, -8, 6.5),
            _ball(25, -35, -3, 6.0),
            _ball(21, -39, 3, 4.0),
        ),
        (0.50, 0.80),
    ),
)

# Midbrain, pons and medulla: the brainstem leans backwards as it descends.
BRAINSTEM = (
    ((0.0, -27.0, -10.0), (13.0, 11.0, 9.0)),
    ((0.0, -26.0, -28.0), (17.0, 13.5, 16.0)),
    ((0.0, -36.0, -48.0), (11.0, 10.0, 16.0)),
    ((0.0, -44.0, -64.0), (9.5, 9.0, 14.0)),
)
VENTRAL_DC = (((10.5, -15.0, -9.0), (15.5, 16.0, 11.5)),)
# Third ventricle, aqueduct and fourth ventricle; the lateral ventricles are found in the CSF map.
MIDLINE_VENTRICLES = (
    ((0.0, -9.0, -2.0), (5.0, 20.0, 14.0)),
    ((0.0, -33.0, -12.0), (3.0, 8.0, 10.0)),
    ((0.0, -43.0, -32.0), (10.0, 9.0, 15.0)),
)
LATERAL_VENTRICLE_HORN = (((30.0, -25.0, -8.0), (9.0, 22.0, 14.0)),)  # temporal horn


@functools.lru_cache(maxsize=1)
def template() -> Template:
    """The painted ICBM152 template, cropped to the brain; about three seconds, kept for the process.

    Raises FileNotFoundError when the installed nilearn does not carry the maps.
    """
    t1, gm, wm, origin = _load_maps()
    middle = round(-origin[0])  # the voxel plane x = 0; the template is symmetric about it
    right = _paint(t1[middle:], gm[middle:], wm[middle:], (0.0, origin[1], origin[2]))
    return Template(np.concatenate([right[:, :0:-1], right], axis=1), origin)


def _load_maps() -> tuple[Float, Float, Float, Point]:
    """T1, GM and WM in 0..1 on the brain's bounding box (2 voxels of margin), and the box's origin in mm.

    The files are read straight from the package folder: importing nilearn.datasets costs over a second.
    """
    import nibabel as nib

    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the phantom needs nilearn's ICBM152 maps: install nilearn >= 0.12")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    maps = []
    affine = np.eye(4)
    for kind in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            raise FileNotFoundError(f"the installed nilearn has no {path.name}: install nilearn >= 0.12")
        image = nib.load(path)
        affine = image.affine
        maps.append(np.asarray(image.dataobj))
    inside = np.argwhere(maps[0] > 0)
    low, high = np.maximum(inside.min(0) - 2, 0), inside.max(0) + 3
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    t1, gm, wm = (m[box].astype(np.float32) / m.max() for m in maps)
    x, y, z = (affine[:3, 3] + low).tolist()
    return t1, gm, wm, (x, y, z)


# ------------------------------------------------------------------------------------------- painting


def _paint(t1: Float, gm: Float, wm: Float, origin: Point) -> npt.NDArray[np.uint8]:
    """Divide the right half's tissue among the 14 labels; see `Template.memberships` for the result."""
    from scipy import ndimage

    axes = [(np.arange(n) + o).astype(np.float32) for n, o in zip(t1.shape, origin, strict=True)]
    side, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    brain = t1 > 0
    csf = np.where(brain, np.clip(1 - gm - wm, 0, 1), 0).astype(np.float32)
    tissue = gm + wm

    ventricle_zone = _ventricle_zone(csf, side, y, z)
    cerebellum = _cerebellum(t1, side, y, z)
    out: dict[str, Float] = {}
    free = brain.astype(np.float32)
    for shape in SHAPES:
        out[shape.label] = _structure(shape.parts, _between(t1, *shape.t1), free, side, y, z)
        free = free - out[shape.label]
    solid = np.clip(2 * tissue - 0.5, 0, 1)
    # The pons is wider than its ellipsoids: what is left of it between the temporal lobes is brainstem too.
    pons = ((side < 13) | ((z < -30) & (side < 20))) & (z < -14) & (y > -34) & (y < -14)
    out["brainstem"] = np.maximum(_structure(BRAINSTEM, solid, free, side, y, z), free * pons * solid)
    free = free - out["brainstem"]
    out["ventral_DC"] = _structure(VENTRAL_DC, solid, free, side, y, z)
    free = free - out["ventral_DC"]

    # A thin grey lining between ventricle and white matter is partial volume, not cortex.
    near = ndimage.gaussian_filter((ventricle_zone * csf > 0.5).astype(np.float32), 2.0)
    lining = np.clip(6 * near, 0, 1) * ((side < 38) & (z > -2) & (z < 34))
    gm, wm = gm * (1 - lining), wm + gm * lining

    # The cerebellum's branching white matter is averaged away in a mean of 152 brains; 1.7 (ours) restores
    # the volume measured on real brains.
    wm = wm * (1 + 0.7 * cerebellum)
    total = np.maximum(gm + wm + csf, 1e-6)
    out["ventricles"] = free * csf / total * ventricle_zone
    out["CSF"] = free * csf / total * (1 - ventricle_zone)
    out["cerebral_GM"] = free * gm / total * (1 - cerebellum)
    out["cerebral_WM"] = free * wm / total * (1 - cerebellum)
    out["cerebellum_GM"] = free * gm / total * cerebellum
    out["cerebellum_WM"] = free * wm / total * cerebellum
    return np.stack([np.rint(255 * np.clip(out[label], 0, 1)).astype(np.uint8) for label in TISSUES])


def _structure(
    parts: tuple[tuple[Point, Point], ...], allowed: Float, free: Float, side: Float, y: Float, z: Float
) -> Float:
    """Membership of one structure: its shape, where `allowed` and still `free`, without detached specks."""
    from scipy import ndimage

    box = _box(parts, side, y, z)
    here = _inside(parts, side[box[0]], y[:, box[1]], z[:, :, box[2]]) * allowed[box] * free[box]
    pieces, count = ndimage.label(here > 0.4)
    if count > 1:
        main = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
        here = np.where(ndimage.binary_dilation(main, iterations=2), here, 0)
    out = np.zeros_like(free)
    out[box] = here
    return out


def _box(parts: tuple[tuple[Point, Point], ...], side: Float, y: Float, z: Float) -> tuple[slice, slice, slice]:
    """The voxels within 3 mm of the parts' bounding box."""
    slices = []
    for axis, grid in enumerate((side, y, z)):
        low = min(centre[axis] - radii[axis] for centre, radii in parts) - 3
        high = max(centre[axis] + radii[axis] for centre, radii in parts) + 3
        inside = np.flatnonzero((grid.ravel() >= low) & (grid.ravel() <= high))
        slices.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return slices[0], slices[1], slices[2]


def _inside(parts: tuple[tuple[Point, Point], ...], side: Float, y: Float, z: Float) -> Float:
    """1 inside the union of the ellipsoids, 0 outside, a ramp of about 2 mm between. [X, Y, Z]"""
    depth = np.full((side.size, y.size, z.size), -np.inf, dtype=np.float32)
    for centre, radii in parts:
        distance = np.sqrt(
            ((side - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 + ((z - centre[2]) / radii[2]) ** 2
        )
        np.maximum(depth, (1 - distance) * min(radii), out=depth)  # about mm to the surface, > 0 inside
    return np.clip(0.5 + depth / 2, 0, 1)


def _between(values: Float, low: float, high: float, ramp: float = 0.03) -> Float:
    """1 where low < values < high, falling to 0 over `ramp` at either bound."""
    return np.clip(0.5 + (values - low) / ramp, 0, 1) * np.clip(0.5 + (high - values) / ramp, 0, 1)


def _ventricle_zone(csf: Float, side: Float, y: Float, z: Float) -> Float:
    """Where CSF is ventricular: the pool joined to the lateral ventricles, and the midline slots."""
    from scipy import ndimage

    box = (side < 35) & (y > -60) & (y < 45) & (z > 0) & (z < 32)
    # The cisterns behind the thalamus touch this box; the seed lies well within the ventricle's body.
    labelled, _ = ndimage.label((csf > 0.5) & box & ((side > 2.5) | (y > -30)))
    seed = (side > 6) & (side < 20) & (y > -25) & (y < 15) & (z > 12) & (z < 24)
    names = np.unique(labelled[np.broadcast_to(seed, labelled.shape)])
    lateral = np.isin(labelled, names[names > 0])
    slots = _inside(MIDLINE_VENTRICLES, side, y, z) > 0.5
    horn = _inside(LATERAL_VENTRICLE_HORN, side, y, z) > 0.5
    pool = ndimage.binary_dilation(lateral, iterations=2) | slots | horn
    return ndimage.gaussian_filter(pool.astype(np.float32), 0.5)


def _cerebellum(t1: Float, side: Float, y: Float, z: Float) -> Float:
    """Soft cerebellum territory: below the dark tentorium, found as a watershed on the template's T1."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    # Only the back of the lower half can be cerebellum; the watershed is the slowest step of the painting.
    back, low = int(np.sum(y < -20)), int(np.sum(z < 25))
    box = (slice(None), slice(0, back), slice(0, low))
    y, z = y[:, :back], z[:, :, :low]
    below = z + 14 + 0.35 * (np.minimum(side, 45) - 10)  # the tentorium is a tent: highest at the midline
    certain = (y < -46) & (below < -8) & (side < 52)
    outside = (below > 14) | (y > -28) | (side > 62)
    shape = t1[box].shape
    markers = np.zeros(shape, dtype=np.int8)
    markers[np.broadcast_to(outside, shape)] = 1
    markers[np.broadcast_to(certain, shape)] = 2
    territory = np.zeros_like(t1)
    territory[box] = watershed(-ndimage.gaussian_filter(t1[box], 0.7), markers) == 2
    return ndimage.gaussian_filter(territory, 0.5)

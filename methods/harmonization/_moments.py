"""A centre and a spread of each scan's brain intensities, moved to those of the source site."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from harness.api import ImageSet, MethodError

Moments = Callable[[np.ndarray], tuple[float, float]]
"""Brain intensities float64 [V], V > 0, to their centre and spread (0 or more)."""


def mean_moments(images: ImageSet, moments: Moments) -> np.ndarray:
    """Mean over scans of centre and spread, float64 [2]. Raises MethodError for a scan without contrast."""
    rows = []
    for scan, image, mask in images.volumes():
        centre, spread = moments(image[mask].astype(np.float64)) if mask.any() else (0.0, 0.0)
        if spread <= 0:
            raise MethodError(f"source scan {scan.id} has no contrast: the spread of its intensities is 0")
        rows.append((centre, spread))
    return np.mean(rows, axis=0)


def match_moments(images: ImageSet, moments: Moments, standard: np.ndarray) -> np.ndarray:
    """Each scan's brain, moved and scaled so that it has the moments `standard` [2], float32 [N, H, W] in [0, 1].

    A scan whose spread is 0 is only moved. Background is 0.
    """
    centre, spread = float(standard[0]), float(standard[1])
    out = np.zeros(images.pixels.shape, np.float32)
    for scan, image, mask in images.volumes():
        if mask.any():
            brain = image[mask].astype(np.float64)
            own_centre, own_spread = moments(brain)
            scale = spread / own_spread if own_spread > 0 else 1.0
            out[scan.slices][mask] = np.clip((brain - own_centre) * scale + centre, 0, 1)
    return out

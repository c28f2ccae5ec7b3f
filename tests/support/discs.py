"""Small sites for tests of methods: discs of two tissues, with noise."""

from __future__ import annotations

import numpy as np

from harness.api import ImageSet, Scan

SIZE = 24


def site(levels: tuple[int, int], n: int = 12, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> ImageSet:
    """Slices of one scan: a disc of two tissues with the given grey levels, and noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    distance = np.hypot(rows - size[0] / 2 + 0.5, columns - size[1] / 2 + 0.5)
    radius = rng.uniform(0.35, 0.45, (n, 1, 1)) * min(size)
    mask = distance < radius
    clean = np.where(distance < 0.6 * radius, levels[1], levels[0])
    pixels = np.where(mask, np.clip(clean + rng.normal(0, 3, mask.shape), 1, 255), 0).astype(np.uint8)
    pixels.flags.writeable = mask.flags.writeable = False
    return ImageSet(pixels, mask, (Scan("s", "s", "A", 0, n, (1.0, 1.0, 1.0)),))


SOURCE, VALIDATION, TARGET = site((90, 190)), site((90, 190), 6, seed=1), site((150, 110), 10, seed=2)


def bright(scans: int = 3, side: int = 16, seed: int = 0, slices: int = 2) -> ImageSet:
    """Discs of random brightness, without noise, float32; several scans of several slices."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    mask = np.repeat((np.hypot(rows, columns) < 0.4 * side)[None], scans * slices, 0)
    pixels = mask * rng.uniform(0.4, 0.8, (scans * slices, 1, 1))
    places = tuple(Scan(f"s{i}", f"s{i}", "a", i * slices, (i + 1) * slices, (1, 1, 1)) for i in range(scans))
    return ImageSet(pixels.astype(np.float32), mask, places)

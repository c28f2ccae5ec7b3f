"""Regional features of a volume of the size of a neonatal scan: ours against loops over its labels.

    python benchmarks/perf/features.py [--repeats 3] [--check]

The volume has 290 × 290 × 203 voxels: an ellipsoid that 87 random seeds divide into Voronoi cells. Both loops give
the same numbers, which is asserted: one averages the mask of each label over 3 × 3 × 3 voxels of the whole volume, as
published; the other erodes each mask within its label's bounding box. One process, one thread; times are CPU time,
and all are taken in turn so that a busy machine slows them alike. The loop over whole volumes is timed once.
"""

# ruff: noqa: E402 - the thread counts must be set before the libraries are imported
from __future__ import annotations

import os

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"  # before numpy and torch read them

import argparse
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage

from harness.tracks.brain_age.features import PUBLISHED, regional_features

SHAPE = (290, 290, 203)
LABELS = 87
TARGET_S = 5.0
"""Seconds that one volume may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help=f"exit 1 where ours takes more than {TARGET_S:g} s")
    options = parser.parse_args()

    torch.set_num_threads(1)
    start = time.process_time()
    labels = cells(SHAPE, LABELS, seed=0)
    made = time.process_time() - start
    print(
        f"{' × '.join(map(str, SHAPE))} voxels, {np.count_nonzero(labels):,} in {LABELS} labels, made in {made:.1f} s"
    )

    first, result = timed(ours, labels)
    pooled_s, pooled = timed(by_pooling, labels)
    np.testing.assert_array_equal(result, pooled)
    np.testing.assert_array_equal(result, by_boxes(labels))
    seconds = np.array([[timed(f, labels)[0] for f in (ours, by_boxes)] for _ in range(options.repeats)])
    ours_s, boxes_s = np.median(seconds, axis=0)
    print(f"ours                                {ours_s:7.2f} s   (first call, which may compile: {first:.2f} s)")
    print(f"loop, whole volume, average pooling {pooled_s:7.2f} s   {pooled_s / ours_s:6.0f} ×")
    print(f"loop, bounding boxes, erosion       {boxes_s:7.2f} s   {boxes_s / ours_s:6.1f} ×")
    print("all values equal")
    return int(options.check and ours_s > TARGET_S)


def cells(shape: tuple[int, int, int], n: int, seed: int) -> np.ndarray:
    """uint8 labels 1..n: the nearest of n random seeds within an ellipsoid, 0 around it."""
    rng = np.random.default_rng(seed)
    middle, radius = (np.array(shape, np.float32) - 1) / 2, 0.47 * np.array(shape, np.float32)
    direction = rng.standard_normal((n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    seeds = (direction * rng.random((n, 1)) ** (1 / 3) * radius).astype(np.float32)
    half = (seeds**2).sum(axis=1) / 2
    labels = np.zeros(shape, np.uint8)
    y, z = (np.arange(size, dtype=np.float32) - m for size, m in zip(shape[1:], middle[1:], strict=True))
    plane = (y[:, None] / radius[1]) ** 2 + (z / radius[2]) ** 2
    for index in range(shape[0]):
        x = np.float32(index) - middle[0]
        rows, columns = np.nonzero(plane + (x / radius[0]) ** 2 < 1)
        # The nearest seed s of a voxel v has the largest v·s - |s|²/2.
        nearness = np.stack([np.full(len(rows), x), y[rows], z[columns]], axis=1) @ seeds.T - half
        labels[index, rows, columns] = 1 + nearness.argmax(axis=1)
    return labels


def ours(labels: np.ndarray) -> np.ndarray:
    return regional_features(labels).vector()


def by_pooling(labels: np.ndarray) -> np.ndarray:
    """Each label's mask averaged over 3 × 3 × 3 voxels of the whole volume."""

    def interior(label: int) -> int:
        mask = torch.from_numpy(counted == label).float()[None, None]
        return int((torch.nn.functional.avg_pool3d(mask, 3, stride=1) == 1).sum())

    counted = np.where(np.isin(labels, PUBLISHED.ids), labels, 0)
    voxels = np.array([np.count_nonzero(counted == label) for label in PUBLISHED.ids])
    inside = np.array([interior(label) for label in PUBLISHED.ids])
    return np.concatenate([voxels / np.count_nonzero(counted), (voxels - inside) / voxels])


def by_boxes(labels: np.ndarray) -> np.ndarray:
    """Each label's mask eroded within its bounding box."""
    counted = np.where(np.isin(labels, PUBLISHED.ids), labels, 0)
    boxes = ndimage.find_objects(counted)
    masks = [counted[boxes[label - 1]] == label for label in PUBLISHED.ids]
    voxels = np.array([np.count_nonzero(mask) for mask in masks])
    inside = np.array([np.count_nonzero(ndimage.binary_erosion(mask, np.ones((3, 3, 3)))) for mask in masks])
    return np.concatenate([voxels / np.count_nonzero(counted), (voxels - inside) / voxels])


def timed(work: Callable[[np.ndarray], np.ndarray], labels: np.ndarray) -> tuple[float, np.ndarray]:
    """CPU seconds, and what came of it."""
    start = time.process_time()
    result = work(labels)
    return time.process_time() - start, result


if __name__ == "__main__":
    sys.exit(main())

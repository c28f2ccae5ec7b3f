"""Dice similarity of all labels at once, from one joint histogram of two label maps."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer]


def joint_counts(gt: IntArray, pred: IntArray, n_labels: int) -> NDArray[np.int64]:
    """How many voxels carry label i in `gt` and label j in `pred`: int64 [n_labels, n_labels].

    `gt` and `pred` are integer label maps of the same shape, any number of axes, values in [0, n_labels).
    Raises ValueError for other shapes, types or values.
    """
    check_label_maps(gt, pred, n_labels)
    counts = np.zeros((n_labels, n_labels), np.int64)
    if not _count(np.ascontiguousarray(gt).reshape(-1), np.ascontiguousarray(pred).reshape(-1), counts):
        check_label_range(gt, pred, n_labels)
    return counts


def dsc(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Dice 2·TP / (P + G) of every label, float64 [n_labels] in [0, 1], from `joint_counts`.

    nan where a label is in neither map (nothing to score), 0 where it is in exactly one. Index 0 is the
    background, which a mean over labels leaves out. Source: Dice, Ecology 1945; conventions ours.
    """
    twice_overlap = 2 * np.diagonal(counts)
    total = counts.sum(axis=0) + counts.sum(axis=1)
    return np.divide(twice_overlap, total, out=np.full(len(counts), np.nan), where=total > 0)


def check_label_maps(gt: IntArray, pred: IntArray, n_labels: int) -> None:
    """Raise ValueError unless both are integer maps of one shape and `n_labels` is positive."""
    if gt.shape != pred.shape:
        raise ValueError(f"label maps differ in shape: ground truth {gt.shape}, prediction {pred.shape}")
    for name, labels in (("ground truth", gt), ("prediction", pred)):
        if labels.dtype.kind not in "iub":
            raise ValueError(f"{name}: labels must be integers, not {labels.dtype}")
    if n_labels < 1:
        raise ValueError(f"n_labels must be at least 1, not {n_labels}")


def check_label_range(gt: IntArray, pred: IntArray, n_labels: int) -> None:
    """Raise ValueError, naming the map and a label, unless all labels lie in [0, n_labels). Not for empty maps."""
    for name, labels in (("ground truth", gt), ("prediction", pred)):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= n_labels:
            raise ValueError(f"{name}: label {low if low < 0 else high} is outside 0..{n_labels - 1}")


@numba.njit(cache=True)
def _count(gt, pred, counts):  # type: ignore[no-untyped-def]
    """Add to `counts`; False at the first label out of range (what is counted by then is of no use)."""
    n = counts.shape[0]
    # Neighbouring voxels mostly share one cell. Four tables keep consecutive additions independent, unless large.
    copies = 4 if n <= 128 else 1
    tables = np.zeros((copies, n * n), np.int64)
    valid = True
    for i in range(gt.size):
        g, p = np.int64(gt[i]), np.int64(pred[i])
        if g < 0 or p < 0 or g >= n or p >= n:
            valid = False
            break
        tables[i & (copies - 1), g * n + p] += 1
    for t in range(copies):
        for c in range(n * n):
            counts[c // n, c % n] += tables[t, c]
    return valid

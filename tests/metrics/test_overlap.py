"""Joint counts and Dice, against counting by hand."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.metrics.overlap import dsc, joint_counts

N = 5


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7))
    labels = st.integers(0, N - 1)
    dtype = draw(st.sampled_from([np.uint8, np.int64]))
    return draw(hnp.arrays(dtype, shape, elements=labels)), draw(hnp.arrays(dtype, shape, elements=labels))


@given(pairs())
@settings(deadline=None, max_examples=80)
def test_equals_counting_voxel_by_voxel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    gt, pred = pair
    counts = joint_counts(gt, pred, N)
    assert counts.dtype == np.int64
    for i in range(N):
        for j in range(N):
            assert counts[i, j] == np.count_nonzero((gt == i) & (pred == j))
    scores = dsc(counts)
    for i in range(N):
        g, p = gt == i, pred == i
        if not (g.any() or p.any()):
            assert np.isnan(scores[i])
        else:
            assert scores[i] == 2 * (g & p).sum() / (g.sum() + p.sum())


def test_by_hand() -> None:
    gt = np.array([0, 1, 1, 2, 2, 2], np.uint8)
    pred = np.array([1, 1, 0, 2, 2, 4], np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = dsc(joint_counts(gt, pred, N))
    np.testing.assert_array_equal(scores, [0.0, 0.5, 0.8, np.nan, 0.0])


@pytest.mark.parametrize("bad", [-1, N, 100])
@pytest.mark.parametrize("side", ["ground truth", "prediction"])
def test_names_the_map_with_a_label_out_of_range(bad: int, side: str) -> None:
    good, wrong = np.zeros(6, np.int64), np.array([0, 1, 2, bad, 1, 0])
    pair = (wrong, good) if side == "ground truth" else (good, wrong)
    with pytest.raises(ValueError, match=rf"{side}: label {bad} is outside 0\.\.4"):
        joint_counts(*pair, N)


@pytest.mark.parametrize(
    ("gt", "pred", "n_labels", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), N, "differ in shape"),
        (np.zeros(3), np.zeros(3, int), N, "ground truth: labels must be integers"),
        (np.zeros(3, int), np.zeros(3), N, "prediction: labels must be integers"),
        (np.zeros(3, int), np.zeros(3, int), 0, "at least 1"),
    ],
)
def test_refuses_what_is_no_pair_of_label_maps(gt: np.ndarray, pred: np.ndarray, n_labels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joint_counts(gt, pred, n_labels)


def test_reads_memory_maps_and_strided_views(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gt, pred = rng.integers(0, N, (2, 6, 8, 10)).astype(np.uint8)
    np.save(tmp_path / "gt.npy", gt)
    mapped = np.load(tmp_path / "gt.npy", mmap_mode="r")
    np.testing.assert_array_equal(joint_counts(mapped, pred, N), joint_counts(gt, pred, N))
    np.testing.assert_array_equal(
        joint_counts(gt[:, ::2], pred[:, ::2], N), joint_counts(gt[:, ::2].copy(), pred[:, ::2].copy(), N)
    )

"""Surface distances and HD95, against all pairs of surface voxels and against scipy's distance transform."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from harness.metrics.surface import SurfaceDistances, hd95_all, hd95_records, surface_distances

N = 4
SPACINGS = ((1.0, 1.0, 1.0), (0.9375, 0.9375, 3.0), (0.7, 0.7, 2.2), (5.0, 0.4, 1.1), (0.1, 7.0, 0.3))
spacings = st.sampled_from(SPACINGS)


def surface_of(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a face neighbour outside of it; the image is surrounded by background."""
    padded = np.pad(mask, 1)
    core = padded.copy()
    for axis in range(mask.ndim):
        core &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return mask & ~core[(slice(1, -1),) * mask.ndim]


def all_pairs(source: np.ndarray, target: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Distance of each source surface voxel, in C order, to the nearest target surface voxel."""
    a, b = np.argwhere(surface_of(source)), np.argwhere(surface_of(target))
    if not (len(a) and len(b)):
        return np.empty(0)
    squared = sum((((a[:, None, i] - b[None, :, i]) * s) ** 2 for i, s in enumerate(spacing)), 0.0)
    return np.sqrt(squared.min(axis=1))


def check_label(found: SurfaceDistances, gt: np.ndarray, pred: np.ndarray, spacing: tuple[float, ...]) -> None:
    there, back = all_pairs(gt, pred, spacing), all_pairs(pred, gt, spacing)
    # Distances that are equal on paper may differ in the last bit, and either may be found.
    np.testing.assert_allclose(found.gt_to_pred, there, rtol=4e-16)
    np.testing.assert_allclose(found.pred_to_gt, back, rtol=4e-16)
    state = {(True, True): "ok", (True, False): "pred_empty", (False, True): "gt_empty", (False, False): "both_empty"}
    assert found.state == state[bool(gt.any()), bool(pred.any())]
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(gt.shape, spacing, strict=True)))
    if found.state == "ok":
        assert found.hd95 == max(np.percentile(found.gt_to_pred, 95), np.percentile(found.pred_to_gt, 95))
        assert found.hd95_pooled == np.percentile(np.hstack([found.gt_to_pred, found.pred_to_gt]), 95)
        assert found.hd95_torch == pytest.approx(found.hd95, rel=1e-5)
        assert found.hd95 <= diagonal
    elif found.state == "both_empty":
        assert math.isnan(found.hd95)
        assert math.isnan(found.hd95_pooled)
    else:
        assert found.hd95 == found.hd95_pooled == pytest.approx(diagonal, rel=1e-15)
        assert math.isnan(found.hd95_torch)


def check_maps(gt: np.ndarray, pred: np.ndarray, spacing: tuple[float, ...]) -> None:
    spacing = spacing[: gt.ndim]
    unit = (1.0,) * gt.ndim
    for used, found in zip((spacing, unit), surface_distances(gt, pred, N, [spacing, unit]), strict=True):
        assert list(found) == list(range(1, N))
        for label in range(1, N):
            check_label(found[label], gt == label, pred == label, used)


@st.composite
def dense_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8))
    labels = st.integers(0, N - 1)
    gt = draw(hnp.arrays(np.uint8, shape, elements=labels))
    return gt, draw(st.one_of(st.just(gt), hnp.arrays(np.uint8, shape, elements=labels)))


@st.composite
def sparse_maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A few boxes in a volume much larger than the near search, its long axis anywhere."""
    shape = draw(st.sampled_from([(60, 50), *itertools.permutations((60, 25, 12))]))
    maps = []
    for _ in range(2):
        labels = np.zeros(shape, np.uint8)
        for _ in range(draw(st.integers(1, 5))):
            corner = [draw(st.integers(0, n - 1)) for n in shape]
            size = [draw(st.integers(1, 6)) for _ in shape]
            box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
            labels[box] = draw(st.integers(1, N - 1))
        maps.append(labels)
    return maps[0], maps[1]


@given(dense_maps(), spacings)
@settings(deadline=None, max_examples=120)
def test_dense_maps_equal_all_pairs(maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]) -> None:
    check_maps(*maps, spacing)


@given(sparse_maps(), spacings)
@settings(deadline=None, max_examples=120)
def test_far_structures_equal_all_pairs(maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]) -> None:
    check_maps(*maps, spacing)


@given(dense_maps(), spacings)
@settings(deadline=None, max_examples=30)
def test_swapping_the_maps_swaps_the_directions(
    maps: tuple[np.ndarray, np.ndarray], spacing: tuple[float, ...]
) -> None:
    gt, pred = maps
    ((there,), (back,)) = (surface_distances(*pair, N, [spacing[: gt.ndim]]) for pair in ((gt, pred), (pred, gt)))
    for label in range(1, N):
        np.testing.assert_array_equal(there[label].gt_to_pred, back[label].pred_to_gt)
        np.testing.assert_array_equal(there[label].pred_to_gt, back[label].gt_to_pred)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_ball_equals_the_distance_transform(axis: int, spacing: tuple[float, ...]) -> None:
    """Thousands of far voxels of one label: the near search gives up and the far search does all."""
    grid = np.ogrid[0:56, 0:48, 0:40]
    gt = sum((g - 18) ** 2 for g in grid) < 15**2
    pred = np.roll(gt, 14, axis) | (sum((g - 30) ** 2 for g in grid) < 6**2)
    (found,) = surface_distances(gt.astype(np.uint8), pred.astype(np.uint8), 2, [spacing])
    a, b = surface_of(gt), surface_of(pred)
    to_b, to_a = (ndimage.distance_transform_edt(~s, sampling=spacing) for s in (b, a))
    np.testing.assert_allclose(found[1].gt_to_pred, to_b[a], rtol=1e-15)
    np.testing.assert_allclose(found[1].pred_to_gt, to_a[b], rtol=1e-15)


def test_by_hand() -> None:
    gt, pred = np.zeros((2, 12, 12), np.uint8)
    gt[2, 3] = pred[5, 7] = 1
    gt[6:10, 2:6] = pred[7:11, 2:6] = 2
    found = hd95_all(gt, pred, 4, (2.0, 0.5), ("max", "pooled", "torch"))
    assert found[1] == {"max": math.sqrt(40), "pooled": math.sqrt(40), "torch": float(np.float32(math.sqrt(40)))}
    assert found[2]["max"] == 2.0  # one row
    assert math.isnan(found[3]["max"])


def test_mask_that_fills_the_image_has_its_rim_as_surface() -> None:
    full, inner = np.ones((2, 8, 8), np.uint8)
    inner[[0, -1]] = inner[:, [0, -1]] = 0
    (found,) = surface_distances(full, inner, 2, [(1, 1)])
    assert found[1].gt_to_pred.size == 28
    assert found[1].pred_to_gt.tolist() == [1.0] * 20


def test_pooling_hides_an_island_that_the_directed_percentile_shows() -> None:
    gt = np.zeros((40, 40), np.uint8)
    gt[4:14, 4:14] = 1
    pred = gt.copy()
    pred[30:32, 30:32] = 1  # 4 of 40 predicted surface pixels, 4 of 76 pooled
    found = hd95_all(gt, pred, 2, (1, 1))
    assert found[1]["max"] > 20
    assert found[1]["pooled"] < found[1]["max"] / 3


def test_records_carry_penalties_and_counts() -> None:
    gt, pred = np.zeros((2, 6, 8, 10), np.uint8)
    gt[1:3, 2:5, 3:6] = pred[2:4, 2:5, 3:6] = 1
    pred[5, 5, 5] = 2
    rows = {(r.label, r.metric): (r.value, r.status) for r in hd95_records(gt, pred, 4, (3.0, 1.0, 1.0))}
    assert len(rows) == 12
    assert rows[1, "hd95"] == rows[1, "hd95_pooled"] == (3.0, "ok")
    assert rows[1, "hd95_unit"] == (1.0, "ok")
    assert rows[2, "hd95"] == (math.sqrt(18**2 + 8**2 + 10**2), "penalised")
    assert rows[2, "hd95_unit"] == (math.sqrt(6**2 + 8**2 + 10**2), "penalised")
    assert [rows[label, "hd95_missing"] for label in (1, 2, 3)] == [(0, "ok"), (1, "ok"), (0, "ok")]
    value, status = rows[3, "hd95"]
    assert math.isnan(value)
    assert status == "empty"


def test_more_than_256_labels() -> None:
    gt, pred = np.zeros((2, 9, 9), np.int32)
    gt[2, 2] = pred[2, 5] = 2035
    assert hd95_all(gt, pred, 2036, (1, 1))[2035]["max"] == 3.0


@pytest.mark.parametrize(
    ("shape", "spacing", "message"),
    [
        ((4,), (1,), "2-D or 3-D"),
        ((4, 4, 4, 4), (1, 1, 1, 1), "2-D or 3-D"),
        ((0, 4), (1, 1), "non-empty"),
        ((4, 4), (1, 1, 1), "spacing must be 2 positive"),
        ((4, 4), (1, 0), "spacing must be 2 positive"),
        ((4, 4), (1, math.nan), "spacing must be 2 positive"),
    ],
)
def test_refuses_shapes_and_spacings(shape: tuple[int, ...], spacing: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hd95_all(np.zeros(shape, int), np.zeros(shape, int), 2, spacing)


def test_refuses_labels_out_of_range_and_unknown_definitions() -> None:
    labels = np.zeros((4, 4), int)
    with pytest.raises(ValueError, match=r"prediction: label 7 is outside 0\.\.2"):
        hd95_all(labels, labels + 7, 3, (1, 1))
    with pytest.raises(ValueError, match=r"unknown definition of HD95 \['mean'\]"):
        hd95_all(labels, labels, 3, (1, 1), ("mean",))  # type: ignore[arg-type]

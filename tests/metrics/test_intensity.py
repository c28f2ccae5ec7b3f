"""Histograms, Wasserstein distance, PSNR and SSIM, against direct computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import wasserstein_distance

from harness.metrics.intensity import foreground_histogram, psnr, site_histogram, ssim, wasserstein

counts = hnp.arrays(np.int64, 256, elements=st.integers(0, 50)).filter(lambda h: h.sum() > 0)


@given(counts, counts, counts)
@settings(deadline=None, max_examples=40)
def test_wasserstein_is_scipys_and_a_metric(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    levels = np.arange(256) / 255
    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(levels, levels, a, b), abs=1e-12)
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, a), abs=1e-15)
    assert wasserstein(a, 3 * a) == pytest.approx(0, abs=1e-14)
    assert wasserstein(a, c) <= wasserstein(a, b) + wasserstein(b, c) + 1e-12
    assert 0 <= wasserstein(a, b) <= 1


def test_wasserstein_by_hand() -> None:
    black, grey, white = (np.eye(256)[level] for level in (0, 51, 255))
    assert wasserstein(black, white) == 1
    assert wasserstein(black, grey) == pytest.approx(0.2)
    assert wasserstein(black + white, grey) == pytest.approx(0.5)
    assert math.isnan(wasserstein(np.zeros(256), grey))


@pytest.mark.parametrize("bad", [np.ones(255), -np.ones(256), np.full(256, np.nan)])
def test_wasserstein_refuses_what_is_no_histogram(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="256 finite, non-negative"):
        wasserstein(np.ones(256), bad)


def test_floats_and_bytes_of_one_image_have_one_histogram() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    mask = levels % 3 > 0
    expected = np.where(np.arange(256) % 3 > 0, 1, 0)
    np.testing.assert_array_equal(foreground_histogram(levels, mask), expected)
    np.testing.assert_array_equal(foreground_histogram(levels.astype(np.float32) / np.float32(255), mask), expected)
    assert foreground_histogram(levels, None).sum() == 256


def test_histogram_of_values_outside_the_range_and_of_none() -> None:
    histogram = foreground_histogram(np.array([-0.2, 0.0, 1.0, 1.7], np.float32), np.ones(4, bool))
    assert histogram[0] == histogram[255] == 2
    assert foreground_histogram(np.ones(4, np.uint8), np.zeros(4, bool)).tolist() == [0] * 256


def test_histogram_refuses_nan_and_other_types() -> None:
    mask = np.ones(2, bool)
    with pytest.raises(ValueError, match="nan or infinite"):
        foreground_histogram(np.array([0.5, np.nan]), mask)
    with pytest.raises(ValueError, match="uint8 or float"):
        foreground_histogram(np.array([1, 2]), mask)
    with pytest.raises(ValueError, match="mask has shape"):
        foreground_histogram(np.zeros(3, np.uint8), mask)
    with pytest.raises(ValueError, match="must be bool"):
        foreground_histogram(np.zeros(2, np.uint8), np.ones(2, np.uint8))


def test_every_subject_weighs_the_same_in_a_site() -> None:
    small, large = np.full((1, 2, 2), 10, np.uint8), np.full((1, 20, 20), 30, np.uint8)
    empty = (large, np.zeros(large.shape, bool))
    site = site_histogram([(small, np.ones(small.shape, bool)), (large, np.ones(large.shape, bool)), empty])
    assert site[10] == site[30] == 0.5
    assert site.sum() == 1
    assert site_histogram([empty]).sum() == 0


def test_psnr_counts_the_mask_alone() -> None:
    reference = np.full((8, 8), 0.5, np.float32)
    image, mask = reference.copy(), np.zeros((8, 8), bool)
    mask[:4] = True
    image[4:] = 0.9
    assert psnr(reference, image, mask) == math.inf
    image[:4] += np.float32(0.125)
    assert psnr(reference, image, mask) == pytest.approx(-10 * math.log10(0.125**2))
    assert math.isnan(psnr(reference, image, ~mask & mask))


def test_ssim_of_one_pixel_is_the_gaussian_window_formula() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 24, 20))
    mask = np.zeros(a.shape, bool)
    row, column = 11, 9
    mask[row, column] = True
    offset = np.arange(-5, 6)
    weight = np.exp(-(offset[:, None] ** 2 + offset[None, :] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    x, y = (image[row - 5 : row + 6, column - 5 : column + 6] for image in (a, b))
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    var_x, var_y = (weight * x * x).sum() - mean_x**2, (weight * y * y).sum() - mean_y**2
    covariance = (weight * x * y).sum() - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    assert ssim(a, b, mask) == pytest.approx(expected, abs=1e-12)


def test_ssim_of_a_stack_is_the_mean_over_the_pixels_of_its_masks() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 3, 16, 18), np.float32)
    mask = rng.random(a.shape) < np.array([0.9, 0.2, 0.0])[:, None, None]
    per_slice = [ssim(a[i], b[i], mask[i]) * mask[i].sum() for i in range(2)]
    assert ssim(a, b, mask) == pytest.approx(sum(per_slice) / mask.sum(), abs=1e-12)
    assert ssim(a, a, mask) == pytest.approx(1, abs=1e-12)
    assert math.isnan(ssim(a[2], b[2], mask[2]))


def test_paired_scores_refuse_shapes_that_do_not_fit() -> None:
    image, mask = np.zeros((12, 12)), np.ones((12, 12), bool)
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(image, np.zeros((12, 13)), mask)
    with pytest.raises(ValueError, match="11 × 11"):
        ssim(image[:8], image[:8], mask[:8])
    with pytest.raises(ValueError, match="compares"):
        ssim(image[0], image[0], mask[0])

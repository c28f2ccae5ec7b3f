"""Processing of anomaly maps: each step against its plain definition, scaling, and what erosion hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from harness.anomaly import Processing
from harness.tracks.anomaly.processing import eroded, eroded_share, process, scaled, without_small

EIGHT = np.ones((3, 3), int)


def disc(size: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) < radius


def random_maps(n: int, size: int, radius: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Maps that are 0 outside a disc, many pixels 0 inside too, and the disc as their mask."""
    mask = np.repeat(disc(size, radius)[None], n, 0)
    drawn = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=mask.shape), (0, 1.2, 1.2))
    return (drawn.clip(0) * mask).astype(np.float32), mask


def large_only(binary: np.ndarray, smallest: int) -> np.ndarray:
    """A binary slice without its 8-connected regions of at most `smallest` pixels, by counting them."""
    regions, _ = ndimage.label(binary, EIGHT)
    counts = np.bincount(regions.ravel())
    counts[0] = 0
    return counts[regions] > smallest


# ------------------------------------------------------------------------------------------ small regions


@pytest.mark.parametrize("smallest", [1, 3, 7, 30])
def test_small_regions_go_at_every_threshold_alike(smallest: int) -> None:
    maps, _ = random_maps(3, 48, 20)
    for image in maps:
        found = without_small(image, smallest)
        for threshold in [0.0, *np.quantile(image[image > 0], [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99]), image.max()]:
            np.testing.assert_array_equal(found > threshold, large_only(image > threshold, smallest))
        assert (found != image).any()


@settings(max_examples=150, deadline=None)
@given(
    arrays(
        np.float32, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0])
    ),
    st.integers(1, 12),
)
def test_small_regions_of_any_little_map(image: np.ndarray, smallest: int) -> None:
    """Among them maps smaller than what is removed, and without a pixel of 0."""
    found = without_small(image, smallest)
    for threshold in (0.0, 0.3, 0.7):
        np.testing.assert_array_equal(found > threshold, large_only(image > threshold, smallest))


def test_a_region_of_just_so_many_pixels_goes_and_diagonal_neighbours_count() -> None:
    image = np.zeros((16, 16), np.float32)
    image[range(7), range(7)] = 0.5
    assert without_small(image, 7).max() == 0
    image[7, 7] = 0.5
    np.testing.assert_array_equal(without_small(image, 7), image)


def test_a_bright_point_on_a_large_region_is_cut_to_its_level() -> None:
    image = np.zeros((16, 16), np.float32)
    image[2:8, 2:8] = 0.4
    image[4, 4] = 1
    found = process(image[None], image[None] > 0, Processing(smallest=300))  # 300 · (16 / 128)² rounds to 5
    np.testing.assert_array_equal(found[0], np.where(image > 0, np.float32(0.4), 0))


# ------------------------------------------------------------------------------------------ the other steps


def test_erosion_takes_what_few_steps_reach_from_outside() -> None:
    maps, mask = random_maps(2, 128, 50)
    distance = np.stack([ndimage.distance_transform_cdt(each, metric="taxicab") for each in mask])
    brain = eroded(mask, Processing(erode=12))
    np.testing.assert_array_equal(brain, distance > 12)
    np.testing.assert_array_equal(process(maps, mask, Processing(erode=12)), np.where(brain, maps, 0))


def test_erosion_comes_in_from_the_border_and_never_from_the_next_slice() -> None:
    mask = np.ones((3, 128, 128), bool)
    mask[1] = False
    brain = eroded(mask, Processing(erode=2))
    assert brain[0].sum() == brain[2].sum() == 124 * 124
    assert not brain[1].any()


def test_the_median_is_that_of_the_window_with_0_outside_the_mask() -> None:
    maps, mask = random_maps(2, 128, 30)
    maps[:, 64, 64] = 9.0
    found = process(maps, mask, Processing(median=5))
    padded = np.pad(maps, ((0, 0), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(1, 2))
    np.testing.assert_array_equal(found, np.median(windows, axis=(3, 4)) * mask)


def test_smoothing_stays_within_slice_and_mask() -> None:
    maps, mask = random_maps(3, 128, 40)
    maps[1] = 0
    found = process(maps, mask, Processing(smooth=1.5))
    assert found[1].max() == 0
    for chosen in (0, 2):
        wanted = ndimage.gaussian_filter(maps[chosen].astype(np.float64), 1.5, mode="constant") * mask[chosen]
        np.testing.assert_allclose(found[chosen], wanted, atol=1e-6)


def test_steps_follow_each_other_in_the_order_of_the_fields() -> None:
    maps, mask = random_maps(2, 128, 45)
    every = Processing(erode=4, median=3, smooth=1.0, smallest=20)
    step_by_step, brain = maps, eroded(mask, every)
    for part in ({"erode": 4}, {"median": 3}, {"smooth": 1.0}, {"smallest": 20}):
        step_by_step = process(step_by_step, brain if part != {"erode": 4} else mask, Processing(**part))
    found = process(maps, mask, every)
    np.testing.assert_allclose(found, step_by_step, atol=1e-6)
    assert found.dtype == np.float32
    assert not found[~brain].any()


def test_slices_do_not_depend_on_each_other() -> None:
    maps, mask = random_maps(4, 64, 25)
    every = Processing(erode=3, median=5, smooth=1.0, smallest=9)
    whole = process(maps, mask, every)
    for i in range(4):
        np.testing.assert_allclose(process(maps[i : i + 1], mask[i : i + 1], every)[0], whole[i], atol=1e-7)


def test_nothing_to_do_returns_the_maps_themselves() -> None:
    maps, mask = random_maps(2, 64, 25)
    assert process(maps, mask, Processing()) is maps
    assert process(maps, mask, Processing(median=1)) is maps
    assert process(maps, mask, Processing(erode=0, smallest=1)) is maps  # a quarter of a pixel


def test_inputs_are_left_alone_and_empty_masks_do_no_harm() -> None:
    maps, mask = random_maps(2, 64, 25)
    maps[1], mask[1] = 0, False
    before = maps.copy()
    maps.flags.writeable = mask.flags.writeable = False
    assert process(maps, mask, Processing(erode=4, median=5, smooth=1, smallest=7))[1].max() == 0
    np.testing.assert_array_equal(maps, before)
    assert process(maps, mask, Processing(erode=128, median=5, smallest=7)).max() == 0


# ------------------------------------------------------------------------------------------------- scale


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((128, 128), (12, 5, 2.0, 7)),
        ((256, 256), (24, 11, 4.0, 28)),
        ((64, 64), (6, 3, 1.0, 2)),
        ((240, 240), (23, 9, 3.75, 25)),
        ((192, 256), (24, 11, 4.0, 28)),
    ],
)
def test_lengths_go_with_the_longer_side_and_areas_with_its_square(
    size: tuple[int, int], wanted: tuple[int, int, float, int]
) -> None:
    found = scaled(Processing(erode=12, median=5, smooth=2.0, smallest=7), size)
    assert (found.erode, found.median, found.smooth, found.smallest) == wanted


def test_a_map_of_twice_the_size_is_processed_alike() -> None:
    maps, mask = random_maps(2, 128, 50)
    double = maps.repeat(2, 1).repeat(2, 2), mask.repeat(2, 1).repeat(2, 2)
    for part in (Processing(smallest=7), Processing(smooth=3.0)):
        small, large = process(maps, mask, part), process(*double, part)
        shrunk = large.reshape(2, 128, 2, 128, 2).mean((2, 4))
        np.testing.assert_allclose(shrunk, small, atol=0.02 * small.max())


# ------------------------------------------------------------------------------------------ what is hidden


def test_share_of_lesions_that_erosion_hides() -> None:
    mask = np.zeros((2, 128, 128), bool)
    mask[:, 20:100, 20:100] = True
    labels = np.zeros(mask.shape, np.uint8)
    labels[0, 20:30, 40:50] = 2  # 10 × 10 at the edge, of which 3 rows go
    labels[1, 50:60, 50:60] = 1
    labels[1, 0:5, 0:5] = 1  # outside the mask: no map shows it anyway
    assert eroded_share(labels, mask, Processing(erode=3)) == pytest.approx(30 / 200)
    assert eroded_share(labels, mask, Processing(median=5)) == 0
    assert math.isnan(eroded_share(np.zeros_like(labels), mask, Processing(erode=3)))

"""Regional features against a loop over labels, in every orientation."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tracks.brain_age.features import (
    PUBLISHED,
    RegionalFeatures,
    Regions,
    regional_features,
)

FOUR = Regions((1, 2, 3, 4))


def blocks(seed: int, shape: tuple[int, int, int], block: int, n_labels: int) -> np.ndarray:
    """Labels 0..n_labels in cubes of `block` voxels, a few voxels of noise among them."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, n_labels + 1, [-(-size // block) for size in shape])
    for axis in range(3):
        coarse = coarse.repeat(block, axis)
    labels = coarse[tuple(slice(size) for size in shape)].astype(np.uint8)
    noisy = rng.random(shape) < 0.02
    labels[noisy] = rng.integers(0, n_labels + 1, noisy.sum())
    return labels


def looped(labels: np.ndarray, regions: Regions) -> tuple[np.ndarray, np.ndarray]:
    """Label by label: its share of the counted voxels, and of its voxels those whose 3 × 3 × 3 mean is not 1."""
    total = sum(np.count_nonzero(labels == label) for label in regions.ids)
    volumes, ratios = [], []
    for label in regions.ids:
        mask = labels == label
        interior = 0
        if min(mask.shape) >= 3:
            windows = np.lib.stride_tricks.sliding_window_view(mask.astype(float), (3, 3, 3))
            interior = np.count_nonzero(windows.mean(axis=(3, 4, 5)) == 1)
        volumes.append(mask.sum() / total)
        ratios.append((mask.sum() - interior) / mask.sum() if mask.any() else np.nan)
    return np.array(volumes), np.array(ratios)


def assert_same(found: RegionalFeatures, expected: RegionalFeatures) -> None:
    assert found.ids == expected.ids
    assert found.names == expected.names
    np.testing.assert_array_equal(found.relational_volume, expected.relational_volume)
    np.testing.assert_array_equal(found.surface_ratio, expected.surface_ratio)


# -------------------------------------------------------------------------------------- known bodies


@pytest.mark.parametrize("margin", [0, 1, 3])
def test_a_cube_of_ten_voxels_is_surface_to_488_parts_in_a_thousand(margin: int) -> None:
    cube = np.pad(np.ones((10, 10, 10), np.uint8), margin)
    found = regional_features(cube, Regions((1,)))
    assert found.surface_ratio.tolist() == [0.488]
    assert found.relational_volume.tolist() == [1.0]


def test_a_ball_against_a_count_of_its_voxels_one_by_one() -> None:
    points = {p for p in itertools.product(range(-8, 9), repeat=3) if sum(c * c for c in p) <= 7.3**2}
    steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if s != (0, 0, 0)]
    surface = sum(any((x + i, y + j, z + k) not in points for i, j, k in steps) for x, y, z in points)
    labels = np.zeros((20, 21, 22), np.int16)
    for x, y, z in points:
        labels[x + 10, y + 9, z + 11] = 7
    found = regional_features(labels, Regions((7,)))
    assert 0.3 < found.surface_ratio[0] < 0.6
    assert found.surface_ratio[0] == surface / len(points)


def test_voxels_at_the_border_of_the_volume_are_never_interior() -> None:
    for shape in [(1, 9, 9), (9, 2, 9), (2, 2, 2), (1, 1, 1)]:
        assert regional_features(np.ones(shape, np.uint8), Regions((1,))).surface_ratio[0] == 1
    assert regional_features(np.ones((3, 3, 3), np.uint8), Regions((1,))).surface_ratio[0] == 26 / 27


def test_a_neighbour_of_another_region_is_a_surface_as_background_is() -> None:
    labels = np.ones((9, 5, 5), np.uint8)
    labels[4:] = 2
    found = regional_features(labels, Regions((1, 2)))
    assert found.surface_ratio.tolist() == [82 / 100, 98 / 125]  # 2 and 3 layers of 3 × 3 are interior
    assert found.relational_volume.tolist() == [100 / 225, 125 / 225]


# ---------------------------------------------------------------------------------- against the loop


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 13)] * 3),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_equals_a_loop_over_labels(seed: int, shape: tuple[int, int, int], block: int, n_labels: int) -> None:
    labels = blocks(seed, shape, block, n_labels)
    labels.flat[0] = 1
    found = regional_features(labels, FOUR)
    volumes, ratios = looped(labels, FOUR)
    np.testing.assert_array_equal(found.relational_volume, volumes)
    np.testing.assert_array_equal(found.surface_ratio, ratios)
    assert abs(found.relational_volume.sum() - 1) < 1e-12


def test_the_published_table_equals_a_loop_over_its_86_labels() -> None:
    labels = blocks(1, (40, 36, 44), 5, 87)
    found = regional_features(labels)
    volumes, ratios = looped(labels, PUBLISHED)
    np.testing.assert_array_equal(found.relational_volume, volumes)
    np.testing.assert_array_equal(found.surface_ratio, ratios)
    assert len(np.unique(labels)) == 88
    assert len(set(found.surface_ratio)) > 60
    assert found.vector().shape == (172,)
    np.testing.assert_array_equal(found.vector(), [*volumes, *ratios])
    assert found.columns()[82:84] == ("relational volume of label 83", "relational volume of label 85")
    assert found.columns()[171] == "surface ratio of label 87"


def test_ignored_labels_are_background() -> None:
    labels = blocks(2, (24, 24, 24), 6, 87)
    assert (labels == 84).any()
    assert_same(regional_features(labels), regional_features(np.where(labels == 84, 0, labels)))


def test_a_region_without_voxels_has_no_volume_and_no_ratio() -> None:
    found = regional_features(np.full((4, 4, 4), 2, np.uint8), Regions((1, 2, 9), names=("a", "b", "c")))
    np.testing.assert_array_equal(found.relational_volume, [0, 1, 0])
    np.testing.assert_array_equal(found.surface_ratio, [np.nan, 56 / 64, np.nan])
    assert found.columns()[3] == "surface ratio of a"


# ----------------------------------------------------------------------- what features must not see


def test_the_order_of_the_table_orders_the_features_and_nothing_else() -> None:
    labels = blocks(3, (15, 14, 13), 5, 4)
    found = regional_features(labels, Regions((3, 1, 4, 2), names=("c", "a", "d", "b")))
    plain = regional_features(labels, Regions((1, 2, 3, 4), names=("a", "b", "c", "d")))
    for values, others in [
        (found.relational_volume, plain.relational_volume),
        (found.surface_ratio, plain.surface_ratio),
    ]:
        assert len(set(others)) == 4
        assert dict(zip(found.names, values, strict=True)) == dict(zip(plain.names, others, strict=True))


def test_the_numbers_of_labels_are_only_names() -> None:
    labels = blocks(4, (15, 14, 13), 5, 4)
    ids = np.array([0, 2**62, 5, 70_000, 11])
    found = regional_features(ids[labels], Regions(tuple(int(i) for i in ids[1:])))
    plain = regional_features(labels, FOUR)
    np.testing.assert_array_equal(found.vector(), plain.vector())


def test_flips_and_permutations_of_the_axes_change_nothing() -> None:
    labels = blocks(5, (12, 15, 10), 4, 4)
    expected = regional_features(labels, FOUR)
    for axes in itertools.permutations(range(3)):
        for steps in itertools.product((1, -1), repeat=3):
            turned = labels.transpose(axes)[tuple(slice(None, None, step) for step in steps)]
            assert_same(regional_features(turned, FOUR), expected)
            assert_same(regional_features(np.asfortranarray(turned), FOUR), expected)


@pytest.mark.parametrize("dtype", ["i1", "u2", ">i2", "i4", "u8", "<f4", ">f8"])
def test_every_type_of_whole_numbers_is_read(dtype: str) -> None:
    labels = blocks(6, (9, 10, 11), 4, 4)
    given = labels.astype(dtype)
    given.setflags(write=False)
    assert_same(regional_features(given, FOUR), regional_features(labels, FOUR))


def test_a_mask_is_a_volume_of_one_label() -> None:
    mask = blocks(7, (9, 9, 9), 4, 1) > 0
    assert_same(regional_features(mask, Regions((1,))), regional_features(mask.astype(int), Regions((1,))))


# ------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.ones((4, 4)), r"^a label volume has 3 dimensions, not 2 \(4 × 4\)$"),
        (np.ones((4, 4, 4, 1)), "not 4"),
        (np.ones((0, 4, 4), int), "no voxel"),
        (np.full((3, 3, 3), 1.5), "whole numbers below .* float64 are not$"),
        (np.full((3, 3, 3), np.nan), "whole numbers"),
        (np.full((3, 3, 3), np.inf), "whole numbers"),
        (np.full((3, 3, 3), 2**63, np.uint64), "whole numbers below"),
        (np.full((3, 3, 3), 1 + 0j), "not complex128"),
        (np.full((3, 3, 3), "1"), "whole numbers, not <U1"),
        (np.full((3, 3, 3), -2), "^labels must be at least 0, not -2$"),
        (np.full((3, 3, 3), -2.0, np.float32), "at least 0, not -2"),
        (np.zeros((3, 3, 3), int), "^none of the 4 regions has a voxel"),
        (np.arange(27).reshape(3, 3, 3), "neither as counted nor as ignored: 5, 6, 7, 8, 9 and 17 more$"),
        (np.full((3, 3, 3), 88), "ignored: 88$"),
    ],
)
def test_what_is_no_label_volume_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        regional_features(labels, FOUR)
    assert "\n" not in str(caught.value)


def test_a_label_between_those_of_the_table_is_refused_too() -> None:
    labels = np.array([1, 3, 4, 7, 0, 1]).reshape(1, 2, 3)
    with pytest.raises(ValueError, match=r"ignored: 3$"):
        regional_features(labels, Regions((1, 7), ignored=(4,)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": ()}, "at least one"),
        ({"ids": (0, 1)}, "not 0"),
        ({"ids": (1, 2**63)}, "not 9223372036854775808"),
        ({"ids": (1, 2, 1)}, "twice .*: 1$"),
        ({"ids": (1, 2), "ignored": (2,)}, "twice .*: 2$"),
        ({"ids": (1, 2), "names": ("a",)}, "1 names for 2 regions"),
        ({"ids": (1, 2), "names": ("a", "a")}, "share a name: 'a'"),
    ],
)
def test_what_is_no_table_of_regions_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regions(**arguments)


def test_the_published_table_leaves_out_84() -> None:
    assert len(PUBLISHED.ids) == 86
    assert {*PUBLISHED.ids, *PUBLISHED.ignored} == set(range(1, 88))
    assert PUBLISHED.ignored == (84,)


def test_voxels_that_are_no_cubes_are_refused() -> None:
    labels = blocks(8, (9, 9, 9), 4, 4)
    plain = regional_features(labels, FOUR)
    assert plain.spacing is None
    even = regional_features(labels, FOUR, (0.5, 0.5, 0.50001))
    assert even.spacing == (0.5, 0.5, 0.50001)
    assert_same(even, plain)
    with pytest.raises(ValueError, match=r"^voxels of 1 × 1 × 3 mm are no cubes: resample the labels$"):
        regional_features(labels, FOUR, (1, 1, 3))
    for wrong in [(1, 1), (1, 1, 0), (1, -1, 1), (1, 1, np.nan)]:
        with pytest.raises(ValueError, match="three sizes in mm above 0"):
            regional_features(labels, FOUR, wrong)

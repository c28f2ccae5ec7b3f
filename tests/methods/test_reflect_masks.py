"""REFLECT's corruption: filled random walks inside the brain, what they are filled with, and how strongly."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch.nn import functional as F

from harness.api import MethodError
from methods.anomaly.reflect.pairs import brain_cells, corrupt, region_counts
from methods.anomaly.reflect.settings import Corruption
from methods.anomaly.reflect.walks import _walk_all, draw_regions, walk_lengths

EVERYWHERE = 8


def ellipse(side: int = 32, cells: float = 360) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    long = np.sqrt(1.2 * cells / np.pi)
    return (rows / long) ** 2 + (1.2 * columns / long) ** 2 <= 1


def brains(n: int, brain: np.ndarray) -> np.ndarray:
    return np.broadcast_to(brain, (n, *brain.shape))


def settings(**changes: Any) -> Corruption:
    return Corruption.model_validate(changes)


def walked(
    walks: list[list[tuple[int, int]]],
    starts: list[tuple[int, int]],
    filled: bool = True,
    brain: np.ndarray | None = None,
) -> np.ndarray:
    """Regions [h, w] of given walks, each a list of moves (down, right), in one slice."""
    brain = np.ones((EVERYWHERE, EVERYWHERE), bool) if brain is None else brain
    labels = np.zeros((1, *brain.shape), np.uint8)
    moves = np.array([move for walk in walks for move in walk], np.int8).reshape(-1, 2)
    first = np.array([row * brain.shape[1] + column for row, column in starts])
    lengths = np.array([len(walk) for walk in walks])
    numbers = np.arange(len(walks)) + 1
    _walk_all(labels, brain[None], np.zeros(len(walks), np.int64), numbers, lengths, first, moves, filled)
    return labels[0]


def picture(text: str) -> np.ndarray:
    return np.array([[int(cell) for cell in row] for row in text.split()], np.uint8)


RIGHT, DOWN, LEFT, UP = [(0, 1)], [(1, 0)], [(0, -1)], [(-1, 0)]
RING = 3 * RIGHT + 3 * DOWN + 3 * LEFT + 3 * UP


# ---------------------------------------------------------------------------------------- filling by hand


def test_a_closed_path_is_filled() -> None:
    expected = np.zeros((EVERYWHERE, EVERYWHERE), np.uint8)
    expected[2:6, 1:5] = 1
    assert (walked([RING], [(2, 1)]) == expected).all()
    assert (walked([RING[:-1]], [(2, 1)]) == expected).all(), "the closing edge closes it"
    expected[3:5, 2:4] = 0
    assert (walked([RING], [(2, 1)], filled=False) == expected).all()


def test_what_is_encircled_twice_is_empty() -> None:
    assert (walked([RING + RING], [(2, 1)]) == walked([RING], [(2, 1)], filled=False)).all()


def test_the_closing_edge_is_drawn() -> None:
    brain = np.ones((5, 8), bool)
    path = 6 * RIGHT + 3 * DOWN
    assert (walked([path], [(0, 0)], brain=brain) == picture("11111110 01111110 00011110 00000110 00000000")).all()
    assert walked([path], [(0, 0)], filled=False, brain=brain).sum() == 10


def test_a_walk_that_does_not_move_is_a_cell() -> None:
    for filled in (True, False):
        assert walked([[]], [(3, 4)], filled).sum() == 1
        assert walked([[(0, 0)] * 5], [(3, 4)], filled)[3, 4] == 1


def test_earlier_regions_win_overlaps() -> None:
    found = walked([RING, RING], [(2, 1), (3, 2)])
    assert (found[2:6, 1:5] == 1).all()
    assert (found == 2).sum() == 16 - 9
    assert found[6, 5] == 2


def test_moves_out_of_the_brain_are_not_made() -> None:
    brain = np.zeros((EVERYWHERE, EVERYWHERE), bool)
    brain[2, :] = True
    found = walked([DOWN + RIGHT + UP + [(1, 1)] + RIGHT], [(2, 3)], brain=brain)
    assert np.flatnonzero(found.ravel()).tolist() == [2 * EVERYWHERE + column for column in (3, 4, 5)]
    assert walked([10 * LEFT], [(2, 2)], brain=brain).sum() == 3, "nor out of the grid"


def odd_even(vertices: list[tuple[int, int]], point: tuple[int, int]) -> bool:
    """Whether a ray from the point upwards, a little aslant, crosses the polygon an odd number of times."""
    row, column = point[0], point[1] + 1e-4
    inside = False
    for (r0, c0), (r1, c1) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        if (c0 > column) != (c1 > column):
            inside ^= r0 + (column - c0) * (r1 - r0) / (c1 - c0) < row
    return inside


@pytest.mark.parametrize("seed", range(12))
def test_any_path_is_filled_by_the_odd_even_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    side = 16
    moves = [(int(down), int(right)) for down, right in rng.integers(-1, 2, size=(int(rng.integers(5, 90)), 2))]
    place = (int(rng.integers(side)), int(rng.integers(side)))
    start, vertices = place, [place]
    for down, right in moves:
        row, column = place[0] + down, place[1] + right
        if 0 <= row < side and 0 <= column < side:
            place = row, column
            vertices.append(place)
    found = walked([moves], [start], brain=np.ones((side, side), bool)) > 0
    path = np.zeros_like(found)
    path[tuple(np.transpose(vertices))] = True
    assert found[path].all()
    # The closing edge passes within half a cell of the cells that are drawn for it.
    first, last = np.array(vertices[0], float), np.array(vertices[-1], float)
    cells = np.stack(np.mgrid[:side, :side], -1) - first
    length = max(1e-9, float(((last - first) ** 2).sum()))
    along = np.clip(cells @ (last - first) / length, 0, 1)
    near = np.abs(cells - along[..., None] * (last - first)).max(-1) <= 0.5 + 1e-9
    for row, column in np.argwhere(~path & ~near):
        assert found[row, column] == odd_even(vertices, (int(row), int(column))), (row, column)


# --------------------------------------------------------------------------------------------- statistics


def test_an_ellipse_of_360_cells_is_corrupted_as_published() -> None:
    """Reference figures: mean steps 46, mean region 28 cells, median 23, 14 % of the brain, 95th percentile 27.5 %."""
    brain, corruption, rng = ellipse(), settings(), np.random.default_rng(0)
    assert abs(brain.sum() - 360) <= 8
    counts = region_counts(4000, settings(identity=0), rng)
    regions = draw_regions(brains(4000, brain), counts, corruption, rng)
    covered = (regions > 0).sum((1, 2)) / brain.sum()
    assert covered.mean() == pytest.approx(0.14, abs=0.01)
    assert np.percentile(covered, 95) == pytest.approx(0.275, abs=0.015)
    steps = walk_lengths(counts.repeat(counts), 32 * 32, corruption, rng)
    assert steps.mean() == pytest.approx(46, abs=2)
    # Sizes before overlaps: the first region of each slice, which no other takes cells from, over all counts alike.
    first = [(regions[counts == k] == 1).sum((1, 2)) for k in (1, 2, 3, 4)]
    sizes = np.concatenate([sizes[:450] for sizes in first])
    assert min(len(each) for each in first) >= 450
    assert sizes.mean() == pytest.approx(28, abs=2)
    assert np.median(sizes) == pytest.approx(23, abs=2)
    assert 120 <= sizes.max() <= 260


def test_finer_latents_are_corrupted_in_about_the_same_shares() -> None:
    rng, shares = np.random.default_rng(0), []
    for side in (32, 64):
        brain = ellipse(side, 360 * (side / 32) ** 2)
        counts = region_counts(1500, settings(identity=0), rng)
        regions = draw_regions(brains(1500, brain), counts, settings(), rng)
        shares.append((regions > 0).sum((1, 2)).mean() / brain.sum())
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


def test_lengths_decline_linearly() -> None:
    rng, many = np.random.default_rng(0), 200_000
    for count, longest in ((1, 200), (4, 80)):
        lengths = walk_lengths(np.full(many, count), 32 * 32, settings(), rng)
        assert lengths.max() == longest - 1
        assert lengths.mean() / longest == pytest.approx(0.36, abs=0.01)
        early, late = (np.isin(lengths, range(*ends)).mean() for ends in ((0, 8), (longest - 8, longest)))
        assert 6 < early / late < 9.5  # ten times at the very ends
    assert walk_lengths(np.full(many, 1), 64 * 64, settings(), rng).max() == 799
    flat = walk_lengths(np.full(many, 1), 32 * 32, settings(decline=1), rng)
    assert flat.mean() == pytest.approx(99.5, abs=0.5)


def test_numbers_of_regions() -> None:
    rng, many = np.random.default_rng(0), 100_000
    counts = region_counts(many, settings(), rng)
    shares = np.bincount(counts, minlength=5) / many
    np.testing.assert_allclose(shares, [0.1, 0.432, 0.216, 0.144, 0.108], atol=0.005)
    uniform = region_counts(many, settings(identity=0, region_counts="uniform", longest=(9, 9, 9)), rng)
    np.testing.assert_allclose(np.bincount(uniform) / many, [0, 1 / 3, 1 / 3, 1 / 3], atol=0.006)


def test_starts_are_spread_over_the_brain() -> None:
    brain = np.zeros((4, 5), bool)
    brain[[0, 1, 3], [4, 0, 2]] = True
    found = draw_regions(brains(9000, brain), np.ones(9000, int), settings(longest=(1,)), np.random.default_rng(0))
    np.testing.assert_allclose(found.mean(0)[brain], 1 / 3, atol=0.02)


@pytest.mark.parametrize("walk", ["polygon", "visited"])
def test_regions_stay_inside_any_brain(walk: str) -> None:
    rng = np.random.default_rng(0)
    ring = ellipse() & ~ellipse(cells=120)
    split = ellipse().copy()
    split[:, 15:17] = False
    empty = np.zeros_like(ring)
    brain = np.stack([ring, split, empty] * 200)
    regions = draw_regions(brain, np.full(600, 4), settings(walk=walk), rng)
    assert not regions[~brain].any()
    assert not regions[2::3].any()
    assert (regions[0::3] > 0).any((1, 2)).all()
    if walk == "visited":  # a walk never jumps, so what the first region has lies in one piece
        pieces = [ndimage.label(region == 1, np.ones((3, 3)))[1] for region in regions[1::3]]
        assert set(pieces) == {1}


def test_a_filled_walk_has_more_cells_than_its_path() -> None:
    shapes = [
        draw_regions(brains(500, ellipse()), np.ones(500, int), settings(walk=walk), np.random.default_rng(3)) > 0
        for walk in ("polygon", "visited")
    ]
    assert (shapes[0] >= shapes[1]).all(), "the same draws, whatever becomes of them"
    assert shapes[0].sum() > 1.1 * shapes[1].sum()


def test_thousands_of_masks_a_second() -> None:
    brain, rng = brains(1000, ellipse()), np.random.default_rng(0)
    counts = region_counts(1000, settings(), rng)
    draw_regions(brain, counts, settings(), rng)
    started = time.process_time()
    draw_regions(brain, counts, settings(), rng)
    assert time.process_time() - started < 0.3


# ------------------------------------------------------------------------------------------ brain cells


@pytest.mark.parametrize("factor", [1, 2, 3, 4, 8])
def test_brain_cells_are_those_of_a_bilinear_resize(factor: int) -> None:
    masks = np.random.default_rng(0).random((5, 6 * factor, 4 * factor)) < 0.2
    resized = F.interpolate(torch.from_numpy(masks).float()[:, None], (6, 4), mode="bilinear", align_corners=False)
    assert (brain_cells(masks, (6, 4)) == (resized[:, 0] > 0).numpy()).all()


# ------------------------------------------------------------------------------------------------ pairs


def healthy(n: int = 64, channels: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, channels, 32, 32), np.float32)


def flat_textures(value: float = 0.0, channels: int = 4, side: int = 40) -> np.ndarray:
    return np.full((3, channels, side, side), value, np.float16)


def test_corrupted_latents_keep_unit_variance() -> None:
    clean, brain = healthy(400), brains(400, ellipse())
    textures = np.random.default_rng(5).standard_normal((50, 4, 40, 40)).astype(np.float16)
    corruption = settings(identity=0)
    corrupted = corrupt(clean, brain, textures, corruption, np.random.default_rng(1))
    changed = (corrupted != clean).all(1)
    assert changed.sum() > 10_000
    values = corrupted.transpose(0, 2, 3, 1)[changed]
    assert values.std() == pytest.approx(1, abs=0.04)
    assert values.mean() == pytest.approx(0, abs=0.05)
    assert corrupted.dtype == np.float32


def test_nothing_changes_outside_regions_and_in_pairs_of_equals() -> None:
    clean, brain = healthy(200), brains(200, ellipse())
    corrupted = corrupt(clean, brain, flat_textures(), settings(), np.random.default_rng(1))
    assert (corrupted[:, :, ~ellipse()] == clean[:, :, ~ellipse()]).all()
    same = (corrupted == clean).all((1, 2, 3)).mean()
    assert 0.04 < same < 0.17
    untouched = corrupt(clean, brain, flat_textures(), settings(identity=1), np.random.default_rng(1))
    assert (untouched == clean).all()
    assert (
        corrupt(clean, brain, None, settings(severity=(0, 0), texture_probability=0), np.random.default_rng(1)) == clean
    ).all()


def test_severity_is_one_share_for_each_region() -> None:
    """Filled with zeros, a region is √(1 − α) of what was there."""
    clean, brain = np.ones((300, 4, 32, 32), np.float32), brains(300, ellipse())
    corruption = settings(identity=0, texture_probability=1)
    corrupted = corrupt(clean, brain, flat_textures(), corruption, np.random.default_rng(1))
    severities = 1 - corrupted.astype(np.float64) ** 2
    found = [np.unique(each[each > 1e-6].round(4)) for each in severities]
    assert max(len(each) for each in found) == 4
    values = np.concatenate(found)
    assert values.min() >= 0.2 - 1e-3
    assert values.max() <= 1
    assert values.mean() == pytest.approx(0.6, abs=0.03)
    full = corrupt(
        clean,
        brain,
        flat_textures(0.5),
        corruption.model_copy(update={"severity": (1.0, 1.0)}),
        np.random.default_rng(1),
    )
    assert set(np.unique(full)) == {0.5, 1.0}


def test_textures_are_pieces_of_one_picture() -> None:
    """Each number of a texture tells its picture, channel, row and column."""
    picture, channel, row, column = np.mgrid[:5, :2, :40, :44]
    textures = (picture * 1_000_000 + channel * 100_000 + row * 100 + column + 1).astype(np.float32)
    corruption = settings(identity=0, texture_probability=1, severity=(1, 1), longest=(200,))
    clean, brain = np.zeros((400, 2, 32, 32), np.float32), brains(400, ellipse())
    corrupted = corrupt(clean, brain, textures, corruption, np.random.default_rng(1))
    seen = set()
    for image in corrupted:
        rows, columns = np.nonzero(image[0])
        assert (np.count_nonzero(image, axis=(1, 2)) == len(rows)).all()
        codes = image[:, rows, columns].astype(np.int64) - 1
        offsets = codes[0] - rows * 100 - columns
        assert len(set(offsets)) == 1
        assert (codes[1] - codes[0] == 100_000).all()
        which, offset = divmod(int(offsets[0]), 1_000_000)
        seen.add((which, *divmod(offset, 100)))
    assert {which for which, _, _ in seen} == set(range(5))
    assert {top for _, top, _ in seen} == set(range(9))
    assert {left for _, _, left in seen} == set(range(13))


def test_noise_has_a_common_part_in_each_channel() -> None:
    """√b·q + √(1 − b)·p: unit variance in all, of which b = 1/2 in the mean is the region's own."""
    corruption = settings(identity=0, texture_probability=0, severity=(1, 1), longest=(400,), decline=1)
    clean, brain = np.zeros((1500, 3, 32, 32), np.float32), brains(1500, ellipse())
    corrupted = corrupt(clean, brain, None, corruption, np.random.default_rng(1))
    inside = corrupted != 0
    sizes = inside.sum((2, 3))
    large = sizes[:, 0] > 40
    means = corrupted.sum((2, 3))[large] / sizes[large]
    within = (corrupted**2).sum((2, 3))[large] / sizes[large] - means**2
    assert means.var() == pytest.approx(0.5, abs=0.06)
    assert within.mean() == pytest.approx(0.5, abs=0.04)
    assert abs(np.corrcoef(means.T)[0, 1]) < 0.1, "q is drawn for each channel"
    assert np.corrcoef(within.T)[0, 1] > 0.8, "b is drawn once for all"


def test_half_of_the_regions_have_a_texture() -> None:
    corruption = settings(identity=0, severity=(1, 1), longest=(200,))
    clean, brain = np.zeros((2000, 4, 32, 32), np.float32), brains(2000, ellipse())
    corrupted = corrupt(clean, brain, flat_textures(7), corruption, np.random.default_rng(1))
    assert (corrupted == 7).any((1, 2, 3)).mean() == pytest.approx(0.5, abs=0.04)


def test_the_same_generator_gives_the_same_pairs() -> None:
    clean, brain = healthy(20), brains(20, ellipse())
    first, second, other = (
        corrupt(clean, brain, flat_textures(), settings(), np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert (first == second).all()
    assert (first != other).any()


def test_what_does_not_fit_is_named() -> None:
    clean, brain, rng = healthy(20), brains(20, ellipse()), np.random.default_rng(0)
    with pytest.raises(MethodError, match=r"textures of 4 × 30 × 40 latent numbers do not cover slices of 4 × 32 × 32"):
        corrupt(clean, brain, np.zeros((2, 4, 30, 40), np.float16), settings(), rng)
    with pytest.raises(MethodError, match="do not cover"):
        corrupt(clean, brain, flat_textures(channels=3), settings(), rng)
    with pytest.raises(MethodError, match="set texture_probability to 0"):
        corrupt(clean, brain, None, settings(), rng)


@pytest.mark.parametrize(
    "wrong", [{"severity": (0.5, 0.2)}, {"severity": (0, 1.5)}, {"longest": ()}, {"longest": (0,)}, {"walk": "line"}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)

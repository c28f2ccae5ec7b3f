"""Simplex noise: its formula point by point, and what was measured of the published fields."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from methods.anomaly.components.simplex import DEPTH, GRADIENTS_2, GRADIENTS_3, HASHED, Fields, Simplex, simplex_field


def drawn(n: int, side: int, settings: Simplex, seed: int = 0) -> np.ndarray:
    """Fields in which the brain would lie, [n, side, side]."""
    rng = np.random.default_rng(seed)
    return np.stack([simplex_field(rng, side, side, settings) for _ in range(n)])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def by_definition(point: tuple[float, ...], permutation: np.ndarray) -> float:
    """One scale at one point: every lattice point around it, its distance, its gradient's slope."""
    dimensions = len(point)
    gradients, top = (GRADIENTS_2, 47.0) if dimensions == 2 else (GRADIENTS_3, 103.0)
    squish = (math.sqrt(dimensions + 1) - 1) / dimensions
    stretch = (1 / math.sqrt(dimensions + 1) - 1) / dimensions
    corner = [math.floor(value + stretch * sum(point)) for value in point]
    total = 0.0
    for offset in itertools.product(range(-2, 4), repeat=dimensions):
        lattice = [base + step for base, step in zip(corner, offset, strict=True)]
        apart = np.array(point) - (np.array(lattice) + squish * sum(lattice))
        left = 2 - float(apart @ apart)
        if left > 0:
            hashed = 0
            for index in lattice:
                hashed = int(permutation[(hashed + index) & 255])
            total += left**4 * float(gradients[hashed % len(gradients)] @ apart)
    return total / top


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_field_is_the_sum_of_its_scales(dimensions: int) -> None:
    settings = Simplex(dimensions=dimensions, frequency=6.0, octaves=3, persistence=0.5)  # type: ignore[arg-type]
    field = simplex_field(np.random.default_rng(5), 7, 11, settings)
    rng = np.random.default_rng(5)
    permutation, depth = rng.permutation(HASHED), float(rng.integers(DEPTH))
    for row, column in [(0, 0), (0, 10), (6, 0), (3, 5), (6, 10)]:
        wanted = 0.0
        for octave in range(3):
            place = (column, row, depth)[:dimensions]
            point = tuple(value * 2**octave / 6.0 for value in place)
            wanted += 0.5**octave * by_definition(point, permutation)
        assert field[row, column] == pytest.approx(wanted, abs=1e-6)


def test_gradients_are_the_published_ones() -> None:
    assert len({tuple(g) for g in GRADIENTS_2}) == 8
    assert len({tuple(g) for g in GRADIENTS_3}) == 24
    assert set(np.abs(GRADIENTS_3).sum(1)) == {19.0}


@pytest.mark.parametrize(("side", "fields", "mean_spread"), [(64, 120, 0.22), (128, 60, 0.16), (256, 30, 0.06)])
def test_published_fields_have_the_measured_statistics(side: int, fields: int, mean_spread: float) -> None:
    noise = drawn(fields, side, Simplex())
    assert np.sqrt((noise**2).mean()) == pytest.approx(0.5, abs=0.1)
    assert 1.6 < np.abs(noise).max() < 2.6
    assert correlation(noise[:, 1:], noise[:, :-1]) > 0.9
    assert correlation(noise[:, :, 1:], noise[:, :, :-1]) == pytest.approx(0.96, abs=0.01)
    assert noise.mean((1, 2)).std() == pytest.approx(mean_spread, rel=0.35)


def test_neighbouring_pixels_of_the_plane_correlate_too() -> None:
    noise = drawn(40, 96, Simplex(dimensions=2))
    assert np.sqrt((noise**2).mean()) == pytest.approx(0.6, abs=0.1)
    assert correlation(noise[:, :, 1:], noise[:, :, :-1]) > 0.9


def test_a_seed_gives_one_field_and_a_batch_has_different_ones() -> None:
    settings = Simplex()
    same = [simplex_field(np.random.default_rng(3), 32, 48, settings) for _ in range(2)]
    assert same[0].dtype == np.float32
    assert np.array_equal(*same)
    batch = Fields(settings, 64, 64, seed=0).batch(np.random.default_rng(0), 16).numpy()
    assert batch.shape == (16, 1, 64, 64)
    # Few scales span a slice of 64, so that two fields may be alike by chance, but never equal.
    apart = [np.abs(a - b).mean() for a, b in itertools.combinations(batch, 2)]
    assert min(apart) > 0.2


def test_rescaled_noise_lies_on_the_anatomy_as_the_published_does() -> None:
    small = Simplex(dimensions=2, scaled=True)
    assert small.scales(64) == (16.0, 4)
    assert small.scales(256) == (64.0, 6)
    assert Simplex().scales(64) == (64.0, 6)
    full = simplex_field(np.random.default_rng(1), 256, 256, Simplex(dimensions=2, octaves=4))
    assert np.allclose(simplex_field(np.random.default_rng(1), 64, 64, small), full[::4, ::4], atol=1e-6)


def test_a_pool_holds_fields_like_new_ones() -> None:
    settings = Simplex(pool=40)
    fields, again = (Fields(settings, 64, 64, seed=7) for _ in range(2))
    noise = fields.batch(np.random.default_rng(0), 120).numpy()[:, 0]
    assert np.array_equal(noise, again.batch(np.random.default_rng(0), 120).numpy()[:, 0])
    assert np.sqrt((noise**2).mean()) == pytest.approx(0.5, abs=0.1)
    assert correlation(noise[:, :, 1:], noise[:, :, :-1]) > 0.9
    pooled = {np.sort(np.abs(field).ravel())[::512].tobytes() for field in fields.pool}
    assert {np.sort(np.abs(field).ravel())[::512].tobytes() for field in noise} <= pooled
    assert len({field.tobytes() for field in noise}) > 60  # mirrored and negated
    assert settings.deviations() == ("simplex fields of the training drawn from 40",)
    assert Simplex().deviations() == ()


def test_a_draw_leaves_the_pool_as_it_was() -> None:
    fields = Fields(Simplex(pool=2), 16, 16, seed=0)
    before = [field.copy() for field in fields.pool]
    rng = np.random.default_rng(0)
    for _ in range(8):
        fields.draw(rng).fill(0)
    assert all(np.array_equal(a, b) for a, b in zip(before, fields.pool, strict=True))

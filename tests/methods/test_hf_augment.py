"""Augmentation of Harmonizing Flows: curves, photometric tables, warps, and when a slice is far enough."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from methods.harmonization.harmonizing_flows.augment import (
    apply_tables,
    far_enough,
    random_curves,
    random_photometric,
    random_tables,
    random_warps,
    warp,
)
from methods.harmonization.harmonizing_flows.learning import _with_negatives, guided_batch
from methods.harmonization.harmonizing_flows.settings import (
    Geometry,
    Guidance,
    GuidanceAugmentation,
    IntensityAugmentation,
)

LEVELS = np.arange(256)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def slices(n: int = 4, size: int = 16) -> tuple[Tensor, Tensor]:
    """Whole grey levels and a brain mask, [n, 1, size, size]."""
    draws = rng(9)
    mask = np.zeros((n, 1, size, size), np.float32)
    mask[:, :, 4:12, 3:13] = 1
    pixels = draws.integers(1, 256, mask.shape).astype(np.float32) * mask
    return torch.from_numpy(pixels), torch.from_numpy(mask)


# ------------------------------------------------------------------------------------------- curves


def test_curves_rise_between_fixed_ends_in_whole_levels() -> None:
    curves = random_curves(rng(), 200)
    assert curves.shape == (200, 256)
    assert (np.diff(curves) >= 0).all()
    assert (curves[:, 0] == 0).all()
    assert (curves[:, 255] <= 255).all()
    assert (curves[:, 255] > 240).all()  # 256 ↦ 255 lies one level further
    assert np.array_equal(curves, np.rint(curves))


def test_midpoints_stay_off_their_neighbours_by_a_fifth_of_the_gap() -> None:
    curves = random_curves(rng(), 2000)
    middle, quarter = curves[:, 128], curves[:, 64]
    assert middle.min() == 51
    assert middle.max() == 204
    assert (quarter >= 0.2 * middle - 0.5).all()
    assert (quarter <= 0.8 * middle + 0.5).all()
    assert np.ptp(quarter / middle) > 0.5


# --------------------------------------------------------------------------------------- photometric


def photometric(**changes: Any) -> np.ndarray:
    """One table with every operation certain, and neutral unless changed."""
    neutral = {"probability": 1, "shift": (0, 0), "factor": (1, 1), "gamma": (1, 1)}
    return random_photometric(rng(), 1, IntensityAugmentation(**{**neutral, **changes}))[0]


def test_photometric_operations_by_hand() -> None:
    assert np.array_equal(photometric(), LEVELS)
    assert np.array_equal(photometric(shift=(30, 30)), np.minimum(LEVELS + 30, 255))
    assert np.array_equal(photometric(shift=(-30, -30)), np.maximum(LEVELS - 30, 0))
    assert np.array_equal(photometric(factor=(2, 2)), np.minimum(2 * LEVELS, 255))
    assert np.array_equal(photometric(gamma=(0.5, 0.5)), np.rint(255 * np.sqrt(LEVELS / 255)))


def test_photometric_operations_add_then_multiply_then_gamma_and_clip_between() -> None:
    table = photometric(shift=(-30, -30), factor=(2, 2), gamma=(1.5, 1.5))
    expected = np.clip(2 * np.clip(LEVELS - 30, 0, 255), 0, 255)
    assert np.array_equal(table, np.rint(255 * (expected / 255) ** 1.5))


def test_each_operation_has_its_own_coin() -> None:
    settings = IntensityAugmentation(probability=0.75, shift=(10, 10), factor=(1, 1), gamma=(0.5, 0.5))
    tables = random_photometric(rng(), 2000, settings)
    neither = (tables == LEVELS).all(1).mean()
    only_shift = (tables == np.minimum(LEVELS + 10, 255)).all(1).mean()
    assert neither == pytest.approx(0.0625, abs=0.02)
    assert only_shift == pytest.approx(0.1875, abs=0.03)


# ------------------------------------------------------------------------------------------- the mix


def test_the_mix_of_kinds() -> None:
    """A shift of zero makes photometric tables the identity, and "both" a curve; no curve is the identity."""
    neutral = {"probability": 1, "shift": (0, 0), "factor": (1, 1), "gamma": (1, 1)}
    share = (random_tables(rng(), 3000, IntensityAugmentation(**neutral)) == LEVELS).all(1).mean()
    assert share == pytest.approx(0.4, abs=0.03)
    share = (random_tables(rng(), 3000, GuidanceAugmentation(**neutral)) == LEVELS).all(1).mean()
    assert share == pytest.approx(0.5, abs=0.03)


def test_both_is_photometric_then_curve() -> None:
    settings = IntensityAugmentation(lut=0, photometric=0, both=1, probability=1, shift=(30, 30), factor=(1, 1))
    tables = random_tables(rng(1), 50, settings.model_copy(update={"gamma": (1, 1)}))
    assert (tables[:, 0] > 0).all()  # the curve alone would keep 0 at 0
    assert (tables[:, 225:] == tables[:, 225:226]).all()  # the shift saturates before the curve
    assert (np.diff(tables) >= 0).all()


def test_published_ranges() -> None:
    harmonizer, guidance = IntensityAugmentation(), GuidanceAugmentation()
    assert (harmonizer.lut, harmonizer.photometric, harmonizer.both) == (0.4, 0.4, 0.2)
    assert (guidance.lut, guidance.photometric, guidance.both) == (0.5, 0.5, 0)
    assert (harmonizer.probability, guidance.probability) == (0.75, 0.6)
    assert (harmonizer.factor, guidance.factor) == ((0.5, 2), (0.5, 1.5))
    assert harmonizer.shift == guidance.shift == (-30, 30)
    assert harmonizer.gamma == guidance.gamma == (0.5, 1.5)


def test_tables_are_looked_up_exactly_and_interpolated_between_levels() -> None:
    tables = torch.from_numpy(random_tables(rng(), 2, IntensityAugmentation()))
    pixels = torch.arange(256.0).repeat(2, 1).view(2, 1, 16, 16)
    assert torch.equal(apply_tables(pixels, tables).flatten(1), tables)
    between = torch.full((2, 1, 1, 1), 99.25)
    expected = 0.75 * tables[:, 99] + 0.25 * tables[:, 100]
    assert torch.allclose(apply_tables(between, tables).flatten(), expected)


def test_draws_are_reproducible() -> None:
    for draw in (lambda g: random_tables(g, 5, IntensityAugmentation()), lambda g: random_warps(g, 5, Geometry())[1]):
        assert np.array_equal(draw(rng(3)), draw(rng(3)))
        assert not np.array_equal(draw(rng(3)), draw(rng(4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lut": 0, "photometric": 0, "both": 0}, "are all 0"),
        ({"gamma": (1.5, 0.5)}, "gamma must be"),
        ({"factor": (0, 1)}, "factor must be"),
    ],
)
def test_contradictory_ranges_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        IntensityAugmentation(**fields)
    with pytest.raises(ValidationError, match="scale must be"):
        Geometry(scale=(1.1, 0.9))


# --------------------------------------------------------------------------------------- far enough


def test_mean_squares_over_the_brain() -> None:
    pixels, mask = slices()
    for distance, expected in ((10.0, False), (10.01, True)):
        moved = pixels + distance * mask
        assert far_enough(pixels, moved, mask, Guidance()).tolist() == [expected] * 4
    outside = pixels + 100 * (1 - mask)
    assert not far_enough(pixels, outside, mask, Guidance()).any()
    one = pixels.clone()
    one[2] += 11 * mask[2]
    assert far_enough(pixels, one, mask, Guidance()).tolist() == [False, False, True, False]
    assert not far_enough(pixels, one, mask, Guidance(threshold=150)).any()


def test_the_codes_rule_by_hand() -> None:
    pixels, mask = slices()
    guidance = Guidance(rule="code")
    brain = mask.bool()
    for scale in (0.05, 0.15, 0.4):
        difference = scale * (pixels - 100) * mask
        expected = [
            bool((d[b].abs().mean() + 2 * d[b].std(correction=0)) > 20) for d, b in zip(difference, brain, strict=True)
        ]
        assert far_enough(pixels, pixels + difference, mask, guidance).tolist() == expected
    assert not far_enough(pixels, pixels + 19.9 * mask, mask, guidance).any()
    assert far_enough(pixels, pixels + 20.1 * mask, mask, guidance).all()


@pytest.mark.parametrize("rule", ["mse", "code"])
def test_a_slice_without_brain_is_never_far(rule: Any) -> None:
    pixels, mask = slices()
    assert not far_enough(pixels, pixels + 200, mask * 0, Guidance(rule=rule)).any()


def test_negatives_are_accepted_only_if_far() -> None:
    pixels, mask = slices()
    tables = torch.stack([torch.arange(256.0), (torch.arange(256.0) + 40).clamp(max=255)] * 2)
    chosen = torch.tensor([True, True, False, False])
    x, label = guided_batch(pixels, mask, tables, chosen, Guidance())
    assert label.tolist() == [1, -1, 1, 1]  # not far; far; not chosen
    for i in (0, 2, 3):
        assert torch.equal(x[i], pixels[i])
    assert torch.equal(x[1], (pixels[1] + 40).clamp(max=255) * mask[1])


def test_validation_augments_every_fifth_slice_until_it_is_far() -> None:
    pixels, mask = slices(11)
    x, label = _with_negatives(pixels, mask, Guidance(), rng())
    assert label.tolist() == [-1, 1, 1, 1, 1, -1, 1, 1, 1, 1, -1]
    changed = (x != pixels).flatten(1).any(1)
    assert changed.tolist() == (label < 0).tolist()
    assert far_enough(pixels, x, mask, Guidance())[label < 0].all()
    assert (_with_negatives(pixels, mask, Guidance(enabled=False), rng())[1] == 1).all()
    assert (_with_negatives(pixels, mask, Guidance(threshold=1e9), rng())[1] == 1).all()


# ------------------------------------------------------------------------------------------- warps


def tensors(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def test_no_operation_leaves_a_slice_as_it_is() -> None:
    pixels, mask = slices()
    moved, brain = warp(pixels, mask, *tensors(*random_warps(rng(), 4, Geometry(probability=0))))
    assert torch.equal(moved, pixels)
    assert torch.equal(brain, mask)


def test_slices_and_masks_move_alike() -> None:
    _, mask = slices(size=32)
    mask = torch.nn.functional.interpolate(mask, size=(32, 32))
    pixels = 200 * mask
    moved, brain = warp(pixels, mask, *tensors(*random_warps(rng(), 4, Geometry(probability=1))))
    assert not torch.equal(brain, mask)
    assert set(brain.unique().tolist()) == {0, 1}
    assert not moved[brain == 0].any()
    assert (moved[brain == 1] >= 100).all()  # at least half of each is brain of level 200
    assert torch.equal(moved, moved.round())


def test_magnification_by_hand() -> None:
    settings = Geometry(probability=1, scale=(2, 2), shear_degrees=0, perspective=(0, 0), piecewise=(0, 0))
    matrices, nodes = random_warps(rng(), 1, settings)
    assert np.allclose(matrices[0], np.diag([0.25, 0.25, 1]))  # twice: for both axes, and for each
    assert not nodes.any()


def test_warps_stay_in_their_ranges() -> None:
    matrices, nodes = random_warps(rng(), 3000, Geometry(probability=1))
    diagonal = matrices[:, [0, 1], [0, 1]]
    assert (diagonal >= 1 / 1.21 - 1e-6).all()
    assert (diagonal <= 1 / 0.81 + 1e-6).all()
    assert np.abs(matrices[:, [0, 1], [1, 0]]).max() <= np.tan(np.radians(5)) + 1e-6
    assert 0.02 < matrices[:, 2, :2].std() < 0.05
    assert 0.02 < nodes.std() < 0.06
    assert nodes.shape == (3000, 2, 4, 4)

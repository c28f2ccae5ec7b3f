"""BigAug: how often each transform is applied, how strongly, on what units, and that labels move with pixels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.conformance import check_method
from methods.adaptation.bigaug import ALL, SPATIAL, BigAug, smooth, spline_weights

INTENSITY = tuple(name for name in ALL if name not in SPATIAL)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brains(n: int = 8, height: int = 64, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """(pixels, mask, labels): two tissues with some texture in an ellipse, frame to spare all round."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot((rows - height / 2) / (0.35 * height), (columns - width / 2) / (0.3 * width))
    labels = torch.from_numpy((inside < 1).astype(np.uint8) + (inside < 0.6)).expand(n, -1, -1).clone()
    texture = torch.rand(n, height, width, generator=generator(9)) * 0.1
    pixels = (torch.tensor([0.0, 0.35, 0.6])[labels.long()] + texture) * (labels > 0)
    return pixels[:, None], labels > 0, labels


def only(*names: str, **changes: Any) -> BigAug:
    return BigAug(transforms=names, probability=1, **changes)


def augmented(method: BigAug, n: int = 8, seed: int = 0, **shape: int) -> tuple[Tensor, Tensor]:
    pixels, labels = method.augment(*brains(n, **shape), generator(seed))
    assert labels is not None
    return pixels, labels


# ------------------------------------------------------------------------------------- how often


def test_probability_0_is_the_identity() -> None:
    pixels, mask, labels = brains()
    moved, moved_labels = BigAug(probability=0).augment(pixels, mask, labels, generator())
    assert torch.equal(moved, pixels)
    assert moved_labels is not None
    assert torch.equal(moved_labels, labels)


def test_each_transform_is_applied_to_half_of_the_slices() -> None:
    fired = BigAug()._fired(4000, generator())
    assert tuple(fired) == ALL
    rates = {name: coins.float().mean().item() for name, coins in fired.items()}
    assert all(abs(rate - 0.5) < 0.05 for rate in rates.values()), rates
    joint = torch.stack(list(fired.values())).float()
    assert (torch.corrcoef(joint) - torch.eye(9)).abs().max() < 0.06  # apart from each other


@pytest.mark.parametrize("name", ALL)
def test_slices_without_a_hit_stay_as_they_are(name: str) -> None:
    method = BigAug(transforms=(name,))
    pixels, _, _ = brains(64)
    moved, _ = augmented(method, 64)
    fired = method._fired(64, generator())[name]
    changed = (moved != pixels).flatten(1).any(1)
    assert torch.equal(changed, fired)
    assert 20 < changed.sum() < 44


def test_transforms_that_are_not_named_never_hit() -> None:
    fired = only("blur", "zoom")._fired(50, generator())
    assert {name for name, coins in fired.items() if coins.any()} == {"blur", "zoom"}


# --------------------------------------------------------------------------------- how strongly


def standardized(pixels: Tensor, mask: Tensor) -> Tensor:
    """Brain pixels [n, V] in units of the untouched slice's brain."""
    before, _, _ = brains(len(pixels))
    values = before[:, 0][mask].view(len(pixels), -1)
    mean, spread = values.mean(1, keepdim=True), values.std(1, keepdim=True, unbiased=False)
    return (pixels[:, 0][mask].view(len(pixels), -1) - mean) / spread


def test_brightness_is_in_units_of_the_brains_spread() -> None:
    _, mask, _ = brains(200)
    shift = standardized(augmented(only("brightness"), 200)[0], mask).mean(1)
    assert shift.abs().max() <= 0.1 + 1e-4
    assert shift.min() < -0.095
    assert shift.max() > 0.095


def test_noise_is_in_units_of_the_brains_spread() -> None:
    pixels, mask, _ = brains(200)
    moved, _ = augmented(only("noise", noise_sd=(0.1, 0.3)), 200)
    noise = standardized(moved, mask) - standardized(pixels, mask)
    sd = noise.std(1)
    assert 0.09 < sd.min() < 0.115
    assert 0.28 < sd.max() < 0.31
    assert noise.mean().abs() < 0.01


def test_perturbation_scales_about_the_brains_mean_and_shifts() -> None:
    _, mask, _ = brains(200)
    values = standardized(augmented(only("perturb"), 200)[0], mask)
    mean, spread = values.mean(1), values.std(1, unbiased=False)
    assert mean.abs().max() <= 0.1 + 1e-4
    assert 0.9 - 1e-4 <= spread.min() < 0.91
    assert 1.09 < spread.max() <= 1.1 + 1e-4


def test_gamma_keeps_the_ends_and_the_order() -> None:
    pixels, mask, _ = brains(200)
    moved, _ = augmented(only("gamma"), 200)
    before, after = pixels[:, 0][mask].view(200, -1), moved[:, 0][mask].view(200, -1)
    assert torch.allclose(before.amin(1), after.amin(1), atol=1e-5)
    assert torch.allclose(before.amax(1), after.amax(1), atol=1e-5)
    order = before.argsort(1)
    assert (after.gather(1, order).diff(dim=1) >= -1e-6).all()
    low, high = before.amin(1, keepdim=True), before.amax(1, keepdim=True)
    middle = ((before - low) / (high - low) - 0.5).abs().argmin(1, keepdim=True)
    at = lambda values: ((values - low) / (high - low)).gather(1, middle)[:, 0]  # noqa: E731
    gamma = at(after).log() / at(before).log()
    assert 0.5 - 1e-2 <= gamma.min() < 0.6
    assert 4.4 < gamma.max() <= 4.5 + 1e-2


def test_blur_takes_away_and_sharpen_adds_detail() -> None:
    pixels, mask, _ = brains(50)

    def detail(x: Tensor) -> Tensor:
        return (x.diff(dim=3) * mask[:, None, :, 1:] * mask[:, None, :, :-1]).abs().mean((1, 2, 3))

    assert (detail(augmented(only("blur"), 50)[0]) <= detail(pixels) + 1e-6).all()
    gain = detail(augmented(only("sharpen"), 50)[0]) / detail(pixels)
    assert (gain > 1.3).float().mean() > 0.6  # two wide kernels leave little to add
    assert gain.mean() > 2


def test_unsharp_masking_by_hand() -> None:
    pixels, mask, _ = brains(4)
    sigma = (0.8, 0.8)
    moved, _ = augmented(only("sharpen", sharpen_alpha=(2, 2), sharpen_sigma=sigma), 4)
    once = smooth(pixels, torch.full((4,), 0.8), 0.8, "replicate")
    expected = once + 2 * (once - smooth_masked(once, mask))
    inner = torch.from_numpy(erode(mask.numpy(), 8))[:, None]
    assert torch.allclose(moved[inner], expected.clamp(0, 1)[inner], atol=1e-5)


def smooth_masked(x: Tensor, mask: Tensor) -> Tensor:
    return smooth(x, torch.full((len(x),), 0.8), 0.8, "replicate")


def erode(mask: np.ndarray, steps: int) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return np.stack([binary_erosion(m, iterations=steps) for m in mask])


def test_smoothing_agrees_with_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    x = torch.rand(3, 2, 24, 20, generator=generator())
    sigma = torch.tensor([0.3, 1.0, 2.0])
    found = smooth(x, sigma, 2.0, "constant").numpy()
    for k in range(3):
        for c in range(2):
            expected = gaussian_filter(x[k, c].numpy(), sigma[k].item(), mode="constant", radius=6)
            assert np.abs(found[k, c] - expected).max() < 1e-5


def test_grey_levels_stay_within_bounds_and_background_0() -> None:
    for seed in range(6):
        pixels, labels = augmented(BigAug(), 16, seed)
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert torch.isfinite(pixels).all()
        assert not pixels[:, 0][labels == 0].any()


def test_a_slice_without_contrast_or_brain_keeps_its_intensities() -> None:
    pixels, mask, _ = brains(4)
    pixels[:2] = 0.5 * mask[:2, None]
    pixels[2:], mask[2:] = 0, False
    for name in INTENSITY:
        moved, labels = only(name).augment(pixels, mask, None, generator())
        assert torch.equal(moved, pixels), name
        assert labels is None
    assert torch.isfinite(BigAug(probability=1).augment(pixels, mask, None, generator())[0]).all()


# ------------------------------------------------------------------------------------------- space


@pytest.mark.parametrize("name", [*SPATIAL, "all", "control_points"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 96)])
def test_image_mask_and_labels_move_alike(name: str, height: int, width: int) -> None:
    """Pixels coded by the label: away from edges, what was moved bilinearly is what was moved as a label."""
    names = SPATIAL if name == "all" else ("elastic",) if name == "control_points" else (name,)
    method = only(*names, elastic="control_points" if name == "control_points" else "gaussian")
    _, mask, labels = brains(16, height, width)
    coded = labels[:, None].float() / 2
    moved, moved_labels = method.augment(coded, mask, labels, generator())
    assert moved_labels is not None
    assert moved_labels.dtype == torch.uint8
    assert set(moved_labels.unique().tolist()) == {0, 1, 2}
    nearest = (2 * moved[:, 0]).round()
    certain = (2 * moved[:, 0] - nearest).abs() < 0.02
    agree = (nearest == moved_labels)[certain & (moved_labels > 0)]
    assert agree.float().mean() > 0.995
    assert certain.float().mean() > 0.85
    assert (moved_labels != labels).flatten(1).any(1).float().mean() > 0.8
    assert not moved[:, 0][moved_labels == 0].any()


def test_labels_change_by_space_only() -> None:
    _, _, labels = brains()
    assert torch.equal(augmented(only(*INTENSITY))[1], labels)


def test_zoom_and_rotation_are_in_range() -> None:
    _, mask, _ = brains(300)
    _, labels = augmented(only("zoom"), 300)
    zoom = ((labels > 0).sum((1, 2)) / mask.sum((1, 2))).sqrt()
    assert 0.38 < zoom.min() < 0.43
    uncut = zoom[zoom < 1.35]  # beyond, the frame cuts
    assert len(uncut) > 200
    bar = torch.zeros(300, 1, 65, 65)
    bar[:, :, 32, 32:60] = 1
    turned, _ = only("rotate").augment(bar, torch.ones(300, 65, 65, dtype=torch.bool), None, generator())
    rows = torch.arange(65.0) - 32
    height = (turned[:, 0] * rows[:, None]).sum((1, 2)) / turned.sum((1, 2, 3))
    length = (turned[:, 0] * rows).sum((1, 2)) / turned.sum((1, 2, 3))
    angle = torch.rad2deg(torch.atan2(height, length)).abs()
    assert 19 < angle.max() < 20.5
    assert angle.mean() == pytest.approx(10, abs=1)


def test_gaussian_field_has_the_strength_of_a_slice_through_a_volumes_field() -> None:
    from scipy.ndimage import gaussian_filter

    sigma, amplitude = 2.0, 100.0
    noise = np.random.default_rng(0).uniform(-1, 1, (64, 64, 64))
    volume = amplitude * gaussian_filter(noise, sigma)[8:-8, 8:-8, 8:-8]
    method = BigAug(elastic_sigma=(sigma, sigma), elastic_amplitude=(amplitude, amplitude))
    plane = method._smoothed_noise(16, 64, 64, generator())[:, :, 8:-8, 8:-8]
    assert plane.std().item() == pytest.approx(volume.std(), rel=0.05)


def test_published_field_bends_without_folding() -> None:
    """Neighbouring pixels stay in order, and no pixel moves far."""
    shift = BigAug(elastic_amplitude=(1000, 1000))._smoothed_noise(4, 128, 128, generator())
    assert shift.diff(dim=3)[:, 0].min() > -1
    assert shift.diff(dim=2)[:, 1].min() > -1
    assert 1 < shift.abs().max() < 15


def test_spline_weights_are_those_of_scipy() -> None:
    from scipy.interpolate import BSpline

    weights = spline_weights(40, 7).numpy()
    assert weights.sum(1) == pytest.approx(np.ones(40), abs=1e-6)
    knots = np.arange(-3.0, 8.0)
    for k in range(7):
        spline = BSpline(knots, np.eye(7)[k], 3)
        assert np.abs(weights[:, k] - spline((np.arange(40) + 0.5) / 40 * 4)).max() < 1e-5


def test_control_points_move_within_their_limit_and_the_frame_little() -> None:
    shift = BigAug(max_displacement=5)._splines(64, 96, 64, generator())
    assert shift.shape == (64, 2, 96, 64)
    assert shift.abs().max() < 5
    assert shift[:, :, 48, 32].abs().max() > 1
    assert max(shift[:, :, 0].abs().max(), shift[:, :, :, -1].abs().max()) < 5 / 6 + 0.05  # one free ring is in reach
    assert not BigAug(locked_borders=3)._splines(4, 64, 64, generator())[:, :, [0, -1]].abs().max() > 1e-3


def test_a_displacement_in_pixels_is_one() -> None:
    """With every control point at the same place, the slice moves as a whole, along the right axis."""

    class Along(BigAug):
        id = "along"

        def _splines(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
            shift = torch.zeros(n, 2, height, width)
            shift[:, 0], shift[:, 1] = 3, -5  # read 3 columns to the right, 5 rows up
            return shift

    pixels, mask, labels = brains(2, 64, 96)
    method = Along(transforms=("elastic",), probability=1, elastic="control_points")
    moved, moved_labels = method.augment(pixels, mask, labels, generator())
    assert torch.allclose(moved[:, :, 5:, :-3], pixels[:, :, :-5, 3:], atol=1e-4)
    assert moved_labels is not None
    assert torch.equal(moved_labels[:, 5:, :-3], labels[:, :-5, 3:])


def test_bending_comes_after_turning() -> None:
    """A quarter turn and a shift by 4 columns: the turned slice is what is shifted."""

    class Shifted(BigAug):
        id = "shifted"

        def _splines(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
            shift = torch.zeros(n, 2, height, width)
            shift[:, 0] = 4
            return shift

    pixels, mask, _ = brains(2)
    turn = {"rotate_degrees": (90, 90), "probability": 1}
    turned, _ = BigAug(transforms=("rotate",), **turn).augment(pixels, mask, None, generator())
    method = Shifted(transforms=("rotate", "elastic"), elastic="control_points", **turn)
    both, _ = method.augment(pixels, mask, None, generator())
    assert not torch.allclose(turned, pixels, atol=0.1)
    assert torch.allclose(both[:, :, :, :-4], turned[:, :, :, 4:], atol=1e-3)


# ------------------------------------------------------------------------ draws, settings, contract


def test_draws_come_from_the_generator_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (augmented(BigAug(), seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_are_not_written_to() -> None:
    pixels, mask, labels = brains()
    copies = [t.clone() for t in (pixels, mask, labels)]
    BigAug(probability=1).augment(pixels, mask, labels, generator())
    assert all(torch.equal(a, b) for a, b in zip((pixels, mask, labels), copies, strict=True))


def test_without_labels_pixels_are_the_same() -> None:
    pixels, mask, labels = brains()
    moved, nothing = BigAug().augment(pixels, mask, None, generator())
    assert nothing is None
    assert torch.equal(moved, BigAug().augment(pixels, mask, labels, generator())[0])


def test_grey_levels_are_computed_in_full_precision_under_autocast() -> None:
    plain, _ = augmented(BigAug())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmented(BigAug())[0], plain)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"transforms": ("blur", "blur")}, "named twice"),
        ({"transforms": ("zoom", "blur")}, "must come last"),
        ({"gamma": (2, 1)}, r"gamma must be \[low, high\]"),
        ({"zoom": (0, 1)}, "zoom must be above 0"),
        ({"noise_sd": (-1, 1)}, "noise_sd must not be negative"),
        ({"perturb_scale": (-1, 0)}, "perturb_scale must stay above -1"),
        ({"locked_borders": 4}, "locked_borders leaves no control point"),
    ],
)
def test_contradictory_fields_are_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        BigAug(**fields)


def test_published_settings() -> None:
    method = BigAug()
    assert (method.transforms, method.probability) == (ALL, 0.5)
    assert (method.sharpen_alpha, method.gamma, method.zoom) == ((10, 30), (0.5, 4.5), (0.4, 1.6))
    assert (BigAug.source_free, BigAug.task_agnostic, BigAug.unknown_domains) == (True, False, True)
    assert math.isclose(method.rotate_degrees[1], 20)


def test_conformance() -> None:
    assert not [result for result in check_method(BigAug) if not result.passed]

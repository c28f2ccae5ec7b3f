"""Encoded latents: what is kept of each slice, how it is drawn, and the mild augmentation of its views."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import site

from harness.anomaly import NormalData
from harness.api import Context, State
from harness.training import seeded, weights_of
from methods.anomaly.components.augmentation import MildAugmentation, change, draw_changes
from methods.anomaly.components.autoencoder import LatentAutoencoder, build, load_autoencoder
from methods.anomaly.components.latents import EncodedLatents, LatentSlices

SETTINGS = LatentAutoencoder.model_validate({"width": 8, "multipliers": (1, 1, 2, 2), "blocks": 1, "groups": 4})
TRAIN, VALIDATION = site((90, 190), 7, size=(32, 48)), site((90, 190), 3, seed=1, size=(32, 48))


@pytest.fixture(scope="module")
def autoencoder() -> State:
    """Weights as they are drawn: what is tested here does not depend on them."""
    with seeded(0):
        weights = weights_of(build(SETTINGS))
    return {"scale": 0.5, **{f"network.{key}": value for key, value in weights.items()}}


def encode(autoencoder: State, seed: int = 5, **fields: Any) -> State:
    settings = EncodedLatents.model_validate({"autoencoder": SETTINGS, **fields})
    data = NormalData(TRAIN, VALIDATION, {"autoencoder": autoencoder})
    return settings.fit(data, Context(seed, "cpu", Path("unused"), lambda *_: None))


# ------------------------------------------------------------------------------------------- latents


def test_each_view_of_each_slice_has_a_posterior_and_its_mask(autoencoder: State) -> None:
    state = encode(autoencoder, views=3)
    assert state["train.mean"].shape == state["train.deviation"].shape == (3, 7, 4, 4, 6)
    assert state["validation.mean"].shape == (1, 3, 4, 4, 6)
    assert state["train.mask"].shape == (3, 7, 32 * 48 // 8)
    assert state["train.mask"].dtype == np.uint8
    assert state["shape"] == [32, 48]
    slices = LatentSlices(state, "train")
    assert (len(slices), slices.shape, slices.image_shape) == (7, (4, 4, 6), (32, 48))
    assert len({state["train.mean"][view].tobytes() for view in range(3)}) == 3


def test_without_views_slices_are_encoded_as_they_are(autoencoder: State) -> None:
    state = encode(autoencoder, views=0)
    network = load_autoencoder(autoencoder, SETTINGS, "cpu")
    for split, images in (("train", TRAIN), ("validation", VALIDATION)):
        mean, deviation = network.moments(torch.from_numpy(images.floats())[:, None])
        np.testing.assert_allclose(state[f"{split}.mean"][0], mean, atol=1e-5)
        np.testing.assert_allclose(state[f"{split}.deviation"][0], deviation, rtol=1e-4)
        batches = list(LatentSlices(state, split).batches(2))  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate([mask for _, mask in batches]), images.mask)
        np.testing.assert_array_equal(np.concatenate([latents for latents, _ in batches]), state[f"{split}.mean"][0])
    augmented = encode(autoencoder, views=2)
    np.testing.assert_array_equal(augmented["validation.mean"], state["validation.mean"])


def test_the_same_seed_draws_the_same_views(autoencoder: State) -> None:
    one, two, other = (encode(autoencoder, seed, views=2) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one["train.mean"], two["train.mean"])
    assert not np.array_equal(one["train.mean"], other["train.mean"])


def test_a_draw_is_of_the_posterior_of_a_random_view_with_the_mask_of_that_view(autoencoder: State) -> None:
    state = encode(autoencoder, views=2, augmentation={"translation": 20.0})
    # Masks tell slices and views apart; latents are put where a draw can be told from them.
    number = np.arange(14).reshape(2, 7)
    state["train.mean"] = np.broadcast_to(100.0 * number[..., None, None, None], (2, 7, 4, 4, 6)).astype(np.float32)
    state["train.deviation"] = np.broadcast_to(1.0 + number[..., None, None, None], (2, 7, 4, 4, 6)).astype(np.float32)
    latents, masks = LatentSlices(state, "train").draw(np.random.default_rng(0), 3000)
    assert latents.dtype == torch.float32
    assert masks.dtype == torch.bool
    found = (latents.mean((1, 2, 3)) / 100).round().int().numpy()
    assert np.bincount(found, minlength=14).min() > 150
    for each in range(14):
        mine = latents[found == each] - 100 * each
        assert float(mine.std()) == pytest.approx(1 + each, rel=0.03)
        bits = np.unpackbits(state["train.mask"][each // 7, each % 7], count=32 * 48).reshape(32, 48)
        assert bool((masks[found == each].numpy() == bits).all())


def test_half_precision_is_near_and_comes_back_as_single(autoencoder: State) -> None:
    full, half = (encode(autoencoder, views=1, precision=precision) for precision in ("float32", "float16"))
    assert half["train.mean"].dtype == np.float16
    np.testing.assert_allclose(half["train.mean"], full["train.mean"], atol=1e-3)
    draws = [LatentSlices(state, "train").draw(np.random.default_rng(0), 4)[0] for state in (full, half)]
    assert draws[1].dtype == torch.float32
    torch.testing.assert_close(draws[1], draws[0], atol=5e-3, rtol=5e-3)


def test_what_departs_from_the_publication_is_said() -> None:
    assert "8 augmented views of each slice" in EncodedLatents().departures()
    assert "no augmentation" in EncodedLatents(views=0).departures()
    assert set(LatentAutoencoder().departures()) < set(EncodedLatents().departures())


# -------------------------------------------------------------------------------------- augmentation


def square(rows: int = 64, columns: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """A slice of brain all over but for a margin, with one bright square off its centre."""
    pixels, mask = torch.zeros(1, 1, rows, columns), torch.zeros(1, 1, rows, columns, dtype=torch.bool)
    mask[..., 6:-6, 6:-6] = True
    pixels[mask] = 0.4
    pixels[..., 20:24, 30:34] = 0.8
    return pixels, mask


def only(**fields: Any) -> MildAugmentation:
    none = {"probability": 1.0, "rotation": 0.0, "translation": 0.0, "brightness": 0.0, "contrast": 0.0}
    return MildAugmentation.model_validate({**none, **fields})


def changed(settings: MildAugmentation, n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, mask = square()
    changes = draw_changes(np.random.default_rng(0), n, (64, 96), settings)
    return change(pixels.expand(n, -1, -1, -1), mask.expand(n, -1, -1, -1), changes)


def test_what_is_not_drawn_is_left_alone_to_the_bit() -> None:
    pixels, mask = square()
    for settings in (MildAugmentation(probability=0.0), only()):
        out, brain = changed(settings)
        assert torch.equal(out, pixels)
        assert torch.equal(brain, mask)


def test_a_strict_shift_is_the_limit_down_and_to_the_right() -> None:
    """8 pixels of 256 are 2 of 64 rows and 3 of 96 columns."""
    pixels, mask = square()
    out, brain = changed(only(translation=8.0, strict=True))
    torch.testing.assert_close(out[..., 2:, 3:], pixels[..., :-2, :-3], atol=1e-4, rtol=0)
    assert torch.equal(brain[..., 2:, 3:], mask[..., :-2, :-3])


def test_a_strict_rotation_turns_by_the_limit_whatever_the_shape_of_the_slice() -> None:
    out, _ = changed(only(rotation=30.0, strict=True))
    weights = (out[0, 0] > 0.6).double()
    place = [
        float((weights * torch.arange(n).view(shape)).sum() / weights.sum())
        for n, shape in ((64, (-1, 1)), (96, (1, -1)))
    ]
    before, after = np.array([21.5 - 31.5, 31.5 - 47.5]), np.array(place) - [31.5, 47.5]
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), abs=0.5)
    cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
    assert np.degrees(np.arccos(cosine)) == pytest.approx(30, abs=2)


def test_ranges_are_symmetric_and_reach_their_limits() -> None:
    changes = draw_changes(np.random.default_rng(0), 4000, (256, 256), MildAugmentation(probability=1.0)).numpy()
    angles = np.degrees(np.arcsin(changes[:, 3]))
    for values, limit in ((angles, 5.0), (changes[:, 2] * 128, 8.0), (changes[:, 5] * 128, 8.0)):
        assert values.min() == pytest.approx(-limit, rel=0.02)
        assert values.max() == pytest.approx(limit, rel=0.02)
    for values in (changes[:, 6] - 1, changes[:, 7]):
        assert (values.min(), values.max()) == (pytest.approx(-0.1, rel=0.02), pytest.approx(0.1, rel=0.02))


def test_each_change_comes_to_half_of_the_slices() -> None:
    changes = draw_changes(np.random.default_rng(0), 4000, (256, 256), MildAugmentation()).numpy()
    shares = [float((changes[:, column] != neutral).mean()) for column, neutral in ((3, 0), (2, 0), (6, 1), (7, 0))]
    assert shares == pytest.approx([0.5] * 4, abs=0.03)
    assert np.array_equal(changes[:, 6] != 1, changes[:, 7] != 0)


def test_contrast_and_brightness_act_on_intensities_and_leave_the_background() -> None:
    pixels, mask = square()
    numbers = torch.tensor([[1.0, 0, 0, 0, 1, 0, 1.1, -0.05]])
    out, _ = change(pixels, mask, numbers)
    torch.testing.assert_close(out[mask], pixels[mask] * 1.1 - 0.05)
    assert not out[~mask].any()
    bright, _ = change(pixels, mask, torch.tensor([[1.0, 0, 0, 0, 1, 0, 1.1, 0.5]]))
    assert float(bright.max()) == 1

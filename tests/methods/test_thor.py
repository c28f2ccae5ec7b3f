"""THOR: its maps' formulas, the harmonic mean's properties, and what a descent is handed after the input returned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import bright as images
from pydantic import ValidationError
from safetensors.torch import save_file
from scipy import ndimage
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from harness.anomaly import NormalData
from harness.api import Context, ImageSet, MethodError, State
from harness.conformance import check_method
from harness.contract import check_maps
from harness.cost import measured
from harness.training import seeded
from methods.anomaly.components.perceptual import Lpips, blurred
from methods.anomaly.components.schedules import CLEAN
from methods.anomaly.thor.maps import HarmonicMean, anomaly, dilated, eroded, replacement, scaled_radius
from methods.anomaly.thor.method import Thor
from methods.networks.diffusion_unet import DiffusionUNet


@pytest.fixture(scope="module")
def state(ctx: Context) -> State:
    learnt = Thor.example().prior.fit(NormalData(images(), images(2, seed=1)), ctx)
    return {f"prior.{key}": value for key, value in learnt.items()}


def thor(**changes: Any) -> Thor:
    brief = {"level": 8, "harmonise": [6, 2], "map_every": 4}
    return Thor.model_validate({**Thor.example().model_dump(), **brief, **changes})


@contextmanager
def passes() -> Iterator[list[tuple[Tensor, int]]]:
    """(slices, time) of every pass through a diffusion network inside."""
    seen: list[tuple[Tensor, int]] = []

    def look(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
        if isinstance(module, DiffusionUNet):
            seen.append((args[0].clone(), int(args[1][0])))

    handle = register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def test_conformance() -> None:
    assert [result for result in check_method(Thor) if not result.passed] == []


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -------------------------------------------------------------------------------------------- the maps


def test_closing_and_widening_are_those_of_scipy() -> None:
    x = random(2, 1, 20, 24)
    for found, one in zip(replacement(x, 3)[:, 0].numpy(), x[:, 0].numpy(), strict=True):
        closed = ndimage.grey_erosion(ndimage.grey_dilation(one, 7, mode="reflect"), 7, mode="reflect")
        wanted = (ndimage.grey_dilation(closed, 7, mode="reflect") + one) / 2
        assert np.allclose(found, np.clip(wanted, 0, 1), atol=1e-6)
    assert torch.equal(eroded(x, 0), x)
    assert (eroded(x, 2) <= x).all()
    assert (dilated(x, 2) >= x).all()
    assert (replacement(torch.zeros(1, 1, 8, 8), 2) == 0).all()


def test_smoothing_is_that_of_scipy() -> None:
    x = random(1, 1, 40, 48).double()
    wanted = ndimage.gaussian_filter(x[0, 0].numpy(), 2.0, mode="mirror", truncate=4.0)
    assert np.allclose(blurred(x, 2.0, 8)[0, 0].numpy(), wanted, atol=1e-7)


def test_lengths_go_with_the_side() -> None:
    assert [scaled_radius(6, side) for side in (64, 128, 256)] == [3, 6, 12]


def test_a_map_is_by_its_slices_largest_value() -> None:
    slices = random(3, 1, 16, 16)
    clean = slices.clone()
    clean[0, 0, 4:8, 4:8] += 0.3
    clean[1, 0, 10, 10] -= 0.01

    def compare(x: Tensor) -> Tensor:
        return 3 * (x != slices).float()

    found = anomaly(clean, slices, compare, 0.0)
    assert found.amax((1, 2, 3)).tolist() == [1, 1, 0]
    assert found.min() == 0
    assert torch.allclose(found[0, 0, 4:8, 4:8], torch.ones(4, 4))  # the weight 3 is clipped, the difference equal
    smooth = anomaly(clean, slices, compare, 2.0)
    weight = blurred(compare(clean), 2.0, 8).clamp(0, 1)
    raw = weight * (clean - slices).abs()
    assert torch.allclose(smooth[0], raw[0] / raw[0].max())
    assert torch.equal(anomaly(clean[1:2], slices[1:2], lambda x: (x != slices[1:2]).float(), 0.0), found[1:2])


def test_a_harmonic_mean_is_no_more_than_the_plain_one_and_0_where_any_map_is() -> None:
    maps = [random(2, 1, 8, 8, seed=seed) for seed in range(5)]
    maps[2][0, 0, 3, 3] = 0
    mean = HarmonicMean()
    for found in maps:
        mean.add(found)
    value = mean.value()
    wanted = 5 / np.sum([1 / found.numpy()[1] for found in maps], axis=0)
    assert np.allclose(value[1].numpy(), wanted, rtol=1e-5)
    assert (value <= torch.stack(maps).mean(0) + 1e-6).all()
    assert value[0, 0, 3, 3] == 0
    assert ((value >= 0) & (value <= 1)).all()
    same = HarmonicMean()
    for _ in range(3):
        same.add(maps[0])
    assert torch.allclose(same.value(), maps[0])


# -------------------------------------------------------------------------------------------- at work


def test_the_published_settings_are_the_defaults() -> None:
    method = Thor()
    assert method.level == 350
    assert method.harmonise == (300, 150, 50)
    assert method.map_times() == {0, 50, 100, 150, 200, 250, 300, 350}
    assert Thor(level=250, harmonise=(200, 150, 100, 50)).map_times() == {0, 50, 100, 150, 200, 250}
    assert method.deviations() == ("local SSIM in place of LPIPS (no weights file)",)
    assert Thor(perceptual={"weights": "lpips.safetensors"}).deviations() == ()
    assert list(method.components()) == ["prior"]


def test_maps_are_valid_and_one_evaluation_is_made_a_step(state: State, ctx: Context) -> None:
    pictures = images()
    with measured("cpu") as meter:
        raw = thor().detect(state, pictures, ctx)
    assert meter.summary(6)["evaluations"] == {"network": 9}
    found = check_maps(raw, pictures)
    assert found.maps.max() <= 0.999
    assert found.maps.max() > 0
    assert found.image_scores is not None
    assert np.allclose(found.image_scores, found.maps.mean((1, 2)))


def test_strides_pass_through_the_times_of_maps(state: State, ctx: Context) -> None:
    method = thor(level=200, harmonise=[150, 100, 50], map_every=50, steps=12)
    with passes() as seen:
        check_maps(method.detect(state, images(1), ctx), images(1))
    times = [time for _, time in seen]
    assert len(times) == 12
    assert {0, 50, 100, 150, 200} <= set(times)
    assert method.deviations()[0] == "DDIM-12 in place of 201 steps"


def test_lpips_is_counted_apart(state: State, ctx: Context, tmp_path: Path) -> None:
    with seeded(0):
        weights = Lpips().state_dict()
    save_file({k: v.abs() if k.startswith("lin") else v for k, v in weights.items()}, tmp_path / "lpips.safetensors")
    method, pictures = thor(perceptual={"weights": str(tmp_path / "lpips.safetensors")}), images(side=32)
    with measured("cpu") as meter:
        found = check_maps(method.detect(state, pictures, ctx), pictures)
    # Maps at 8, 6, 4, 2 and 0; the input's own features once.
    assert meter.summary(6)["evaluations"] == {"network": 9, "perceptual": 6}
    assert not np.allclose(found.maps, thor().detect(state, pictures, ctx).maps * pictures.mask, atol=1e-3)


@pytest.mark.parametrize("renoise", ["next", "same"])
def test_what_returned_is_noised_as_the_slice_was(renoise: str, state: State, ctx: Context) -> None:
    method, pictures = thor(renoise=renoise), images(1)
    with passes() as seen:
        shown = method.illustrate(state, pictures, ctx)
    schedule, handed = method.prior.time_schedule(), {time: x for x, time in seen}
    noise = schedule.noise_from(handed[8], 8, torch.from_numpy(pictures.pixels)[:, None])
    assert 0.5 < noise.std() < 1.5
    for time in method.harmonise:
        joined = torch.from_numpy(shown[f"harmonised, t = {time}"])[:, None]
        wanted = schedule.noised(joined, time - 1 if renoise == "next" else time, noise)
        assert torch.allclose(handed[time - 1], wanted, atol=1e-5)
    untouched = schedule.noised(torch.from_numpy(pictures.pixels)[:, None], 4, noise)
    assert not torch.allclose(handed[4], untouched, atol=1e-3)


def test_the_input_returns_as_far_as_the_map_spares_it(state: State, ctx: Context) -> None:
    pictures = images(1)
    shown = thor(harmonise=[8]).illustrate(state, pictures, ctx)
    found, taken = (shown[f"{caption}, t = 8"] for caption in ("map", "taken for"))
    share = replacement(torch.from_numpy(found)[:, None], scaled_radius(6, 16))[:, 0].numpy()
    wanted = np.clip(share * taken + (1 - share) * pictures.pixels, 0, 1)
    # Pictures are clipped to 0..1, so only pixels within tell what the slice was taken for.
    inside = (taken > 0) & (taken < 1)
    assert np.allclose(shown["harmonised, t = 8"][inside], wanted[inside], atol=1e-5)
    assert inside.mean() > 0.2


def test_a_slice_that_is_recognised_has_no_map_and_returns_whole() -> None:
    """R ≡ 0: nothing is replaced, and what is noised again is the slice."""
    slices = random(1, 1, 16, 16)
    found = anomaly(slices.clone(), slices, torch.zeros_like, 0.5)
    assert (found == 0).all()
    share = replacement(found, 3)
    assert torch.equal(share * torch.rand_like(slices) + (1 - share) * slices, slices)
    schedule, noise = Thor.example().prior.time_schedule(), torch.randn(1, 1, 16, 16)
    assert torch.equal(schedule.noised(slices, CLEAN, noise), slices)


def test_harmonising_at_the_end_is_the_reconstruction(state: State, ctx: Context) -> None:
    method, pictures = thor(harmonise=[4, 0]), images(1)
    shown, found = method.illustrate(state, pictures, ctx), method.detect(state, pictures, ctx)
    assert found.reconstruction is not None
    assert np.array_equal(shown["harmonised, t = 0"], found.reconstruction)


@pytest.mark.parametrize("changes", [{}, {"level": 100, "harmonise": [60], "map_every": 50, "steps": 8}])
def test_a_slice_s_map_depends_on_that_slice_and_the_seed_alone(
    changes: dict[str, Any], state: State, ctx: Context
) -> None:
    pictures, before = images(), torch.get_rng_state()
    whole = thor(**changes).detect(state, pictures, ctx).maps
    assert np.array_equal(whole, thor(**changes).detect(state, pictures, ctx).maps)
    scan = replace(pictures.scans[1], start=0, stop=2)
    alone = ImageSet(pictures.pixels[2:4], pictures.mask[2:4], (scan,))
    assert np.allclose(whole[2:4], thor(**changes, batch_size=1).detect(state, alone, ctx).maps, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    assert not np.allclose(whole, thor(**changes).detect(state, pictures, replace(ctx, seed=4)).maps, atol=1e-3)


def test_pictures_show_each_return(state: State, ctx: Context) -> None:
    pictures = images(1)
    shown = thor().illustrate(state, pictures, ctx)
    assert list(shown) == [
        *(f"{caption}, t = {time}" for time in (6, 2) for caption in ("taken for", "map", "harmonised")),
        "reconstruction",
        "harmonic mean of the maps",
    ]
    for picture in shown.values():
        assert picture.shape == pictures.pixels.shape
        assert 0 <= picture.min() < picture.max() <= 1


def test_rows_say_what_departs() -> None:
    strided = {"level": 200, "harmonise": [50], "map_every": 50, "steps": 40}
    method = thor(**strided, renoise="same", prior={"image_range": "signed"})
    assert method.deviations() == (
        "DDIM-40 in place of 201 steps",
        "local SSIM in place of LPIPS (no weights file)",
        "noised to the present time after harmonising, as in the code",
        "intensities −1..1 fed to the network",
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"level": 1000}, "level 1000 is beyond the last time"),
        ({"level": 100}, r"harmonise names times \[300, 150, 50\]"),
        ({"kernel": 12}, "kernel must be odd, not 12"),
        ({"steps": 5}, "5 steps from time 350 do not pass through 8 times"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Thor.model_validate(changes)


def test_sizes_that_the_network_cannot_halve_are_refused(state: State, ctx: Context) -> None:
    with pytest.raises(MethodError, match="thor: slices are 18 × 18"):
        thor().detect(state, images(side=18), ctx)

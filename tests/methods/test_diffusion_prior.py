"""The shared diffusion model: its arithmetic against closed forms, its network, its training, its perceptual term."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from harness.anomaly import NormalData
from harness.api import Context, ImageSet, MethodError, Scan
from harness.conformance import check_method
from harness.data.arrays import load_state, save_state
from harness.problems import UserError
from harness.training import TrainingSettings, seeded
from methods.anomaly.components.diffusion_prior import WEIGHTS, DiffusionPrior, PriorAugmentation, augmented
from methods.anomaly.components.learning import portions, spread, updates
from methods.anomaly.components.perceptual import Distance, Lpips, Perceptual, blurred, load_lpips, local_ssim
from methods.anomaly.components.sampling import Diffusion, Noise
from methods.anomaly.components.schedules import CLEAN, cosine_schedule, descent, linear_schedule
from methods.networks.diffusion_unet import DiffusionUNet, waves


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return Context(seed=0, device="cpu", scratch=tmp_path, log=lambda *_: None)


def images(scans: int = 4, side: int = 16, seed: int = 0, slices: int = 2) -> ImageSet:
    """Bright discs with a darker core."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    distance = np.hypot(rows, columns) / (side / 2)
    mask = np.repeat((distance < 0.8)[None], scans * slices, 0)
    level = rng.uniform(0.5, 0.7, (scans * slices, 1, 1))
    pixels = np.where(mask, level + 0.2 * (distance > rng.uniform(0.3, 0.5, (scans * slices, 1, 1))), 0)
    places = tuple(Scan(f"s{i}", f"s{i}", "a", i * slices, (i + 1) * slices, (1, 1, 1)) for i in range(scans))
    return ImageSet(pixels.astype(np.float32), mask, places)


def prior(**changes: Any) -> DiffusionPrior:
    return DiffusionPrior.model_validate({**DiffusionPrior.example().model_dump(), **changes})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_conformance() -> None:
    assert [result for result in check_method(DiffusionPrior) if not result.passed] == []


# ---------------------------------------------------------------------------------------- the schedule


def test_schedules_have_the_published_values() -> None:
    linear = linear_schedule(1000, 1e-4, 0.02)
    wanted = {50: 0.970, 100: 0.895, 150: 0.786, 200: 0.656, 250: 0.521, 300: 0.394, 350: 0.283, 400: 0.194, 500: 0.078}
    for time, kept in wanted.items():
        assert linear.kept_at(time) == pytest.approx(kept, abs=6e-4)
    cosine = cosine_schedule(1000)
    for time, kept in {249: 0.847, 499: 0.494, 749: 0.144}.items():
        assert cosine.kept_at(time) == pytest.approx(kept, abs=6e-4)
    for schedule in (linear, cosine):
        assert len(schedule) == 1000
        assert schedule.kept_at(CLEAN) == 1
        assert (np.diff(schedule.kept) < 0).all()
        assert (schedule.kept[1:] / schedule.kept[:-1] >= 1 - 0.999 - 1e-12).all()


def test_a_noised_slice_and_its_noise_give_back_the_slice() -> None:
    schedule = linear_schedule(1000, 1e-4, 0.02)
    clean, noise = random(3, 1, 4, 4), random(3, 1, 4, 4, seed=1)
    times = torch.tensor([0, 400, 999])
    together = schedule.noised(clean, times, noise)
    for i, time in enumerate(times.tolist()):
        x = schedule.noised(clean[i], time, noise[i])
        assert torch.allclose(together[i], x)
        assert torch.allclose(schedule.clean_from(x, time, noise[i]), clean[i])
        assert torch.allclose(schedule.noise_from(x, time, clean[i]), noise[i])
    far = schedule.noised(clean, torch.full((3,), 999), noise)
    assert torch.allclose(far, noise, atol=0.05)


@pytest.mark.parametrize("time", [1, 50, 350, 999])
def test_an_ancestral_step_is_a_draw_from_the_posterior(time: int) -> None:
    """Two Gaussians: x_(t−1) given the slice, and x_t given x_(t−1). Bayes' rule for one number."""
    schedule = linear_schedule(1000, 1e-4, 0.02)
    kept, before = schedule.kept_at(time), schedule.kept_at(time - 1)
    stay = kept / before
    clean, x = 0.4, -0.7
    prior_mean, prior_variance = math.sqrt(before) * clean, 1 - before
    gain = math.sqrt(stay) * prior_variance / (stay * prior_variance + 1 - stay)
    mean = prior_mean + gain * (x - math.sqrt(stay) * prior_mean)
    variance = (1 - gain * math.sqrt(stay)) * prior_variance
    here, taken_for = torch.tensor(x, dtype=torch.float64), torch.tensor(clean, dtype=torch.float64)
    draws = [float(schedule.ancestral(here, time, taken_for, torch.tensor(noise))) for noise in (0.0, 1.0)]
    assert draws[0] == pytest.approx(mean, rel=1e-6)
    assert draws[1] - draws[0] == pytest.approx(math.sqrt(variance), rel=1e-4)


def test_a_large_variance_is_beta() -> None:
    schedule = linear_schedule(1000, 1e-4, 0.02)
    x, clean, noise = random(1, 1, 2, 2), random(1, 1, 2, 2, seed=1), torch.ones(1, 1, 2, 2)
    steps = [schedule.ancestral(x, 300, clean, noise * size, "large") for size in (0, 1)]
    beta = 1e-4 + (0.02 - 1e-4) * 300 / 999
    assert torch.allclose(steps[1] - steps[0], torch.full_like(x, math.sqrt(beta)))
    small = schedule.ancestral(x, 300, clean, noise)
    assert (small - steps[0] < steps[1] - steps[0]).all()


def test_nothing_is_drawn_at_the_last_step() -> None:
    schedule = linear_schedule(1000, 1e-4, 0.02)
    x, clean = random(1, 1, 2, 2), random(1, 1, 2, 2, seed=1)
    assert torch.allclose(schedule.ancestral(x, 0, clean, 100 * random(1, 1, 2, 2, seed=2)), clean)
    assert torch.allclose(schedule.implicit(x, 0, clean, CLEAN), clean)


@pytest.mark.parametrize("steps", [None, 1, 7])
def test_an_oracle_comes_back_to_the_slice(steps: int | None) -> None:
    schedule = linear_schedule(1000, 1e-4, 0.02)
    slices, noise = random(2, 1, 4, 4), random(2, 1, 4, 4, seed=1)
    x = schedule.noised(slices, 300, noise)
    for time, before in descent(300, steps):
        clean = schedule.clean_from(x, time, noise)  # along the implicit path the noise stays the same
        assert torch.allclose(clean, slices, atol=1e-9)
        x = schedule.implicit(x, time, clean, before)
    assert torch.allclose(x, slices, atol=1e-9)


def test_a_descent_visits_what_it_must() -> None:
    full = descent(5, None)
    assert full == [(5, 4), (4, 3), (3, 2), (2, 1), (1, 0), (0, CLEAN)]
    strided = descent(200, 41)
    assert [time for time, _ in strided] == list(range(200, -1, -5))
    assert [before for _, before in strided] == [*range(195, -1, -5), CLEAN]
    assert descent(0, 1) == descent(0, None) == [(0, CLEAN)]
    for level, steps, through in [(199, 7, (150, 100)), (350, 12, range(0, 351, 50)), (10, 11, ()), (50, 33, (49, 48))]:
        times = [time for time, _ in descent(level, steps, through)]
        assert len(set(times)) == len(times) == steps
        assert times == sorted(times, reverse=True)
        assert {level, 0, *through} <= set(times)
    with pytest.raises(ValueError, match="3 steps from time 100 do not pass through 4 times"):
        descent(100, 3, (20, 40))
    with pytest.raises(ValueError, match="12 steps"):
        descent(10, 12)


# ----------------------------------------------------------------------------------------- the network


def test_the_published_network_has_its_size() -> None:
    with torch.device("meta"):
        network = DiffusionPrior().network.build()
        assert network(torch.empty(2, 1, 64, 96), torch.zeros(2, dtype=torch.int64)).shape == (2, 1, 64, 96)
    assert sum(p.numel() for p in network.parameters()) == 18_500_993
    assert network.multiple == 4


@pytest.mark.parametrize(("widths", "groups", "millions"), [((32, 64, 64), 32, 1.11), ((16, 32, 32), 16, 0.28)])
def test_small_networks_have_the_sizes_of_their_profiles(widths: tuple[int, ...], groups: int, millions: float) -> None:
    with torch.device("meta"):
        network = DiffusionUNet(widths, 1, (2,), groups=groups)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("options", [{}, {"scale_shift": True, "resize_blocks": True, "silent_attention": True}])
def test_the_network_starts_silent_and_then_heeds_time_and_far_pixels(options: dict[str, bool]) -> None:
    with seeded(0):
        network = DiffusionUNet((8, 16), 1, (1,), head_width=8, groups=8, **options).eval()
    x, times = random(2, 1, 8, 12).float(), torch.tensor([3, 700])
    assert network(x, times).abs().max() == 0
    with seeded(1), torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    y = network(x, times)
    assert y.shape == x.shape
    assert torch.allclose(y[1:], network(x[1:], times[1:]), atol=1e-6)
    assert (network(x, times + 100) - y).abs().amax((1, 2, 3)).min() > 1e-4
    other = x.clone()
    other[:, :, 0, 0] += 5
    assert (network(other, times) - y)[:, :, -1, -1].abs().min() > 1e-7  # by attention
    network(x, times).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_times_are_coded_as_waves() -> None:
    code = waves(torch.tensor([0, 1, 500]), 8)
    assert torch.equal(code[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert code[1, 0] == pytest.approx(math.cos(1))
    assert code[2, 5] == pytest.approx(math.sin(500 * 10_000 ** (-1 / 4)), abs=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": {"widths": [8, 12, 16]}},
        {"network": {"attention": [3]}},
        {"network": {"head_width": 96}},
        {"betas": [0.02, 1e-4]},
        {"image_range": "bytes"},
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DiffusionPrior.model_validate(changes)


# ---------------------------------------------------------------------------------------- the training


def test_epochs_become_updates() -> None:
    settings = TrainingSettings(batch_size=16, iterations=57_000)
    assert updates(1500, 600, settings) == 57_000
    assert updates(10, 33, settings) == 30
    assert updates(1500, 18_000, settings) == 57_000
    assert DiffusionPrior().training.iterations == 1500 * math.ceil(600 / 16)
    assert spread(10, 3).tolist() == [0, 4, 9]
    assert spread(2, 256).tolist() == [0, 1]
    assert [list(range(10))[at] for at in portions(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_brief_training_finds_noise(ctx: Context) -> None:
    curve: dict[str, list[float]] = {}
    logging = replace(ctx, log=lambda key, _, value: curve.setdefault(key, []).append(value))
    training = {"iterations": 120, "batch_size": 8, "learning_rate": 4e-3, "validate_every": 40}
    component = prior(training=training)
    state = component.fit(NormalData(images(), images(3, seed=1)), logging)
    assert len(curve["validation"]) == 3
    assert state["score"] == max(curve["validation"])
    assert state["score"] > -0.5  # a network that finds nothing has −1, the noise's variance
    model = Diffusion(component, state, "cpu")
    clean, noise = torch.from_numpy(images(seed=2).pixels)[:, None], random(8, 1, 16, 16).float()
    with torch.inference_mode():
        found = model.clean(model.schedule.noised(clean, 300, noise), 300)
    assert (found - clean).square().mean() < 0.5 * clean.square().mean()


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": "simplex"},
        {"noise": "simplex", "simplex": {"pool": 3, "scaled": True}},
        {"image_range": "signed", "schedule": "cosine", "loss": "l1"},
    ],
)
def test_every_kind_is_learnt_and_kept(changes: dict[str, Any], ctx: Context, tmp_path: Path) -> None:
    component, data = prior(**changes), NormalData(images(), images(2, seed=1))
    state = component.fit(data, ctx)
    other = component.fit(data, replace(ctx, scratch=tmp_path / "other"))
    assert all(torch.equal(state[key], other[key]) for key in state if key.startswith(WEIGHTS))
    (tmp_path / "state").mkdir()
    save_state(tmp_path / "state", state)
    model = Diffusion(component, load_state(tmp_path / "state"), "cpu")
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, state[WEIGHTS + key])
    assert any(tensor.abs().sum() > 0 for key, tensor in state.items() if key.startswith(f"{WEIGHTS}head.2"))


def test_epochs_end_a_training_of_few_slices(ctx: Context) -> None:
    component = prior(epochs=2, training={"iterations": 50, "batch_size": 4, "checkpoint_every": 1, "log_every": 1})
    seen: list[int] = []
    component.fit(NormalData(images(3), images(2)), replace(ctx, log=lambda key, step, _: seen.append(step)))
    assert max(seen) == 4  # 6 slices, twice, in batches of 4


def test_what_cannot_be_learnt_from_is_said(ctx: Context) -> None:
    empty = ImageSet(np.zeros((0, 16, 16), np.float32), np.zeros((0, 16, 16), bool), ())
    with pytest.raises(MethodError, match="no healthy training slices"):
        prior().fit(NormalData(empty, images()), ctx)
    with pytest.raises(MethodError, match="no healthy validation slices"):
        prior().fit(NormalData(images(), empty), ctx)
    with pytest.raises(MethodError, match="18 × 18 pixels; the network needs multiples of 4"):
        prior().fit(NormalData(images(side=18), images(side=18)), ctx)


def test_augmentation_moves_slices_within_its_limits() -> None:
    generator = torch.Generator().manual_seed(0)
    side = 64
    spot = torch.zeros(400, 1, side, side)
    spot[:, :, 30:34, 46:50] = 1  # 16 right of the centre
    moved = augmented(spot, PriorAugmentation(), generator)
    mass = moved.sum((1, 2, 3))
    rows, columns = ((moved.sum((1, axis)) * (torch.arange(side) - (side - 1) / 2)).sum(1) / mass for axis in (3, 2))
    assert (columns < 0).float().mean() == pytest.approx(0.5, abs=0.1)  # mirrored
    assert rows.abs().max() < 0.1 * side + 17.6 * math.sin(math.radians(10)) + 0.5
    assert columns.abs().max() < 0.1 * side + 17.6 + 0.5
    assert rows.std() > 0.5 * (0.1 * side / math.sqrt(3))
    assert (mass.min(), mass.max()) == (pytest.approx(16 * 0.81, rel=0.1), pytest.approx(16 * 1.21, rel=0.1))
    still = augmented(spot, PriorAugmentation(rotation=0, shift=0, scale=0, mirror=0), generator)
    assert torch.allclose(still, spot, atol=1e-5)


def test_rows_say_how_the_model_departs() -> None:
    assert DiffusionPrior().deviations() == ()
    assert DiffusionPrior(simplex={"scaled": True}).deviations() == ()  # the noise is Gaussian
    assert prior(noise="simplex", simplex={"scaled": True}, image_range="signed").deviations() == (
        "simplex frequency rescaled to the slices' side",
        "intensities −1..1 fed to the network",
    )


def test_noise_is_each_slices_own() -> None:
    generators = [np.random.default_rng(seed) for seed in (1, 1, 2)]
    for kind in ("gaussian", "simplex"):
        noise = Noise(DiffusionPrior(), kind, "cpu").draw(generators, 32, 48)  # type: ignore[arg-type]
        assert noise.shape == (3, 1, 32, 48)
        assert torch.equal(noise[0], noise[1])
        assert (noise[0] - noise[2]).abs().mean() > 0.2


def test_what_a_slice_is_taken_for_is_clamped(ctx: Context) -> None:
    component = prior(image_range="signed")
    model = Diffusion(component, component.fit(NormalData(images(), images(2)), ctx), "cpu")
    slices = torch.from_numpy(images().pixels)[:, None]
    assert torch.equal(model.inward(slices), 2 * slices - 1)
    assert torch.allclose(model.outward(model.inward(slices)), slices, atol=1e-6)
    with torch.inference_mode():
        found = model.clean(10 * random(2, 1, 16, 16).float(), 500)
    assert found.abs().max() == 1


# --------------------------------------------------------------------------------- the perceptual term

SQUEEZE_NET = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128)} | {
    9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256), 12: (512, 64, 256),
}  # fmt: skip


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights; those of the heads are positive, as the published are."""
    with seeded(0):
        weights = Lpips().state_dict()
        weights |= {key: torch.rand_like(tensor) for key, tensor in weights.items() if key.startswith("lin")}
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    save_file(weights, path)
    return path


def test_lpips_has_the_published_shapes() -> None:
    wanted = {"features.0.weight": (64, 3, 3, 3), "features.0.bias": (64,)}
    for index, (width, squeezed, expanded) in SQUEEZE_NET.items():
        for name, shape in {
            "squeeze": (squeezed, width, 1, 1),
            "expand1x1": (expanded, squeezed, 1, 1),
            "expand3x3": (expanded, squeezed, 3, 3),
        }.items():
            wanted[f"features.{index}.{name}.weight"], wanted[f"features.{index}.{name}.bias"] = shape, shape[:1]
    widths = (64, 128, 256, 384, 384, 512, 512)
    wanted |= {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    network = Lpips()
    assert {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()} == wanted
    assert sum(p.numel() for p in network.features.parameters()) == 722_496
    taps = network.taps(torch.rand(1, 3, 64, 64))
    assert [tuple(tap.shape[1:]) for tap in taps] == [
        (width, side, side) for width, side in zip(widths, (31, 15, 7, 3, 3, 3, 3), strict=True)
    ]
    assert all(torch.allclose(tap.square().sum(1)[tap.any(1)], torch.ones(()), atol=1e-4) for tap in taps)


def test_lpips_is_local_and_0_where_slices_are_equal(lpips_file: Path) -> None:
    distance = Distance(Perceptual(weights=str(lpips_file)), "cpu")
    slices = torch.from_numpy(images(1, 64).pixels)[:, None]
    other = slices.clone()
    other[:, :, 8:24, 8:24] = 1
    with torch.inference_mode():
        compare = distance.against(slices)
        assert compare(slices).abs().max() < 1e-6
        found = compare(other)
    assert found.shape == slices.shape
    assert found.min() >= 0
    assert found[:, :, 8:24, 8:24].mean() > 3 * found[:, :, 44:60, 44:60].mean()


def test_lpips_may_be_fed_as_in_the_public_code(lpips_file: Path) -> None:
    a, b = (torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    correct, published = (
        Distance(Perceptual(weights=str(lpips_file), input=kind), "cpu")
        for kind in ("correct", "published")  # type: ignore[arg-type]
    )
    with torch.inference_mode():
        assert torch.allclose(published.against(a)(b), correct.against(2 * a - 1)(2 * b - 1))
        assert not torch.allclose(published.against(a)(b), correct.against(a)(b), rtol=0.01)


def test_other_weights_are_refused_in_one_line(lpips_file: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent.safetensors"
    with pytest.raises(UserError, match=r"absent\.safetensors: the LPIPS weights cannot be read"):
        load_lpips(str(absent))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_lpips(str(damaged))
    with seeded(0):
        weights = Lpips().state_dict()
    without = tmp_path / "without.safetensors"
    save_file({key: tensor for key, tensor in weights.items() if key != "lin6.model.1.weight"}, without)
    with pytest.raises(UserError, match=r"lin6\.model\.1\.weight is missing"):
        load_lpips(str(without))
    thinner = tmp_path / "thinner.safetensors"
    save_file({**weights, "features.0.weight": torch.zeros(64, 1, 3, 3)}, thinner)
    with pytest.raises(UserError, match=r"features\.0\.weight has shape \(64, 1, 3, 3\), wanted \(64, 3, 3, 3\)"):
        load_lpips(str(thinner))


def test_local_ssim_agrees_with_scikit_image() -> None:
    a, b = (images(1, 48, seed=seed, slices=1).pixels[0].astype(np.float64) for seed in (0, 1))
    b = np.clip(b + np.random.default_rng(0).normal(0, 0.05, b.shape), 0, 1)
    _, wanted = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, full=True
    )
    found = local_ssim(*(torch.from_numpy(x)[None, None] for x in (a, b)))[0, 0].numpy()
    inner = (slice(5, -5),) * 2  # borders are mirrored in two ways
    assert np.allclose(found[inner], (1 - wanted[inner]) / 2, atol=1e-8)
    same = local_ssim(*(torch.from_numpy(a)[None, None],) * 2)
    assert same.max() < 1e-9
    assert 0 <= found.min() < found.max() <= 1


def test_a_gaussian_window_keeps_what_is_constant_and_slices_smaller_than_itself() -> None:
    assert torch.allclose(blurred(torch.full((2, 1, 9, 9), 0.3)), torch.tensor(0.3))
    assert blurred(torch.rand(1, 1, 4, 4), 2.0, 8).shape == (1, 1, 4, 4)
    x = torch.rand(1, 1, 5, 5)
    assert torch.equal(blurred(x, 2.0, 0), x)


def test_a_row_says_that_lpips_is_replaced(lpips_file: Path) -> None:
    assert Perceptual().deviations() == ("local SSIM in place of LPIPS (no weights file)",)
    assert Perceptual(weights=str(lpips_file)).deviations() == ()
    assert Perceptual(weights=str(lpips_file), input="published").deviations() == (
        "LPIPS fed −3..1, as in the public code",
    )


def test_torchs_own_generator_stays_as_it_was(ctx: Context, lpips_file: Path) -> None:
    component, before = prior(), torch.get_rng_state()
    state = component.fit(NormalData(images(), images(2)), ctx)
    Diffusion(component, state, "cpu")
    load_lpips(str(lpips_file))
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_are_plain(ctx: Context) -> None:
    """A learnt network answers alike in training and in eval mode: nothing in it drops out or follows a batch."""
    component = prior()
    model = Diffusion(component, component.fit(NormalData(images(), images(2)), ctx), "cpu")
    x, times = random(2, 1, 16, 16).float(), torch.tensor([5, 5])
    assert not any(isinstance(layer, nn.Dropout | nn.BatchNorm2d) for layer in model.network.modules())
    assert torch.equal(model.network.train()(x, times), model.network.eval()(x, times))

"""MAD-AD: its schedule, masks, sampling and losses, what it learns, and every switch of its published ablations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import site
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from harness.anomaly import AnomalyMaps, Component, NormalData, part
from harness.api import Context, ImageSet, MethodError, Scan, State
from harness.contract import check_maps
from harness.cost import measured
from harness.training import learning_rate_at, seeded
from methods.anomaly.components.autoencoder import load_autoencoder
from methods.anomaly.mad_ad.denoiser import MadAdDenoiser, MadAdTraining
from methods.anomaly.mad_ad.masks import inside, random_patches
from methods.anomaly.mad_ad.method import MadAd, clipped, sample, slice_noise
from methods.anomaly.mad_ad.network import MaskedDenoiser
from methods.anomaly.mad_ad.schedule import cosine_schedule, noised, respaced, sampling_steps
from methods.networks.latent_unet import UNetSettings

SIDE = 64
TRAIN = site((90, 190), 16, size=(SIDE, SIDE))
VALIDATION = site((90, 190), 6, seed=1, size=(SIDE, SIDE))


def split(images: ImageSet, at: int) -> ImageSet:
    """The same slices as two scans."""
    spacing = (1.0, 1.0, 1.0)
    scans = (Scan("a", "a", "A", 0, at, spacing), Scan("b", "b", "A", at, len(images), spacing))
    return ImageSet(images.pixels, images.mask, scans)


def second_scan(images: ImageSet) -> ImageSet:
    scan = images.scans[1]
    alone = Scan(scan.id, scan.subject, scan.site, 0, scan.stop - scan.start, scan.spacing)
    return ImageSet(images.pixels[scan.slices], images.mask[scan.slices], (alone,))


TEST = split(site((90, 190), 5, seed=2, size=(SIDE, SIDE)), 2)


def context(scratch: Path, seed: int = 5) -> Context:
    return Context(seed, "cpu", scratch, lambda *_: None)


def learn(component: Component, data: NormalData, scratch: Path) -> State:
    states = {name: learn(each, data, scratch / name) for name, each in component.components().items()}
    return component.fit(NormalData(data.images, data.validation, states), context(scratch))


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> State:
    """What the components of the example leave."""
    found: State = {}
    for name, component in MadAd.example().components().items():
        learnt = learn(component, NormalData(TRAIN, VALIDATION), tmp_path_factory.mktemp(name))
        found |= {f"{name}.{entry}": value for entry, value in learnt.items()}
    return found


def detector(**fields: Any) -> MadAd:
    return MadAd.model_validate({**MadAd.example().model_dump(), **fields})


def detect(state: State, images: ImageSet = TEST, seed: int = 5, **fields: Any) -> AnomalyMaps:
    return check_maps(detector(**fields).detect(state, images, context(Path("unused"), seed)), images)


# ------------------------------------------------------------------------------------------- schedule


def test_the_schedule_is_the_published_one() -> None:
    published = [0.97209, 0.89871, 0.78691, 0.64748, 0.49384, 0.34081, 0.20312, 0.09405, 0.02409, 0.00002]
    np.testing.assert_allclose(cosine_schedule(10), published, atol=6e-6)


def test_the_noise_of_steps_is_the_published_one() -> None:
    steps = sampling_steps(cosine_schedule(10), range(10), 0.5)
    assert [step.time for step in steps] == list(range(9, -1, -1))
    published = [0, 0.07, 0.12, 0.16, 0.20, 0.24, 0.29, 0.34, 0.42, 0.49]
    assert [step.sigma for step in steps[::-1]] == pytest.approx(published, abs=0.005)
    assert steps[-1].sigma == 0
    assert all(step.sigma == 0 for step in sampling_steps(cosine_schedule(10), range(10), 0.0))
    # A constant deviation of 0.5, as the thesis prints it, has no direction left where little noise remains.
    assert min(1 - step.previous - 0.25 for step in steps) < 0


def test_strides_are_those_of_the_published_code() -> None:
    found = {steps: respaced(10, steps) for steps in (10, 5, 2, 7)}
    assert found == {10: tuple(range(10)), 5: (0, 2, 4, 6, 8), 2: (0, 5), 7: None}
    assert [step.time for step in detector(steps=5).sampling()] == [8, 6, 4, 2, 0]
    assert [step.time for step in detector(steps=1).sampling()] == [9]
    assert [step.time for step in detector(steps=1, one_step_at=8).sampling()] == [8]
    with pytest.raises(
        ValidationError, match=r"no equal strides over 10 times make 7 steps; choose of \[1, 2, 3, 4, 5, 10\]"
    ):
        detector(steps=7)
    with pytest.raises(ValidationError, match="one_step_at"):
        detector(steps=1, one_step_at=10)


def test_a_step_is_that_of_ddim() -> None:
    """Its mean and noise are those of the posterior of DDPM with η 1, and with η 0 the noise found is kept."""
    schedule, draws = cosine_schedule(10), torch.Generator().manual_seed(0)
    clean, noise, drawn = torch.randn(3, 1, 4, 2, 2, generator=draws).double()
    for time in (9, 4, 1):
        signal, previous = schedule[time], schedule[time - 1]
        latents = np.sqrt(signal) * clean + np.sqrt(1 - signal) * noise
        kept = sampling_steps(schedule, range(10), 0.0)[9 - time](latents, clean, drawn)
        torch.testing.assert_close(kept, np.sqrt(previous) * clean + np.sqrt(1 - previous) * noise)
        ratio = signal / previous
        mean = np.sqrt(previous) * (1 - ratio) * clean + np.sqrt(ratio) * (1 - previous) * latents
        variance = (1 - ratio) * (1 - previous) / (1 - signal)
        ancestral = sampling_steps(schedule, range(10), 1.0)[9 - time](latents, clean, drawn)
        torch.testing.assert_close(ancestral, mean / (1 - signal) + np.sqrt(variance) * drawn)


# ----------------------------------------------------------------------------------------------- masks


def test_patches_cover_a_fifth_of_a_slice_and_at_most_two() -> None:
    rng = np.random.default_rng(0)
    masks = torch.cat([random_patches(rng, 16, (32, 32), 0.4, (1, 2, 4, 8), (0.2, 0.3, 0.3, 0.2)) for _ in range(400)])
    assert masks.shape == (6400, 1, 32, 32)
    shares = masks.float().mean((1, 2, 3))
    assert float(shares.mean()) == pytest.approx(0.2, abs=0.005)
    assert float(shares.max()) < 0.41
    # Uniform: a quarter of slices in each quarter of the range.
    quarters = np.histogram(shares, [0, 0.1, 0.2, 0.3, 0.42])[0] / len(shares)
    assert quarters == pytest.approx([0.25] * 4, abs=0.03)
    assert float(masks.float().mean((0, 1)).std()) < 0.02  # no place is preferred


def test_sides_of_patches_are_drawn_apart_and_once_for_all_slices() -> None:
    sides: dict[tuple[int, int], int] = {}
    rng = np.random.default_rng(1)
    for _ in range(2000):
        masks = random_patches(rng, 6, (16, 16), 1.0, (1, 2, 4, 8), (0.2, 0.3, 0.3, 0.2))[:, 0].numpy()
        height, width = (
            max(
                side
                for side in (1, 2, 4, 8)
                if (masks == np.take(masks, np.arange(16) // side * side, axis=axis)).all()
            )
            for axis in (1, 2)
        )
        sides[height, width] = sides.get((height, width), 0) + 1
    heights, widths = (
        [sum(n for pair, n in sides.items() if pair[axis] == side) / 2000 for side in (1, 2, 4, 8)] for axis in (0, 1)
    )
    assert heights == pytest.approx([0.2, 0.3, 0.3, 0.2], abs=0.04)
    assert widths == pytest.approx([0.2, 0.3, 0.3, 0.2], abs=0.04)
    assert sides[1, 8] / 2000 == pytest.approx(0.04, abs=0.015)


def test_patches_that_do_not_divide_a_slice_are_cut() -> None:
    masks = random_patches(np.random.default_rng(0), 40, (6, 10), 1.0, (4,), (1.0,))
    assert masks.shape == (40, 1, 6, 10)
    for row, column in ((0, 0), (4, 8)):
        patch = masks[:, 0, row : row + 4, column : column + 4].flatten(1)
        assert bool((patch.all(1) | ~patch.any(1)).all())
        assert 0 < float(patch.float().mean()) < 1


def test_noise_stays_where_blocks_are_brain() -> None:
    brain = torch.zeros(1, 64, 64, dtype=torch.bool)
    brain[:, 16:48, 16:48] = True
    brain[:, 16:18, 16:32] = False  # an eighth of one block of 16 × 16 pixels
    brain[:, 16, 32:48] = False  # a sixteenth of the next
    allowed = inside(brain, 8, 0.9, 2)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    expected[2:4, 2:4] = False
    assert torch.equal(allowed[0, 0], expected)
    assert bool(inside(brain, 8, 0.0, 2).all())
    assert inside(brain, 4, 0.9, 2).shape == (1, 1, 16, 16)
    fine = inside(brain, 8, 0.9, 1)[0, 0]  # of blocks of one latent only the first row lacks more than a tenth
    expected[2:6, 2:6] = True
    expected[2] = False
    assert torch.equal(fine, expected)


def test_only_noisy_latents_are_noised_and_by_the_schedule() -> None:
    draws = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=draws)
    where = torch.rand(2, 1, 8, 8, generator=draws) < 0.5
    schedule = torch.tensor(cosine_schedule(10), dtype=torch.float32)
    out = noised(latents, noise, torch.tensor([0, 8]), where, schedule)
    everywhere = where.expand_as(latents)
    assert torch.equal(out[~everywhere], latents[~everywhere])
    for i, signal in enumerate((0.97209, 0.02409)):
        expected = signal**0.5 * latents[i] + (1 - signal) ** 0.5 * noise[i]
        torch.testing.assert_close(out[i][everywhere[i]], expected[everywhere[i]], atol=1e-3, rtol=1e-3)


# -------------------------------------------------------------------------------------------- sampling


class Oracle(nn.Module):
    """Knows the healthy latents and where others are not."""

    def __init__(self, healthy: Tensor, abnormal: Tensor):
        super().__init__()
        self.healthy, self.abnormal = healthy, abnormal
        self.times: list[int] = []

    def forward(self, latents: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        self.times += times[:1].tolist()
        return self.healthy, torch.where(self.abnormal, 5.0, -5.0)


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_an_oracle_is_given_back_its_latents_and_leaves_the_others_to_the_bit(steps: int) -> None:
    draws = torch.Generator().manual_seed(0)
    healthy, lesion = torch.randn(2, 3, 4, 8, 8, generator=draws)
    abnormal = torch.rand(3, 1, 8, 8, generator=draws) < 0.3
    unlike = healthy + 0.01 * torch.randn(healthy.shape, generator=draws)
    latents = torch.where(abnormal, lesion, unlike)
    oracle, plan = Oracle(healthy, abnormal), detector(steps=steps).sampling()
    course = sample(oracle, latents, plan, torch.randn(steps, *latents.shape, generator=draws), blend=True)
    everywhere = abnormal.expand_as(latents)
    assert len(course.latents) == steps + 1
    for after in course.latents:
        assert torch.equal(after[~everywhere], latents[~everywhere])
    torch.testing.assert_close(course.latents[-1][everywhere], healthy[everywhere], atol=1e-5, rtol=0)
    assert oracle.times == [step.time for step in plan]
    assert all(torch.equal(each > 0.5, abnormal) for each in course.probabilities)
    whole = sample(oracle, latents, plan, torch.zeros(steps, *latents.shape), blend=False)
    torch.testing.assert_close(whole.latents[-1], healthy, atol=1e-5, rtol=0)


def test_what_is_found_at_first_is_replaced_by_noise() -> None:
    """At the latest time next to nothing of the signal is left, so that it is generated anew."""
    draws = torch.Generator().manual_seed(0)
    healthy, drawn = torch.zeros(1, 4, 16, 16), torch.randn(10, 1, 4, 16, 16, generator=draws)
    lesion = torch.randn(1, 4, 16, 16, generator=draws)
    oracle = Oracle(healthy, torch.ones(1, 1, 16, 16, dtype=torch.bool))
    first = sample(oracle, lesion, detector().sampling(), drawn, blend=True).latents[1]
    assert float(first.std()) == pytest.approx((1 - 0.02409) ** 0.5, rel=0.05)


def test_noise_is_a_slices_own() -> None:
    generators = [np.random.default_rng(i) for i in range(3)]
    noise = slice_noise(generators, 2, torch.zeros(3, 4, 5, 6))
    assert noise.shape == (2, 3, 4, 5, 6)
    alone = slice_noise([np.random.default_rng(1)], 2, torch.zeros(1, 4, 5, 6))
    assert torch.equal(noise[:, 1], alone[:, 0])


# ------------------------------------------------------------------------------------------- denoiser


def test_published_settings_are_the_defaults() -> None:
    d = MadAdDenoiser()
    assert d.unet.shape() == (256, 8)
    assert (d.timesteps, d.noisy_share, d.validation_share, d.coverage) == (10, 0.4, 0.3, 0.9)
    assert (d.patch_sides, d.patch_chances) == ((1, 2, 4, 8), (0.2, 0.3, 0.3, 0.2))
    assert (d.mask_loss, d.mask_weight, d.epochs) == ("mse", 0.001, 200)
    assert (d.training.optimizer, d.training.weight_decay, d.training.batch_size) == ("adamw", 1e-4, 96)
    m = MadAd()
    assert (m.steps, m.eta, m.gamma, m.sigma, m.blend, m.score) == (10, 0.5, 0.2, 5.0, "per_step", "image")
    assert m.reference_image == "decoded"
    assert set(m.late_fields) == set(MadAd.model_fields) - {"denoiser"}
    with pytest.raises(ValidationError, match="MAD-AD's size XL cannot be built"):
        MadAdDenoiser.model_validate({"unet": {"size": "XL"}})
    with pytest.raises(ValidationError, match="patch_chances"):
        MadAdDenoiser(patch_chances=(0.5, 0.5))


def test_epochs_are_counted_in_slices_and_the_rate_falls_to_seven_per_cent() -> None:
    training = MadAdDenoiser().training_of(960)
    assert (training.iterations, training.warmup) == (2000, 100)
    rates = [learning_rate_at(training, i) / 4e-5 for i in (0, 49, 99, 1999)]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.067], abs=1e-3)
    by_hand = MadAdDenoiser(epochs=None, training=MadAdTraining(iterations=7, warmup=3))
    assert by_hand.training_of(960) == by_hand.training


def latent_state(n: int, seed: int, side: int = 8) -> State:
    """Posteriors of smooth random latents, in the layout of the component."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.standard_normal((1, n, 4, side, side)), (0, 0, 0, 3, 3), mode="wrap")
    mean = (smooth / smooth.std()).astype(np.float32)
    pixels = (8 * side) ** 2
    return {"mean": mean, "deviation": np.full_like(mean, 0.01), "mask": np.full((1, n, pixels // 8), 255, np.uint8)}


def smooth_latents(side: int = 8) -> State:
    parts: Mapping[str, State] = {"train": latent_state(64, 0, side), "validation": latent_state(16, 1, side)}
    entries = {f"{split}.{name}": value for split, state in parts.items() for name, value in state.items()}
    return {"shape": [8 * side, 8 * side], **entries}


def denoiser(**changes: Any) -> MadAdDenoiser:
    training = {"iterations": 4, "batch_size": 16, "validate_every": 4, "log_every": 1} | changes.pop("training", {})
    unet = {"width": 16, "heads": 2, "groups": 4, "multipliers": (1, 2), "dropout": 0.0, "checkpointing": False}
    return MadAdDenoiser.model_validate({"unet": unet, "epochs": None, **changes, "training": training})


def fit(settings: MadAdDenoiser, scratch: Path, log: Any = lambda *_: None, latents: State | None = None) -> State:
    data = NormalData(TRAIN, VALIDATION, {"latents": latents or smooth_latents()})
    return settings.fit(data, Context(5, "cpu", scratch, log))


def test_it_learns_what_is_noisy_and_what_was_there(tmp_path: Path) -> None:
    """With a weight of the mask that lets it be learnt in seconds; at the published one it takes far longer."""
    training = {"iterations": 120, "learning_rate": 2e-3, "validate_every": 120, "cosine_final": 1.0}
    settings = denoiser(mask_weight=50.0, patch_sides=(2,), patch_chances=(1.0,), training=training)
    state = fit(settings, tmp_path)
    network = settings.load(state, "cpu")
    rng = np.random.default_rng(3)
    latents = torch.from_numpy(latent_state(32, 9)["mean"][0])
    where = random_patches(rng, 32, (8, 8), 0.4, (2,), (1.0,))
    noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
    times = torch.full((32,), 7)
    schedule = torch.tensor(cosine_schedule(10), dtype=torch.float32)
    with torch.no_grad():
        given = noised(latents, noise, times, where, schedule)
        clean, logits = network(given, times)
    hit, false = (float((logits[chosen] > 0).float().mean()) for chosen in (where, ~where))
    assert hit > 0.6
    assert false < 0.1
    everywhere = where.expand_as(latents)
    found, before = ((each - latents)[everywhere].square().mean() for each in (clean, given))
    assert float(found) < 0.5 * float(before)


def test_losses_are_errors_everywhere_and_a_thousandth_of_that_of_the_mask(tmp_path: Path) -> None:
    """Both heads start at 0: the first errors are those of predicting 0 and 1/2."""
    for kind, expected in (("mse", 0.25), ("bce", np.log(2))):
        curves: dict[str, float] = {}

        def log(curve: str, iteration: int, value: float, curves: dict[str, float] = curves) -> None:
            if iteration == 1:
                curves[curve] = value

        settings = denoiser(mask_loss=kind, mask_weight=0.5, training={"iterations": 1})
        fit(settings, tmp_path / kind, log)
        assert curves["mask"] == pytest.approx(expected, rel=1e-5)
        assert curves["latents"] == pytest.approx(1, rel=0.1)
        assert curves["loss"] == pytest.approx(curves["latents"] + 0.5 * expected, rel=1e-5)


def test_validation_is_the_same_each_time_and_of_the_latents_alone(tmp_path: Path) -> None:
    scores: dict[int, float] = {}

    def log(curve: str, iteration: int, value: float) -> None:
        if curve == "validation":
            scores[iteration] = value

    still = {"iterations": 4, "validate_every": 2, "learning_rate": 0.0}
    fit(denoiser(mask_weight=5.0, training=still), tmp_path, log)
    expected = -np.square(smooth_latents()["validation.mean"]).mean()
    assert scores == {2: pytest.approx(expected, rel=1e-5), 4: scores[2]}


def test_latents_that_cannot_be_halved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"56 × 56 pixels, but their latents need multiples of 16 pixels"):
        fit(denoiser(), tmp_path, latents=smooth_latents(7))


def test_the_mask_head_starts_undecided() -> None:
    with seeded(0):
        network = MaskedDenoiser(4, UNetSettings(width=16, heads=2, groups=4, multipliers=(1, 2)))
    clean, logits = network(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2]))
    assert clean.shape == (2, 4, 8, 8)
    assert logits.shape == (2, 1, 8, 8)
    assert not logits.detach().any()


# ------------------------------------------------------------------------------------------- detection


def test_maps_are_valid_and_costs_are_those_of_the_steps(state: State) -> None:
    with measured("cpu") as meter:
        found = detect(state)
    assert meter.summary(len(TEST))["evaluations"] == {"autoencoder": 3.0, "network": 10.0}
    assert found.maps.max() <= 1
    assert found.maps.max() > 0
    assert found.reconstruction is not None
    assert found.image_scores == pytest.approx(found.maps.reshape(len(TEST), -1).max(1))
    with measured("cpu") as meter:
        detect(state, steps=2)
    assert meter.evaluations["network"] == 2 * len(TEST)


def test_the_map_is_the_smoothed_difference_of_what_was_decoded(state: State) -> None:
    """In the middle of slices, where pictures are not clipped to [0, 1], and with a gamma that is never reached."""
    method = detector(gamma=2.0, sigma=8.0)
    pictures = method.illustrate(state, TEST, context(Path("unused")))
    maps = method.detect(state, TEST, context(Path("unused"))).maps
    before, after = pictures["autoencoder"], pictures["corrected"]
    reached = np.stack([before, after])[..., 16:48, 16:48]
    assert 0 < reached.min() < reached.max() < 1
    expected = gaussian_filter(np.abs(after - before), (0, 2.0, 2.0))[:, 24:40, 24:40]
    assert expected.max() > 1e-3
    np.testing.assert_allclose(maps[:, 24:40, 24:40], expected, atol=1e-6)


def test_the_same_seed_gives_the_same_map_and_another_one_another(state: State) -> None:
    first, again, other = detect(state), detect(state), detect(state, seed=6)
    np.testing.assert_array_equal(first.maps, again.maps)
    assert not np.array_equal(first.maps, other.maps)
    without = [detect(state, seed=seed, eta=0.0).maps for seed in (5, 6)]
    np.testing.assert_allclose(without[0], without[1], atol=1e-6)


def test_a_map_does_not_depend_on_other_slices_or_the_size_of_batches(state: State) -> None:
    whole = detect(state)
    np.testing.assert_allclose(detect(state, second_scan(TEST)).maps, whole.maps[2:], atol=1e-4)
    np.testing.assert_allclose(detect(state, batch_size=2).maps, whole.maps, atol=1e-4)


SWITCHES: list[dict[str, Any]] = [
    {"steps": 5},
    {"steps": 2},
    {"steps": 1},
    {"steps": 1, "one_step_at": 8},
    {"gamma": 0.4},
    {"gamma": None},
    {"score": "latent"},
    {"score": "latent", "latent_gamma": None},
    {"score": "mask"},
    {"blend": "none"},
    {"eta": 0.0},
    {"reference_image": "image"},
    {"sigma": 0.0},
]


def test_every_switch_of_the_ablations_changes_the_map(state: State) -> None:
    found = [detect(state), *(detect(state, **switch) for switch in SWITCHES)]
    assert len({each.maps.tobytes() for each in found}) == len(SWITCHES) + 1


def test_clipping_is_to_gamma_and_to_units_of_it() -> None:
    difference = torch.tensor([0.0, 0.1, 0.2, 1.5])
    torch.testing.assert_close(clipped(difference, 0.2), torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert torch.equal(clipped(difference, None), difference)


def test_the_mask_as_score_is_the_mean_probability(state: State) -> None:
    pictures = detector().illustrate(state, TEST, context(Path("unused")))
    found = detector(score="mask", sigma=0.0).detect(state, TEST, context(Path("unused")))
    np.testing.assert_array_equal(found.maps, pictures["found noisy"])


def test_the_way_is_shown_from_the_slice_to_the_corrected_one(state: State) -> None:
    method = detector(steps=5)
    pictures = method.illustrate(state, TEST, context(Path("unused")))
    assert list(pictures) == ["autoencoder", "t=8", "t=6", "t=4", "t=2", "corrected", "found noisy"]
    for picture in pictures.values():
        assert picture.shape == TEST.pixels.shape
        assert picture.min() >= 0
        assert picture.max() <= 1
    autoencoder = load_autoencoder(part(state, "autoencoder"), method.denoiser.latents.autoencoder, "cpu")
    with torch.no_grad():
        plain = autoencoder.decode(autoencoder.encode(torch.from_numpy(TEST.floats())[:, None]))
    np.testing.assert_allclose(pictures["autoencoder"], (plain[:, 0].numpy() / 2 + 0.5).clip(0, 1), atol=1e-5)
    reconstruction = method.detect(state, TEST, context(Path("unused"))).reconstruction
    np.testing.assert_array_equal(pictures["corrected"], reconstruction)


def test_what_departs_from_the_publication_is_said() -> None:
    published = MadAd.model_validate({"denoiser": {"latents": {"autoencoder": {"load": "x", "fine_tune": False}}}})
    assert published.deviations() == ("8 augmented views of each slice",)
    assert {"U-Net of width 16", "denoiser trained for 12 iterations"} < set(MadAd.example().deviations())


def test_slices_that_do_not_fit_are_refused(state: State) -> None:
    with pytest.raises(MethodError, match="multiples of 8"):
        detect(state, site((90, 190), 2, size=(60, 64)))

"""REFLECT: the flow and its sign, what is learnt, how slices are mapped, and what the settings change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import site
from pydantic import ValidationError
from torch import Tensor

from harness.anomaly import AnomalyMaps, Component, NormalData
from harness.api import Context, ImageSet, MethodError, State
from harness.conformance import check_method
from harness.contract import check_maps
from harness.cost import measured
from harness.training import seeded
from methods.anomaly.components.autoencoder import load_autoencoder
from methods.anomaly.components.latents import LatentSlices
from methods.anomaly.mad_ad.method import MadAd
from methods.anomaly.reflect.flow import carried, euler, velocity_loss
from methods.anomaly.reflect.method import Reflect, Reflect2
from methods.anomaly.reflect.pairs import brain_cells, corrupt
from methods.anomaly.reflect.settings import Corruption, StudentTraining, VelocityTraining, over_epochs
from methods.anomaly.reflect.velocity import ReflectStudent, ReflectVelocity, VelocityLatents

IMAGES, VALIDATION, TEST = (site((90, 190), n, seed=seed, size=(64, 64)) for n, seed in ((10, 0), (4, 1), (6, 2)))
Log = Callable[[str, int, float], None]


def context(scratch: Path, seed: int = 0, log: Log = lambda *_: None) -> Context:
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(seed, "cpu", scratch, log)


class Workshop:
    """Learns components, equal ones once."""

    def __init__(self, folder: Path):
        self.folder, self.known = folder, list[tuple[Component, State]]()

    def learn(self, component: Component) -> State:
        for known, state in self.known:
            if known == component:
                return state
        data = NormalData(IMAGES, VALIDATION, {name: self.learn(each) for name, each in component.components().items()})
        state = component.fit(data, context(self.folder / str(len(self.known))))
        self.known.append((component, state))
        return state

    def handed(self, method: Reflect | Reflect2) -> State:
        learnt = {name: self.learn(component) for name, component in method.components().items()}
        return {f"{name}.{entry}": value for name, state in learnt.items() for entry, value in state.items()}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("reflect"))


def with_settings(method: Reflect | Reflect2, **changes: Any) -> Reflect | Reflect2:
    return method.model_copy(update=changes)


def found(workshop: Workshop, scratch: Path, images: ImageSet = TEST, **changes: Any) -> AnomalyMaps:
    method = with_settings(Reflect.example(), **changes)
    return check_maps(method.detect(workshop.handed(method), images, context(scratch)), images)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(torch.as_tensor(value), torch.as_tensor(second[key])) for key, value in first.items()
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ the flow


def test_with_the_true_velocity_one_step_gives_the_healthy_latent_and_minus_doubles_the_error() -> None:
    clean = drawn(3, 4, 16, 16)
    brain = np.ones((3, 16, 16), bool)
    corruption = Corruption(identity=0, texture_probability=0)
    corrupted = torch.from_numpy(corrupt(clean.numpy(), brain, None, corruption, np.random.default_rng(0)))
    difference = clean - corrupted
    assert difference.abs().max() > 0.5
    for steps in (1, 5, 10):
        ended = carried(lambda z, t: difference, corrupted, steps)
        torch.testing.assert_close(ended, clean)
        torch.testing.assert_close((ended - corrupted).abs(), difference.abs())  # what the map shows is the corruption
    subtracted = carried(lambda z, t: -difference, corrupted, 1)
    torch.testing.assert_close((subtracted - clean).abs(), 2 * difference.abs())


def test_steps_are_equal_and_start_at_time_0() -> None:
    seen = []

    def velocity(latents: Tensor, times: Tensor) -> Tensor:
        assert times.shape == (2,)
        seen.append(times[0].item())
        return latents

    way = list(euler(velocity, torch.ones(2, 1, 1, 1), 4))
    assert seen == [0, 0.25, 0.5, 0.75]
    assert [each[0].item() for each in way] == pytest.approx([1.25**step for step in (1, 2, 3, 4)])


def test_the_loss_is_the_squared_error_of_the_difference_on_the_straight_line() -> None:
    start, end, times = drawn(2, 4, 8, 8), drawn(2, 4, 8, 8, seed=1), torch.tensor([0.25, 1.0])
    seen: list[Tensor] = []

    def velocity(latents: Tensor, at: Tensor) -> Tensor:
        seen.extend((latents, at))
        return end - start + 3

    assert velocity_loss(velocity, start, end, times).item() == pytest.approx(9, rel=1e-5)
    torch.testing.assert_close(seen[0][0], 0.75 * start[0] + 0.25 * end[0])
    torch.testing.assert_close(seen[0][1], end[1])
    assert torch.equal(seen[1], times)


# ----------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("size", "expected"), [("XS", 16.13), ("S", 64.41), ("M", 144.86), ("L", 257.47), ("XL", 579.18)]
)
def test_sizes_of_table_5_2(size: str, expected: float) -> None:
    settings = ReflectVelocity.model_validate({"unet": {"size": size}})
    with torch.device("meta"):
        network = settings.build()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == expected
    if size == "M":
        assert settings == ReflectVelocity()


def test_the_other_autoencoder_of_table_5_2() -> None:
    settings = Reflect.model_validate({"velocity": {"latents": {"autoencoder": {"kind": "f4"}}}})
    with torch.device("meta"):
        network = settings.velocity.build()
        shown = network(torch.empty(1, 3, 64, 64), torch.empty(1))
    assert shown.shape == (1, 3, 64, 64)
    assert settings.velocity.textures.autoencoder == settings.velocity.latents.autoencoder
    assert (settings.velocity.multiple, ReflectVelocity().multiple) == (16, 32)


def test_published_settings() -> None:
    velocity, student = ReflectVelocity(), ReflectStudent()
    assert velocity.latents.augmentation.rotation == 0
    assert velocity.latents.augmentation.translation == 8
    training = over_epochs(velocity.training, 19_200, velocity.epochs, velocity.warmup_epochs)
    assert (training.iterations, training.warmup, training.batch_size) == (20_000, 500, 192)
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-4, 1e-4)
    training = over_epochs(student.training, 19_200, student.epochs)
    assert (training.iterations, training.warmup, training.learning_rate) == (5000, 0, 1e-5)
    assert over_epochs(velocity.training, 3, 0.01).iterations == 1
    assert over_epochs(VelocityTraining(iterations=7, warmup=2), 1000, None) == VelocityTraining(iterations=7, warmup=2)
    assert isinstance(student.training, StudentTraining)
    method = Reflect()
    assert (method.steps, method.gamma, method.sigma, method.latent_sigma) == (1, 0.4, 3, 1)


def test_what_is_expensive_is_shared() -> None:
    assert Reflect2().student.components()["teacher"] == Reflect().components()["velocity"]
    assert Reflect2().components()["autoencoder"] == Reflect().components()["autoencoder"]
    assert MadAd().components()["autoencoder"] == Reflect().components()["autoencoder"]
    for cls in (Reflect, Reflect2):
        others = set(cls.model_fields) - set(cls.late_fields)
        assert others == {"velocity"} or others == {"student"}
        assert not cls().has_fit()


def test_settings_survive_a_file() -> None:
    for method in (Reflect.example(), Reflect2.example(), Reflect(), Reflect2()):
        assert type(method).model_validate(method.model_dump()) == method
        assert type(method).model_validate_json(method.model_dump_json()) == method
    changed = ReflectVelocity.model_validate({"latents": {"augmentation": {"strict": True}}})
    assert changed.latents.augmentation.rotation == 0


def test_without_textures_none_are_learnt() -> None:
    settings = ReflectVelocity.model_validate({"corruption": {"texture_probability": 0}})
    assert set(settings.components()) == {"latents"}
    assert set(ReflectVelocity().components()) == {"latents", "textures"}
    assert "textures drawn at random" in Reflect().deviations()
    assert "textures drawn at random" not in Reflect(velocity=settings).deviations()
    photographs = ReflectVelocity.model_validate({"textures": {"source": "dtd"}})
    assert "textures drawn at random" not in photographs.departures()


def test_textures_of_another_autoencoder_are_refused() -> None:
    wrong = {"latents": {"autoencoder": {"kind": "f4"}}, "textures": {"autoencoder": {"kind": "f8"}}}
    with pytest.raises(ValidationError, match="must be that of the latents"):
        ReflectVelocity.model_validate(wrong)


# ----------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize("cls", [Reflect, Reflect2, ReflectVelocity, ReflectStudent, VelocityLatents])
def test_it_conforms(cls: Any) -> None:
    assert [result for result in check_method(cls) if not result.passed] == []


def made_latents(n: int, seed: int) -> dict[str, np.ndarray]:
    """Two smooth patterns, mixed anew in each slice, with a little noise; all of the slice is brain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8] / 8
    patterns = np.stack([np.sin(2 * np.pi * (rows + k * columns / 2)) for k in range(4)]) * np.sqrt(2)
    mean = (rng.choice([-1.0, 1.0], (1, n, 1, 1, 1)) * patterns).astype(np.float32)
    return {"mean": mean, "deviation": np.full_like(mean, 0.05), "mask": np.full((1, n, 64 * 64 // 8), 255, np.uint8)}


@pytest.fixture(scope="module")
def made() -> NormalData:
    state: State = {"shape": [64, 64]}
    for split, n, seed in (("train", 40, 0), ("validation", 16, 1)):
        state |= {f"{split}.{entry}": value for entry, value in made_latents(n, seed).items()}
    return NormalData(IMAGES, VALIDATION, {"latents": state})


def learner(**changes: Any) -> ReflectVelocity:
    return ReflectVelocity.model_validate(
        {
            "latents": VelocityLatents.example(),
            "corruption": {"texture_probability": 0},
            "unet": {
                "width": 8,
                "heads": 2,
                "groups": 4,
                "multipliers": (1, 2),
                "dropout": 0.0,
                "checkpointing": False,
            },
            "epochs": None,
            "training": {
                "iterations": 150,
                "batch_size": 8,
                "learning_rate": 5e-3,
                "validate_every": 75,
                "schedule": "cosine",
            },
            **changes,
        }
    )


@pytest.fixture(scope="module")
def taught(made: NormalData, tmp_path_factory: pytest.TempPathFactory) -> tuple[State, dict[str, list[float]]]:
    """A velocity of the made latents, and the curves of its training."""
    curves: dict[str, list[float]] = {}
    ctx = context(
        tmp_path_factory.mktemp("taught"), log=lambda name, _, value: curves.setdefault(name, []).append(value)
    )
    return learner().fit(made, ctx), curves


def held_out_pairs(made: NormalData, seed: int = 5) -> tuple[Tensor, Tensor]:
    ((clean, masks),) = LatentSlices(made.components["latents"], "validation").batches(16)
    corruption = Corruption(identity=0, texture_probability=0, severity=(0.5, 1.0))
    rng = np.random.default_rng(seed)
    return torch.from_numpy(corrupt(clean.numpy(), brain_cells(masks.numpy(), (8, 8)), None, corruption, rng)), clean


@torch.no_grad()
def test_it_learns_to_correct(taught: tuple[State, dict[str, list[float]]], made: NormalData) -> None:
    state, curves = taught
    velocity = learner().load(state, "cpu")
    corrupted, clean = held_out_pairs(made)
    changed = (corrupted != clean).expand_as(clean)
    before = (corrupted - clean)[changed].square().mean()
    for steps in (1, 5):
        after = (carried(velocity, corrupted, steps) - clean)[changed].square().mean()
        assert after < 0.5 * before, steps
    # Moved where it was corrupted, and hardly where it was not.
    moved = (carried(velocity, corrupted, 1) - corrupted).abs()
    assert moved[changed].mean() > 3 * moved[~changed].mean()
    assert np.mean(curves["loss"][-20:]) < 0.7 * np.mean(curves["loss"][:20])
    assert state["score"] == curves["validation"][-1]
    assert state["iteration"] == 150


def test_2_reflect_leaves_the_teacher_as_it_is_and_starts_from_it(
    taught: tuple[State, dict[str, list[float]]], made: NormalData, tmp_path: Path
) -> None:
    teacher = taught[0]
    before = {key: torch.as_tensor(value).clone() for key, value in teacher.items()}
    data = NormalData(IMAGES, VALIDATION, {**made.components, "teacher": teacher})

    def student(folder: str, **changes: Any) -> State:
        training = {"iterations": 12, "batch_size": 8, "validate_every": 12, "learning_rate": 1e-3} | changes
        settings = ReflectStudent.model_validate({"teacher": learner(), "epochs": None, "training": training})
        return settings.fit(data, context(tmp_path / folder))

    still = student("still", learning_rate=0, weight_decay=0)
    weights = {key: value for key, value in still.items() if key.startswith("network.")}
    assert same(weights, {key: teacher[key] for key in weights})
    learnt = student("learnt")
    assert same(before, {key: torch.as_tensor(value) for key, value in teacher.items()})
    assert not same({key: learnt[key] for key in weights}, weights)
    # Its own aim, the end of the teacher's way, it meets better than the teacher's velocity does.
    assert learnt["score"] > still["score"]


@torch.no_grad()
def test_the_aim_of_2_reflect_is_where_the_teacher_ends(
    taught: tuple[State, dict[str, list[float]]], made: NormalData, tmp_path: Path
) -> None:
    """Its validation score, computed anew with the teacher's five steps."""
    data = NormalData(IMAGES, VALIDATION, {**made.components, "teacher": taught[0]})
    teacher, scores = learner().load(taught[0], "cpu"), {}
    training = {"iterations": 1, "batch_size": 16, "validate_every": 1, "learning_rate": 0, "weight_decay": 0}
    for steps in (1, 5):
        settings = ReflectStudent.model_validate(
            {"teacher": learner(), "steps": steps, "epochs": None, "training": training}
        )
        with torch.enable_grad():
            scores[steps] = settings.fit(data, context(tmp_path / str(steps)))["score"]
    ((clean, masks),) = LatentSlices(made.components["latents"], "validation").batches(16)
    rng = np.random.default_rng([0, 1])
    brain = brain_cells(masks.numpy(), (8, 8))
    start = torch.from_numpy(corrupt(clean.numpy(), brain, None, learner().corruption, rng))
    times = torch.from_numpy(rng.random(16, np.float32))
    for steps, score in scores.items():
        assert -velocity_loss(teacher, start, carried(teacher, start, steps), times).item() == pytest.approx(
            score, rel=1e-4
        )
    assert scores[1] != pytest.approx(scores[5], rel=1e-2)


def test_corruption_is_part_of_what_is_learnt(made: NormalData, tmp_path: Path) -> None:
    short = {"iterations": 2, "batch_size": 8, "learning_rate": 1e-2}
    fits = {
        name: learner(training=short, corruption={"texture_probability": 0, **changes}).fit(
            made, context(tmp_path / name)
        )
        for name, changes in {"a": {}, "b": {}, "c": {"walk": "visited"}, "d": {"severity": (0.0, 1.0)}}.items()
    }
    assert same(fits["a"], fits["b"])
    assert not same(fits["a"], fits["c"])
    assert not same(fits["a"], fits["d"])


def test_material_that_does_not_fit_is_named(workshop: Workshop, tmp_path: Path) -> None:
    settings = ReflectVelocity.example()
    state = dict(workshop.learn(settings.latents))
    textures = workshop.learn(settings.textures)
    deep = settings.model_copy(update={"unet": settings.unet.model_copy(update={"multipliers": (1, 1, 1, 1, 1)})})
    with pytest.raises(MethodError, match="64 × 64 pixels, but need multiples of 128"):
        deep.fit(NormalData(IMAGES, VALIDATION, {"latents": state, "textures": textures}), context(tmp_path / "a"))
    small = {"latents": np.asarray(textures["latents"])[:, :, :7], "std": 1.0}
    with pytest.raises(MethodError, match=r"raise textures\.size"):
        settings.fit(NormalData(IMAGES, VALIDATION, {"latents": state, "textures": small}), context(tmp_path / "b"))


# ----------------------------------------------------------------------------------------------- detection


def test_evaluations_are_steps_for_each_slice(workshop: Workshop, tmp_path: Path) -> None:
    for steps in (1, 5):
        with measured("cpu") as meter:
            found(workshop, tmp_path, steps=steps, batch_size=4)
        assert meter.evaluations == {"network": steps * len(TEST), "autoencoder": 3 * len(TEST)}


def test_maps_lie_in_0_1_and_show_what_was_corrected(workshop: Workshop, tmp_path: Path) -> None:
    method = Reflect.example()
    maps = method.detect(workshop.handed(method), TEST, context(tmp_path)).maps
    assert maps.shape == TEST.pixels.shape
    assert maps.min() >= 0
    assert 0 < maps.max() <= 1
    high = found(workshop, tmp_path, gamma=1e-4, latent_gamma=1e-4)
    assert high.maps.max() <= 1 + 1e-6
    assert high.maps[TEST.mask].mean() > 0.9, "all of it is beyond so low a limit"
    low = found(workshop, tmp_path, gamma=None, latent_gamma=None, score="image", sigma=0.0)
    scaled = found(workshop, tmp_path, gamma=2.0, score="image", sigma=0.0)
    np.testing.assert_allclose(low.maps, 2 * scaled.maps, rtol=1e-5, atol=1e-7)


def test_the_map_is_built_as_published(workshop: Workshop, tmp_path: Path) -> None:
    """Without smoothing, from the networks themselves."""
    method = with_settings(Reflect.example(), sigma=0.0, latent_sigma=0.0, gamma=0.05, latent_gamma=0.2)
    state = workshop.handed(method)
    autoencoder = load_autoencoder(
        workshop.learn(method.components()["autoencoder"]), method.velocity.latents.autoencoder, "cpu"
    )
    velocity = method.velocity.load(workshop.learn(method.velocity), "cpu")
    pixels = torch.from_numpy(TEST.floats())[:, None]
    with torch.inference_mode():
        before = autoencoder.encode(pixels)
        after = before + velocity(before, torch.zeros(len(before)))
        image = ((autoencoder.decode(after) - autoencoder.decode(before)).abs().amax(1) / 0.05).clamp(max=1)
        latent = ((after - before).abs().mean(1, keepdim=True) / 0.2).clamp(max=1)
        latent = torch.nn.functional.interpolate(latent, (64, 64), mode="bilinear", align_corners=False)[:, 0]
        picture = ((autoencoder.decode(after)[:, 0] + 1) / 2).clamp(0, 1)
    shown = method.detect(state, TEST, context(tmp_path))
    np.testing.assert_allclose(shown.maps, 0.5 * image.numpy() + 0.5 * latent.numpy(), atol=1e-4)
    np.testing.assert_allclose(shown.reconstruction, picture.numpy(), atol=1e-4)


def test_each_switch_of_the_map_changes_it(workshop: Workshop, tmp_path: Path) -> None:
    plain = found(workshop, tmp_path).maps
    image, latent = (found(workshop, tmp_path, score=score).maps for score in ("image", "latent"))
    np.testing.assert_allclose(plain, (image + latent) / 2, atol=1e-6)
    assert np.abs(image - latent).max() > 1e-3
    changes: dict[str, Any] = {
        "steps": 10,
        "reference_image": "image",
        "gamma": 0.01,
        "latent_gamma": 0.05,
        "sigma": 12.0,
        "latent_sigma": 4.0,
    }
    for name, value in changes.items():
        assert np.abs(found(workshop, tmp_path, **{name: value}).maps - plain).max() > 1e-4, name
    np.testing.assert_allclose(found(workshop, tmp_path, batch_size=1).maps, plain, atol=1e-5)


def test_smoothing_follows_the_size_of_slices(workshop: Workshop, tmp_path: Path) -> None:
    """A slice of 64 pixels is smoothed by a quarter of what is stated for 256."""
    from scipy.ndimage import gaussian_filter

    sharp = with_settings(Reflect.example(), score="image", sigma=0.0)
    smooth = with_settings(Reflect.example(), score="image", sigma=8.0)
    state = workshop.handed(sharp)
    maps = [method.detect(state, TEST, context(tmp_path)).maps for method in (sharp, smooth)]
    np.testing.assert_allclose(maps[1], [gaussian_filter(each, 2) for each in maps[0]], atol=1e-6)


def test_the_same_seed_gives_the_same_map_and_slices_do_not_see_each_other(workshop: Workshop, tmp_path: Path) -> None:
    first, again = found(workshop, tmp_path), found(workshop, tmp_path)
    assert (first.maps == again.maps).all()
    few = ImageSet(TEST.pixels[2:4], TEST.mask[2:4], TEST.scans)
    np.testing.assert_allclose(found(workshop, tmp_path, images=few).maps, first.maps[2:4], atol=1e-4)


def test_slices_may_be_rectangular_but_must_fit(workshop: Workshop, tmp_path: Path) -> None:
    wide = site((90, 190), 2, seed=3, size=(48, 80))
    assert found(workshop, tmp_path, images=wide).maps.shape == (2, 48, 80)
    with pytest.raises(MethodError, match="56 × 64 pixels, but need multiples of 16; pad them"):
        found(workshop, tmp_path, images=site((90, 190), 2, size=(56, 64)))


def test_pictures_show_the_way(workshop: Workshop, tmp_path: Path) -> None:
    method = Reflect.example()
    pictures = method.illustrate(workshop.handed(method), TEST, context(tmp_path))
    assert list(pictures) == [
        "decoded",
        "corrected in 1 step",
        "t = 0.2 of 10 steps",
        "t = 0.4 of 10 steps",
        "t = 0.6 of 10 steps",
        "t = 0.8 of 10 steps",
        "10 steps",
        "difference of slices",
        "difference of latents",
    ]
    shown = method.detect(workshop.handed(method), TEST, context(tmp_path))
    np.testing.assert_allclose(pictures["corrected in 1 step"], shown.reconstruction, atol=1e-6)
    mean = (pictures["difference of slices"] + pictures["difference of latents"]) / 2
    np.testing.assert_allclose(mean, shown.maps, atol=1e-6)
    ten = with_settings(method, steps=10).detect(workshop.handed(method), TEST, context(tmp_path))
    np.testing.assert_allclose(pictures["10 steps"], ten.reconstruction, atol=1e-5)
    ways = [np.abs(pictures[name] - pictures["decoded"]).mean() for name in list(pictures)[2:7]]
    assert ways == sorted(ways)


def test_2_reflect_shows_the_student(workshop: Workshop, tmp_path: Path) -> None:
    method, first = Reflect2.example(), Reflect.example()
    maps = method.detect(workshop.handed(method), TEST, context(tmp_path)).maps
    assert np.abs(maps - found(workshop, tmp_path).maps).max() > 1e-4
    state = {**workshop.handed(first)}
    np.testing.assert_array_equal(
        method.detect(state, TEST, context(tmp_path)).maps, first.detect(state, TEST, context(tmp_path)).maps
    )


def test_networks_are_built_without_touching_the_global_generator(workshop: Workshop, tmp_path: Path) -> None:
    with seeded(3):
        before = torch.random.get_rng_state()
        found(workshop, tmp_path)
        assert torch.equal(torch.random.get_rng_state(), before)

"""Latents of textures: drawn at random or read from a folder, and encoded as slices are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import site
from PIL import Image

from harness.anomaly import NormalData
from harness.api import Context, MethodError, State
from harness.conformance import check_method
from harness.problems import UserError
from methods.anomaly.components.autoencoder import LatentAutoencoder, load_autoencoder
from methods.anomaly.components.procedural_textures import blobs, checker, draw_texture, gabor, perlin
from methods.anomaly.components.textures import TextureLatents, pictures, read_texture, texture_files

SIDE = 96
AUTOENCODER = LatentAutoencoder.example()
DATA = NormalData(site((90, 190), 4, size=(32, 32)), site((90, 190), 4, size=(32, 32)))


def textures(**changes: Any) -> TextureLatents:
    return TextureLatents.model_validate({"autoencoder": AUTOENCODER, "count": 5, "size": 48, **changes})


def context(scratch: Path, seed: int = 3, log: Callable[[str, int, float], None] = lambda *_: None) -> Context:
    return Context(seed, "cpu", scratch, log)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> State:
    return AUTOENCODER.fit(DATA, context(tmp_path_factory.mktemp("autoencoder")))


def fitted(settings: TextureLatents, autoencoder: State, scratch: Path, seed: int = 3) -> State:
    data = NormalData(DATA.images, DATA.validation, {"autoencoder": autoencoder})
    return settings.fit(data, context(scratch, seed))


def patterns(family: Callable[[np.random.Generator, int], np.ndarray], n: int = 24) -> list[np.ndarray]:
    return [family(np.random.default_rng([1, i]), SIDE) for i in range(n)]


def spectrum(image: np.ndarray) -> np.ndarray:
    """Power at each frequency, summing to 1, without the mean's."""
    power = np.abs(np.fft.fft2(image - image.mean())) ** 2
    return power / power.sum()


# ------------------------------------------------------------------------------------------ drawn at random


@pytest.mark.parametrize("family", [perlin, gabor, checker, blobs])
def test_families_are_random_finite_and_of_one_size(family: Callable[..., np.ndarray]) -> None:
    found = patterns(family)
    assert all(each.shape == (SIDE, SIDE) and np.isfinite(each).all() for each in found)
    assert all(each.std() > 0 for each in found)
    assert len({each.tobytes() for each in found}) == len(found)
    assert (family(np.random.default_rng([1, 0]), SIDE) == found[0]).all()


def test_gradient_noise_is_smooth_and_zero_at_its_lattice() -> None:
    from methods.anomaly.components.procedural_textures import _gradient_noise

    class Still(np.random.Generator):
        """Starts at the lattice."""

        def random(self, *args: Any, **kwargs: Any) -> Any:
            return 0.0

    noise = _gradient_noise(Still(np.random.PCG64(0)), 64, 16.0)
    assert np.abs(noise[::16, ::16]).max() < 1e-12
    assert noise.std() > 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.25
    # The slope at a lattice point is the gradient there, the same from both sides.
    steps = np.diff(noise, axis=0)
    np.testing.assert_allclose(steps[16, ::16], steps[15, ::16], atol=0.03)


def test_gabor_noise_has_its_power_in_few_frequencies_and_perlin_in_low_ones() -> None:
    held = [np.sort(spectrum(each).ravel())[-SIDE * SIDE // 20 :].sum() for each in patterns(gabor)]
    assert np.median(held) > 0.7
    radius = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    assert np.median([spectrum(each)[radius < 0.25].sum() for each in patterns(perlin)]) > 0.8


def test_checkerboards_and_blobs_have_two_levels() -> None:
    for family in (checker, blobs):
        share = [np.mean(np.abs(each) > 0.8 * np.abs(each).max()) for each in patterns(family)]
        assert np.median(share) > 0.5, family


def test_textures_are_pictures_of_many_kinds() -> None:
    drawn = np.stack([draw_texture(np.random.default_rng([0, i]), 64) for i in range(60)])
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    contrast = np.ptp(drawn, axis=(1, 2))
    assert contrast.min() > 0.29
    assert contrast.max() > 0.9
    assert drawn.mean((1, 2)).std() > 0.1


def test_a_texture_does_not_depend_on_how_many_there_are() -> None:
    few, many = (pictures(textures(count=count), seed=3) for count in (2, 9))
    assert (few[0], many[0]) == (2, 9)
    assert (few[1](1) == many[1](1)).all()
    assert (few[1](1) != few[1](0)).any()
    assert (few[1](1) != pictures(textures(count=2), seed=4)[1](1)).any()


# ------------------------------------------------------------------------------------------------- encoded


def test_latents_are_the_posterior_means_of_the_pictures(autoencoder: State, tmp_path: Path) -> None:
    settings = textures(autoencoder=AUTOENCODER.model_copy(update={"batch_size": 2}))
    state = fitted(settings, autoencoder, tmp_path)
    assert state["latents"].shape == (5, 4, 6, 6)
    assert state["latents"].dtype == np.float16
    network = load_autoencoder(autoencoder, AUTOENCODER, "cpu")
    _, texture = pictures(settings, seed=3)
    with torch.inference_mode():
        expected = network.encode(torch.from_numpy(np.stack([texture(i) for i in range(5)]))[:, None])
    np.testing.assert_allclose(state["latents"], expected.numpy(), rtol=2e-3, atol=2e-3)
    assert state["std"] == pytest.approx(float(expected.std(correction=0)), rel=1e-2)
    assert (fitted(settings, autoencoder, tmp_path)["latents"] == state["latents"]).all()
    assert (fitted(settings, autoencoder, tmp_path, seed=4)["latents"] != state["latents"]).any()


def test_a_size_that_cannot_be_halved_is_named(autoencoder: State, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="size is 50, but must be a multiple of 8"):
        fitted(textures(size=50), autoencoder, tmp_path)


def test_it_conforms_and_has_as_many_as_dtd_by_default() -> None:
    assert [result for result in check_method(TextureLatents) if not result.passed] == []
    assert (TextureLatents().count, TextureLatents().size) == (5640, 320)


# ------------------------------------------------------------------------------------------- from a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images in two folders, in colour and grey, and what is no image."""
    root = tmp_path / "dtd"
    rng = np.random.default_rng(0)
    for name, shape in {
        "banded/a.jpg": (60, 80, 3),
        "banded/b.PNG": (50, 50),
        "dotted/c.jpeg": (30, 40, 3),
        "dotted/d.png": (64, 64, 3),
        "e.png": (48, 48),
        "f.png": (48, 90),
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    (root / "readme.txt").write_text("no image")
    return root


def test_a_folder_is_searched_in_a_fixed_order(folder: Path) -> None:
    names = [path.relative_to(folder).as_posix() for path in texture_files(folder)]
    assert names == ["banded/a.jpg", "banded/b.PNG", "dotted/c.jpeg", "dotted/d.png", "e.png", "f.png"]


def test_of_a_folder_all_or_a_random_choice_is_taken(folder: Path) -> None:
    whole, texture = pictures(textures(source=str(folder), count=100), seed=0)
    assert whole == 6
    everything = {texture(i).tobytes() for i in range(6)}
    assert len(everything) == 6
    choices = []
    for seed in range(8):
        count, texture = pictures(textures(source=str(folder), count=3), seed)
        assert count == 3
        choices.append(frozenset(texture(i).tobytes() for i in range(3)))
        assert choices[-1] < everything
    assert len(set(choices)) > 1


def test_an_image_becomes_its_central_square_in_grey(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    found = read_texture(tmp_path / "a.png", 16)
    grey = colours[2:18, 7:23].astype(float) @ [0.299, 0.587, 0.114] / 255
    np.testing.assert_allclose(found, grey, atol=1.1 / 255)
    assert found.dtype == np.float32


def test_an_image_that_is_too_small_is_enlarged(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 20).astype(np.uint8)[None].repeat(10, 0)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    found = read_texture(tmp_path / "a.png", 40)
    assert found.shape == (40, 40)
    # The whole height, and the middle half of the width.
    assert found[20, 0] == pytest.approx(0.25, abs=0.03)
    assert found[20, -1] == pytest.approx(0.75, abs=0.03)


def test_what_cannot_be_read_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder of textures; give a folder"):
        pictures(textures(source=str(tmp_path / "none")), 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="the folder holds no texture"):
        pictures(textures(source=str(tmp_path / "empty")), 0)
    damaged = (folder / "e.png").read_bytes()
    for name, content in {"cut.png": damaged[: len(damaged) // 2], "text.png": b"no image", "none.png": b""}.items():
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}: it cannot be read as a texture") as caught:
            read_texture(folder / name, 16)
        assert "\n" not in str(caught.value)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "g.gif")
    (folder / "g.gif").rename(folder / "disguised.png")
    with pytest.raises(UserError, match="cannot be read"):
        read_texture(folder / "disguised.png", 16)
    Image.fromarray(np.zeros((1, 20_000), np.uint8)).save(folder / "long.png")
    with pytest.raises(UserError, match="20000 × 1 pixels"):
        read_texture(folder / "long.png", 16)


def test_photographs_of_textures(real_data: Path, autoencoder: State, tmp_path: Path) -> None:
    source = real_data / "textures_cc0"
    if not source.is_dir():
        pytest.skip("photographs of textures are not at hand")
    count, texture = pictures(textures(source=str(source), size=320), 0)
    assert count == 3
    assert all(texture(i).std() > 0.05 for i in range(count))
    state = fitted(textures(source=str(source), size=64), autoencoder, tmp_path)
    assert state["latents"].shape == (3, 4, 8, 8)

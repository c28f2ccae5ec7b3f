"""Partial noising: evaluations, levels, seeds, and what a slice's map depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from discs import bright as images
from pydantic import ValidationError

from harness.anomaly import NormalData
from harness.api import Context, ImageSet, MethodError, State
from harness.conformance import check_method
from harness.contract import check_maps
from harness.cost import measured
from methods.anomaly.components.diffusion_prior import DiffusionPrior
from methods.anomaly.ddpm import DDPM


def only(found: ImageSet, scan: int) -> ImageSet:
    chosen = found.scans[scan]
    alone = replace(chosen, start=0, stop=chosen.stop - chosen.start)
    return ImageSet(found.pixels[chosen.slices], found.mask[chosen.slices], (alone,))


def learn(prior: DiffusionPrior, ctx: Context) -> State:
    return {f"prior.{key}": value for key, value in prior.fit(NormalData(images(), images(2, seed=1)), ctx).items()}


@pytest.fixture(scope="module")
def state(ctx: Context) -> State:
    """Of a model that has hardly learnt: it takes a noised slice for little else than itself."""
    return learn(DDPM.example().prior, ctx)


def ddpm(**changes: Any) -> DDPM:
    return DDPM.model_validate({**DDPM.example().model_dump(), **changes})


def test_conformance() -> None:
    assert [result for result in check_method(DDPM) if not result.passed] == []


def test_the_published_settings_are_the_defaults() -> None:
    method = DDPM()
    assert (method.level, method.steps, method.variance) == (200, None, "small")
    assert method.prior == DiffusionPrior()
    assert (method.prior.times, method.prior.training.batch_size, method.prior.image_range) == (1000, 16, "unit")
    assert method.deviations() == ()
    assert not method.has_fit()
    assert list(method.components()) == ["prior"]


@pytest.mark.parametrize(("changes", "evaluations"), [({"level": 6}, 7), ({"level": 40, "steps": 5}, 5)])
def test_evaluations_are_those_declared(changes: dict[str, int], evaluations: int, state: State, ctx: Context) -> None:
    with measured("cpu") as meter:
        ddpm(**changes).detect(state, images(), ctx)
    assert meter.summary(6)["evaluations"] == {"network": evaluations}
    assert meter.summary(6)["parameters"] == sum(v.numel() for k, v in state.items() if "weights" in k)


def test_maps_are_valid_and_score_by_their_mean(state: State, ctx: Context) -> None:
    pictures = images()
    raw = ddpm(level=40, steps=4).detect(state, pictures, ctx)
    found = check_maps(raw, pictures)
    assert found.reconstruction is not None
    assert found.image_scores is not None
    assert np.allclose(found.maps, np.abs(pictures.pixels - found.reconstruction), atol=1e-6)
    assert np.allclose(found.image_scores, found.maps.mean((1, 2)))
    assert (raw.maps[~pictures.mask] == 0).all()


def test_without_noise_a_slice_comes_back_and_more_noise_leaves_more(state: State, ctx: Context) -> None:
    pictures = images()
    errors = [
        ddpm(level=level, steps=steps).detect(state, pictures, ctx).maps[pictures.mask].mean()
        for level, steps in [(0, None), (30, None), (100, 10), (300, 10)]
    ]
    assert errors[0] < 0.02
    assert errors == sorted(errors)
    assert errors[3] > 10 * errors[0]


def test_one_seed_gives_one_map(state: State, ctx: Context) -> None:
    method, pictures, before = ddpm(level=10), images(), torch.get_rng_state()
    first, again = (method.detect(state, pictures, ctx).maps for _ in range(2))
    assert np.array_equal(first, again)
    other = method.detect(state, pictures, replace(ctx, seed=4)).maps
    assert not np.allclose(first, other, atol=1e-3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{"level": 10}, {"level": 100, "steps": 6}])
def test_a_slice_s_map_depends_on_that_slice_alone(changes: dict[str, int], state: State, ctx: Context) -> None:
    pictures = images()
    whole = ddpm(**changes).detect(state, pictures, ctx)
    alone = ddpm(**changes, batch_size=1).detect(state, only(pictures, 1), ctx)
    assert np.allclose(whole.maps[2:4], alone.maps, atol=1e-4)
    assert not np.allclose(whole.maps[2], whole.maps[3], atol=1e-3)  # each has noise of its own


def test_simplex_noise_is_drawn_on_the_way_back_too(ctx: Context, tmp_path: Path) -> None:
    example = DiffusionPrior.example().model_dump()
    prior = DiffusionPrior.model_validate({**example, "noise": "simplex"})
    state = learn(prior, replace(ctx, scratch=tmp_path))
    pictures = images()
    maps = {
        reverse: ddpm(prior=prior, level=60, variance="large", reverse_noise=reverse).detect(state, pictures, ctx).maps
        for reverse in ("prior", "gaussian")
    }

    def smoothness(found: np.ndarray) -> float:
        inside = pictures.mask[:, :, 1:] & pictures.mask[:, :, :-1]
        return float(np.abs(np.diff(found, axis=2))[inside].mean() / found[pictures.mask].mean())

    assert smoothness(maps["prior"]) < 0.6 * smoothness(maps["gaussian"])


def test_intensities_may_be_signed(ctx: Context, tmp_path: Path) -> None:
    prior = DiffusionPrior.model_validate({**DiffusionPrior.example().model_dump(), "image_range": "signed"})
    found = ddpm(prior=prior, level=0).detect(learn(prior, replace(ctx, scratch=tmp_path)), images(), ctx)
    assert found.maps[images().mask].mean() < 0.02


def test_pictures_show_the_way(state: State, ctx: Context) -> None:
    pictures = images(1)
    shown = ddpm(level=200, steps=6).illustrate(state, pictures, ctx)
    assert list(shown) == [
        "noised, t = 200", "taken for, t = 200", "taken for, t = 160", "taken for, t = 80", "reconstruction",
    ]  # fmt: skip
    for picture in shown.values():
        assert picture.shape == pictures.pixels.shape
        assert 0 <= picture.min() < picture.max() <= 1
    found = ddpm(level=200, steps=6).detect(state, pictures, ctx)
    assert found.reconstruction is not None
    assert np.array_equal(shown["reconstruction"], found.reconstruction)


def test_rows_say_what_departs() -> None:
    assert ddpm(level=200, steps=20, prior={"image_range": "signed"}).deviations() == (
        "DDIM-20 in place of 201 steps",
        "intensities −1..1 fed to the network",
    )


def test_mistakes_are_told(state: State, ctx: Context) -> None:
    with pytest.raises(ValidationError, match="level 1000 is beyond the last time of the prior, 999"):
        DDPM(level=1000)
    with pytest.raises(ValidationError, match="12 steps from time 10"):
        DDPM(level=10, steps=12)
    with pytest.raises(MethodError, match="ddpm: slices are 18 × 18"):
        ddpm().detect(state, images(side=18), ctx)

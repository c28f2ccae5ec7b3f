"""pDDPM: boxes that cover a slice once, surroundings that stay clean, one evaluation a box."""

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
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from harness.anomaly import NormalData
from harness.api import Context, ImageSet, Method, MethodError, State
from harness.conformance import check_method
from harness.contract import check_maps
from harness.cost import measured
from methods.anomaly.components.schedules import cosine_schedule
from methods.anomaly.pddpm.boxes import box_masks, boxes
from methods.anomaly.pddpm.method import Pddpm
from methods.anomaly.pddpm.prior import WEIGHTS, PatchedPrior, noised_within
from methods.networks.diffusion_unet import DiffusionUNet


def learn(prior: PatchedPrior, ctx: Context) -> State:
    return {f"prior.{key}": value for key, value in prior.fit(NormalData(images(), images(2, seed=1)), ctx).items()}


@pytest.fixture(scope="module")
def state(ctx: Context) -> State:
    return learn(Pddpm.example().prior, ctx)


def prior(**changes: Any) -> PatchedPrior:
    return PatchedPrior.model_validate({**PatchedPrior.example().model_dump(), **changes})


def pddpm(**changes: Any) -> Pddpm:
    return Pddpm.model_validate({**Pddpm.example().model_dump(), **changes})


@contextmanager
def passes() -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """(slices, times, what came out) of every pass through a diffusion network inside."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def look(module: nn.Module, args: tuple[Tensor, Tensor], output: Tensor) -> None:
        if isinstance(module, DiffusionUNet):
            seen.append((*args, output))

    handle = register_module_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("cls", [Pddpm, PatchedPrior])
def test_conformance(cls: type[Method]) -> None:
    assert [result for result in check_method(cls) if not result.passed] == []


@pytest.mark.parametrize(("height", "width", "grid"), [(96, 96, 2), (8, 12, 2), (9, 6, 3), (4, 4, 1)])
def test_boxes_cover_each_pixel_once(height: int, width: int, grid: int) -> None:
    covered = np.zeros((height, width), int)
    for rows, columns in boxes(height, width, grid):
        covered[rows, columns] += 1
    assert (covered == 1).all()
    assert len(boxes(height, width, grid)) == grid**2
    masks = box_masks(torch.arange(grid**2), height, width, grid)
    assert masks.shape == (grid**2, 1, height, width)
    assert (masks.sum(0) == 1).all()
    for mask, (rows, columns) in zip(masks[:, 0], boxes(height, width, grid), strict=True):
        assert (mask[rows, columns] == 1).all()


def test_the_published_settings_are_the_defaults() -> None:
    method = Pddpm()
    with torch.device("meta"):
        network = method.prior.network.build()
        assert network(torch.empty(1, 1, 96, 96), torch.zeros(1)).shape == (1, 1, 96, 96)
    assert sum(p.numel() for p in network.parameters()) == 37_513_857
    assert method.level == 499
    assert method.prior.time_schedule().kept_at(499) == pytest.approx(0.494, abs=5e-4)
    assert (method.prior.simplex.dimensions, method.prior.training.batch_size, method.prior.epochs) == (2, 32, 1600)
    assert method.prior.training.iterations == 1600 * int(np.ceil(387 / 32))
    assert method.deviations() == ()
    processing = method.published_processing()
    at_96 = 96 / 128
    assert [round(v) for v in (processing.erode * at_96, processing.median * at_96)] == [3, 5]
    assert round(processing.smallest * at_96**2) == 7


def test_only_the_box_is_noised(state: State, ctx: Context) -> None:
    pictures = images()
    with passes() as seen, measured("cpu") as meter:
        found = pddpm(batch_size=6).detect(state, pictures, ctx)
    assert meter.summary(6)["evaluations"] == {"network": 4}
    assert len(seen) == 4
    clean = torch.from_numpy(2 * pictures.pixels - 1)[:, None]
    assert found.reconstruction is not None
    for (handed, times, predicted), (rows, columns) in zip(seen, boxes(16, 16, 2), strict=True):
        assert set(times.tolist()) == {499}
        outside = torch.ones_like(clean, dtype=torch.bool)
        outside[..., rows, columns] = False
        assert torch.equal(handed[outside], clean[outside])
        noise = (handed - clean * 0.494**0.5)[..., rows, columns] / 0.506**0.5
        assert 0.1 < noise.std() < 1.5
        wanted = ((predicted + 1) / 2).clamp(0, 1)[:, 0, rows, columns].numpy()
        assert np.allclose(found.reconstruction[:, rows, columns], wanted, atol=1e-6)
    assert np.allclose(found.maps, np.abs(pictures.pixels - found.reconstruction))
    check_maps(found, pictures)


def test_the_loss_counts_the_box_alone() -> None:
    component, schedule = prior(), cosine_schedule(1000)
    slices = torch.from_numpy(images().pixels)[:, None]
    batch = {
        "slices": slices,
        "noise": torch.randn(slices.shape, generator=torch.Generator().manual_seed(0)),
        "boxes": torch.tensor([0, 1, 2, 3, 0, 1]),
        "times": torch.tensor([0, 200, 400, 600, 800, 999]),
    }
    inside = box_masks(batch["boxes"], 16, 16, 2)

    class Oracle(nn.Module):
        """The truth within the box, off by 0.5 there if so wanted, and nonsense outside."""

        def __init__(self, off: float):
            super().__init__()
            self.off = off

        def forward(self, x: Tensor, times: Tensor) -> Tensor:
            assert torch.equal(x[inside == 0], (2 * slices - 1)[inside == 0])
            return torch.where(inside > 0, 2 * slices - 1 + self.off, torch.full_like(x, 100.0))

    assert torch.allclose(component._loss(Oracle(0), schedule, batch), torch.zeros(6))
    assert torch.allclose(component._loss(Oracle(0.5), schedule, batch), torch.full((6,), 0.5))


def test_each_slice_is_noised_to_its_own_time() -> None:
    schedule = cosine_schedule(1000)
    clean, noise = torch.full((2, 1, 4, 4), 0.5), torch.ones(2, 1, 4, 4)
    times, inside = torch.tensor([0, 999]), box_masks(torch.tensor([3, 0]), 4, 4, 2)
    x = noised_within(schedule, clean, inside, times, noise)
    assert torch.equal(x[inside == 0], clean[inside == 0])
    assert x[0, 0, 3, 3] == pytest.approx(0.5, abs=0.01)
    assert x[1, 0, 0, 0] == pytest.approx(1, abs=0.01)


def test_a_brief_training_predicts_boxes_from_their_surroundings(ctx: Context, tmp_path: Path) -> None:
    curve: list[float] = []
    logging = replace(
        ctx, scratch=tmp_path, log=lambda key, _, value: curve.append(value) if key == "validation" else None
    )
    training = {"iterations": 60, "batch_size": 6, "learning_rate": 4e-3, "validate_every": 10}
    state = prior(training=training).fit(NormalData(images(4), images(3, seed=1)), logging)
    assert state["score"] == max(curve)
    assert state["score"] > 0.6 * curve[0]  # scores are negative errors
    assert state["score"] > -0.45  # a network that says 0, mid-grey, is off by 0.6 or so


def test_an_epoch_takes_one_slice_of_each_scan(ctx: Context, tmp_path: Path) -> None:
    steps: list[int] = []
    component = prior(epochs=3, training={"iterations": 50, "batch_size": 2, "log_every": 1})
    logging = replace(ctx, scratch=tmp_path, log=lambda key, step, _: steps.append(step))
    component.fit(NormalData(images(5, slices=3), images(2)), logging)
    assert max(steps) == 9  # 5 scans, three times, in batches of 2


@pytest.mark.parametrize(
    "changes", [{"shared_noise": True, "simplex": {"pool": 2}}, {"grid": 4, "image_range": "unit"}]
)
def test_other_settings_are_learnt_and_used(changes: dict[str, Any], ctx: Context, tmp_path: Path) -> None:
    component = prior(**changes)
    state = learn(component, replace(ctx, scratch=tmp_path))
    method, pictures = pddpm(prior=component), images()
    with measured("cpu") as meter:
        check_maps(method.detect(state, pictures, ctx), pictures)
    assert meter.summary(6)["evaluations"] == {"network": component.grid**2}
    assert len(method.deviations()) == 1


def test_a_slice_s_map_depends_on_that_slice_and_the_seed_alone(state: State, ctx: Context) -> None:
    pictures, before = images(), torch.get_rng_state()
    whole = pddpm().detect(state, pictures, ctx).maps
    assert np.array_equal(whole, pddpm().detect(state, pictures, ctx).maps)
    scan = replace(pictures.scans[1], start=0, stop=2)
    alone = pddpm(batch_size=1).detect(state, ImageSet(pictures.pixels[2:4], pictures.mask[2:4], (scan,)), ctx).maps
    assert np.allclose(whole[2:4], alone, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)
    with passes() as seen:
        for seed in (0, 1):
            pddpm().detect(state, pictures, replace(ctx, seed=seed))
    assert not torch.allclose(seen[0][0], seen[len(seen) // 2][0], atol=0.1)


def test_pictures_show_each_box(state: State, ctx: Context) -> None:
    pictures = images(1)
    shown = pddpm().illustrate(state, pictures, ctx)
    assert list(shown) == [*(f"box {number} noised" for number in range(1, 5)), "reconstruction"]
    for number, (rows, columns) in enumerate(boxes(16, 16, 2), 1):
        picture = shown[f"box {number} noised"]
        assert not np.allclose(picture[:, rows, columns], pictures.pixels[:, rows, columns], atol=0.05)
    assert np.allclose(shown["box 1 noised"][:, 8:], pictures.pixels[:, 8:], atol=1e-6)


def test_mistakes_are_told(state: State, ctx: Context) -> None:
    with pytest.raises(ValidationError, match="level 1000 is beyond the last time"):
        Pddpm(level=1000)
    with pytest.raises(MethodError, match="patched_prior: slices are 18 × 18 pixels"):
        pddpm().detect(state, images(side=18), ctx)
    with pytest.raises(MethodError, match="16 × 16 pixels cannot be cut into 3 × 3 equal boxes"):
        prior(grid=3).fit(NormalData(images(), images()), ctx)
    empty = ImageSet(np.zeros((0, 16, 16), np.float32), np.zeros((0, 16, 16), bool), ())
    with pytest.raises(MethodError, match="patched_prior: there are no healthy validation slices"):
        prior().fit(NormalData(images(), empty), ctx)


def test_the_state_is_the_network(state: State) -> None:
    with torch.device("meta"):
        wanted = Pddpm.example().prior.network.build().state_dict()
    assert {k.removeprefix(f"prior.{WEIGHTS}") for k in state if WEIGHTS in k} == set(wanted)

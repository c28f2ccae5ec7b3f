"""The age regressor: published size, a toy signal of age learnt, units, means over slices, resuming, errors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from harness.api import AgeSet, Context, ImageSet, MethodError, Scan, TaskData
from harness.conformance import check_method
from harness.data.arrays import load_state, save_state
from methods.adaptation.bigaug import BigAug
from methods.tasks.age_resnet import AgeNetwork, AgeResnet18, AgeTraining

SLICES = 3


def context(scratch: Path, seed: int = 1) -> Context:
    return Context(seed, "cpu", scratch, lambda name, step, value: None)


def growing(n: int, seed: int, size: int = 32) -> tuple[ImageSet, AgeSet]:
    """n scans of discs, 26 to 44 weeks of age; the rim brightens with age. Scans carry no age."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    ages = rng.uniform(26, 44, n)
    pixels, masks = [], []
    for age in np.repeat(ages, SLICES):
        centre = rng.uniform(0.4, 0.6, 2) * size
        distance = np.hypot(rows - centre[0], columns - centre[1]) / size
        rim = 0.25 + 0.6 * (age - 26) / 18
        levels = np.where(distance < 0.15, 0.5, rim) + rng.normal(0, 0.02, distance.shape)
        masks.append(distance < 0.28)
        pixels.append((np.clip(levels, 0, 1) * masks[-1] * 255).astype(np.uint8))
    scans = tuple(Scan(f"s{k}", f"s{k}", "A", k * SLICES, (k + 1) * SLICES, (1.0, 1.0, 1.0)) for k in range(n))
    return ImageSet(np.stack(pixels), np.stack(masks), scans), AgeSet(ages, scans)


def task_data() -> TaskData:
    return TaskData(*growing(24, 0), *growing(8, 1))


def tiny(**training: Any) -> AgeResnet18:
    schedule = {"iterations": 120, "batch_size": 12, "validate_every": 20, "learning_rate": 3e-3, "step_every": 40}
    return AgeResnet18(widths=(8, 16), training=AgeTraining(**{**schedule, **training}))


@dataclass(frozen=True)
class Trained:
    model: AgeResnet18
    state: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    model = tiny()
    return Trained(model, model.train(task_data(), context(tmp_path_factory.mktemp("scratch"))))


# ------------------------------------------------------------------------------- published settings


def test_published_network_has_11_17_million_parameters() -> None:
    with torch.device("meta"):
        network = AgeNetwork(AgeResnet18().widths)
        assert network(torch.empty(2, 1, 256, 256)).shape == (2,)
        inner = network.stages(network.stem(torch.empty(2, 1, 256, 256)))
    assert inner.shape == (2, 512, 8, 8)
    # torchvision's resnet18 has 11 689 512; less a stem of 3 channels and 1000 outputs, plus ours
    assert sum(p.numel() for p in network.parameters()) == 11_689_512 - 9_408 - 513_000 + 3_136 + 513
    assert sum(isinstance(m, torch.nn.Conv2d | torch.nn.Linear) for m in network.modules()) == 18 + 3  # 3 shortcuts


def test_published_schedule_survives_a_partial_override() -> None:
    training = AgeResnet18.model_validate({"training": {"iterations": 400}}).training
    assert (training.iterations, training.batch_size, training.learning_rate) == (400, 64, 1e-3)
    assert (training.schedule, training.step_every, training.step_factor) == ("step", 500, 0.5)
    assert AgeTraining().iterations == 5000
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        AgeTraining(batch_size=1)


# ------------------------------------------------------------------------------- training and units


def test_learns_the_signal_in_weeks(trained: Trained, tmp_path: Path) -> None:
    images, truth = growing(12, 7)
    ages = trained.model.predict(trained.state, images, context(tmp_path))
    assert ages.shape == (12,)
    assert ages.dtype == np.float64
    chance = np.abs(truth.ages - truth.ages.mean()).mean()
    assert np.abs(ages - truth.ages).mean() < 0.4 * chance
    assert np.corrcoef(ages, truth.ages)[0, 1] > 0.9
    assert -0.4 * chance < trained.state["score"] < 0
    assert trained.state["iteration"] % 20 == 0


def test_score_is_minus_the_mean_error_over_validation_scans(trained: Trained, tmp_path: Path) -> None:
    data = task_data()
    ages = trained.model.predict(trained.state, data.validation_images, context(tmp_path))
    assert trained.state["score"] == pytest.approx(-np.abs(ages - data.validation_ages).mean(), rel=1e-4)


def test_mean_and_spread_of_the_training_scans_are_kept(trained: Trained) -> None:
    ages = task_data().ages
    assert float(trained.state["network.age_mean"]) == pytest.approx(ages.mean(), rel=1e-6)
    assert float(trained.state["network.age_sd"]) == pytest.approx(ages.std(), rel=1e-6)
    network = trained.model.network(trained.state)
    assert isinstance(network, AgeNetwork)
    pixels = torch.from_numpy(growing(2, 7)[0].floats())[:, None]
    with torch.no_grad():
        assert torch.allclose(network(pixels), ages.mean() + ages.std() * network.standardized(pixels), rtol=1e-5)


def test_a_scans_age_is_the_mean_over_its_slices(trained: Trained, tmp_path: Path) -> None:
    images, _ = growing(4, 7)
    with torch.no_grad():
        slices = trained.model.network(trained.state)(torch.from_numpy(images.floats())[:, None]).numpy()
    uneven = replace(images, scans=(replace(images.scans[0], stop=7), replace(images.scans[1], start=7, stop=12)))
    ages = trained.model.predict(trained.state, uneven, context(tmp_path))
    assert ages == pytest.approx([slices[:7].mean(), slices[7:].mean()], rel=1e-5)


def test_batches_do_not_matter_to_prediction(trained: Trained, tmp_path: Path) -> None:
    images, _ = growing(4, 7)
    other = trained.model.model_copy(update={"training": AgeTraining(batch_size=5)})
    expected = trained.model.predict(trained.state, images, context(tmp_path))
    assert other.predict(trained.state, images, context(tmp_path)) == pytest.approx(expected, rel=1e-5)


def test_any_size_of_slice_is_taken(trained: Trained, tmp_path: Path) -> None:
    images, _ = growing(2, 7, size=45)
    assert np.isfinite(trained.model.predict(trained.state, images, context(tmp_path))).all()


# ------------------------------------------------------------------------------- state and resuming


def test_state_survives_saving(trained: Trained, tmp_path: Path) -> None:
    save_state(tmp_path, trained.state)
    images, _ = growing(3, 7)
    expected = trained.model.predict(trained.state, images, context(tmp_path))
    assert np.array_equal(trained.model.predict(load_state(tmp_path), images, context(tmp_path)), expected)


def test_networks_are_fresh_and_leave_the_generator_alone(trained: Trained) -> None:
    before = torch.get_rng_state()
    first, second = trained.model.network(trained.state), trained.model.network(trained.state)
    assert torch.equal(before, torch.get_rng_state())
    assert not first.training
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).abs().sum() > 0


class Killed(Exception):
    pass


def test_a_training_that_was_killed_goes_on_and_ends_alike(tmp_path: Path) -> None:
    model = tiny(iterations=12, validate_every=4, checkpoint_every=5, log_every=1)
    whole = model.train(task_data(), context(tmp_path / "whole"))

    def kill(name: str, step: int, value: float) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        model.train(task_data(), replace(context(tmp_path / "cut"), log=kill))
    seen: list[int] = []
    ctx = replace(context(tmp_path / "cut"), log=lambda name, step, value: seen.append(step))
    resumed = model.train(task_data(), ctx)
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value) if isinstance(value, Tensor) else resumed[key] == value
    other = model.train(task_data(), context(tmp_path / "other", 2))
    assert not torch.equal(other["network.head.weight"], whole["network.head.weight"])


# --------------------------------------------------------------------------------------- augmentation


def test_own_augmentation_moves_and_keeps_the_size() -> None:
    images, _ = growing(4, 0)
    pixels = torch.from_numpy(images.floats())[:, None]
    moved = AgeResnet18()._augment(pixels, torch.Generator().manual_seed(0))
    assert moved.shape == pixels.shape
    assert not torch.allclose(moved, pixels, atol=0.1)
    assert (moved.sum((1, 2, 3)) / pixels.sum((1, 2, 3)) - 1).abs().max() < 0.02  # neither magnified nor shrunk
    plain = AgeResnet18(flip=False, rotate_degrees=0)
    assert torch.equal(plain._augment(pixels, torch.Generator()), pixels)


def test_a_given_augmentation_replaces_its_own(tmp_path: Path) -> None:
    """It sees raw slices, their masks and no labels, in training only; doing nothing equals no augmentation."""
    seen: list[Tensor] = []

    def nothing(pixels: Tensor, mask: Tensor, labels: Tensor | None, generator: torch.Generator) -> tuple[Tensor, None]:
        assert labels is None
        assert mask.dtype == torch.bool
        assert not pixels[:, 0][~mask].any()
        seen.append(pixels)
        return pixels, None

    model = tiny(iterations=4, validate_every=2)
    given = model.train(task_data(), context(tmp_path / "given"), nothing)
    assert [tuple(pixels.shape) for pixels in seen] == [(12, 1, 32, 32)] * 4
    plain = model.model_copy(update={"flip": False, "rotate_degrees": 0.0})
    without = plain.train(task_data(), context(tmp_path / "without"))
    own = model.train(task_data(), context(tmp_path / "own"))
    key = "network.head.weight"
    assert torch.equal(given[key], without[key])
    assert not torch.equal(given[key], own[key])


def test_trains_under_bigaug(tmp_path: Path) -> None:
    state = tiny(iterations=6, validate_every=3).train(task_data(), context(tmp_path), BigAug().augment)
    assert np.isfinite(state["score"])


# --------------------------------------------------------------------------------------------- errors


def test_ages_that_cannot_be_learnt_are_refused(tmp_path: Path) -> None:
    data = task_data()
    same = replace(data, reference=replace(data.reference, ages=np.full(24, 30.0)))
    with pytest.raises(MethodError, match="all 24 training scans have the same age"):
        tiny().train(same, context(tmp_path))
    ages = data.ages.copy()
    ages[3] = np.nan
    unknown = replace(data, reference=replace(data.reference, ages=ages))
    with pytest.raises(MethodError, match="ages of 1 scans are unknown, first s3"):
        tiny().train(unknown, context(tmp_path))


def test_conformance() -> None:
    failed = [result for result in check_method(AgeResnet18) if not result.passed]
    assert not failed, failed

"""ARN: published sizes, masks, the likelihood, learning, the ensemble's spread, resuming between members."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from harness.api import Context
from harness.brain_age import AgeInputs
from harness.data.arrays import load_state, save_state
from methods.brain_age.arn.method import Arn
from methods.brain_age.arn.network import Attention, AttentionNetwork, Glances, Unit, negative_log_likelihood
from methods.brain_age.learning import restored, samples
from methods.brain_age.slices import cut_all
from tests.support.ageing import age_training, growing_heads


def tiny(**training: Any) -> Arn:
    schedule = {"epochs": None, "iterations": 100, "validate_every": 20, "batch_size": 8, "learning_rate": 0.05}
    decay = {"inverse_after": 60, "inverse_every": 3}
    return Arn.model_validate(
        {
            "size": 64,
            "pixel_mm": 1.2,
            "widths": (4, 4, 8),
            "norm_momentum": 0.1,
            "members": 2,
            "training": {**schedule, **decay, **training},
        }
    )


@dataclass(frozen=True)
class Trained:
    model: Arn
    state: dict[str, Any]


@pytest.fixture(scope="module")
def trained(ctx: Context) -> Trained:
    model = tiny()
    before = torch.get_rng_state()
    state = model.fit(age_training(), ctx)
    assert torch.equal(before, torch.get_rng_state())
    return Trained(model, state)


# -------------------------------------------------------------------------------------- published sizes


def convolution(channels: int, wide: int, side: int = 1) -> int:
    return side * side * channels * wide + wide


def norm(channels: int) -> int:
    return 2 * channels


def unit(f1: int, f2: int, f3: int, channels: int | None = None) -> int:
    entering = f3 if channels is None else channels
    body = norm(entering) + convolution(entering, f1) + norm(f1) + convolution(f1, f2, 3) + norm(f2)
    shortcut = 0 if channels is None else norm(entering) + convolution(entering, f3)
    return body + convolution(f2, f3) + shortcut


def test_published_network_has_5_94_million_parameters() -> None:
    with torch.device("meta"):
        network = Arn()._network(38.0)
    expected = convolution(1, 32, 3) + norm(32)
    channels = 32
    for factor, units in (
        (1, 12),
        (2, 9),
        (4, 4),
    ):  # before, after, 2 of the trunk or the mask; 8 or 5 on the mask's way
        f1, f2, f3 = 32 * factor, 64 * factor, 128 * factor
        expected += unit(f1, f2, f3, channels) + units * unit(f1, f2, f3) + 2 * (norm(f3) + convolution(f3, f3))
        channels = f3
    expected += 2 * unit(128, 256, 512) + norm(512) + 2 * (4608 + 1)
    assert sum(p.numel() for p in network.parameters()) == expected == 5_938_594
    units = [
        sum(isinstance(m, Unit) for m in stage.modules()) for stage in (network.first, network.second, network.third)
    ]
    assert units == [13, 10, 5]


def test_published_sizes_of_the_stages_and_their_masks() -> None:
    seen: dict[str, list[int]] = {"first": [], "second": []}
    with torch.device("meta"):
        network = Arn()._network(0.0)
        for name in seen:
            for down in getattr(network, name)[1].mask[0].down:
                down.register_forward_hook(lambda module, given, out, name=name: seen[name].append(out.shape[-1]))
        found = network.stemmed(torch.empty(2, 1, 192, 192))
        sizes = [tuple(found.shape[1:])]
        for stage in (network.first, network.second, network.third):
            found = stage(found)
            sizes.append(tuple(found.shape[1:]))
        assert network.features(torch.empty(2, 1, 192, 192)).shape == (2, 4608)
        assert network(torch.empty(2, 1, 192, 192)).shape == (2, 2)
    assert sizes == [(32, 48, 48), (128, 48, 48), (256, 24, 24), (512, 12, 12)]
    assert seen["first"][:3] == [24, 12, 6]
    assert seen["second"][:2] == [12, 6]


def test_published_settings_survive_a_partial_override_and_bad_ones_are_told() -> None:
    model = Arn.model_validate({"members": 2, "training": {"epochs": 10}})
    training, moves = model.training, model.augmentation
    assert (training.epochs, training.batch_size, training.optimizer) == (10, 16, "sgd")
    assert (training.learning_rate, training.momentum, training.clip_norm) == (0.01, 0.9, 1.0)
    assert (moves.rotate_degrees, moves.shift, moves.flip_rows, moves.flip_columns) == (22.0, 0.02, True, True)
    assert Arn().members == 5
    with pytest.raises(ValidationError, match="size must be a multiple of 64, not 100"):
        Arn(size=100)


def test_strided_convolutions_and_pooling_go_on_behind_as_in_tensorflow() -> None:
    network = AttentionNetwork((2, 2, 4), 64, 0.1).eval()
    nn.init.zeros_(network.stem.bias)
    x = torch.zeros(1, 1, 64, 64)
    x[0, 0, 0, 0] = 1
    x[0, 0, 63, 63] = 2
    padded = nn.functional.pad(x, (0, 1, 0, 1))
    assert torch.equal(network.stem(padded)[0, :, 0, 0], network.stem.weight[:, 0, 0, 0])
    assert torch.equal(network.stem(padded)[0, :, 31, 31], 2 * network.stem.weight[:, 0, 1, 1])
    nn.init.constant_(network.stem.weight, 1.0)
    found = network.stemmed(x)
    assert found.shape[-2:] == (16, 16)
    assert found[0, 0, 0, 0] > 0
    assert found[0, 0, 15, 15] > 0
    assert (found != 0).sum() == 2 * 2  # each corner in one window, of two channels


# ------------------------------------------------------------------------------------- masks, likelihood


@pytest.mark.parametrize("depth", [0, 2, 3])
def test_a_mask_of_zeros_leaves_the_trunk_and_one_of_ones_doubles_it(depth: int) -> None:
    torch.manual_seed(0)
    module = Attention((2, 3, 4), depth, 0.1).eval()
    x = torch.randn(2, 4, 16, 16)
    last = module.mask[-2][-1] if depth else module.mask[-2].widen[-1]
    assert isinstance(last, nn.Conv2d)
    inner = module.trunk(module.before(x))
    assert not torch.allclose(module(x), module.after(inner), atol=1e-3)
    nn.init.zeros_(last.weight)
    for bias, factor in ((-1e6, 1), (1e6, 2)):
        nn.init.constant_(last.bias, bias)
        if not depth:  # the last unit adds to what it is given: only the sign of a huge bias matters
            assert (module.mask(module.before(x)) == factor - 1).all()
        assert torch.allclose(module(x), module.after(factor * inner), atol=1e-5)


def test_glances_come_back_to_the_size_they_were_given() -> None:
    for side in (16, 24):
        assert Glances((2, 2, 4), 3, 0.1)(torch.zeros(1, 4, side, side)).shape == (1, 4, side, side)


def test_a_unit_without_its_last_convolution_is_the_identity() -> None:
    plain = Unit((2, 3, 4), 0.1)
    nn.init.zeros_(plain.widen[-1].weight)
    nn.init.zeros_(plain.widen[-1].bias)
    x = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain(x), x)
    assert Unit((2, 3, 6), 0.1, channels=4, stride=2)(x).shape == (2, 6, 4, 4)


def test_the_likelihood_is_best_where_the_variance_is_the_squared_error() -> None:
    ages, mean = torch.tensor([30.0, 38.0, 41.0], dtype=torch.float64), torch.tensor([31.0, 35.0, 41.5])
    best = (ages.float() - mean) ** 2
    slopes = {}
    for factor in (0.8, 1.0, 1.25):
        variance = (best * factor).requires_grad_()
        loss = negative_log_likelihood(torch.stack([mean, variance], 1), ages.float())
        (slopes[factor],) = torch.autograd.grad(loss, variance)
    assert slopes[1.0].abs().max() < 1e-6
    assert (slopes[0.8] < 0).all()
    assert (slopes[1.25] > 0).all()
    value = negative_log_likelihood(torch.tensor([[31.0, 4.0], [40.0, 1.0]]), torch.tensor([30.0, 40.0]))
    assert float(value) == pytest.approx((0.5 * np.log(4) + 0.5 / 4) / 2)


def test_variances_are_never_zero() -> None:
    network = AttentionNetwork((2, 2, 4), 64, 0.1).eval()
    nn.init.zeros_(network.spread.weight)
    nn.init.constant_(network.spread.bias, -200.0)
    assert network(torch.zeros(1, 1, 64, 64))[0, 1].item() == pytest.approx(1e-6)


# --------------------------------------------------------------------------------- learning, predicting


def test_learns_the_ages_of_others(trained: Trained, ctx: Context) -> None:
    volumes, ages = growing_heads(12, 7, "C")
    found = trained.model.predict(trained.state, AgeInputs(volumes), ctx)
    chance = np.abs(ages - age_training().ages.mean()).mean()
    assert np.abs(found.ages - ages).mean() < 0.5 * chance
    assert found.sds is not None
    assert found.ages.shape == found.sds.shape == (12,)
    assert found.ages.dtype == found.sds.dtype == np.float64


def members(trained: Trained, data: AgeInputs) -> np.ndarray:
    """[members, scans, 2]"""
    pixels = samples(cut_all(data.volumes, trained.model._cut()))
    networks = [restored(trained.model._network(0.0), trained.state, f"member_{i}", "cpu") for i in range(2)]
    with torch.no_grad():
        return np.stack([network(pixels).double().numpy() for network in networks])


def test_the_ensembles_variance_is_its_members_and_what_is_between_them(trained: Trained, ctx: Context) -> None:
    data = AgeInputs(growing_heads(4, 7, "C")[0])
    outputs = members(trained, data)
    assert np.abs(outputs[0, :, 0] - outputs[1, :, 0]).min() > 1e-3
    found = trained.model.predict(trained.state, data, ctx)
    (first, second), (v, w) = outputs[..., 0], outputs[..., 1]
    assert found.ages == pytest.approx((first + second) / 2, rel=1e-4)
    assert found.sds == pytest.approx(np.sqrt((v + w) / 2 + (first - second) ** 2 / 4), rel=1e-3)
    alone = trained.model.predict(trained.state, AgeInputs(data.volumes.take([2])), ctx)
    assert alone.ages == pytest.approx(found.ages[[2]], rel=1e-5)


def test_scores_are_minus_squared_errors_of_validation_scans(trained: Trained) -> None:
    data = age_training()
    errors = ((members(trained, data.validation)[..., 0] - data.validation_ages) ** 2).mean(1)
    assert trained.state["score"] == pytest.approx(-errors, rel=1e-3)


def test_state_survives_saving(trained: Trained, ctx: Context, tmp_path: Path) -> None:
    save_state(tmp_path, trained.state)
    inputs = AgeInputs(growing_heads(2, 7)[0])
    expected = trained.model.predict(trained.state, inputs, ctx)
    found = trained.model.predict(load_state(tmp_path), inputs, ctx)
    assert np.array_equal(found.ages, expected.ages)
    assert np.array_equal(found.sds, expected.sds)


class Killed(Exception):
    pass


def test_an_ensemble_that_was_killed_goes_on_and_ends_alike(tmp_path: Path) -> None:
    model, data = tiny(iterations=5, validate_every=2, checkpoint_every=2, log_every=1), age_training(6, 2)
    names: list[str] = []

    def kill(name: str, step: int, value: float) -> None:
        names.append(name)
        if name == "member_1/loss" and step == 3:
            raise Killed

    whole = model.fit(data, Context(4, "cpu", tmp_path / "whole", lambda *_: None))
    with pytest.raises(Killed):
        model.fit(data, Context(4, "cpu", tmp_path / "cut", kill))
    resumed = model.fit(data, Context(4, "cpu", tmp_path / "cut", lambda *_: None))
    assert "member_0/validation" in names
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value) if isinstance(value, Tensor) else resumed[key] == value


def test_example_learns_and_predicts(tmp_path: Path) -> None:
    model, ctx = Arn.example(), Context(1, "cpu", tmp_path, lambda *_: None)
    found = model.predict(model.fit(age_training(4, 2), ctx), AgeInputs(growing_heads(2, 5)[0]), ctx)
    assert np.isfinite(found.ages).all()

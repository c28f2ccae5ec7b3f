"""2DTTA: published sizes, the mode of slices, balance of ages, learning, augmentation when it predicts, resuming."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from methods.brain_age.augmentation import DRAWS
from methods.brain_age.learning import restored, samples, scan_generator
from methods.brain_age.slices import cut_all
from methods.brain_age.tta_2d.balance import balanced
from methods.brain_age.tta_2d.method import Tta2d
from methods.brain_age.tta_2d.mode import histogram_mode
from methods.brain_age.tta_2d.network import Block, ResnetV2
from tests.support.ageing import age_training, growing_heads, reseeded


def tiny(passes: int = 5, **training: Any) -> Tta2d:
    schedule = {"epochs": None, "iterations": 240, "validate_every": 40, "batch_size": 24, "learning_rate": 1e-2}
    return Tta2d.model_validate(
        {
            "slices": 1,
            "size": (24, 28),
            "pixel_mm": 3.0,
            "widths": (8, 16),
            "blocks": (1, 1),
            "block": "basic",
            "norm_momentum": 0.1,
            "augmentation": {"shift": 0.1},
            "training": {**schedule, "schedule": "cosine", **training},
            "passes": passes,
        }
    )


@dataclass(frozen=True)
class Trained:
    model: Tta2d
    state: dict[str, Any]

    def network(self) -> ResnetV2:
        return restored(self.model._network(0.0), self.state, "network", "cpu")


@pytest.fixture(scope="module")
def trained(ctx: Context) -> Trained:
    model = tiny()
    before = torch.get_rng_state()
    state = model.fit(age_training(), ctx)
    assert torch.equal(before, torch.get_rng_state())
    return Trained(model, state)


# -------------------------------------------------------------------------------------- published sizes


def test_published_network_is_the_resnet_101_v2_of_keras() -> None:
    with torch.device("meta"):
        network = Tta2d()._network(38.0)
        found = network.stemmed(torch.empty(2, 1, 138, 176))
        sizes = [tuple(found.shape[1:])]
        for stage in network.stages:
            found = stage(found)
            sizes.append(tuple(found.shape[1:]))
        assert network(torch.empty(2, 1, 138, 176)).shape == (2,)
    assert sizes == [(64, 35, 44), (256, 18, 22), (512, 9, 11), (1024, 5, 6), (2048, 5, 6)]
    # Keras counts 42 528 896 trainable parameters without the top; less two channels of the stem, plus ours.
    assert sum(p.numel() for p in network.parameters()) == 42_528_896 - 2 * 49 * 64 + 2049
    projections = [m for m in network.modules() if isinstance(m, Block) and m.shortcut is not None]
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) - len(projections) == 101
    assert len(projections) == 4


def test_blocks_add_to_what_they_are_given() -> None:
    block = Block(32, 8, 2, "bottleneck", projected=False, momentum=0.1)
    x = torch.randn((2, 32, 9, 6), generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(block.body[-1].weight)
    nn.init.zeros_(block.body[-1].bias)
    assert torch.equal(block(x), x[:, :, ::2, ::2])
    joined = Block(16, 8, 2, "basic", projected=True, momentum=0.1)
    assert joined(x[:, :16]).shape == (2, 8, 5, 3)


def test_the_stem_is_pooled_with_zeros_around_it() -> None:
    network = ResnetV2((4,), (1,), "basic", 0.0, 0.1)
    nn.init.zeros_(network.stem.weight)
    nn.init.constant_(network.stem.bias, -1.0)
    found = network.stemmed(torch.zeros(1, 1, 16, 16))
    assert (found[0, 0, 0] == 0).all()  # a border
    assert (found[0, 0, 1:, 1:] == -1).all()


def test_published_settings_survive_a_partial_override_and_bad_ones_are_told() -> None:
    model = Tta2d.model_validate({"training": {"learning_rate": 1e-3}, "augmentation": {"shift": 0.0}})
    training, moves = model.training, model.augmentation
    assert (training.learning_rate, training.batch_size, training.epochs) == (1e-3, 80, 10_000)
    assert (training.schedule, training.inverse_decay, training.patience) == ("inverse_time", 1e-3, 150)
    assert (moves.shift, moves.rotate_degrees, moves.dim_to, moves.flip_rows) == (0.0, 360.0, 0.5, True)
    assert (model.passes, model.bin_width, model.huber_delta, model.dropout) == (20, 0.2, 1.0, 0.3)
    with pytest.raises(ValidationError, match="slices must be odd, about one in the middle, not 4"):
        Tta2d(slices=4)
    with pytest.raises(ValidationError, match="widths names 4 stages, blocks 2"):
        Tta2d(blocks=(1, 1))


# ------------------------------------------------------------------------------------------------- mode


def test_constant_predictions_return_that_constant() -> None:
    for value in (37.3, 0.0, -1.7, 1e6 + 0.1):
        for count in (1, 2, 45):
            assert histogram_mode(np.full(count, value), 0.2) == value


def test_the_mode_leans_towards_the_fuller_neighbour() -> None:
    # Bins of 0.2 about the median of 40.0, which begins at 39.9: counts 1, 5, 3.
    values = np.array([39.8, *[40.0] * 5, 40.2, 40.2, 40.2])
    assert histogram_mode(values, 0.2) == pytest.approx(39.9 + 0.2 * (5 - 1) / (2 * 5 - 1 - 3))
    assert histogram_mode(80 - values, 0.2) == pytest.approx(80 - histogram_mode(values, 0.2))
    assert histogram_mode(values + 3.21, 0.2) == pytest.approx(3.21 + histogram_mode(values, 0.2))
    assert histogram_mode(values * 10, 2.0) == pytest.approx(10 * histogram_mode(values, 0.2))


def test_ties_take_three_medians_less_two_means() -> None:
    values = np.array([38.0, 38.0, 40.0, 40.0, 45.0])
    assert histogram_mode(values, 0.2) == pytest.approx(3 * 40.0 - 2 * values.mean())
    apart = np.array([36.0, 37.0, 41.0])
    assert histogram_mode(apart, 0.2) == pytest.approx(3 * 37.0 - 2 * 38.0)


def test_a_fifth_of_strays_moves_the_mean_and_not_the_mode() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = np.concatenate([rng.normal(40, 0.15, 80), rng.uniform(44, 60, 20)])
        assert abs(histogram_mode(values, 0.2) - 40) < 0.2
        assert values.mean() - 40 > 1.5


def test_what_is_not_finite_has_no_mode() -> None:
    assert np.isnan(histogram_mode(np.array([1.0, np.inf]), 0.2))


# ---------------------------------------------------------------------------------------------- balance


def test_every_rounded_age_becomes_as_frequent_as_the_most_frequent() -> None:
    ages = np.array([30.4, 29.6, 30.2, 30.0, 30.1, 33.4, 33.2, 40.5])
    found = balanced(ages, 1.0, np.random.default_rng(0))
    assert len(found) == 3 * 5
    assert sorted(np.bincount(found, minlength=8)[:5]) == [1] * 5
    assert sorted(np.bincount(found, minlength=8)[5:7]) == [2, 3]
    assert np.bincount(found, minlength=8)[7] == 5
    assert len(balanced(ages, 100.0, np.random.default_rng(0))) == 8  # one class
    again = balanced(ages, 1.0, np.random.default_rng(0))
    assert np.array_equal(found, again)


# --------------------------------------------------------------------------------- learning, predicting


def test_learns_the_ages_of_others(trained: Trained, ctx: Context) -> None:
    volumes, ages = growing_heads(12, 7, "C")
    found = trained.model.predict(trained.state, AgeInputs(volumes), ctx)
    chance = np.abs(ages - age_training().ages.mean()).mean()
    assert np.abs(found.ages - ages).mean() < 0.4 * chance
    assert found.sds is not None
    assert found.ages.shape == found.sds.shape == (12,)
    assert found.ages.dtype == found.sds.dtype == np.float64
    assert (found.sds > 0).all()


def by_hand(trained: Trained, seed: int, passes: int) -> np.ndarray:
    """Ages of each slice of three scans in each pass, one image at a time: [3, slices, passes]."""
    model, network = trained.model, trained.network()
    volumes, _ = growing_heads(3, 7, "C")
    ages = np.empty((3, 3, passes))
    for index, pixels in enumerate(cut_all(volumes, model._cut())):
        draws = scan_generator(volumes.scans[index], seed).random((3, passes, DRAWS), dtype=np.float32)
        for number, image in enumerate(pixels):
            for attempt in range(passes):
                moved = model.augmentation.apply(
                    samples(image[None, None]), torch.from_numpy(draws[number, attempt, None])
                )
                with torch.no_grad():
                    ages[index, number, attempt] = float(network(moved))
    return ages


def test_a_scans_age_is_the_mode_of_its_slices_means_over_passes(trained: Trained, ctx: Context) -> None:
    volumes, _ = growing_heads(3, 7, "C")
    found = trained.model.predict(trained.state, AgeInputs(volumes), ctx)
    expected = by_hand(trained, ctx.seed, 5)
    assert expected.std(2).min() > 0.01  # passes differ
    slices = expected.mean(2)
    assert found.sds == pytest.approx(slices.std(1), abs=1e-3)
    assert found.ages == pytest.approx([histogram_mode(own, 0.2) for own in slices], abs=1e-3)


def test_a_scan_is_predicted_alike_whoever_else_is_there(trained: Trained, ctx: Context) -> None:
    volumes, _ = growing_heads(4, 7, "C")
    together = trained.model.predict(trained.state, AgeInputs(volumes), ctx).ages
    alone = trained.model.predict(trained.state, AgeInputs(volumes.take([2])), ctx).ages
    assert np.array_equal(alone, together[[2]])
    other = trained.model.predict(trained.state, AgeInputs(volumes), reseeded(ctx, ctx.seed + 1)).ages
    assert not np.array_equal(other, together)


def test_without_passes_slices_are_seen_as_they_are(trained: Trained, ctx: Context) -> None:
    volumes, _ = growing_heads(2, 7, "C")
    found = tiny(passes=0).predict(trained.state, AgeInputs(volumes), ctx)
    with torch.no_grad():
        slices = trained.network()(samples(cut_all(volumes, trained.model._cut()).reshape(6, 1, 24, 28))).reshape(2, 3)
    assert found.sds == pytest.approx(slices.double().numpy().std(1), abs=1e-4)
    assert found.ages == pytest.approx([histogram_mode(own, 0.2) for own in slices.double().numpy()], abs=1e-3)


def test_a_network_that_always_says_the_same_is_quoted(trained: Trained, ctx: Context) -> None:
    state = {k: torch.zeros_like(v) if k == "network.head.weight" else v for k, v in trained.state.items()}
    state["network.head.bias"] = torch.tensor([37.25])
    found = trained.model.predict(state, AgeInputs(growing_heads(2, 7)[0]), ctx)
    assert found.ages.tolist() == [37.25, 37.25]
    assert found.sds is not None
    assert found.sds.tolist() == [0, 0]


def test_the_score_is_minus_the_error_of_balanced_validation_slices(trained: Trained, ctx: Context) -> None:
    data, model, network = age_training(), trained.model, trained.network()
    weeks = np.floor(data.validation_ages + 0.5)
    errors, weights = [], []
    for index, pixels in enumerate(cut_all(data.validation.volumes, model._cut())):
        scan = data.validation.scans[index]
        draws = torch.from_numpy(scan_generator(scan, ctx.seed).random((3, 1, DRAWS), dtype=np.float32)[:, 0])
        with torch.no_grad():
            ages = network(model.augmentation.apply(samples(pixels[:, None]), draws)).numpy()
        errors.append(np.abs(ages - data.validation_ages[index]).mean())
        weights.append(1 / (weeks == weeks[index]).sum())
    assert len(set(weeks)) == len(weeks) or min(weights) == 0.5  # at most pairs: whole repetitions are exact
    assert trained.state["score"] == pytest.approx(-np.average(errors, weights=weights), rel=1e-3)


def test_ages_begin_at_the_mean_of_the_training_scans(ctx: Context) -> None:
    model = tiny(iterations=1, learning_rate=0.0, validate_every=1)
    data = age_training(6, 2)
    for start, expected in ((True, data.ages.mean()), (False, 0.0)):
        own = model.model_copy(update={"start_at_mean": start})
        state = own.fit(data, reseeded(replace(ctx, scratch=ctx.scratch / str(start)), 2))
        assert float(state["network.head.bias"]) == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------------------------ state and resuming


def test_state_survives_saving(trained: Trained, ctx: Context, tmp_path: Path) -> None:
    save_state(tmp_path, trained.state)
    inputs = AgeInputs(growing_heads(2, 7)[0])
    expected = trained.model.predict(trained.state, inputs, ctx).ages
    assert np.array_equal(trained.model.predict(load_state(tmp_path), inputs, ctx).ages, expected)


class Killed(Exception):
    pass


def test_a_training_that_was_killed_goes_on_and_ends_alike(tmp_path: Path) -> None:
    model, data = tiny(iterations=12, validate_every=4, checkpoint_every=5, log_every=1), age_training(8, 3)

    def context(folder: str, log: Any) -> Context:
        return Context(4, "cpu", tmp_path / folder, log)

    def kill(name: str, step: int, value: float) -> None:
        if step == 8:
            raise Killed

    whole = model.fit(data, context("whole", lambda *_: None))
    with pytest.raises(Killed):
        model.fit(data, context("cut", kill))
    resumed = model.fit(data, context("cut", lambda *_: None))
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value) if isinstance(value, Tensor) else resumed[key] == value


def test_example_learns_and_predicts(tmp_path: Path) -> None:
    model, ctx = Tta2d.example(), Context(1, "cpu", tmp_path, lambda *_: None)
    found = model.predict(model.fit(age_training(4, 2), ctx), AgeInputs(growing_heads(2, 5)[0]), ctx)
    assert np.isfinite(found.ages).all()
